"""Shapes as files, read back by programs of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tfjoint import binvox, gallery, shapes, voxels
from tfjoint.shapes import ShapeError

RNG = np.random.default_rng(0)
PROBABILITIES = RNG.random((8, 8, 8)).astype(np.float32)


def solid() -> np.ndarray:
    """An L of two boxes; no edge is shared by more than two of its squares."""
    grid = np.zeros((8, 8, 8), bool)
    grid[1:7, 0:2, 2:5] = True
    grid[1:3, 2:8, 2:5] = True
    return grid


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_a_mesh_is_closed_and_holds_exactly_the_cells(tmp_path, suffix):
    grid = solid()
    shapes.write_shape(tmp_path / f"a{suffix}", grid)
    mesh = trimesh.load(tmp_path / f"a{suffix}", process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(grid.mean())
    np.testing.assert_allclose(mesh.bounds, [[-3 / 8, -0.5, -0.25], [3 / 8, 0.5, 1 / 8]])
    centres = (np.argwhere(np.ones_like(grid)) + 0.5) / 8 - 0.5
    np.testing.assert_array_equal(mesh.contains(centres).reshape(grid.shape), grid)


def test_both_meshes_are_the_same(tmp_path):
    for suffix in (".obj", ".ply"):
        shapes.write_shape(tmp_path / f"a{suffix}", PROBABILITIES)
    obj, ply = (trimesh.load(tmp_path / f"a{s}", process=False) for s in (".obj", ".ply"))
    np.testing.assert_allclose(obj.vertices, ply.vertices)
    np.testing.assert_array_equal(obj.faces, ply.faces)
    assert len(np.unique(obj.vertices, axis=0)) == len(obj.vertices)


def test_a_binvox_file_holds_the_cells_in_the_same_place_as_a_mesh(tmp_path):
    shapes.write_shape(tmp_path / "a.binvox", PROBABILITIES, 0.7)
    found = binvox.read_binvox(tmp_path / "a.binvox")
    np.testing.assert_array_equal(found.voxels, PROBABILITIES >= 0.7)
    grid = trimesh.load(tmp_path / "a.binvox", file_type="binvox")
    np.testing.assert_array_equal(grid.matrix, PROBABILITIES >= 0.7)
    assert (found.translate.tolist(), found.scale) == ([-0.5] * 3, 1)


def test_an_npz_file_holds_the_probabilities_and_the_threshold(tmp_path):
    shapes.write_shape(tmp_path / "a.npz", PROBABILITIES, 0.3)
    found = gallery.read_gallery(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.occupancy[0, 0, 0], PROBABILITIES)
    assert found.occupancy.dtype == np.float32 and found.threshold == 0.3
    shapes.write_shape(tmp_path / "b.npz", solid())
    found = gallery.read_gallery(tmp_path / "b.npz").occupancy
    assert found.dtype == bool
    np.testing.assert_array_equal(found[0, 0, 0], solid())


def test_a_png_file_is_the_picture_of_the_cells(tmp_path):
    shapes.write_shape(tmp_path / "a.png", PROBABILITIES, 0.9)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), voxels.picture(PROBABILITIES >= 0.9))


@pytest.mark.parametrize("suffix", shapes.SUFFIXES)
def test_an_empty_shape_is_written_too_and_nothing_else_is_left(tmp_path, suffix):
    path = tmp_path / "deep" / f"a{suffix.upper()}"
    shapes.write_shape(path, np.zeros((4, 4, 4), bool))
    assert path.stat().st_size > 15
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["shape", "shape.stl", "shape.npz.gz", ".obj"])
def test_another_suffix_is_refused_before_anything_is_written(tmp_path, name):
    path: Path = tmp_path / name
    for refuse in (shapes.require_suffix, lambda p: shapes.write_shape(p, solid())):
        with pytest.raises(ShapeError) as caught:
            refuse(path)
        assert str(caught.value) == (
            f"a shape is written as .binvox, .obj, .ply, .png, .npz; received '{path}': "
            "give it one of these suffixes"
        )
    assert not list(tmp_path.iterdir())


def test_probabilities_that_are_none_are_refused_in_an_npz_file(tmp_path):
    with pytest.raises(gallery.GalleryError, match="floating point in"):
        shapes.write_shape(tmp_path / "a.npz", PROBABILITIES * 2)
