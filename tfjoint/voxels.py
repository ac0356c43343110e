"""Occupancy grids as surfaces and as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_PICTURE_WIDTH = 512  # pixels
_LINE = 0.12  # how much darker a cube's edges are

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


def picture(voxels: np.ndarray, colour: Sequence[int] = (90, 170, 90)) -> np.ndarray:
    """Return the occupied cells as shaded cubes on white, [H, W, 3] uint8.

    A parallel projection from 30 degrees above, between +x and +z: what is in ShapeNet's pose looks
    to the lower right. H and W depend on D alone: about 570 and 512 pixels up to D = 64.

    Args:
      voxels: [D, D, D] bool (x, y up, z).
      colour: of the faces that look up, red, green and blue in 0..255.
    """
    occupied = np.asarray(voxels, bool)
    side = len(occupied)
    half = 4 * max(1, _PICTURE_WIDTH // (4 * side))  # of a cube's width, drawn twice as large
    cube, mask = _cube(half, np.array(colour, np.float64))
    rise = len(cube) - half
    canvas = np.full((side * len(cube), side * 2 * half, 3), 255, np.uint8)
    seen = np.zeros_like(occupied)
    for axis in range(3):
        hidden = np.roll(np.pad(occupied, 1), -1, axis)[1:-1, 1:-1, 1:-1]
        seen |= occupied & ~hidden
    # The order of indices is from back to front.
    for x, y, z in np.argwhere(seen).tolist():
        top = (x + z) * half // 2 + (side - 1 - y) * rise
        left = (x - z + side - 1) * half
        canvas[top : top + len(cube), left : left + 2 * half][mask] = cube[mask]
    small = canvas.reshape(len(canvas) // 2, 2, side * half, 2, 3).mean(axis=(1, 3))
    return np.round(small).astype(np.uint8)


def _cube(half: int, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The picture of one cell, and where in it the cell is: a hexagon that tiles without gaps.
    rise = 2 * round(half * 1.2247 / 2)  # an edge upwards is as long as the other edges
    row = np.arange(half + rise)[:, np.newaxis] + 0.5
    slant = np.abs(np.arange(2 * half) + 0.5 - half) / 2
    mask = (row > slant) & (row < half + rise - slant)
    right = np.arange(2 * half) >= half
    shade = np.where(row < half - slant, 1.0, np.where(right, 0.78, 0.6))
    inside = (row > slant + 1) & (row < half + rise - slant - 1)
    inside &= (slant < half / 2 - 1) & (np.abs(row - half + slant) > 1)
    inside &= (slant > 0.5) | (row < half)
    shade = shade * np.where(inside, 1, 1 - _LINE)
    return np.round(shade[..., np.newaxis] * colour).astype(np.uint8), mask
