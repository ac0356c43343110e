"""A record set small enough to be made inside a test: boxes seen from above, in colour."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tfjoint import records

SIZE, VIEWS, VOXELS = 36, 6, 32


def make(directory: Path, train: int = 12, test: int = 5) -> Path:
    """Write `train` + `test` objects to `directory` and return it."""
    return write(directory, record, train, test)


def make_rates(
    directory: Path, rates: Sequence[float], train: int = 12, test: int = 5, **coding
) -> Path:
    """Write the same objects as if coded with JPEG 2000, a record set for each rate."""
    for rate in rates:
        coded = {"rate": rate, "mode": "lossy", "background": "black", **coding}
        write(directory / f"{rate:g}", partial(coded_record, rate), train, test, jpeg2000=coded)
    return directory


def write(
    directory: Path, make_record: Callable[[int], records.ObjectRecord], train: int, test: int,
    **fields
) -> Path:  # fmt: skip
    """Write the records of objects 0, 1, ... to `directory`; `fields` go into the manifest."""
    splits = {"train": range(train), "test": range(train, train + test)}
    shards = {
        name: records.write_split(directory, name, map(make_record, ids), len(ids), 5)
        for name, ids in splits.items()
    }
    first = make_record(0)
    manifest = records.Manifest(
        "tiny", "tiny", "0" * 64, SIZE, len(first.views), len(first.voxels), shards, **fields
    )
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


def coded_record(rate: float, index: int) -> records.ObjectRecord:
    """Return object `index` with opaque views whose blue is the rate, and made-up file sizes."""
    raw = record(index)
    views = []
    for view in raw.views:
        pixels = np.array(Image.open(io.BytesIO(view)).convert("RGB"))
        pixels[..., 2] = round(rate) % 256
        views.append(_png(pixels))
    payload = SIZE * SIZE * 3 / rate - np.arange(VIEWS) - index % 3
    sizes = np.stack([np.full(VIEWS, SIZE * SIZE * 3 // rate), payload + 40, payload], axis=1)
    return dataclasses.replace(raw, views=views, code_bytes=sizes.astype(np.int32))


def _view(sides: np.ndarray, colour: np.ndarray, shade: float) -> bytes:
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[18 - sides[0] : 18 + sides[0], 18 - sides[1] : 18 + sides[1]] = [*(colour * shade), 255]
    return _png(pixels)


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
