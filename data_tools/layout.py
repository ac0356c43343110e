"""The directory layout of 3D-R2N2, whoever made it.

    ShapeNetRendering/<category>/<model>/rendering/00.png ..., renderings.txt,
                                                   rendering_metadata.txt
    ShapeNetVox32/<category>/<model>/model.binvox

`rendering_metadata.txt` has one line a view: azimuth, elevation, in-plane rotation (degrees),
distance ratio, 25. A model `<id>.copy<N>` is an augmented copy of `<id>`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_tools import png
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

MOST_BYTES = 1 << 22
"""A file of a layout has a few thousand bytes; beyond this it is none."""

_COPY = ".copy"
_LAST_COLUMN = "25"  # in every file of the original; not the field of view
_LIST, _CAMERAS = "renderings.txt", "rendering_metadata.txt"
_NAME = r"(\w[\w-]*)/(\w[\w.-]*)"
_RENDERING = re.compile(rf"(?:^|/){_NAME}/rendering/(\d\d\.png|{_LIST}|{_CAMERAS})$", re.ASCII)
_GRID = re.compile(rf"(?:^|/){_NAME}/model\.binvox$", re.ASCII)


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


Read = Callable[[str], bytes]
"""Returns a file of a layout by its path there. Raises `LayoutError` when it is missing."""


def rendering_name(model: Model, file: str = "") -> str:
    """`ShapeNetRendering/<category>/<model>/rendering/<file>`."""
    return f"{RENDERINGS}/{model.category}/{model.name}/rendering/{file}"


def voxel_name(model: Model) -> str:
    """`ShapeNetVox32/<category>/<model>/model.binvox`."""
    return f"{VOXELS}/{model.category}/{model.name}/model.binvox"


def find_rendering(path: str) -> tuple[Model, str] | None:
    """Return the object and the file that a path in an archive names, if it names a rendering."""
    match = _RENDERING.search(path)
    return (Model(match[1], match[2]), match[3]) if match else None


def find_grid(path: str) -> Model | None:
    """Return the object that a path in an archive names, if it names a grid."""
    match = _GRID.search(path)
    return Model(match[1], match[2]) if match else None


def rendering_files(views: int) -> list[str]:
    """Return the names of the files that the renderings of an object consist of."""
    return [_CAMERAS, _LIST, *_image_names(views)]


def _image_names(views: int) -> list[str]:
    return [f"{view:02d}.png" for view in range(views)]


def rendering_directory(root: str | os.PathLike, model: Model) -> Path:
    return Path(root) / rendering_name(model)


def voxel_file(root: str | os.PathLike, model: Model) -> Path:
    return Path(root) / voxel_name(model)


def is_complete(root: str | os.PathLike, model: Model) -> bool:
    """Whether both halves of an object are there; each is written whole or not at all."""
    return rendering_directory(root, model).is_dir() and voxel_file(root, model).is_file()


class Tree(NamedTuple):
    """One half of a layout as files: a directory with a folder per category."""

    top: Path

    def list_grids(self) -> list[Model]:
        """Return every object that has a grid, sorted. Raises `LayoutError` when there is none."""
        found = self.top.glob("*/*/model.binvox")
        models = sorted(Model(path.parent.parent.name, path.parent.name) for path in found)
        if not models:
            raise LayoutError(
                f"{self.top} holds no <category>/<model>/model.binvox: give {VOXELS} or what "
                "holds it"
            )
        return models

    def require_renderings(self) -> None:
        """Raise `LayoutError` when no object has renderings."""
        if next(self.top.glob("*/*/rendering"), None) is None:
            raise LayoutError(
                f"{self.top} holds no <category>/<model>/rendering: give {RENDERINGS} or what "
                "holds it"
            )

    def state(self, names: Iterable[str]) -> str:
        """Return a digest of files' sizes and times; it is another one once a file has changed."""
        digest = hashlib.sha256()
        for name in names:
            try:
                found = os.stat(self._path(name))
                digest.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(f"{name} missing\n".encode())
        return digest.hexdigest()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Read]:
        """Yield what reads the files of this half."""
        yield self._read

    def _read(self, name: str) -> bytes:
        try:
            with open(self._path(name), "rb") as file:
                return file.read(MOST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise LayoutError(f"{name} is missing") from error

    def _path(self, name: str) -> str:
        return os.path.join(self.top, name.partition("/")[2])


def tree(path: Path, half: str) -> Tree:
    """Return the half `RENDERINGS` or `VOXELS` in a directory that is it or holds it."""
    return Tree(path / half if (path / half).is_dir() else path)


def write_model(
    root: str | os.PathLike,
    model: Model,
    images: Sequence[np.ndarray],
    cameras: np.ndarray,
    grid: Grid,
    optimize_png: bool = False,
) -> None:
    """Write one object: V images [S, S, 4] uint8, cameras [V, 4], and its grid."""
    binvox.write_binvox(voxel_file(root, model), grid)
    directory = rendering_directory(root, model)
    names = [f"{view:02d}.png" for view in range(len(images))]
    with files.replacing(directory) as temporary:
        temporary.mkdir()
        for name, image in zip(names, images):
            (temporary / name).write_bytes(encode_png(image, optimize_png))
        (temporary / "renderings.txt").write_text("".join(f"{name}\n" for name in names))
        (temporary / "rendering_metadata.txt").write_text(
            "".join(" ".join(map(repr, row)) + f" {_LAST_COLUMN}\n" for row in cameras.tolist())
        )


def encode_png(image: np.ndarray, optimize: bool) -> bytes:
    """Return [S, S, 3 or 4] uint8 as the bytes of a PNG, as small as Pillow can if `optimize`."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=optimize, compress_level=7)
    return buffer.getvalue()


def read_grid(read: Read, model: Model, size: int) -> np.ndarray:
    """Return the occupancy grid [D, D, D] bool, D = `size`, of an object.

    Raises `LayoutError` when it is missing, damaged, empty or of another size.
    """
    name = voxel_name(model)
    try:
        voxels = binvox.parse_binvox(_whole(read, name), name, size).voxels
    except binvox.BinvoxError as error:
        raise LayoutError(str(error)) from error
    if not voxels.any():
        raise LayoutError(f"{name} is an empty grid")
    return voxels


def read_views(read: Read, model: Model, views: int, size: int) -> Views:
    """Return the first `views` views of an object, each decoded once to see that it can be.

    Raises `LayoutError` when a file is missing or damaged, or an image is not `size` pixels square.
    """
    names = _image_names(views)
    listed = _lines(read, rendering_name(model, _LIST))
    if listed[:views] != names:
        raise LayoutError(
            f"{rendering_name(model, _LIST)} does not begin with {views} images from {names[0]} on"
        )
    cameras = _read_cameras(read, rendering_name(model, _CAMERAS), views)
    return Views(
        tuple(_read_view(read, rendering_name(model, name), size) for name in names), cameras
    )


def _read_cameras(read: Read, name: str, views: int) -> np.ndarray:
    try:
        rows = [[float(word) for word in line.split()] for line in _lines(read, name)[:views]]
    except ValueError as error:
        raise LayoutError(f"{name} is damaged ({error})") from error
    if len(rows) < views or any(len(row) != 5 for row in rows) or not np.isfinite(rows).all():
        raise LayoutError(f"{name} is damaged: it must have {views} lines of five numbers")
    return np.array(rows, np.float64)[:, :4]


def _lines(read: Read, name: str) -> list[str]:
    try:
        return [line for line in _whole(read, name).decode("ascii").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise LayoutError(f"{name} is damaged ({error})") from error


def _read_view(read: Read, name: str, size: int) -> bytes:
    data = _whole(read, name)
    try:
        png.check(data, size)
    except ValueError as error:
        raise LayoutError(f"{name} is bad: {error}") from error
    return data


def _whole(read: Read, name: str) -> bytes:
    data = read(name)
    if len(data) > MOST_BYTES:
        raise LayoutError(f"{name} has more than {MOST_BYTES} bytes")
    return data
