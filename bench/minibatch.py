"""One minibatch for whoever is measured, with NumPy alone."""

from __future__ import annotations

import numpy as np

VOXEL_SIZE = 32


def make(
    objects: int, views: int, side: int, voxel_size: int = VOXEL_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Return noise as images [B, V, side, side, 3] float32 in [0, 1] and voxels [B, D, D, D] bool.

    The same at every call. What the numbers are takes no part in how long a step takes.
    """
    rng = np.random.default_rng(0)
    images = rng.random((objects, views, side, side, 3), np.float32)
    return images, rng.random((objects, *[voxel_size] * 3)) < 0.1
