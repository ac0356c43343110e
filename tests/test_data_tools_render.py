"""Cameras, ray casting, and that views and grids lie in the same world."""

from __future__ import annotations

import furniture
import numpy as np
import pytest

from data_tools import meshes, render, voxelize

# One unit long in x, short in the other axes, and without symmetry.
CELL = 1 / 16
STEPS = (
    ((-8, -5, -4), (8, -3, 3)),
    ((-8, -3, -4), (-5, 5, 0)),
    ((2, -3, -4), (5, 0, -1)),
)


@pytest.fixture(scope="module")
def steps():
    boxes = [tuple(tuple(CELL * v for v in corner) for corner in box) for box in STEPS]
    return furniture.box_mesh(*boxes)


def _cells_as_mesh(centres, side):
    return furniture.box_mesh(*[(c - side / 2, c + side / 2) for c in centres])


def _iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_cameras_are_a_pure_function_of_seed_and_object():
    first = render.cameras(3, "chair", 6)
    np.testing.assert_array_equal(first, render.cameras(3, "chair", 6))
    np.testing.assert_array_equal(first[:2], render.cameras(3, "chair", 2))
    assert not np.allclose(first, render.cameras(4, "chair", 6))
    assert not np.allclose(first, render.cameras(3, "table", 6))
    assert len(np.unique(first[:, 0])) == 6


def test_cameras_stay_in_the_ranges_of_the_data_set():
    azimuth, elevation, rotation, ratio = render.cameras(0, "a", 500).T
    assert 0 <= azimuth.min() < 5 and 355 < azimuth.max() < 360
    assert 25 <= elevation.min() < 25.1 and 29.9 < elevation.max() <= 30
    assert (rotation == 0).all()
    assert 0.65 <= ratio.min() < 0.66 and 0.94 < ratio.max() <= 0.95


def test_the_camera_stands_where_the_formula_says():
    frame = render.camera_frame(np.array([90.0, 30.0, 0.0, 0.8]))
    np.testing.assert_allclose(frame.position, 1.4 * np.array([0, 0.5, np.sqrt(0.75)]), atol=1e-12)
    # From +z, x points to the right.
    np.testing.assert_allclose(frame.right, [1, 0, 0], atol=1e-12)
    axes = np.stack([frame.right, frame.up, -frame.forward])
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)


def test_in_plane_rotation_is_refused():
    with pytest.raises(ValueError, match=r"must be 0. Received: 5"):
        render.camera_frame(np.array([0.0, 25.0, 5.0, 0.8]))


def test_projection_follows_the_focal_length():
    camera = np.array([90.0, 0.0, 0.0, 1 / 1.75])  # at (0, 0, 1)
    points = [[0, 0, 0], [0.1, 0, 0], [0, 0.2, 0], [0.1, 0, 0.5]]
    expected = [[64, 64], [64 + 14, 64], [64, 64 - 28], [64 + 28, 64]]
    np.testing.assert_allclose(render.project(points, camera, 128), expected)


def test_rays_hit_where_projection_says(steps):
    small = furniture.box_mesh(((0.2, 0.1, -0.3), (0.22, 0.12, -0.28)))
    renderer = render.Renderer(small)
    for camera in render.cameras(0, "small", 8):
        rows, columns = np.nonzero(renderer.render(camera, 256)[..., 3])
        middle = render.project([[0.21, 0.11, -0.29]], camera, 256)[0]
        np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], middle, atol=0.6)


def test_views_have_soft_edges_and_black_where_nothing_is(steps):
    view = render.Renderer(steps).render(render.cameras(0, "steps", 1)[0], 64)
    assert view.shape == (64, 64, 4) and view.dtype == np.uint8
    alpha = view[..., 3]
    assert set(np.unique(alpha)) == {0, 64, 128, 191, 255}
    assert (view[alpha == 0] == 0).all()
    assert (view[alpha > 0][:, :3].min(1) > 50).all()
    assert 0 in (alpha[0].max(), alpha[:, 0].max())


def test_one_ray_per_pixel_has_hard_edges(steps):
    view = render.Renderer(steps).render(render.cameras(0, "steps", 1)[0], 64, supersampling=1)
    assert set(np.unique(view[..., 3])) == {0, 255}


def test_every_pixel_has_the_hue_of_the_material():
    mesh = furniture.box_mesh(((-0.3, -0.3, -0.3), (0.3, 0.3, 0.3)), colour=(0.8, 0.4, 0.0))
    view = render.Renderer(mesh).render(render.cameras(0, "box", 1)[0], 64).astype(float)
    red, green, blue, _ = view[view[..., 3] == 255].T
    np.testing.assert_allclose(green, red / 2, atol=1)
    assert (blue == 0).all()
    assert len(np.unique(red)) >= 3  # three visible sides, three shades


def test_shade_does_not_depend_on_the_order_of_corners(steps):
    camera = render.cameras(0, "steps", 1)[0]
    view = render.Renderer(steps).render(camera, 48)
    flipped = meshes.Mesh(steps.corners[:, ::-1].copy(), steps.uv, steps.material, steps.materials)
    difference = view.astype(int) - render.Renderer(flipped).render(camera, 48)
    assert np.abs(difference).max() <= 1


def test_textures_lie_the_right_way_up():
    # One upright square facing +z, red in the upper half of its image.
    corners = np.array([[[-1, -1, 0], [1, -1, 0], [1, 1, 0]], [[-1, -1, 0], [1, 1, 0], [-1, 1, 0]]])
    uv = (corners[..., :2] + 1) / 2
    texture = np.zeros((4, 4, 3), np.float32)
    texture[:2, :, 0], texture[2:, :, 2], texture[:, 2:, 1] = 1, 1, 1
    material = meshes.Material(np.ones(3), texture)
    mesh = meshes.Mesh(0.3 * corners, uv.astype(float), np.zeros(2, int), (material,))
    camera = np.array([90.0, 25.0, 0.0, 0.7])
    view = render.Renderer(mesh).render(camera, 64)
    where = [[-0.2, 0.2, 0], [0.2, 0.2, 0], [-0.2, -0.2, 0], [0.2, -0.2, 0]]
    seen = [view[int(row), int(col), :3] > 0 for col, row in render.project(where, camera, 64)]
    assert seen[0].tolist() == [True, False, False]
    assert seen[1].tolist() == [True, True, False]
    assert seen[2].tolist() == [False, False, True]
    assert seen[3].tolist() == [False, True, True]


def test_texture_coordinates_beyond_one_repeat_the_texture():
    texture = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    uv = np.array([[0.25, 0.75], [1.25, -0.25], [-0.75, 3.75]])
    np.testing.assert_array_equal(render._sample(texture, uv), texture[[0, 0, 0], [0, 0, 0]])


def test_projected_voxels_cover_the_silhouettes_of_the_views(steps):
    grid = voxelize.voxelize(steps.corners, 32)
    cells = render.Renderer(_cells_as_mesh(voxelize.cell_centres(grid), grid.scale / 32))
    renderer = render.Renderer(steps)
    for camera in render.cameras(0, "steps", 12):
        view = renderer.render(camera, 64)[..., 3] > 127
        assert _iou(view, cells.render(camera, 64)[..., 3] > 127) > 0.9


def test_without_the_lowest_index_the_voxels_would_miss_the_silhouettes(steps):
    grid = voxelize.voxelize(steps.corners, 32)
    usual = grid.translate + grid.scale * (np.argwhere(grid.voxels) + 0.5) / 32
    cells = render.Renderer(_cells_as_mesh(usual, grid.scale / 32))
    camera = render.cameras(0, "steps", 1)[0]
    view = render.Renderer(steps).render(camera, 64)[..., 3] > 127
    assert _iou(view, cells.render(camera, 64)[..., 3] > 127) < 0.7


def test_rays_beside_the_bounding_box_meet_nothing(steps, monkeypatch):
    renderer = render.Renderer(steps)
    cameras = [*render.cameras(0, "steps", 6), np.array([200.0, 26.0, 0.0, 0.4])]
    windows = [renderer.cast(camera, 60) for camera in cameras]
    monkeypatch.setattr(renderer, "_window", lambda camera, size: (slice(0, 60), slice(0, 60)))
    for camera, window in zip(cameras, windows):
        np.testing.assert_array_equal(window, renderer.cast(camera, 60))


def test_a_pixel_is_the_mean_of_the_rays_in_it():
    rays = np.random.default_rng(0).random((12, 12, 4))
    rays[..., 3] = rays[..., 3] < 0.5
    rays[..., :3] *= rays[..., 3:]
    image = render.develop(rays, 4)
    block = rays[3:6, 6:9]
    assert image[1, 2, 3] == round(255 * block[..., 3].mean())
    colour = block[..., :3].sum((0, 1)) / block[..., 3].sum()
    np.testing.assert_allclose(image[1, 2, :3], 255 * colour, atol=0.5)


def test_a_ray_in_two_pixels_counts_for_each_by_its_share():
    # Seven rays to four pixels: the second pixel holds 1/4 + 1 + 1/2 of rays 1, 2 and 3.
    rays = np.zeros((7, 7, 4))
    rays[:, 1], rays[:, 3] = (1, 0, 0, 1), (0, 1, 0, 1)
    image = render.develop(rays, 4)
    share = np.array([0.25, 0.5]) / 1.75
    assert image[2, 1].tolist() == [
        *(round(255 * part / share.sum()) for part in share),
        *(0, round(255 * share.sum())),
    ]
    whole = render.develop(np.ones((274, 274, 4)), 68)
    assert (whole == 255).all()


@pytest.mark.parametrize("size", [4, 7, 13])
@pytest.mark.parametrize("window", [(0, 13, 0, 13), (2, 5, 9, 13), (12, 13, 0, 1), (6, 6, 6, 6)])
def test_what_is_seen_may_be_anywhere_or_nothing(window, size):
    rays = np.zeros((13, 13, 4))
    top, bottom, left, right = window
    seen = rays[top:bottom, left:right]
    seen[..., 3] = 1
    seen[..., :3] = np.random.default_rng(0).random(seen.shape)[..., :3]
    # Every ray as size x size little ones, every pixel as 13 x 13 of them.
    fine = rays.repeat(size, 0).repeat(size, 1).reshape(size, 13, size, 13, 4).mean((1, 3))
    covered = fine[..., 3:]
    expected = np.concatenate([fine[..., :3] / np.maximum(covered, 1e-9), covered], -1)
    np.testing.assert_allclose(render.develop(rays, size), 255 * expected, atol=0.5001)


def test_a_smaller_view_of_the_same_rays_shows_the_same(steps):
    camera = render.cameras(0, "steps", 1)[0]
    rays = render.Renderer(steps).cast(camera, 274)
    small = render.develop(rays, 68).astype(float)
    other = render.Renderer(steps).render(camera, 68, 4).astype(float)
    assert np.abs(small - other)[..., 3].mean() < 2
    inside = (small[..., 3] == 255) & (other[..., 3] == 255)
    assert np.abs(small - other)[inside].mean() < 2
