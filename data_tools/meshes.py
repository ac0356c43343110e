"""Triangles with materials: read, brought to ShapeNet's pose, copied with variation."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import trimesh
from PIL import Image

from data_tools import seeding
from tfjoint.errors import UserError

FORMATS = ("obj", "ply", "stl", "glb", "off")
"""What `load` reads, by the end of a file's name."""
DIRECTIONS = {
    sign + axis: tuple(factor * float(axis == other) for other in "xyz")
    for sign, factor in (("", 1.0), ("-", -1.0))
    for axis in "xyz"
}
"""The axes of a file and their opposites, by name."""

_MOST_FACES = 2_000_000
_MOST_TEXELS = 1 << 26
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TGA", "TIFF", "WEBP")
_DEFAULT_COLOUR = (0.7, 0.7, 0.7)
_TEXTURE_SIZE = 256
_SCALES = (math.log(0.75), math.log(1.33))
_GAINS = (0.6, 1.4)


class UnusableMesh(ValueError):
    """A mesh without a surface, or without an extent: nothing to render."""


class Material(NamedTuple):
    """Colour [3] in [0, 1], and a texture [h, w, 3] in [0, 1] that replaces it, or None."""

    colour: np.ndarray
    texture: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle soup, y up."""

    corners: np.ndarray
    """[F, 3 corners, 3 axes] float64."""
    uv: np.ndarray
    """[F, 3 corners, 2] float64 texture coordinates, v upwards; zeros where there are none."""
    material: np.ndarray
    """[F] index into `materials`."""
    materials: tuple[Material, ...]
    remarks: tuple[str, ...] = ()
    """What could not be taken as the file has it, for whoever made the file."""


def load_obj(files: Mapping[str, bytes], name: str) -> Mesh:
    """Read the OBJ file `name` with the materials and textures among `files`; see `load`."""
    archive: dict[str, Any] = {key: io.BytesIO(data) for key, data in files.items()}
    return load(files[name], "obj", trimesh.resolvers.ZipResolver(archive))


def load(data: bytes, kind: str, resolver: trimesh.resolvers.Resolver) -> Mesh:
    """Read a file of one of `FORMATS`; `resolver` gives the materials and textures it names.

    Raises `UnusableMesh` when it cannot be read, holds no face, or what it holds is no surface.
    """
    try:
        _require_whole(data, kind)
        scene = trimesh.load(
            io.BytesIO(data), file_type=kind, resolver=resolver, force="scene", process=False
        )
        return _from_scene(scene)
    except UnusableMesh:
        raise
    except Exception as error:  # whatever the reader stumbles over in somebody's file
        raise UnusableMesh(f"cannot be read ({_one_line(error)})") from error


def _require_whole(data: bytes, kind: str) -> None:
    # Of a text that was cut off the reader takes what is there, of a binary STL nothing.
    if kind == "ply" and re.match(rb"ply\s+format\s+ascii", data):
        head, _, body = data.partition(b"end_header")
        declared = sum(map(int, re.findall(rb"^element\s+\S+\s+(\d+)", head, re.MULTILINE)))
        _require("lines", declared, _count_lines(body))
    elif kind == "off":
        counts, _, body = re.sub(rb"#.*", b"", data).partition(b"OFF")[2].lstrip().partition(b"\n")
        _require("lines", sum(map(int, counts.split()[:2])), _count_lines(body))
    elif kind == "stl" and not data.lstrip().startswith(b"solid"):
        _require("triangles", int.from_bytes(data[80:84], "little"), max(0, len(data) - 84) // 50)


def _count_lines(text: bytes) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def _require(unit: str, declared: int, found: int) -> None:
    if found < declared:
        raise UnusableMesh(f"it ends after {found} of {declared} {unit}")


def check_image(data: bytes) -> None:
    """Raise `OSError` when `data` is no image that can be a texture."""
    try:
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
            _check_texels(image)
    except Image.UnidentifiedImageError as error:
        raise OSError(f"it is no image of {', '.join(_IMAGE_FORMATS)}") from error
    except (ValueError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


def _from_scene(scene: Any) -> Mesh:
    nodes = scene.graph.geometry_nodes
    parts = [
        (name, part, scene.graph.get(node)[0])
        for name, part in scene.geometry.items()
        for node in nodes.get(name, ())
        if len(getattr(part, "faces", ()))
    ]
    counts = [len(part.faces) for _, part, _ in parts]
    if not parts:
        raise UnusableMesh("no faces")
    if sum(counts) > _MOST_FACES:
        raise UnusableMesh(f"{sum(counts)} faces, more than {_MOST_FACES}")
    textures: dict[int, np.ndarray] = {}
    looks = {name: _look(scene.geometry[name], textures) for name, _, _ in parts}
    corners = np.concatenate([_corners(part, matrix) for _, part, matrix in parts])
    if not np.isfinite(corners).all():
        raise UnusableMesh("coordinates that are not finite")
    return Mesh(
        corners=corners,
        uv=np.concatenate([looks[name].uv for name, _, _ in parts]),
        material=np.repeat(np.arange(len(parts)), counts),
        materials=tuple(looks[name].material for name, _, _ in parts),
        remarks=tuple(dict.fromkeys(look.remark for look in looks.values() if look.remark)),
    )


def _corners(part: Any, matrix: np.ndarray) -> np.ndarray:
    faces, vertices = np.asarray(part.faces), np.asarray(part.vertices, np.float64)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UnusableMesh(f"faces that name vertices beyond its {len(vertices)}")
    corners = vertices[faces]
    if np.array_equal(matrix, np.eye(4)):
        return corners
    return corners @ np.asarray(matrix)[:3, :3].T + np.asarray(matrix)[:3, 3]


class _Look(NamedTuple):
    uv: np.ndarray
    material: Material
    remark: str = ""


def _look(part: Any, textures: dict[int, np.ndarray]) -> _Look:
    visual, faces = part.visual, np.asarray(part.faces)
    if getattr(visual, "kind", None) in ("face", "vertex"):
        return _palette(visual.face_colors[:, :3])
    material = getattr(visual, "material", None)
    main = getattr(material, "main_color", None)
    colour = np.array(_DEFAULT_COLOUR if main is None else np.asarray(main, np.float64)[:3] / 255.0)
    uv = getattr(visual, "uv", None)
    if uv is None:
        return _Look(np.zeros((len(faces), 3, 2)), Material(colour, None))
    uv = np.asarray(uv, np.float64)[faces][..., :2]
    # OBJ calls it image; its texture replaces the colour. In GLB the colour is a factor.
    image, factor = getattr(material, "image", None), np.ones(3)
    if image is None:
        image, factor = getattr(material, "baseColorTexture", None), colour
    try:
        texture = None
        if image is not None:
            texture = _texture(image, textures) * factor.astype(np.float32)
    except (MemoryError, TimeoutError):  # of the whole mesh
        raise
    except Exception as error:  # whatever is wrong with somebody's image
        return _Look(uv, Material(colour, None), f"a texture is not used ({_one_line(error)})")
    return _Look(uv, Material(colour, texture))


def _palette(colours: np.ndarray) -> _Look:
    # Colours [F, 3] of faces as a square texture with one texel for each.
    unique, index = np.unique(colours, axis=0, return_inverse=True)
    side = math.ceil(math.sqrt(len(unique)))
    texture = np.zeros((side * side, 3), np.float32)
    texture[: len(unique)] = unique / 255.0
    row, column = np.divmod(index.reshape(-1), side)
    uv = np.stack([(column + 0.5) / side, 1.0 - (row + 0.5) / side], axis=-1)
    material = Material(unique.mean(0) / 255.0, texture.reshape(side, side, 3))
    return _Look(np.repeat(uv[:, None], 3, axis=1), material)


def _texture(image: Image.Image, known: dict[int, np.ndarray]) -> np.ndarray:
    if id(image) in known:
        return known[id(image)]
    _check_texels(image)
    # A texel should not be much smaller than a pixel: rays sample it without a filter.
    width, height = (min(side, _TEXTURE_SIZE) for side in image.size)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    image.close()  # or all images of a mesh would be in memory at once, at full size
    return known.setdefault(id(image), np.asarray(resized, np.float32) / 255.0)


def _check_texels(image: Image.Image) -> None:
    # Some others call programs to be decoded. MPO is what a JPEG of several pictures is called.
    if image.format not in (None, "MPO", *_IMAGE_FORMATS):
        raise ValueError(f"{image.format} is not read")
    if image.size[0] * image.size[1] > _MOST_TEXELS:
        raise ValueError(f"{image.size[0]} x {image.size[1]} pixels are too many")


def pose(up: str, front: str) -> np.ndarray:
    """Return the rotation [3, 3] to ShapeNet's pose, where y is up and the front looks to x.

    Args:
        up, front: directions in the file, of `DIRECTIONS`, at right angles.

    Raises `UserError` where they are not.
    """
    x, y = DIRECTIONS[front], DIRECTIONS[up]
    if np.dot(x, y) != 0:
        raise UserError(f"front {front} is not at right angles to up {up}: choose another front")
    return np.stack([x, y, np.cross(x, y)]) + 0.0  # without -0


def prepare(mesh: Mesh, rotation: np.ndarray) -> Mesh:
    """Apply a rotation [3, 3], then `normalize`."""
    return normalize(dataclasses.replace(mesh, corners=mesh.corners @ rotation.T))


def normalize(mesh: Mesh) -> Mesh:
    """Centre the bounding box and scale its diagonal to 1. Raises `UnusableMesh`."""
    points = mesh.corners.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    with np.errstate(over="ignore"):
        extent = high - low
        diagonal = float(np.linalg.norm(extent))
    if not np.isfinite(diagonal) or np.sort(extent)[1] < 1e-6 * diagonal or diagonal == 0:
        raise UnusableMesh(f"its extent is {extent}")
    return dataclasses.replace(mesh, corners=(mesh.corners - (low + high) / 2) / diagonal)


def augment(mesh: Mesh, seed: int, object_id: str, copy: int) -> Mesh:
    """Return copy number `copy` >= 1 of a prepared mesh, a pure function of the arguments.

    Each axis is scaled by exp(U(ln 0.75, ln 1.33)), every second copy on average is mirrored in
    z (the axis of left and right), and every material is recoloured.
    """
    rng = seeding.generator(seed, "augment", object_id, copy)
    scale = np.exp(seeding.uniform(rng, *_SCALES, 3))
    if rng.random() < 0.5:
        scale[2] = -scale[2]
    materials = tuple(_recolour(material, rng) for material in mesh.materials)
    return normalize(dataclasses.replace(mesh, corners=mesh.corners * scale, materials=materials))


def _recolour(material: Material, rng: np.random.Generator) -> Material:
    order = np.argsort(rng.random(3))
    gain = seeding.uniform(rng, *_GAINS, 3)
    colour = np.clip(material.colour[order] * gain, 0.0, 1.0)
    if material.texture is None:
        return Material(colour, None)
    texture = np.clip(material.texture[..., order] * gain, 0.0, 1.0)
    return Material(colour, texture.astype(np.float32))
