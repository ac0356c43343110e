"""Triangles with materials: read from OBJ, brought to ShapeNet's pose, copied with variation."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import trimesh
from PIL import Image

from data_tools import seeding

# SweetHome3D's furniture stands with its back at -z, ShapeNet's at -x: x' = z, z' = -x.
_TO_SHAPENET = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float64)
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


def load_obj(files: Mapping[str, bytes], name: str) -> Mesh:
    """Read the OBJ file `name` with the materials and textures among `files`.

    Raises `UnusableMesh` when it cannot be read or holds no face.
    """
    try:
        scene = _load_scene(files, name)
    except Exception as error:  # whatever the reader stumbles over in somebody's file
        raise UnusableMesh(f"cannot be read ({type(error).__name__}: {error})") from error
    parts = [part for part in scene.geometry.values() if len(getattr(part, "faces", ()))]
    if not parts:
        raise UnusableMesh("no faces")
    return Mesh(
        corners=np.concatenate([part.vertices[part.faces] for part in parts]).astype(np.float64),
        uv=np.concatenate([_texture_coordinates(part) for part in parts]),
        material=np.repeat(np.arange(len(parts)), [len(part.faces) for part in parts]),
        materials=tuple(_material(part) for part in parts),
    )


def _load_scene(files: Mapping[str, bytes], name: str) -> Any:
    archive: dict[str, Any] = {key: io.BytesIO(data) for key, data in files.items()}
    return trimesh.load(
        io.BytesIO(files[name]),
        file_type="obj",
        resolver=trimesh.resolvers.ZipResolver(archive),
        force="scene",
        process=False,
    )


def _texture_coordinates(part: Any) -> np.ndarray:
    uv = getattr(part.visual, "uv", None)
    if uv is None:
        return np.zeros((len(part.faces), 3, 2))
    return np.asarray(uv, np.float64)[part.faces][..., :2]


def _material(part: Any) -> Material:
    material = getattr(part.visual, "material", None)
    if material is None:
        return Material(np.array(_DEFAULT_COLOUR), None)
    colour = np.asarray(material.diffuse, np.float64)[:3] / 255.0
    image = getattr(material, "image", None)
    if image is None or getattr(part.visual, "uv", None) is None:
        return Material(colour, None)
    return Material(colour, _texture(image))


def _texture(image: Image.Image) -> np.ndarray:
    # A texel should not be much smaller than a pixel: rays sample it without a filter.
    width, height = (min(side, _TEXTURE_SIZE) for side in image.size)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized, np.float32) / 255.0


def prepare(mesh: Mesh, rotation: np.ndarray) -> Mesh:
    """Apply the catalogue's [3, 3] rotation and turn to ShapeNet's pose; then `normalize`."""
    turned = mesh.corners @ (_TO_SHAPENET @ rotation).T
    return normalize(dataclasses.replace(mesh, corners=turned))


def normalize(mesh: Mesh) -> Mesh:
    """Centre the bounding box and scale its diagonal to 1. Raises `UnusableMesh`."""
    points = mesh.corners.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    diagonal = float(np.linalg.norm(high - low))
    if not np.isfinite(diagonal) or np.sort(high - low)[1] < 1e-6 * diagonal or diagonal == 0:
        raise UnusableMesh(f"its extent is {high - low}")
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
