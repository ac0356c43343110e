"""Surfaces of occupancy grids: closed, turned outwards, nothing inside; and their pictures."""

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


# --- Pictures -------------------------------------------------------------------------------------


def looked_at(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture, and the faces in it found by shooting a ray through every pixel's middle.

    The faces are 1, 2 and 3 for those towards +x, +y and +z, and 0 for none.
    """
    shown = voxels.picture(grid)
    side, (height, width, _) = len(grid), shown.shape
    half, rise = width / (2 * side), height / side - width / (2 * side)
    row, column = (np.indices((height, width)) + 0.5).reshape(2, -1)
    # A point (x, y, z) is drawn in column (x - z + D) half, row (x + z) half / 2 + (D - y) rise.
    across, down = column / half - side, (row - side * rise) / (half / 2)
    start = np.stack([(down + across) / 2, np.zeros_like(row), (down - across) / 2], axis=-1)
    towards = np.array([1, half / rise, 1])  # the viewer; a step that stays on the same pixel
    first = np.zeros(len(row), int)
    best = np.full(len(row), -np.inf)
    for axis in range(3):
        for plane in range(1, side + 1):
            steps = (plane - start[:, axis]) / towards[axis]
            cell = np.floor(start + steps[:, np.newaxis] * towards).astype(int)
            cell[:, axis] = plane - 1
            inside = np.all((cell >= 0) & (cell < side), axis=1)
            hit = inside & grid[tuple(np.clip(cell, 0, side - 1).T)] & (steps > best)
            first[hit], best[hit] = axis + 1, steps[hit]
    return shown, first.reshape(height, width)


@pytest.mark.parametrize("name", ["one cell", "two cells that share an edge", "full", "random"])
def test_every_pixel_has_the_shade_of_the_face_that_a_ray_through_it_hits(name):
    shown, faces = looked_at(GRIDS[name])
    green = shown[..., 1].astype(int)
    expected = np.array([255, 133, 170, 102])[faces]  # 78 %, all and 60 % of a green of 170
    # Within a pixel of an edge there are lines and mixed colours.
    same = np.ones(faces.shape, bool)
    for axis in (0, 1):
        for step in (1, -1):
            same &= np.roll(faces, step, axis) == faces
    clear = np.abs(green - expected) <= 1
    assert clear[same].mean() > 0.85
    assert clear[same & (faces == 0)].all()
    assert (green[same & (faces > 0)] < 175).all()
    assert {0, 1, 2, 3} == set(np.unique(faces[same]))


def test_a_picture_of_nothing_is_white_and_of_the_size_of_any_other():
    empty = voxels.picture(np.zeros((32, 32, 32), bool))
    assert empty.shape == voxels.picture(np.ones((32, 32, 32), bool)).shape == (576, 512, 3)
    assert (empty == 255).all()


def test_the_colour_of_a_picture_can_be_chosen():
    shown = voxels.picture(GRIDS["full"], colour=(200, 0, 0))
    assert (shown[shown[..., 0] < 255][..., 1] == 0).mean() > 0.9
    assert shown.reshape(-1, 3)[:, 0].tolist().count(200) > 1000
