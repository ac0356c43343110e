"""Solid grids against shapes known in closed form."""

from __future__ import annotations

import furniture
import numpy as np
import trimesh

from data_tools import voxelize


def _sphere(subdivisions=3):
    sphere = trimesh.creation.icosphere(subdivisions, radius=0.5)
    return np.asarray(sphere.triangles)


def test_a_box_fills_exactly_its_cells_centred_in_the_grid():
    corners = furniture.box_mesh(((0, 0, 0), (4, 2, 1))).corners
    grid = voxelize.voxelize(corners, 32)
    expected = np.zeros((32, 32, 32), bool)
    expected[:, 8:24, 12:20] = True
    np.testing.assert_array_equal(grid.voxels, expected)
    np.testing.assert_array_equal(grid.translate, [0, 0, 0])
    assert grid.scale == 4


def test_cell_centres_lie_in_the_box_they_came_from():
    low, high = np.array([0.3, -2.0, 1.0]), np.array([1.3, 0.5, 1.9])
    grid = voxelize.voxelize(furniture.box_mesh((low, high)).corners, 20)
    centres = voxelize.cell_centres(grid)
    half = grid.scale / 40
    np.testing.assert_allclose(centres.min(0), low + half, atol=1e-9)
    assert (centres < high + half).all()
    assert len(centres) == grid.voxels.sum()


def test_a_sphere_is_solid_and_round():
    grid = voxelize.voxelize(_sphere(), 32)
    index = np.indices((32, 32, 32)) + 0.5 - 16
    radius = np.sqrt((index**2).sum(0))
    assert grid.voxels[radius < 15].all()
    assert not grid.voxels[radius > 17].any()


def test_every_surface_cell_is_found_even_of_large_thin_triangles():
    rng = np.random.default_rng(0)
    triangle = rng.random((1, 3, 3))
    weights = rng.dirichlet([1, 1, 1], 20000)
    grid = voxelize.voxelize(triangle, 32)
    low = triangle[0].min(0)
    cells = ((weights @ triangle[0] - low) / grid.scale * 32).astype(int)
    used = np.argwhere(grid.voxels)
    found = {tuple(cell) for cell in used - used.min(0)}
    hit = np.mean([tuple(cell) in found for cell in cells.tolist()])
    assert hit > 0.98


def test_enclosed_cells_are_filled_and_open_ones_are_not():
    surface = np.ones((6, 6, 6), bool)
    surface[1:5, 1:5, 1:5] = False
    assert voxelize.fill_enclosed(surface).all()
    surface[0, 2, 2] = False
    np.testing.assert_array_equal(voxelize.fill_enclosed(surface), surface)


def test_the_flood_does_not_turn_a_corner_through_an_edge():
    surface = np.zeros((5, 5, 5), bool)
    # An octahedral shell: its cells touch each other by edges only.
    index = np.abs(np.indices((5, 5, 5)) - 2).sum(0)
    surface[index == 2] = True
    np.testing.assert_array_equal(voxelize.fill_enclosed(surface), index <= 2)


def test_a_crack_in_the_surface_does_not_empty_the_inside():
    triangles = _sphere()
    cracked = triangles[np.abs(triangles.mean(1) - [0.5, 0, 0]).max(1) > 0.08]
    assert len(cracked) < len(triangles)
    whole, solid = voxelize.voxelize(triangles, 32).voxels, voxelize.voxelize(cracked, 32).voxels
    # The open cells alone are those that an axis sees through the crack.
    assert solid[whole].mean() > 0.95
    assert not solid[~whole].any()


def test_an_open_bowl_stays_open():
    triangles = _sphere()
    bowl = voxelize.voxelize(triangles[triangles[..., 1].max(1) <= 0.01], 32).voxels
    assert bowl.any(1).sum() > 700
    assert bowl.mean() < 0.2


def test_a_flat_mesh_is_one_cell_thin():
    grid = voxelize.voxelize(furniture.box_mesh(((0, 0, 0), (1, 0, 1))).corners, 16)
    assert grid.voxels.sum() == 256
    assert grid.voxels.any((0, 2)).sum() == 1


def test_only_cells_between_others_on_all_axes_are_hidden():
    occupied = np.zeros((3, 3, 3), bool)
    for axis in range(3):
        for end in (0, 2):
            occupied[tuple(end if a == axis else 1 for a in range(3))] = True
    assert voxelize.hidden_from_axes(occupied)[1, 1, 1]
    occupied[1, 1, 2] = False
    assert not voxelize.hidden_from_axes(occupied)[1, 1, 1]
