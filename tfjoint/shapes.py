"""A reconstructed shape as a file, in the form that the suffix asks for.

.binvox      the occupied cells, in a cube of side 1 around the origin
.obj .ply    their closed surface, in the same place, y up
.png         a picture of them
.npz         the probabilities themselves, [D, D, D], as `tfjoint.gallery` describes it
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfjoint import binvox, files, gallery, png, voxels
from tfjoint.errors import UserError
from tfjoint.metrics import THRESHOLD


class ShapeError(UserError):
    """A shape that cannot be written as it was asked for."""


def write_shape(
    path: str | os.PathLike, occupancy: np.ndarray, threshold: float = THRESHOLD
) -> None:
    """Write one occupancy grid.

    Args:
      path: its suffix is one of `SUFFIXES`.
      occupancy: [D, D, D] probabilities in [0, 1], or bool.
      threshold: occupied from this probability on.

    Raises:
      ShapeError: the suffix is none of these.
    """
    suffix = require_suffix(path)
    if suffix == ".npz":
        name = "voxels" if occupancy.dtype == bool else "probabilities"
        arrays = {name: occupancy, "threshold": np.array(threshold)}
        gallery.from_arrays(arrays)  # refuses what its readers would
        with files.replacing(path) as temporary, temporary.open("wb") as handle:
            np.savez_compressed(handle, **arrays)
        return
    grid = occupancy if occupancy.dtype == bool else occupancy >= threshold
    content = _FORMS[suffix](grid)
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)


def require_suffix(path: str | os.PathLike) -> str:
    """Return the suffix of `path` in lower case. Raises `ShapeError` if we write no such files."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ShapeError(
            f"a shape is written as {', '.join(SUFFIXES)}; received {str(path)!r}: give it one of "
            "these suffixes"
        )
    return suffix


def _binvox(grid: np.ndarray) -> bytes:
    return binvox.encode_binvox(binvox.Grid(grid, np.full(3, -0.5), 1.0))


def _obj(grid: np.ndarray) -> bytes:
    points, faces = _merged_surface(grid)
    lines = ["v {:.9g} {:.9g} {:.9g}\n".format(*point) for point in points.tolist()]
    lines += ["f {} {} {}\n".format(*face) for face in (faces + 1).tolist()]
    return "".join(lines).encode("ascii")


def _ply(grid: np.ndarray) -> bytes:
    points, faces = _merged_surface(grid)
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(points)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    return header.encode("ascii") + points.astype("<f4").tobytes() + rows.tobytes()


def _merged_surface(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # A corner that squares share becomes one vertex: programs then see that the mesh is closed.
    points, faces = voxels.surface(grid)
    merged, index = np.unique(points, axis=0, return_inverse=True)
    return merged, index.reshape(-1)[faces]


def _png(grid: np.ndarray) -> bytes:
    return png.encode_png(voxels.picture(grid))


_FORMS: dict[str, Callable[[np.ndarray], bytes]] = {
    ".binvox": _binvox,
    ".obj": _obj,
    ".ply": _ply,
    ".png": _png,
}
SUFFIXES = (*_FORMS, ".npz")
"""What the name of a shape's file may end in."""
