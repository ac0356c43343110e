"""Reading, turning and varying meshes."""

from __future__ import annotations

import dataclasses

import furniture
import numpy as np
import pytest

from data_tools import meshes
from tfjoint.errors import UserError

CHAIR = furniture.chair("low", 1.0, 2.0)
POSE = meshes.pose("y", "z")


def _extent(mesh):
    points = mesh.corners.reshape(-1, 3)
    return points.min(0), points.max(0)


def _load(text, **files):
    named = {name.replace("_", "."): data for name, data in files.items()}
    return meshes.load_obj({"x.obj": text.encode(), **named}, "x.obj")


def test_an_obj_gives_two_triangles_per_quad_and_the_colours_of_its_materials():
    text = "mtllib m.mtl\nusemtl a\n" + furniture.obj_text(CHAIR.boxes)
    mesh = _load(text, m_mtl=b"newmtl a\nKd 0.2 0.4 0.6\n")
    assert mesh.corners.shape == (2 * 12, 3, 3)
    np.testing.assert_allclose(mesh.materials[0].colour, [0.2, 0.4, 0.6], atol=1 / 255)
    np.testing.assert_allclose(_extent(mesh), [[-1, 0, -1], [1, 3, 1]])


def test_faces_keep_their_material_and_texture_coordinates():
    text = (
        "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt 1 0\nvt 0 1\n"
        "usemtl plain\nf 1 2 4\nusemtl image\nf 1/1 2/2 3/3\n"
    )
    png = furniture.PNG_RED_OVER_BLUE.getvalue()
    mesh = _load(text, m_mtl=b"newmtl plain\nKd 0 1 0\nnewmtl image\nmap_Kd t.png\n", t_png=png)
    for face, corners in zip(mesh.material, mesh.corners):
        material = mesh.materials[face]
        if (corners[:, 2] == 0).all():
            np.testing.assert_array_equal(material.texture[:, 0], [[1, 0, 0], [0, 0, 1]])
        else:
            assert material.texture is None
            np.testing.assert_array_equal(material.colour, [0, 1, 0])
    (textured,) = mesh.uv[mesh.corners[:, :, 2].max(1) == 0]
    np.testing.assert_array_equal(textured, [[0, 0], [1, 0], [0, 1]])


def test_an_obj_without_materials_is_grey():
    mesh = _load(furniture.obj_text(CHAIR.boxes))
    assert len({*np.round(mesh.materials[0].colour, 3)}) == 1


@pytest.mark.parametrize("text", ["", "v 0 0 0\nv 1 0 0\n"])
def test_an_obj_without_faces_is_unusable(text):
    with pytest.raises(meshes.UnusableMesh, match="no faces"):
        _load(text)


def test_an_obj_that_cannot_be_read_is_unusable():
    with pytest.raises(meshes.UnusableMesh, match="cannot be read"):
        _load("v 0 0 0\nv a b c\nf 1 2 3\n")


def test_a_prepared_chair_stands_upright_with_its_back_at_minus_x():
    mesh = meshes.prepare(furniture.box_mesh(*CHAIR.boxes), POSE)
    low, high = _extent(mesh)
    np.testing.assert_allclose(low + high, 0, atol=1e-12)
    assert np.linalg.norm(high - low) == pytest.approx(1)
    top = mesh.corners.reshape(-1, 3)
    top = top[top[:, 1] > high[1] - 1e-9]
    np.testing.assert_allclose(high - low, np.array([2, 3, 2]) / np.sqrt(17))
    assert top[:, 0].min() == pytest.approx(low[0]) and top[:, 0].max() < 0


def test_the_right_hand_of_a_prepared_mesh_stays_right():
    # A rotation, not a reflection: text on a textured front would otherwise read backwards.
    box = furniture.box_mesh(((0, 0, 0), (3, 2, 1)))
    turned = meshes.prepare(box, POSE)
    before = np.linalg.det(box.corners[[0, 2, 4], 1] - box.corners[[0, 2, 4], 0])
    after = np.linalg.det(turned.corners[[0, 2, 4], 1] - turned.corners[[0, 2, 4], 0])
    assert before * after > 0


def test_the_catalogue_rotation_comes_before_the_turn():
    # z up in the file; the catalogue's matrix lays it upright.
    lying = furniture.box_mesh(((0, 0, 0), (1, 2, 5)))
    upright = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    low, high = _extent(meshes.prepare(lying, POSE @ upright))
    np.testing.assert_allclose(high - low, np.array([2, 5, 1]) / np.sqrt(30))


@pytest.mark.parametrize("up", meshes.DIRECTIONS)
@pytest.mark.parametrize("front", meshes.DIRECTIONS)
def test_a_pose_turns_up_to_y_and_front_to_x(up, front):
    if up[-1] == front[-1]:
        with pytest.raises(UserError, match=r"not at right angles"):
            meshes.pose(up, front)
        return
    rotation = meshes.pose(up, front)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_array_equal(rotation @ meshes.DIRECTIONS[up], [0, 1, 0])
    np.testing.assert_array_equal(rotation @ meshes.DIRECTIONS[front], [1, 0, 0])


@pytest.mark.parametrize("high", [(0, 0, 0), (1, 0, 0)])
def test_a_mesh_without_extent_is_unusable(high):
    with pytest.raises(meshes.UnusableMesh, match="extent"):
        meshes.normalize(furniture.box_mesh(((0, 0, 0), high)))


@pytest.fixture(scope="module")
def prepared():
    return meshes.prepare(furniture.box_mesh(*CHAIR.boxes, colour=(0.9, 0.5, 0.1)), POSE)


def test_a_copy_is_a_pure_function_of_seed_object_and_number(prepared):
    first = meshes.augment(prepared, 0, "a", 1)
    again = meshes.augment(prepared, 0, "a", 1)
    np.testing.assert_array_equal(first.corners, again.corners)
    np.testing.assert_array_equal(first.materials[0].colour, again.materials[0].colour)
    for other in ((1, "a", 1), (0, "b", 1), (0, "a", 2)):
        different = meshes.augment(prepared, *other)
        assert not np.allclose(first.corners, different.corners)
        assert not np.allclose(first.materials[0].colour, different.materials[0].colour)


def test_copies_are_scaled_within_bounds_mirrored_in_z_alone_and_normalised(prepared):
    low, high = _extent(prepared)
    mirrored = 0
    for number in range(1, 41):
        copy = meshes.augment(prepared, 0, "a", number)
        copy_low, copy_high = _extent(copy)
        np.testing.assert_allclose(copy_low + copy_high, 0, atol=1e-12)
        assert np.linalg.norm(copy_high - copy_low) == pytest.approx(1)
        ratio = (copy_high - copy_low) / (high - low)
        assert ratio.max() / ratio.min() <= 1.33 / 0.75 + 1e-9
        factors = copy.corners.reshape(-1, 3) / prepared.corners.reshape(-1, 3)
        assert (np.sign(factors[:, :2]) == 1).all()
        mirrored += np.sign(factors[0, 2]) == -1
    assert 8 <= mirrored <= 32


def test_a_recoloured_texture_changes_with_its_material(prepared):
    material = meshes.Material(np.ones(3), np.full((2, 2, 3), [0.9, 0.5, 0.1], np.float32))
    copy = meshes.augment(dataclasses.replace(prepared, materials=(material,)), 0, "a", 1)
    texture = copy.materials[0].texture
    assert texture.dtype == np.float32 and 0 <= texture.min() and texture.max() <= 1
    assert not np.allclose(texture, material.texture)
    assert np.ptp(texture.reshape(-1, 3), axis=0).max() == 0
