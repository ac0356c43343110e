"""The binvox file: a text header, then the grid as (value, count) pairs of bytes.

The flat index runs x slowest, then z, then y; in memory the grid is [x, y, z].
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfjoint import files
from tfjoint.errors import UserError

_MAGIC = "#binvox 1"


class BinvoxError(UserError):
    """A file that is missing, damaged, or not binvox."""


class Grid(NamedTuple):
    """An occupancy grid [D, D, D] bool (x, y up, z) and where it lies.

    The centre of cell (i, j, k) is translate + scale ((i, j, k) + 0.5 - lowest) / D with
    `lowest` the smallest occupied index per axis.
    """

    voxels: np.ndarray
    translate: np.ndarray
    scale: float


def write_binvox(path: str | os.PathLike, grid: Grid) -> None:
    """Write a grid; equal grids give equal bytes."""
    content = encode_binvox(grid)
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)


def encode_binvox(grid: Grid) -> bytes:
    """Return the content of a grid's file."""
    translate = " ".join(f"{value:.9g}" for value in grid.translate)
    size = " ".join(str(side) for side in grid.voxels.shape)
    header = f"{_MAGIC}\ndim {size}\ntranslate {translate}\nscale {grid.scale:.9g}\ndata\n"
    flat = grid.voxels.transpose(0, 2, 1).ravel().astype(np.uint8)
    return header.encode("ascii") + _run_lengths(flat)


def _run_lengths(flat: np.ndarray) -> bytes:
    starts = np.flatnonzero(np.diff(flat, prepend=2))
    pairs = bytearray()
    for value, length in zip(flat[starts], np.diff(starts, append=len(flat))):
        whole, rest = divmod(int(length), 255)
        pairs += bytes([int(value), 255]) * whole + (bytes([int(value), rest]) if rest else b"")
    return bytes(pairs)


def read_binvox(path: str | os.PathLike) -> Grid:
    """Read a grid [D, D, D]. Raises `BinvoxError` naming the file and what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise BinvoxError(f"no binvox file at {path}: check the directory of the layout")
    return parse_binvox(path.read_bytes(), path)


def parse_binvox(content: bytes, path: str | os.PathLike, side: int | None = None) -> Grid:
    """Return the grid of a file's content, the file being called `path`.

    Raises `BinvoxError` naming what is wrong with it; so is another side than the one given.
    """
    header, marker, data = content.partition(b"\ndata\n")
    if not marker or not header.startswith(_MAGIC.encode()):
        raise BinvoxError(f"{path} is not binvox: it must start with {_MAGIC!r} and hold 'data'")
    try:
        fields = dict(line.partition(" ")[::2] for line in header.decode("ascii").splitlines()[1:])
        size = [int(word) for word in fields["dim"].split()]
        translate = np.array([float(word) for word in fields["translate"].split()])
        scale = float(fields["scale"])
        if len(set(size)) != 1 or len(size) != 3 or size[0] < 1 or translate.shape != (3,):
            raise ValueError(f"dim {fields['dim']}, translate {fields['translate']}")
    except (KeyError, ValueError) as error:
        raise BinvoxError(f"{path} has a damaged binvox header ({error}): restore it") from error
    if side is not None and size[0] != side:
        raise BinvoxError(f"{path} has a grid of {size[0]} cells a side, not of {side}")
    return Grid(_decode(path, data, size[0]), translate, scale)


def _decode(path: str | os.PathLike, data: bytes, size: int) -> np.ndarray:
    pairs = np.frombuffer(data, np.uint8)
    values, counts = pairs[0::2], pairs[1::2]
    total = int(counts.sum(dtype=np.int64))
    if len(pairs) % 2 or total != size**3 or (len(values) and values.max() > 1):
        raise BinvoxError(
            f"{path} is damaged: its runs hold {total} voxels of {size**3}, or values other than "
            "0 and 1: restore it"
        )
    flat = np.repeat(values.astype(bool), counts)
    return flat.reshape(size, size, size).transpose(0, 2, 1)
