"""Surfaces of occupancy grids: closed, turned outwards, and nothing inside."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tfjoint import voxels


def solid(*cells: tuple[int, int, int], side: int = 4) -> np.ndarray:
    grid = np.zeros((side, side, side), bool)
    for cell in cells:
        grid[cell] = True
    return grid


def random_grid(seed: int, side: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).random((side, side, side)) < 0.4


GRIDS = {
    "one cell": solid((1, 2, 3)),
    "a corner of the cube": solid((0, 0, 0)),
    "the opposite corner": solid((3, 3, 3)),
    "two cells side by side": solid((1, 1, 1), (1, 2, 1)),
    "two cells that share an edge": solid((1, 1, 1), (2, 2, 1)),
    "full": np.ones((3, 3, 3), bool),
    "hollow": np.pad(np.zeros((1, 1, 1), bool), 1, constant_values=True),
    "random": random_grid(0),
    "random too": random_grid(1, 9),
}


@pytest.fixture(params=GRIDS, name="grid")
def _grid(request) -> np.ndarray:
    return GRIDS[request.param]


def triangles(grid: np.ndarray) -> np.ndarray:
    """The corners [M, 3, 3] of all triangles, in cells."""
    vertices, faces = voxels.surface(grid)
    assert vertices.dtype == np.float32 and faces.dtype == np.int32
    assert faces.min() >= 0 and faces.max() < len(vertices)
    return ((vertices.astype(np.float64) + 0.5) * len(grid))[faces]


def test_vertices_are_corners_of_cells_of_a_cube_around_the_origin(grid):
    vertices, _ = voxels.surface(grid)
    assert vertices.min() >= -0.5 and vertices.max() <= 0.5
    corners = triangles(grid)
    np.testing.assert_allclose(corners, np.round(corners), atol=1e-5)


def test_a_surface_is_closed(grid):
    """Every edge is walked as often in one direction as in the other."""
    edges = Counter()
    for triangle in np.round(triangles(grid)).astype(int).tolist():
        a, b, c = map(tuple, triangle)
        edges.update([(a, b), (b, c), (c, a)])
    assert all(count == edges[end, start] for (start, end), count in edges.items())


def test_the_signed_volume_of_a_surface_is_the_number_of_cells(grid):
    a, b, c = np.moveaxis(triangles(grid), 1, 0)
    volume = np.sum(a * np.cross(b, c)) / 6
    assert volume == pytest.approx(grid.sum(), abs=1e-4)
    vertices, faces = voxels.surface(grid)
    a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
    assert np.sum(a * np.cross(b, c)) / 6 == pytest.approx(grid.mean(), abs=1e-6)


def test_there_is_one_square_between_every_full_and_empty_cell_and_no_other(grid):
    found = Counter()
    corners = triangles(grid)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(np.abs(normals).sum(axis=1), 1, atol=1e-4)  # half a square each
    for triangle, normal in zip(corners, np.round(normals).astype(int)):
        middle = (triangle.min(axis=0) + triangle.max(axis=0)) / 2
        inside = np.floor(middle - normal / 2).astype(int)
        found[(*inside.tolist(), *normal.tolist())] += 1
    expected = set()
    padded = np.pad(grid, 1)
    for cell in np.argwhere(grid):
        for axis in range(3):
            for direction in (-1, 1):
                normal = [0, 0, 0]
                normal[axis] = direction
                if not padded[tuple(cell + 1 + normal)]:
                    expected.add((*cell.tolist(), *normal))
    assert set(found) == expected
    assert set(found.values()) == {2}


def test_an_empty_grid_gives_one_triangle_without_area():
    vertices, faces = voxels.surface(np.zeros((4, 4, 4), bool))
    assert vertices.shape == (3, 3) and faces.tolist() == [[0, 1, 2]]
    assert (vertices.dtype, faces.dtype) == (np.float32, np.int32)
    assert not vertices.any()


def test_a_grid_of_zeros_and_ones_is_taken_too():
    for found, expected in zip(voxels.surface(GRIDS["random"].astype(int)),
                               voxels.surface(GRIDS["random"])):  # fmt: skip
        np.testing.assert_array_equal(found, expected)
