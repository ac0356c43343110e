"""What there is to look at of reconstructed shapes, as an .npz file.

It holds one of the first three of these arrays, or `decoded` alone, of a codec without shapes;
nothing else is needed:

    probabilities  [N, R, S, D, D, D] floating point in [0, 1]; axes x, y (up), z
    percent        [N, R, S, D, D, D] uint8, probabilities in whole percent, rounded down
    voxels         [N, R, S, D, D, D] bool, or 0 and 1
    threshold      [] occupied from this probability on; 0.4 if not there
    truth          [N, D, D, D] bool, or 0 and 1
    images         [N, V, H, W, 3] the views, uint8 or floating point in [0, 1]
    decoded        [N, R, V, H, W, 3] the views as they arrived, likewise
    names          [N] text
    categories     [N] text
    rates          [R] text, or numbers c that stand for c:1
    views          [S] whole numbers: how many views the shapes were made of, V at most
    title          [] text
    weights_sha256 [] text: which model made the shapes

N objects, R rates, S numbers of views: axes of length 1 among these may be left out, the last ones
first. So [D, D, D] is one shape, and [N, D, D, D] is what a model's `reconstruct` returns. Arrays
of other names are left alone. No array may hold Python objects.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tfjoint import files, words
from tfjoint.errors import UserError
from tfjoint.metrics import THRESHOLD

GRIDS = ("probabilities", "percent", "voxels")
"""The arrays of which a file holds one."""

_MOST_SAID = 8  # names, in one line

MOST_BYTES = 1 << 30
"""What the arrays of a file may take in memory."""


class GalleryError(UserError):
    """A file that is missing or damaged, or arrays that do not fit each other."""


class Gallery(NamedTuple):
    """Shapes of N objects at R rates from S numbers of views, and what they were made of."""

    occupancy: np.ndarray | None
    """[N, R, S, D, D, D]: floating point in [0, 1], uint8 in whole percent, or bool; None where
    there are decoded views alone."""
    threshold: float = THRESHOLD
    truth: np.ndarray | None = None
    """[N, D, D, D] bool."""
    images: np.ndarray | None = None
    """[N, V, H, W, 3] uint8."""
    decoded: np.ndarray | None = None
    """[N, R, V, H, W, 3] uint8."""
    names: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    rates: tuple[str, ...] | None = None
    views: tuple[int, ...] | None = None
    title: str = ""
    weights_sha256: str = ""

    def shapes(self) -> np.ndarray:
        """Return the occupancy. Raises `GalleryError` where there is none."""
        if self.occupancy is None:
            raise GalleryError("holds decoded views of a codec alone, and no shapes")
        return self.occupancy

    def percent(self) -> np.ndarray:
        """Return the occupancy as uint8 in whole percent; bool becomes 0 and 100."""
        occupancy = self.shapes()
        if occupancy.dtype == bool:
            return occupancy * np.uint8(100)
        return occupancy if occupancy.dtype == np.uint8 else percent(occupancy)


def percent(probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities in whole percent, rounded down, as uint8.

    For every whole k, percent(p) >= k where p >= k / 100, so an IoU stays what it was.

    Args:
      probabilities: floating point in [0, 1], of any shape.
    """
    steps = (np.arange(1, 101) / 100).astype(probabilities.dtype)
    return np.searchsorted(steps, probabilities, side="right").astype(np.uint8)


def write_gallery(path: str | os.PathLike, gallery: Gallery) -> None:
    """Write an .npz file; of what is not known, nothing is written."""
    given = gallery._asdict()
    occupancy = given.pop("occupancy")
    arrays = {key: value for key, value in given.items() if value is not None}
    if occupancy is not None:
        name = {"b": "voxels", "u": "percent"}.get(occupancy.dtype.kind, "probabilities")
        arrays[name] = occupancy
    with files.replacing(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, **arrays)


def read_gallery(path: str | os.PathLike) -> Gallery:
    """Read an .npz file. Raises `GalleryError` naming the file and what is wrong with it."""
    if not Path(path).is_file():
        raise GalleryError(f"no file at {path}: give an .npz file of shapes")
    try:
        return from_arrays(_read_arrays(path))
    except GalleryError as error:
        raise GalleryError(f"{path}: {error}") from error
    except Exception as error:  # of many kinds, from zlib.error to MemoryError
        reason = " ".join(str(error).split())[:200]
        raise GalleryError(
            f"{path} is damaged or no .npz file ({type(error).__name__}: {reason}): write it again"
        ) from error


def from_arrays(arrays: Mapping[str, Any]) -> Gallery:
    """Return what arrays of the format hold.

    Raises `GalleryError` for one that is missing, of another kind, or does not fit the others.
    """
    present = _require_grid(arrays)
    sizes = {"C": (3, "a colour")}
    fitted = {
        name: _fit(name, form, np.asarray(arrays[name]), sizes)
        for name, form in _FORMS.items()
        if name in arrays
    }
    gallery = Gallery(occupancy=fitted.pop(present, None), **fitted)
    most = max(gallery.views or (0,))
    if "V" in sizes and most > sizes["V"][0]:
        count, name = sizes["V"]
        raise GalleryError(f"views is up to {most}, but {name} has {words.count(count, 'view')}")
    return gallery


def _require_grid(names: Iterable[str]) -> str:
    # Of all names that are there, the one of a grid; "" where decoded views need none.
    given = sorted(names)
    present = [name for name in given if name in GRIDS]
    if len(present) == 1:
        return present[0]
    if not present and "decoded" in given:
        return ""
    held = present or given[:_MOST_SAID] + ["..."] * (len(given) > _MOST_SAID)
    raise GalleryError(
        f"a file of shapes holds one of {', '.join(GRIDS)}; it holds "
        f"{', '.join(held) or 'no arrays'}: save the grids under one of these names"
    )


# --- The arrays -----------------------------------------------------------------------------------


def _probabilities(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f" or not np.all((array >= 0) & (array <= 1)):
        raise GalleryError(f"{name} must be floating point in [0, 1]; {_received(array)}")
    return array


def _percent(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.max() > 100:
        raise GalleryError(f"{name} must be uint8, 100 at most; {_received(array)}")
    return array


def _voxels(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf" or not np.all((array == 0) | (array == 1)):
        raise GalleryError(f"{name} must be bool, or 0 and 1; {_received(array)}")
    return array.astype(bool)


def _pixels(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not np.all((array >= 0) & (array <= 1)):
        raise GalleryError(f"{name} must be uint8, or floating point in [0, 1]; {_received(array)}")
    return np.round(array * 255).astype(np.uint8)


def _texts(name: str, array: np.ndarray) -> tuple[str, ...]:
    if array.dtype.kind != "U":
        raise GalleryError(f"{name} must be text; {_received(array)}")
    return tuple(array.tolist())


def _rates(name: str, array: np.ndarray) -> tuple[str, ...]:
    if array.dtype.kind in "iuf":
        return tuple(f"{rate:.4g}:1" for rate in array.tolist())
    return _texts(name, array)


def _counts(name: str, array: np.ndarray) -> tuple[int, ...]:
    if array.dtype.kind not in "iu" or array.min() < 1:
        raise GalleryError(f"{name} must be whole numbers from 1 on; {_received(array)}")
    return tuple(array.tolist())


def _text(name: str, array: np.ndarray) -> str:
    return _texts(name, array[np.newaxis])[0]


def _threshold(name: str, array: np.ndarray) -> float:
    if array.dtype.kind not in "iuf" or not 0 < array <= 1:
        raise GalleryError(f"{name} must be a number above 0, 1 at most; {_received(array)}")
    return float(array)


def _received(array: np.ndarray) -> str:
    if array.dtype.kind in "biuf":
        return f"received {array.dtype} from {array.min()} to {array.max()}"
    return f"received {array.dtype}"


class _Form(NamedTuple):
    axes: str
    """A letter for each; N, R and S may be left out, the last ones first."""
    convert: Callable[[str, np.ndarray], Any]


_FORMS = {
    "probabilities": _Form("NRSDDD", _probabilities),
    "percent": _Form("NRSDDD", _percent),
    "voxels": _Form("NRSDDD", _voxels),
    "truth": _Form("NDDD", _voxels),
    "images": _Form("NVHWC", _pixels),
    "decoded": _Form("NRVHWC", _pixels),
    "names": _Form("N", _texts),
    "categories": _Form("N", _texts),
    "rates": _Form("R", _rates),
    "views": _Form("S", _counts),
    "threshold": _Form("", _threshold),
    "title": _Form("", _text),
    "weights_sha256": _Form("", _text),
}
_LETTERS = {
    "N": "objects",
    "R": "rates",
    "S": "numbers of views",
    "D": "cells a side",
    "V": "views",
    "H": "rows",
    "W": "columns",
    "C": "channels",
}


def _fit(name: str, form: _Form, array: np.ndarray, sizes: dict[str, tuple[int, str]]) -> Any:
    # `sizes` holds, by letter, the length of an axis and who said it first.
    fixed = form.axes.lstrip("NRS")
    spare = len(form.axes) - array.ndim
    if not 0 <= spare <= len(form.axes) - len(fixed):
        raise GalleryError(f"{name} has {array.ndim} axes, not those of [{', '.join(form.axes)}]")
    front = array.ndim - len(fixed)
    array = array.reshape(array.shape[:front] + (1,) * spare + array.shape[front:])
    for letter, size in zip(form.axes, array.shape):
        expected, other = sizes.setdefault(letter, (size, name))
        if not size:
            raise GalleryError(f"{name} has no {_LETTERS[letter]}: leave it out, or fill it")
        if size != expected and other == name:
            raise GalleryError(
                f"{name} has {expected} and {size} {_LETTERS[letter]}: one is needed"
            )
        if size != expected:
            raise GalleryError(f"{name} has {size} {_LETTERS[letter]}, {other} has {expected}")
    return form.convert(name, array)


# --- The file -------------------------------------------------------------------------------------


def _read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    room = MOST_BYTES
    with zipfile.ZipFile(path) as archive:
        members = [os.path.splitext(name) for name in archive.namelist()]
        _require_grid(name for name, suffix in members if suffix == ".npy")
        for member in archive.infolist():
            name, suffix = os.path.splitext(member.filename)
            if name not in _FORMS or suffix != ".npy":
                continue
            room -= member.file_size
            if room < 0:
                raise GalleryError(f"holds more than {MOST_BYTES >> 20} MiB: leave objects out")
            with archive.open(member) as handle:
                _require_size(handle, member.file_size)
            with archive.open(member) as handle:
                found[name] = np.lib.format.read_array(handle, allow_pickle=False)
    return found


def _require_size(handle: IO[bytes], size: int) -> None:
    # NumPy makes room for what a header promises before it looks for it.
    version = np.lib.format.read_magic(handle)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(handle)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array of shape {shape} and type {dtype} in {size} bytes")
