"""A mesh as a solid occupancy grid, the longest side filling all D cells.

surface cells  +  cells enclosed by them  +  cells inside by ray parity that no axis sees
"""

from __future__ import annotations

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from tfjoint.binvox import Grid

_SAMPLE_SPACING = 0.4  # cells
_POINTS_AT_ONCE = 1 << 20
_MAX_CROSSINGS = 64
_PAST_A_CROSSING = 1e-3  # cells


def voxelize(corners: np.ndarray, size: int = 32) -> Grid:
    """Return the solid grid of triangles [F, 3 corners, 3 axes]; size is D."""
    points = corners.reshape(-1, 3)
    low, extent = points.min(0), np.ptp(points, axis=0)
    scale = float(extent.max())
    scaled = (corners - low) * (size / scale)
    used = np.clip(np.ceil(extent * (size / scale) - 1e-6).astype(int), 1, size)
    filled = fill_enclosed(_surface(scaled, used))
    filled |= hidden_from_axes(filled) & _inside_by_parity(scaled, used)
    voxels = np.zeros((size,) * 3, bool)
    start = (size - used) // 2
    voxels[tuple(slice(s, s + u) for s, u in zip(start, used))] = filled
    return Grid(voxels, low, scale)


def cell_centres(grid: Grid) -> np.ndarray:
    """Return the world positions [N, 3] of the occupied cells' centres."""
    index = np.argwhere(grid.voxels)
    size = grid.voxels.shape[0]
    return grid.translate + grid.scale * (index + 0.5 - index.min(0)) / size


def _surface(scaled: np.ndarray, used: np.ndarray) -> np.ndarray:
    # A lattice on every triangle, finer than a cell: what it marks has no gap to flood through.
    edges = np.linalg.norm(scaled - np.roll(scaled, 1, axis=1), axis=-1).max(1)
    steps = np.maximum(np.ceil(edges / _SAMPLE_SPACING).astype(int), 1)
    surface = np.zeros(used, bool)
    for count in np.unique(steps):
        lattice = _lattice(count)
        triangles = scaled[steps == count]
        stride = max(1, _POINTS_AT_ONCE // len(lattice))
        for first in range(0, len(triangles), stride):
            points = (lattice @ triangles[first : first + stride]).reshape(-1, 3)
            surface[tuple(np.minimum(points.astype(int), used - 1).T)] = True
    return surface


def _lattice(steps: int) -> np.ndarray:
    # Barycentric weights [P, 3] of a triangle cut into steps x steps small ones.
    a, b = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1), indexing="ij")
    inside = a + b <= steps
    a, b = a[inside], b[inside]
    return np.stack([steps - a - b, a, b], axis=-1) / steps


def fill_enclosed(surface: np.ndarray) -> np.ndarray:
    """Fill every cell that cannot be reached from outside by steps along the axes."""
    free = np.pad(~surface, 1, constant_values=True)
    reached = np.zeros_like(free)
    reached[0] = True
    while True:
        grown = reached.copy()
        for axis in range(3):
            ahead = np.moveaxis(grown, axis, 0)
            ahead[1:] |= ahead[:-1]
            ahead[:-1] |= ahead[1:]
            grown &= free  # after every axis, or the flood would turn a corner inside a wall
        if np.array_equal(grown, reached):
            return np.logical_not(reached[1:-1, 1:-1, 1:-1])
        reached = grown


def hidden_from_axes(occupied: np.ndarray) -> np.ndarray:
    """Return the cells with an occupied cell on both sides along each of the three axes."""
    hidden = np.ones_like(occupied)
    for axis in range(3):
        before = np.maximum.accumulate(occupied, axis)
        after = np.flip(np.maximum.accumulate(np.flip(occupied, axis), axis), axis)
        hidden &= before & after
    return hidden


def _inside_by_parity(scaled: np.ndarray, used: np.ndarray) -> np.ndarray:
    # Open or overlapping meshes mislead a ray now and then: two of three axes must agree.
    scene = EmbreeScene()
    geometry = TriangleMesh(scene, scaled.astype(np.float32))  # kept alive while the scene is used
    votes = np.sum([_parity(scene, used, axis) for axis in range(3)], axis=0)
    del geometry
    return votes >= 2


def _parity(scene: EmbreeScene, used: np.ndarray, axis: int) -> np.ndarray:
    others = [other for other in range(3) if other != axis]
    # Off the cell's middle, where modelled edges like to lie.
    grids = np.meshgrid(*[np.arange(used[o]) + 0.5123 for o in others], indexing="ij")
    origins = np.full((grids[0].size, 3), -1.0, np.float32)
    for other, values in zip(others, grids):
        origins[:, other] = values.ravel()
    directions = np.zeros_like(origins)
    directions[:, axis] = 1.0
    crossed = np.zeros((len(origins), used[axis] + 1), int)
    for ray, position in _crossings(scene, origins, directions, axis):
        cell = np.clip(np.ceil(position - 0.5).astype(int), 0, used[axis])
        np.add.at(crossed, (ray, cell), 1)
    inside = np.cumsum(crossed, axis=1)[:, :-1] % 2 == 1
    return np.moveaxis(inside.reshape(*(used[o] for o in others), used[axis]), -1, axis)


def _crossings(scene, origins, directions, axis):
    # Yields (ray indices, positions along the axis) of the first hits, then of the second, ...
    alive = np.arange(len(origins))
    origins = origins.copy()
    for _ in range(_MAX_CROSSINGS):
        found = scene.run(origins[alive], directions[alive], output=True)
        hit = found["primID"] >= 0
        alive = alive[hit]
        if not len(alive):
            return
        origins[alive, axis] += found["tfar"][hit]
        yield alive, origins[alive, axis].copy()
        origins[alive, axis] += _PAST_A_CROSSING
