"""A record set small enough to be made inside a test: boxes seen from above, in colour."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tfjoint import records

SIZE, VIEWS, VOXELS = 36, 6, 32


def make(directory: Path, train: int = 12, test: int = 5) -> Path:
    """Write `train` + `test` objects to `directory` and return it."""
    splits = {"train": range(train), "test": range(train, train + test)}
    shards = {
        name: records.write_split(directory, name, map(record, ids), len(ids), 5)
        for name, ids in splits.items()
    }
    manifest = records.Manifest("tiny", "tiny", "0" * 64, SIZE, VIEWS, VOXELS, shards)
    records.write_manifest(directory, manifest)
    return directory


def record(index: int) -> records.ObjectRecord:
    """Return object `index`: a box whose sides, colour and views depend on the index alone."""
    rng = np.random.default_rng(index)
    sides = rng.integers(6, 15, 3)
    voxels = np.zeros((VOXELS,) * 3, bool)
    voxels[tuple(slice(16 - side, 16 + side) for side in sides)] = True
    colour = rng.integers(60, 256, 3)
    views = [_view(sides, colour, shade) for shade in np.linspace(0.5, 1, VIEWS)]
    return records.ObjectRecord(
        category=("box", "slab")[index % 2],
        object_id=f"object-{index:03d}",
        source=f"mesh-{index:03d}",
        views=views,
        cameras=np.zeros((VIEWS, 4), np.float32),
        voxels=voxels,
    )


def _view(sides: np.ndarray, colour: np.ndarray, shade: float) -> bytes:
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[18 - sides[0] : 18 + sides[0], 18 - sides[1] : 18 + sides[1]] = [*(colour * shade), 255]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
