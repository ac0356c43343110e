"""Pictures as PNG files, read back by others."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfjoint import png


def slope(height: int, width: int) -> np.ndarray:
    """[H, W, 3] uint8 that changes from row to row, and wraps."""
    rows, columns, channels = np.ogrid[:height, :width, :3]
    return (7 * rows + 3 * columns + 90 * channels).astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("make", [slope, noise, lambda *size: np.zeros((*size, 3), np.uint8)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (33, 20), (5, 68)])
def test_decoded_pixels_are_stored_as_they_are(make, size):
    pixels = make(*size)
    stored = png.encode_png(pixels)
    np.testing.assert_array_equal(tf.io.decode_png(stored), pixels)
    image = Image.open(io.BytesIO(stored))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)
