"""A folder of somebody's meshes: every format, any names, files that lie or cannot be used."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import furniture
import numpy as np
import pytest
import trimesh
from PIL import Image
from stderr import own_lines

from data_tools import layout, mesh_folder, mesh_set, meshes, render, splits, voxelize
from data_tools.layout import Model
from data_tools.mesh_folder import FileEntry, FolderConfig
from tfjoint import records
from tfjoint.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = FolderConfig(
    image_size=24,
    smaller_sizes=(),
    views=2,
    copies=1,
    voxel_size=8,
    train_fraction=0.6,
    records_per_shard=8,
)
CHAIR, TALL, WIDE = (
    furniture.chair("low", 1.0, 0.8).boxes,
    furniture.chair("tall", 1.0, 3.0).boxes,
    furniture.chair("wide", 2.5, 1.5).boxes,
)
LONG, SQUARE, NARROW = (
    furniture.table("long", 3.0, 1.0).boxes,
    furniture.table("square", 1.5, 1.5).boxes,
    furniture.table("narrow", 0.6, 2.5).boxes,
)
RED_OVER_BLUE = furniture.PNG_RED_OVER_BLUE.getvalue()


def _shape(boxes):
    corners = furniture.box_mesh(*boxes).corners
    faces = np.arange(3 * len(corners)).reshape(-1, 3)
    return trimesh.Trimesh(corners.reshape(-1, 3), faces, process=False)


def _export(boxes, kind, **how):
    data = _shape(boxes).export(file_type=kind, **how)
    return data.encode() if isinstance(data, str) else data


def _coloured_ply(boxes, encoding):
    shape = _shape(boxes)
    shape.visual.vertex_colors = np.tile([50, 100, 150, 255], (len(shape.vertices), 1))
    return shape.export(file_type="ply", encoding=encoding)


def _textured_glb(boxes):
    shape = _shape(boxes)
    upper = np.tile([0.5, 0.75], (len(shape.vertices), 1))
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.open(io.BytesIO(RED_OVER_BLUE)), baseColorFactor=[255, 255, 255, 255]
    )
    shape.visual = trimesh.visual.TextureVisuals(uv=upper, material=material)
    return shape.export(file_type="glb")


def _textured_obj(boxes, library="m.mtl"):
    text = furniture.obj_text(boxes, f"mtllib {library}\nvt 0.5 0.75\nusemtl a")
    return re.sub(r"^f .*", lambda f: re.sub(r"(\d+)", r"\1/1", f[0]), text, flags=re.M).encode()


MTL = b"newmtl a\nmap_Kd textures\\t.png\n"
FORMATS = {
    "text.obj": (_textured_obj(CHAIR), (1, 0, 0)),
    "plain.obj": (furniture.obj_text(CHAIR).encode(), (1, 1, 1)),
    "text.ply": (_coloured_ply(CHAIR, "ascii"), (1 / 3, 2 / 3, 1)),
    "binary.ply": (_coloured_ply(CHAIR, "binary"), (1 / 3, 2 / 3, 1)),
    "text.stl": (_export(CHAIR, "stl_ascii"), (1, 1, 1)),
    "binary.stl": (_export(CHAIR, "stl"), (1, 1, 1)),
    "embedded.glb": (_textured_glb(CHAIR), (1, 0, 0)),
    "text.off": (_export(CHAIR, "off"), (1, 1, 1)),
    "CAPITALS.OFF": (_export(CHAIR, "off"), (1, 1, 1)),
}
"""One chair as every kind of file, and what its colour is in proportion to the strongest part."""


def _write(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def _load(root, path, **changes):
    return FileEntry(root, path, Model("a", "b"), dataclasses.replace(CONFIG, **changes)).load()


def _grid(mesh):
    return voxelize.voxelize(mesh.corners, 16).voxels


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    root = tmp_path_factory.mktemp("formats")
    return _write(
        root,
        {
            **{f"chair/{name}": data for name, (data, _) in FORMATS.items()},
            "chair/m.mtl": MTL,
            "chair/textures/t.png": RED_OVER_BLUE,
        },
    )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_grid(formats, name):
    expected = meshes.prepare(furniture.box_mesh(*CHAIR), meshes.pose("y", "z"))
    found = _load(formats, f"chair/{name}")
    np.testing.assert_array_equal(_grid(found), _grid(expected))
    assert len(found.corners) == len(expected.corners) and not found.remarks


@pytest.mark.parametrize("name", FORMATS)
def test_colours_textures_and_their_absence_are_seen(formats, name):
    mesh = _load(formats, f"chair/{name}")
    view = render.Renderer(mesh).render(render.cameras(0, "x", 1)[0], 24).astype(float)
    colour = view[view[..., 3] == 255][:, :3].mean(0)
    np.testing.assert_allclose(colour / colour.max(), FORMATS[name][1], atol=0.02)


@pytest.mark.parametrize(
    ("up", "front", "matrix"),
    [
        ("z", "-y", [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
        ("z", "x", [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
        ("y", "-z", [[-1, 0, 0], [0, 1, 0], [0, 0, -1]]),
        ("y", "x", [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
    ],
)
def test_up_and_front_bring_other_poses_to_the_same_grid(tmp_path, up, front, matrix):
    # The matrix takes a chair that stands in y and looks to z to where the flags say.
    shape = _shape(CHAIR)
    shape.vertices = shape.vertices @ np.array(matrix).T
    _write(tmp_path, {"a.stl": shape.export(file_type="stl"), "b.stl": _export(CHAIR, "stl")})
    turned = _load(tmp_path, "a.stl", up=up, front=front)
    np.testing.assert_array_equal(_grid(turned), _grid(_load(tmp_path, "b.stl")))


def test_front_along_up_is_refused_before_the_work(tmp_path):
    config = dataclasses.replace(CONFIG, front="y")
    with pytest.raises(UserError, match="front y is not at right angles to up y"):
        mesh_folder.build(config, tmp_path / "absent", tmp_path / "w", tmp_path / "r")


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "category", "name"),
    [
        ("chair/low.obj", "chair", "low"),
        ("top.obj", "other", "top"),
        ("chair/modern/red/low.obj", "chair", "modern-red-low"),
        ("side tables/my table (2).final.stl", "side-tables", "my-table-2-final"),
        ("Möbel/Stühle/Größe 1.ply", "Möbel", "Stühle-Größe-1"),
        ("Mo\u0308bel/椅子.off", "Möbel", "椅子"),
        ("chair/a.copy1.obj", "chair", "a-copy1"),
        ("!/?.obj", "unnamed", "unnamed"),
        ("chair/\udcff.obj", "chair", "unnamed"),
    ],
)
def test_the_first_folder_is_the_category_and_the_rest_the_name(path, category, name):
    assert mesh_folder.name_models([path]) == {path: Model(category, name)}


def test_names_that_clash_are_told_apart_and_stay_the_same_whatever_else_is_there():
    paths = ["a/x.obj", "a/x.stl", "a/b/x.obj", "a/b-x.obj", "b/x.obj", "x.obj"]
    named = mesh_folder.name_models(paths)
    assert len(set(named.values())) == len(paths)
    assert named["b/x.obj"] == Model("b", "x") and named["x.obj"] == Model("other", "x")
    for path in ("a/x.obj", "a/x.stl"):
        assert re.fullmatch(r"x-[0-9a-f]{8}", named[path].name)
    assert mesh_folder.name_models(paths[:2])["a/x.obj"] == named["a/x.obj"]


@pytest.mark.parametrize("letter", ["x", "ü", "椅", "𓀀"])
def test_long_names_leave_room_in_a_file_system_and_stay_distinct(letter):
    long = letter * (240 // len(letter.encode()))
    paths = [f"{long}{i}/{long}/{long}{j}.obj" for i in (1, 2) for j in (1, 2)]
    named = mesh_folder.name_models(paths)
    assert len(set(named.values())) == 4
    assert len({model.category for model in named.values()}) == 2
    for model in named.values():
        assert max(len(part.encode()) for part in model) <= 100


def test_hidden_files_other_files_and_linked_folders_are_left_aside(tmp_path):
    kept = {"b/deep/er/x.OBJ": "", "a.ply": "", "b/x.glb": ""}
    _write(tmp_path / "in", {**kept, ".git/x.obj": "", "b/._x.obj": "", "b/x.mtl": "", "n.md": ""})
    _write(tmp_path / "elsewhere", {"far.obj": ""})
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/b/round").symlink_to(tmp_path / "in")
    found = mesh_folder.list_files(tmp_path / "in", (".obj", ".ply", ".glb"))
    assert found == sorted(kept)
    skipped = mesh_folder.skipped_folders(tmp_path / "in")
    assert set(skipped) == {"linked", "b/round"} and "not followed" in skipped["linked"]


# --- Files that cannot be used --------------------------------------------------------------------


def _glb(*, count=24, nodes=({"mesh": 0},), roots=(0,), **extra):
    points = _shape(CHAIR).vertices[:24].astype("<f4").tobytes()
    header = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": list(roots)}],
        "nodes": list(nodes),
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "buffers": [{"byteLength": len(points)}],
        "bufferViews": [{"buffer": 0, "byteLength": len(points)}],
        "accessors": [{"componentType": 5126, "type": "VEC3", "count": count, "bufferView": 0}],
        **extra,
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    chunks += struct.pack("<II", len(points), 0x004E4942) + points
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def _accessor(count):
    return {"accessors": [{"componentType": 5126, "type": "VEC3", "count": count}]}


PLY = (
    "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
    "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
)
CORNERS = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
FACES = "f 1 2 3\nf 1 2 4\n"
OFF = "OFF\n4 2 0\n{} 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n"
BAD = {
    "empty.obj": (b"", "no faces"),
    "empty.ply": (b"", "cannot be read"),
    "empty.stl": (b"", "no faces|cannot be read"),
    "empty.glb": (b"", "cannot be read"),
    "empty.off": (b"", "cannot be read"),
    "cut.ply": (FORMATS["text.ply"][0][:-40], "ends after .* of .* lines"),
    "cut-binary.ply": (FORMATS["binary.ply"][0][:-40], "cannot be read"),
    "cut.stl": (FORMATS["binary.stl"][0][:-40], "ends after 23 of 24 triangles"),
    "cut-text.stl": (FORMATS["text.stl"][0][:-400], "no faces"),
    "cut.glb": (FORMATS["embedded.glb"][0][:-40], "cannot be read"),
    "cut.off": (FORMATS["text.off"][0][:-40], "ends after .* of .* lines"),
    "points.obj": (CORNERS, "no faces"),
    "point.obj": ("v 1 2 3\nv 1 2 3\nv 1 2 3\nf 1 2 3\n", "extent"),
    "line.obj": ("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "extent"),
    "triangle.obj": (CORNERS + "f 1 2 3\n", "a triangle, a shape has at least 2"),
    "endless.obj": ("v 1e308 0 0\nv -1e308 0 0\nv 0 1e308 0\nf 1 2 3\n", "extent"),
    "nan.off": (OFF.format("nan"), "not finite"),
    "infinite.obj": ("v inf 0 0\n" + CORNERS + FACES, "not finite|cannot be read"),
    "far.obj": (CORNERS + "f 1 2 4000000000\n", "cannot be read|beyond"),
    "huge.off": ("OFF\n4000000000 4000000000 0\n0 0 0\n", "ends after 1 of 8000000000 lines"),
    "huge.ply": (PLY.format("ascii", 4 * 10**9, 1) + "0 0 0\n", "ends after 1 of 4000000001"),
    "huge-binary.ply": (PLY.format("binary_little_endian", 10**9, 1) + "0 0 0\n", "cannot be read"),
    "huge.stl": (b"\0" * 80 + b"\xff" * 4 + b"\0" * 50, "ends after 1 of 4294967295 triangles"),
    "huge.glb": (_glb(**_accessor(1 << 32)), "llocate|memory"),
    "long.glb": (struct.pack("<5I", 0x46546C67, 2, 2**32 - 1, 2**32 - 16, 0x4E4F534A), "read|no f"),
    "circle.glb": (_glb(nodes=[{"children": [1]}, {"children": [0], "mesh": 0}]), "."),
    "outside.glb": (_glb(buffers=[{"byteLength": 288, "uri": "../../secret.bin"}]), "lies outside"),
    "device.glb": (_glb(buffers=[{"byteLength": 288, "uri": "/dev/zero"}]), "lies outside"),
    "noise.glb": (np.random.default_rng(0).bytes(4000), "cannot be read"),
    "noise.ply": (np.random.default_rng(1).bytes(4000), "cannot be read"),
    "noise.off": (np.random.default_rng(2).bytes(4000), "cannot be read"),
    "noise.obj": (np.random.default_rng(3).bytes(4000), "cannot be read|no faces"),
    "large.stl": (b"\0" * 80 + struct.pack("<I", 4000) + b"\0" * 200000, "200084 bytes are more"),
}
LINKS = {
    "link.stl": ("../../secret.stl", "lies outside the folder"),
    "device.stl": ("/dev/zero", "lies outside the folder"),
    "nowhere.stl": ("absent.stl", "no such file"),
    "round.stl": ("round.stl", "no usable path|no such file|no regular file|[Ll]oop|levels"),
}
GOOD = {
    "chair/low.obj": _textured_obj(CHAIR),
    "chair/m.mtl": MTL,
    "chair/textures/t.png": RED_OVER_BLUE,
    "chair/tall.stl": _export(TALL, "stl"),
    "chair/modern/wide.ply": _coloured_ply(WIDE, "binary"),
    "side tables/long.off": _export(LONG, "off"),
    "side tables/square.glb": _textured_glb(SQUARE),
    "side tables/square.ply": _coloured_ply(SQUARE, "ascii"),
    "side tables/Größe 1.obj": furniture.obj_text(NARROW),
    "ball.stl": trimesh.creation.icosphere(subdivisions=1).export(file_type="stl"),
    # What these name is not used, and they are.
    "sly/outside.obj": _textured_obj(CHAIR, "../../secret.mtl"),
    "sly/device.obj": _textured_obj(TALL, "/dev/zero"),
    "sly/pipe.obj": _textured_obj(WIDE, "pipe.mtl"),
    "sly/sheet.obj": "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 4 3\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Usable and unusable meshes; beside the folder, what must not be read."""
    top = tmp_path_factory.mktemp("folder")
    root = _write(top / "my meshes", GOOD)
    _write(root / "bad", {name: data for name, (data, _) in BAD.items()})
    secrets = {"secret.stl": _export(LONG, "stl"), "secret.mtl": "newmtl a\nKd 0 1 0\n"}
    _write(top, {**secrets, "secret.bin": b"\0" * 288})
    for name, (target, _) in LINKS.items():
        (root / "bad" / name).symlink_to(target)
    for name in ("bad/pipe.stl", "sly/pipe.mtl"):
        os.mkfifo(root / name)
    (root / "bad" / "up").symlink_to("..")
    return root


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("built")
    config = dataclasses.replace(CONFIG, largest_bytes=200_000)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        mesh_folder.build(config, folder, directory / "work", directory / "records")
    (directory / "said.txt").write_text(said.getvalue(), encoding="utf-8")
    return directory


def _bytes(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def _objects(directory):
    sides = (records.RecordSet(directory, side) for side in ("train", "test"))
    return [found for side in sides for found in side.objects]


def test_everything_usable_is_built_and_everything_else_skipped(built):
    found = {Model(o.category, o.object_id).original.key for o in _objects(built / "records")}
    names = (Path(name).with_suffix("") for name in GOOD if name[-3:] not in ("mtl", "png"))
    clashing = {key for key in found if key.startswith("side-tables/square-")}
    expected = {n.as_posix().replace("side tables", "side-tables") for n in names}
    expected -= {"side-tables/square", "side-tables/Größe 1", "chair/modern/wide", "ball"}
    expected |= {"side-tables/Größe-1", "chair/modern-wide", "other/ball", *clashing}
    assert found == expected and len(clashing) == 2
    skipped = json.loads((built / "records" / mesh_set.SKIPPED).read_text(encoding="utf-8"))
    assert len(skipped) == len(BAD) + len(LINKS) + 1


REASONS = {**{k: v[1] for k, v in {**BAD, **LINKS}.items()}, "pipe.stl": "no regular file"}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_skipped_is_named_by_its_path_with_the_reason_in_one_line(built, name):
    said = (built / "said.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in said if f" bad/{name}: " in line]
    reason = line.partition(f" bad/{name}: ")[2]
    assert line.startswith("skipped bad/") and re.search(REASONS[name], reason), line
    skipped = json.loads((built / "records" / mesh_set.SKIPPED).read_text(encoding="utf-8"))
    assert f"bad/{name}: {reason}" in skipped.values()


def test_a_mesh_that_fills_a_few_cells_is_skipped_and_one_of_a_layer_is_not(tmp_path, capsys):
    speck = "v {0} 0 0\nv {0} 1e-3 0\nv {0} 0 1e-3\n"
    dots = speck.format(0) + speck.format(1) + "f 1 2 3\nf 4 5 6\n"
    files = {name: data for name, data in GOOD.items() if name.startswith("chair/")}
    _write(tmp_path / "in", {**files, "dots.obj": dots, "sheet.obj": GOOD["sly/sheet.obj"]})
    mesh_folder.build(CONFIG, tmp_path / "in", tmp_path / "work", tmp_path / "records")
    reason = "it fills 2 cells of 512, a shape at least 8: its parts lie too far from each other"
    assert f"skipped other/dots: {reason}\n" in capsys.readouterr().err
    found = {found.object_id.partition("-")[0] for found in _objects(tmp_path / "records")}
    assert "sheet" in found and "dots" not in found


def test_files_that_a_mesh_names_outside_the_folder_are_not_used_and_that_is_said(built, folder):
    said = (built / "said.txt").read_text(encoding="utf-8")
    for name, named, reason in (
        ("outside", "../../secret.mtl", "it lies outside the folder of the meshes"),
        ("device", "/dev/zero", "it lies outside the folder of the meshes"),
        ("pipe", "pipe.mtl", "it is no regular file"),
    ):
        line = f"note on sly/{name}: sly/{name}.obj: '{named}' is not used: {reason}\n"
        assert said.count(line) == 1
        (material,) = _load(folder, f"sly/{name}.obj").materials
        assert len(set(material.colour.round(3))) == 1  # grey, not the green of the secret
    assert "skipped bad/up: links to folders are not followed\n" in said


def test_nothing_outside_the_folder_is_opened(folder):
    opened = []

    def spy(event, arguments):
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            opened.append(os.fsdecode(arguments[0]))

    with _audited(spy):
        for path in mesh_folder.list_files(folder, (".obj", ".stl", ".glb")):
            with contextlib.suppress(meshes.UnusableMesh):
                _load(folder, path, largest_bytes=200_000)
        mesh_folder.folder_sha256(folder, 1 << 20)
    assert str(folder / "chair/textures/t.png") in opened
    real = [os.path.realpath(path) for path in opened]
    strange = [p for p in real if not p.startswith((f"{folder}/", "/proc/"))]
    assert not [p for p in strange if not p.endswith((".py", ".pyc", ".so"))]
    assert not [p for p in real if p.endswith(("pipe.mtl", "pipe.stl"))]


@contextlib.contextmanager
def _audited(hook):
    # A hook of Python's audit cannot be removed; this one falls silent.
    listening = [True]
    sys.addaudithook(lambda event, arguments: listening[0] and hook(event, arguments))
    try:
        yield
    finally:
        listening[0] = False


def _png(side):
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (_png(10_000), "10000 x 10000 pixels are too many"),
        (_png(60_000), "3600000000 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of PNG, JPEG"),
        (b"", "no image of PNG, JPEG"),
        (RED_OVER_BLUE[:-30], "a texture is not used"),
    ],
)
def test_an_image_that_cannot_be_a_texture_is_one_note_and_the_colour_stays(
    tmp_path, image, reason
):
    mtl = "newmtl a\nKd 0.2 0.4 0.6\nmap_Kd t.png\n"
    _write(tmp_path, {"x.obj": _textured_obj(CHAIR), "m.mtl": mtl, "t.png": image})
    mesh = _load(tmp_path, "x.obj")
    (remark,) = mesh.remarks
    assert remark.startswith("x.obj: ") and reason in remark
    np.testing.assert_allclose(mesh.materials[0].colour, [0.2, 0.4, 0.6], atol=1 / 255)


def test_a_mesh_and_what_it_names_share_one_limit_of_size(tmp_path):
    obj = _textured_obj(CHAIR)
    files = {"x.obj": obj, "m.mtl": MTL, "textures/t.png": RED_OVER_BLUE}
    _write(tmp_path, files)
    total = sum(map(len, files.values()))
    assert not _load(tmp_path, "x.obj", largest_bytes=total).remarks
    (remark,) = _load(tmp_path, "x.obj", largest_bytes=total - 1).remarks
    left = len(RED_OVER_BLUE) - 1
    assert f"{len(RED_OVER_BLUE)} bytes are more than the {left} left for it" in remark


def test_a_mesh_that_declares_gigabytes_gets_so_much_memory_and_no_more(tmp_path):
    _write(tmp_path, {"x.glb": _glb(**_accessor(300_000_000))})
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(meshes.UnusableMesh, match=r"^x\.glb: .*(llocate|memory)"):
        _load(tmp_path, "x.glb")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 1 << 20  # kilobytes
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_mesh_that_takes_too_long_is_skipped_even_if_its_reader_catches_everything(
    tmp_path, monkeypatch
):
    def stubborn(*_):
        with contextlib.suppress(BaseException):
            _spin()
        _spin()

    def _spin():
        until = time.process_time() + 20
        while time.process_time() < until:
            pass

    _write(tmp_path, {"x.obj": CORNERS})
    monkeypatch.setattr(meshes, "load", stubborn)
    monkeypatch.setattr(mesh_folder, "_MOST_SECONDS", 1)
    start = time.process_time()
    with pytest.raises(meshes.UnusableMesh, match=r"^x\.obj: reading it takes more than 1 s$"):
        _load(tmp_path, "x.obj")
    assert time.process_time() - start < 5
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_a_mesh_can_be_read_in_a_thread_where_no_signal_arrives(formats):
    found = []
    thread = threading.Thread(target=lambda: found.append(_load(formats, "chair/plain.obj")))
    thread.start()
    thread.join()
    assert len(found[0].corners) == 24


# --- From a folder to records ---------------------------------------------------------------------


def test_near_duplicates_share_a_source_and_a_side_whatever_their_format(built):
    split = splits.read_split_list(built / "records" / "split.json")
    for keys in (
        {"chair/low", "sly/outside"},
        {"chair/tall", "sly/device"},
        {key for side in split.sides.values() for key in side if "/square-" in key},
    ):
        assert len(keys) == 2
        (side,) = [side for side in split.sides.values() if keys & side.keys()]
        assert len({side[key] for key in keys}) == 1


def test_the_manifest_names_the_folder_and_its_digest(built, folder):
    manifest = records.read_manifest(built / "records")
    assert manifest.sources == {"my meshes": mesh_folder.folder_sha256(folder, 200_000)}
    assert (manifest.settings["up"], manifest.settings["front"]) == ("y", "z")


def test_the_digest_changes_with_every_file_that_a_mesh_may_name(tmp_path):
    root = _write(tmp_path / "a", GOOD)
    first = mesh_folder.folder_sha256(root, 1 << 20)
    assert mesh_folder.folder_sha256(_write(tmp_path / "b", GOOD), 1 << 20) == first
    _write(root, {"notes.txt": "x", ".hidden.png": "x"})
    assert mesh_folder.folder_sha256(root, 1 << 20) == first
    seen = {first}
    for name in ("chair/textures/t.png", "chair/m.mtl", "chair/low.obj"):
        (root / name).write_bytes((root / name).read_bytes() + b"\n")
        seen.add(mesh_folder.folder_sha256(root, 1 << 20))
    (root / "ball.stl").rename(root / "sphere.stl")
    seen.add(mesh_folder.folder_sha256(root, 1 << 20))
    assert len(seen) == 5


def test_of_a_file_that_is_too_large_the_digest_takes_the_size_alone(tmp_path):
    with (tmp_path / "x.stl").open("wb") as file:
        file.truncate(1 << 40)  # would take an hour to read
    first = mesh_folder.folder_sha256(tmp_path, 1 << 20)
    with (tmp_path / "x.stl").open("r+b") as file:
        file.truncate(1 << 39)
    assert mesh_folder.folder_sha256(tmp_path, 1 << 20) != first


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder without anything bad, and what was built of it."""
    top = tmp_path_factory.mktemp("small")
    good = {name: data for name, data in GOOD.items() if not name.startswith("sly/")}
    root = _write(top / "meshes", good)
    mesh_folder.build(CONFIG, root, top / "work", top / "records")
    return top


def test_the_same_folder_with_any_number_of_processes_gives_the_same_bytes(small, tmp_path):
    root = small / "meshes"
    mesh_folder.build(CONFIG, root, tmp_path / "work", tmp_path / "records", processes=2)
    for name in ("records", "work/layout"):
        assert _bytes(tmp_path / name) == _bytes(small / name)
    assert not (tmp_path / "records" / mesh_set.SKIPPED).exists()


def test_a_second_run_makes_what_is_missing_and_ends_in_the_same_bytes(
    small, tmp_path, monkeypatch
):
    shutil.copytree(small / "work", tmp_path / "work")
    root = tmp_path / "work/layout"
    shutil.rmtree(layout.rendering_directory(root, Model("chair", "low")))
    layout.voxel_file(root, Model("other", "ball")).unlink()
    made, build_model = [], mesh_set.build_model
    monkeypatch.setattr(
        mesh_set,
        "build_model",
        lambda roots, config, job: made.append(job.entry.path) or build_model(roots, config, job),
    )
    _write(tmp_path, {f"records/{mesh_set.SKIPPED}": "of an earlier build"})
    mesh_folder.build(CONFIG, small / "meshes", tmp_path / "work", tmp_path / "records")
    assert made == ["chair/low.obj", "ball.stl"]
    assert _bytes(tmp_path / "records") == _bytes(small / "records")


def test_a_layout_of_other_files_or_another_pose_is_not_resumed(small, tmp_path):
    shutil.copytree(small, tmp_path / "s")
    _write(tmp_path / "s", {"meshes/chair/textures/t.png": RED_OVER_BLUE + b"\n"})
    place = (tmp_path / "s/meshes", tmp_path / "s/work", tmp_path / "new")
    sha = r"[0-9a-f]{64}"
    with pytest.raises(UserError, match=rf"other settings or files \(meshes {sha}; now meshes "):
        mesh_folder.build(CONFIG, *place)
    shutil.copy(small / "meshes/chair/textures/t.png", tmp_path / "s/meshes/chair/textures/t.png")
    with pytest.raises(UserError, match=r"\(front z; now front -z\): remove it or"):
        mesh_folder.build(dataclasses.replace(CONFIG, front="-z"), *place)


def test_other_records_in_the_output_are_left_alone_before_the_work(small, tmp_path):
    shutil.copytree(small / "records", tmp_path / "r")
    _write(tmp_path, {"m/chair/a.off": FORMATS["text.off"][0]})
    for config, root, reason in (
        (dataclasses.replace(CONFIG, name="other"), small / "meshes", "name meshes.*name other"),
        (dataclasses.replace(CONFIG, copies=2), small / "meshes", "copies 1.*copies 2"),
        (CONFIG, tmp_path / "m", "sources .* than are asked for .*sources "),
    ):
        with pytest.raises(UserError, match=rf"other records \(.*{reason}.*another --output"):
            mesh_folder.build(config, root, tmp_path / "work", tmp_path / "r")
        assert not (tmp_path / "work").exists()
    assert _bytes(tmp_path / "r") == _bytes(small / "records")


def test_one_name_in_two_categories_is_two_objects_in_the_groups_of_a_split(tmp_path):
    grids = {"chair": CHAIR, "table": LONG, "bench": WIDE}
    models = [Model(category, "1") for category in sorted(grids)]
    models += [Model("chair", "2"), Model("chair", "3")]
    for model in models:
        mesh = furniture.box_mesh(*(TALL if model.name == "3" else grids[model.category]))
        cameras = render.cameras(0, model.name, 1)
        image = np.zeros((8, 8, 4), np.uint8)
        grid = voxelize.voxelize(mesh.corners, 16)
        layout.write_model(tmp_path, model, [image], cameras, grid)
    split = mesh_set.make_split(tmp_path, models, CONFIG)
    groups = {key: group for keys in split.sides.values() for key, group in keys.items()}
    assert groups == {
        "bench/1": "bench/1",
        "chair/1": "chair/1",
        "chair/2": "chair/1",  # the same shape
        "chair/3": "3",
        "table/1": "table/1",
    }


@pytest.mark.parametrize(
    ("work", "output", "flag"), [("m/w", "r", "--work_dir"), ("w", "m/x/r", "--output")]
)
def test_records_inside_the_folder_of_the_meshes_are_refused(tmp_path, work, output, flag):
    _write(tmp_path / "m", {"chair/low.stl": _export(CHAIR, "stl")})
    with pytest.raises(UserError, match=f"lies inside .*choose another {flag}"):
        mesh_folder.build(CONFIG, tmp_path / "m", tmp_path / work, tmp_path / output)
    assert not (tmp_path / work).exists()


NOTHING = {
    "absent": (None, r"no folder at .*absent: give --meshes"),
    "bare": ({}, r"holds no mesh: .*\.obj, \.ply, \.stl, \.glb, \.off"),
    "others": ({"a.txt": "", "chair/b.blend": ""}, "holds no mesh"),
    "bad": ({"a/x.obj": "", "b/y.off": "OFF\n"}, r"no usable object among 2, first .*a/x\.obj: no"),
    "one": ({"a/x.stl": _export(CHAIR, "stl")}, r"split 'test' would be empty: .*give more obj"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_folder_that_gives_nothing_is_one_clear_error(tmp_path, case):
    files, reason = NOTHING[case]
    if files is not None:
        (tmp_path / case).mkdir()
        _write(tmp_path / case, files)
    with pytest.raises(UserError, match=reason) as caught:
        mesh_folder.build(CONFIG, tmp_path / case, tmp_path / "w", tmp_path / "r")
    assert "\n" not in str(caught.value) and not (tmp_path / "r").exists()


# --- The command ----------------------------------------------------------------------------------

SMALL = ("--image_sizes=24", "--views=2", "--voxel_size=8", "--copies=1", "--train_fraction=0.6")


def _command(module, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, "-m", f"data_tools.{module}", *map(str, arguments)]
    return {"args": words, "env": environment, "text": True}


def _run(module, *arguments):
    return subprocess.run(**_command(module, *arguments), capture_output=True, timeout=300)


@pytest.mark.slow
def test_the_command_builds_says_what_it_skipped_and_does_nothing_twice(folder, tmp_path):
    arguments = (f"--meshes={folder}", f"--output={tmp_path / 'r'}", *SMALL)
    result = _run("build_meshes", *arguments, "--processes=2")
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    kinds = ("skipped ", "note on ", "objects", "files looked at: ", "writing ", "shards: ")
    kinds += (
        "contact sheet: ",
        "grids of ",
        f"{tmp_path}/r",
        "  t",
        "look at ",
        "verified: ",
        "built in ",
    )
    count = len(BAD) + len(LINKS) + 1
    kinds += (f"{len(GOOD) - 2 + count} objects; after them 1 copies", f"{count} objects were skip")
    assert not [line for line in own_lines(result.stderr) if not line.startswith(kinds)]
    assert any(re.match(r"objects: \d+/\d+, \d+ s left", line) for line in lines)
    assert re.search(r"CARD\.md and .*contact-sheet\.png", lines[-3])

    before = _bytes(tmp_path / "r")
    again = _run("build_meshes", *arguments, "--processes=1")
    assert again.returncode == 0 and "2 of 2 shards are there already" in again.stderr
    assert _bytes(tmp_path / "r") == before
    verified = _run("verify", f"--records={tmp_path / 'r'}")
    assert verified.returncode == 0 and verified.stdout.count("intact") == 2


@pytest.mark.slow
@pytest.mark.parametrize("case", NOTHING)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(tmp_path, case):
    files, reason = NOTHING[case]
    if files is not None:
        (tmp_path / case).mkdir()
        _write(tmp_path / case, files)
    result = _run("build_meshes", f"--meshes={tmp_path / case}", f"--output={tmp_path}/r", *SMALL)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line == result.stderr.splitlines()[-1] and re.search(reason, line)
    assert "Traceback" not in result.stderr


@pytest.mark.long
def test_ctrl_c_is_one_line_and_the_same_command_ends_in_the_same_bytes(tmp_path):
    for number in range(60):
        shape = trimesh.creation.box((1.0, 1.0 + number / 20, 2.0 - number / 40))
        _write(tmp_path / "m", {f"box/{number}.stl": shape.export(file_type="stl")})
    arguments = (f"--meshes={tmp_path / 'm'}", *SMALL, "--processes=2")
    command = _command("build_meshes", f"--output={tmp_path / 'r'}", *arguments)
    with subprocess.Popen(**command, stderr=subprocess.PIPE, start_new_session=True) as process:
        until = time.monotonic() + 240
        while len(list((tmp_path / "r-work").glob("layout/*/*/*/rendering"))) < 10:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to all of them
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors.splitlines()[-1] and "Traceback" not in errors
    assert not (tmp_path / "r").exists()
    for output in ("r", "whole"):
        result = _run("build_meshes", f"--output={tmp_path / output}", *arguments)
        assert result.returncode == 0, result.stderr
    assert _bytes(tmp_path / "r") == _bytes(tmp_path / "whole")
