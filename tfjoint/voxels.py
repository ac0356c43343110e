"""Occupancy grids as surfaces, for pictures."""

from __future__ import annotations

import numpy as np

# The four corners of a cube's face, for the face towards +x, in an order that turns outwards.
_FACE = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1]])


def surface(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the outer faces of an occupancy grid as a triangle mesh.

    Args:
      voxels: [D, D, D] bool.

    Returns:
      vertices [N, 3] float32 in [-1/2, 1/2], and faces [M, 3] int32, two triangles per square,
      counter-clockwise from outside. An empty grid gives one triangle of no area, because
      viewers refuse a mesh without any.
    """
    padded = np.pad(np.asarray(voxels, bool), 1)
    squares = []
    for axis in range(3):
        for direction in (1, -1):
            open_side = padded & ~np.roll(padded, -direction, axis)
            cells = np.argwhere(open_side[1:-1, 1:-1, 1:-1])
            squares.append(cells[:, np.newaxis] + _corners(axis, direction))  # [n, 4, 3]
    corners = np.concatenate(squares).reshape(-1, 3)
    if not len(corners):
        return np.zeros((3, 3), np.float32), np.array([[0, 1, 2]], np.int32)
    first = np.arange(0, len(corners), 4)[:, np.newaxis]
    faces = np.concatenate([first + np.array(half) for half in ((0, 1, 2), (0, 2, 3))])
    return (corners / voxels.shape[0] - 0.5).astype(np.float32), faces.astype(np.int32)


def _corners(axis: int, direction: int) -> np.ndarray:
    corners = np.roll(_FACE, axis, axis=1)  # a cyclic change of axes keeps the orientation
    if direction > 0:
        return corners
    mirrored = corners.copy()
    mirrored[:, axis] = 0
    return mirrored[::-1]
