"""The directory layout of 3D-R2N2, whoever made it.

    ShapeNetRendering/<category>/<model>/rendering/00.png ..., renderings.txt,
                                                   rendering_metadata.txt
    ShapeNetVox32/<category>/<model>/model.binvox

`rendering_metadata.txt` has one line a view: azimuth, elevation, in-plane rotation (degrees),
distance ratio, 25. A model `<id>.copy<N>` is an augmented copy of `<id>`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tfjoint import binvox, files
from tfjoint.binvox import Grid
from tfjoint.errors import UserError

RENDERINGS, VOXELS = "ShapeNetRendering", "ShapeNetVox32"
SYNSETS = {
    "02691156": "airplane",
    "02828884": "bench",
    "02933112": "cabinet",
    "02958343": "car",
    "03001627": "chair",
    "03211117": "display",
    "03636649": "lamp",
    "03691459": "loudspeaker",
    "04090263": "rifle",
    "04256520": "sofa",
    "04379243": "table",
    "04401088": "telephone",
    "04530566": "vessel",
}
"""ShapeNet's folder names and what they mean."""

_COPY = ".copy"
_LAST_COLUMN = "25"  # in every file of the original; not the field of view


class LayoutError(UserError):
    """A layout that is missing, incomplete or damaged."""


class Model(NamedTuple):
    """One object of a layout, by its two folder names."""

    category: str
    name: str

    @property
    def key(self) -> str:
        """`<category>/<model>`, as split lists name it."""
        return f"{self.category}/{self.name}"

    @property
    def original(self) -> Model:
        """The object this one is a copy of; itself when it is none."""
        return Model(self.category, self.name.partition(_COPY)[0])

    @property
    def copy_number(self) -> int:
        """0 for an original."""
        number = self.name.partition(_COPY)[2]
        return int(number) if number.isdigit() else 0

    def copy(self, number: int) -> Model:
        """The augmented copy `number` >= 1 of this object."""
        return Model(self.category, f"{self.name}{_COPY}{number}")


class Views(NamedTuple):
    """PNG files as bytes, and their cameras [V, 4] float64 as in `tfjoint.records`."""

    images: tuple[bytes, ...]
    cameras: np.ndarray


def rendering_directory(root: str | os.PathLike, model: Model) -> Path:
    return Path(root) / RENDERINGS / model.category / model.name / "rendering"


def voxel_file(root: str | os.PathLike, model: Model) -> Path:
    return Path(root) / VOXELS / model.category / model.name / "model.binvox"


def is_complete(root: str | os.PathLike, model: Model) -> bool:
    """Whether both halves of an object are there; each is written whole or not at all."""
    return rendering_directory(root, model).is_dir() and voxel_file(root, model).is_file()


def list_models(root: str | os.PathLike) -> list[Model]:
    """Return every object that has renderings, sorted. Raises `LayoutError` when there is none."""
    top = Path(root) / RENDERINGS
    if not top.is_dir():
        raise LayoutError(f"no {RENDERINGS} in {root}: give the directory that holds it")
    models = sorted(
        Model(path.parent.parent.name, path.parent.name) for path in top.glob("*/*/rendering")
    )
    if not models:
        raise LayoutError(f"{top} holds no <category>/<model>/rendering: nothing to read")
    return models


def write_model(
    root: str | os.PathLike,
    model: Model,
    images: Sequence[np.ndarray],
    cameras: np.ndarray,
    grid: Grid,
) -> None:
    """Write one object: V images [S, S, 4] uint8, cameras [V, 4], and its grid."""
    binvox.write_binvox(voxel_file(root, model), grid)
    directory = rendering_directory(root, model)
    names = [f"{view:02d}.png" for view in range(len(images))]
    with files.replacing(directory) as temporary:
        temporary.mkdir()
        for name, image in zip(names, images):
            (temporary / name).write_bytes(encode_png(image))
        (temporary / "renderings.txt").write_text("".join(f"{name}\n" for name in names))
        (temporary / "rendering_metadata.txt").write_text(
            "".join(" ".join(map(repr, row)) + f" {_LAST_COLUMN}\n" for row in cameras.tolist())
        )


def encode_png(image: np.ndarray) -> bytes:
    """Return [S, S, 3 or 4] uint8 as the bytes of a small PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def read_views(root: str | os.PathLike, model: Model, views: int | None = None) -> Views:
    """Return the first `views` views of an object, or all. Raises `LayoutError`."""
    directory = rendering_directory(root, model)
    names = _lines(directory / "renderings.txt")
    cameras = _read_cameras(directory / "rendering_metadata.txt")
    wanted = len(names) if views is None else views
    if not 1 <= wanted <= min(len(names), len(cameras)):
        raise LayoutError(
            f"{directory} has {len(names)} images and {len(cameras)} cameras, {wanted} views "
            "are asked for: build with fewer views or restore the files"
        )
    return Views(tuple(_read_png(directory / name) for name in names[:wanted]), cameras[:wanted])


def image_size(png: bytes) -> int:
    """Return the side of a square PNG in pixels. Raises `LayoutError`."""
    try:
        width, height = Image.open(io.BytesIO(png)).size
    except OSError as error:
        raise LayoutError(f"not a PNG image ({error}): restore it") from error
    if width != height:
        raise LayoutError(f"views must be square; received {width} x {height} pixels")
    return width


def _read_cameras(path: Path) -> np.ndarray:
    try:
        rows = [[float(word) for word in line.split()] for line in _lines(path)]
        if any(len(row) != 5 for row in rows):
            raise ValueError("a line does not hold five numbers")
        return np.array(rows, np.float64).reshape(-1, 5)[:, :4]
    except ValueError as error:
        raise LayoutError(f"{path} is damaged ({error}): restore it") from error


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LayoutError(f"{path} is missing or damaged ({error}): restore it") from error


def _read_png(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        Image.open(io.BytesIO(data)).verify()
    except (OSError, SyntaxError) as error:
        raise LayoutError(f"{path} is missing or damaged ({error}): restore it") from error
    return data
