"""How fast records are read, written and verified, and views coded with JPEG 2000."""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from PIL import Image

from bench import timing
from data_tools import integrity, jpeg2000_records
from tfjoint import config, dataset, models, optimizers, records, trainer
from tfjoint.records import RecordSet

RATES = (6.0, 12.0, 24.0, 48.0, 96.0, 128.0, 192.0, 256.0, 384.0, 480.0)
_STEPS_READ = 60
_OBJECTS_WRITTEN = 512
_CODED_OBJECTS, _BARE_VIEWS = 120, 300
_BARE = {"mct": 1, "num_resolutions": 6}  # as the builder asks for


def measure(data: Path, repetitions: int) -> dict[str, Any]:
    """Return all of it for the record sets `data`, of at least 128 pixels, and `data`-68."""
    return {
        "reading": reading(data, repetitions),
        "writing": writing(data, repetitions),
        "verify": verifying(data, repetitions),
        "jpeg2000": coding(data.with_name(f"{data.name}-68"), repetitions),
    }


def reading(data: Path, repetitions: int) -> dict[str, Any]:
    """Minibatches read, decoded and cropped, against training steps that use them, paper width."""
    settings: dict[str, Any] = {"model": "reconstruction", "profile": "paper"}
    settings |= {"data": str(data), "views_min": 5, "views_max": 5, "batch_size": 6, "steps": 1}
    resolved = config.resolve(settings)[0]
    split = dataset.open_split(resolved, "train")
    model = models.create(resolved)
    optimizer = optimizers.make_optimizer(resolved, resolved.learning_rate)
    optimizers.build_optimizer(optimizer, model.trainable_variables)
    step = tf.function(trainer.training_step(resolved, model, optimizer))
    batch = next(iter(dataset.training_dataset(resolved, split, 0, 1)))

    def read() -> None:
        for _ in dataset.training_dataset(resolved, split, 0, _STEPS_READ):
            pass

    seconds = timing.alternate({"read": read, "train": lambda: step(batch)}, repetitions)
    median = timing.medians(seconds)
    read_rate = _STEPS_READ * resolved.batch_size / median["read"]
    train_rate = resolved.batch_size / median["train"]
    return {
        "objects_per_second": read_rate,
        "trained_objects_per_second": train_rate,
        "ratio": read_rate / train_rate,
        "seconds": seconds,
        "settings": {**settings, "steps_read": _STEPS_READ, "views_stored": split.manifest.views},
    }


def writing(data: Path, repetitions: int) -> dict[str, Any]:
    """Objects written as records, one process."""
    split = RecordSet(data, "test")
    objects = [split.record(index) for index in range(min(_OBJECTS_WRITTEN, len(split)))]

    def write() -> None:
        with tempfile.TemporaryDirectory() as directory:
            records.write_split(directory, "test", objects, len(objects))

    seconds = timing.alternate({"write": write}, repetitions)
    views = sum(len(record.views) for record in objects)
    median = timing.medians(seconds)["write"]
    return {
        "objects_per_second": len(objects) / median,
        "views_per_second": views / median,
        "seconds": seconds,
    }


def verifying(data: Path, repetitions: int) -> dict[str, Any]:
    """Bytes verified, one process: every digest, every checksum, every record decoded."""

    def verify() -> None:
        (report,) = integrity.verify([data], processes=1)
        if report.faults:
            raise RuntimeError(report.faults[0])

    manifest = records.read_manifest(data)
    count = sum(shard.bytes for shards in manifest.splits.values() for shard in shards)
    seconds = timing.alternate({"verify": verify}, repetitions)
    median = timing.medians(seconds)["verify"]
    return {"megabytes_per_second_and_core": count / 1e6 / median, "seconds": seconds}


def coding(data: Path, repetitions: int) -> dict[str, Any]:
    """The builder of JPEG 2000 views against Pillow's encoder and decoder alone, times the cores.

    Both begin with PNG views and code them at the default rates in the paper's way; the builder
    also looks for what each file holds, encodes the PNG of what is decoded and writes records.
    """
    split = RecordSet(data, "train")
    objects = [split.record(index) for index in range(min(_CODED_OBJECTS, len(split)))]
    views = [png for record in objects for png in record.views]
    bare = views[:: len(views) // _BARE_VIEWS + 1]
    processes = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        _write_set(source, records.read_manifest(data), objects)
        numbers = iter(range(10**6))

        def build() -> None:
            output = Path(directory) / f"{next(numbers)}"
            found = jpeg2000_records.Jpeg2000Config(RATES)
            jpeg2000_records.build(source, output, found, processes)

        actions = {"builder": build, "bare": lambda: sum(_bare(bare))}
        seconds = timing.alternate(actions, repetitions)
    median = timing.medians(seconds)
    builder_rate = len(views) * len(RATES) / median["builder"]
    bare_rate = len(bare) * len(RATES) / median["bare"]
    return {
        "views_per_second": builder_rate,
        "bare_views_per_second_and_core": bare_rate,
        "fraction_of_bare_times_cores": builder_rate / (bare_rate * processes),
        "processes": processes,
        "views": len(views),
        "bare_views": len(bare),
        "rates": RATES,
        "seconds": seconds,
    }


def _write_set(
    directory: Path, manifest: records.Manifest, objects: Sequence[records.ObjectRecord]
) -> None:
    shards = records.write_split(directory, "train", objects, len(objects))
    records.write_manifest(directory, dataclasses.replace(manifest, splits={"train": shards}))


def _bare(encoded: list[bytes]) -> Iterator[int]:
    for png in encoded:
        image = Image.open(io.BytesIO(png)).convert("RGBA")
        flat = Image.new("RGB", image.size)
        flat.paste(image, mask=image.getchannel("A"))
        for rate in RATES:
            stream = io.BytesIO()
            flat.save(stream, "JPEG2000", quality_mode="rates", quality_layers=[rate], **_BARE)
            Image.open(stream).load()
            yield stream.tell()
