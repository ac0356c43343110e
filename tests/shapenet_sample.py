"""A few objects in exactly the layout that 3D-R2N2 distributes, in trees and in archives."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from data_tools import layout, render
from data_tools.layout import Model
from data_tools.voxelize import Grid

VIEWS, SIZE, VOXEL_SIZE = 3, 16, 8

CHAIR, RIFLE = "03001627", "04090263"
# Names from both sides of where the test side begins: cbc47... of chairs, ca25a... of rifles.
CHAIRS = [Model(CHAIR, name) for name in ("00a1", "1b2c", "77aa", "cb00", "cc00", "ff12")]
RIFLES = [Model(RIFLE, name) for name in ("05aa", "9f00", "ca30")]


def write(root: Path, model: Model, views: int = VIEWS, size: int = SIZE, cells: int = VOXEL_SIZE):
    """Write an object of noise; return its images, cameras and grid."""
    rng = np.random.default_rng(list(model.key.encode()))
    images = list(rng.integers(0, 256, (views, size, size, 4), np.uint8))
    grid = Grid(rng.random((cells,) * 3) < 0.5, np.zeros(3), 1.0)
    cameras = render.cameras(0, model.name, views)
    layout.write_model(root, model, images, cameras, grid)
    return images, cameras, grid


def make(root: Path, models: Iterable[Model] = (*CHAIRS, *RIFLES)) -> Path:
    """Write objects of noise to `root` and return it."""
    for model in models:
        write(root, model)
    return root


def pack(
    root: Path,
    half: str,
    path: Path,
    mode: str = "w:gz",
    order: int | None = None,
    form: int = tarfile.PAX_FORMAT,
    more: Callable[[tarfile.TarFile], None] = lambda archive: None,
) -> Path:
    """Pack half a layout as `tar` does, its members in the order of a seed; return the archive.

    `more` adds to the archive, before all others.
    """
    paths = sorted((root / half).rglob("*"))
    if order is not None:
        random.Random(order).shuffle(paths)
    with tarfile.open(path, mode, format=form) as archive:
        more(archive)
        for found in paths:
            archive.add(found, str(found.relative_to(root)), recursive=False)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    """Add a member of any kind to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def packed(root: Path, directory: Path, **options) -> tuple[Path, Path]:
    """Pack both halves into `directory`; return the archives of renderings and of grids."""
    directory.mkdir(exist_ok=True)
    renderings = pack(root, layout.RENDERINGS, directory / "ShapeNetRendering.tgz", **options)
    return renderings, pack(root, layout.VOXELS, directory / "ShapeNetVox32.tgz", **options)
