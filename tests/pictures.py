"""Views of nothing in particular, and files of them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIZE = 32
"""Side of a view of the tiny records' models."""


def noise(objects: int = 1, views: int = 2, seed: int = 0) -> np.ndarray:
    """Pixels [objects, views, SIZE, SIZE, 3] uint8."""
    shape = (objects, views, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """A file of pixels [H, W] or [H, W, channels]."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
