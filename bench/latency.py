"""What a user waits for: codes and grids from a SavedModel, and commands until they answer."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import minibatch, timing, worker
from tfjoint import dataset
from tfjoint.records import RecordSet

BATCHES = (1, 32)
VIEWS = 5
JPEG2000_RATE = 48.0
_HELP = ("tfjoint.train", "tfjoint.evaluate", "tfjoint.view", "tfjoint.compare")


def measure(
    repetitions: int, profile: str = "paper", batches: tuple[int, ...] = BATCHES
) -> dict[str, Any]:
    """Return the latencies of an export's signatures and of JPEG 2000, and the processes'."""
    found = {f"{model}": latency(model, profile, batches, repetitions) for model in _MODELS}
    side = found["direct"]["image_size"]
    return {**found, "jpeg2000": jpeg2000(side, repetitions), "processes": processes(repetitions)}


_MODELS = ("direct", "implicit")


def latency(model: str, profile: str, batches: tuple[int, ...], repetitions: int) -> dict[str, Any]:
    """Return milliseconds of a model's export by "<signature>.<batch>"; codes of one iteration.

    encode takes one view of every object, reconstruct the codes of five.
    """
    with tempfile.TemporaryDirectory() as directory:
        arguments = {"model": model, "profile": profile, "directory": directory}
        with worker.Worker("bench.latency:exported", arguments) as ask:
            size = ask("image_size")
            seconds: dict[str, list[float]] = {}
            for batch in batches:
                actions = {
                    f"encode.{batch}": partial(ask, "encode", batch),
                    f"reconstruct.{batch}": partial(ask, "reconstruct", batch),
                }
                # A few milliseconds each: many are cheap, and the median needs them.
                seconds |= timing.alternate(actions, 4 * repetitions, warmups=3)
            peak = ask("peak_megabytes")
    milliseconds = {name: 1e3 * value for name, value in timing.medians(seconds).items()}
    return {
        "milliseconds": milliseconds,
        "seconds": seconds,
        "peak_megabytes": peak,
        "image_size": size,
        "profile": profile,
    }


def exported(model: str, profile: str, directory: str) -> worker.Subject:
    """Return the actions on an export as whoever has TensorFlow alone would use it."""
    import tensorflow as tf

    from bench import ours

    resolved = ours.export(model, profile, Path(directory) / "1")
    signatures = tf.saved_model.load(str(Path(directory) / "1")).signatures
    inputs: dict[tuple[str, int], dict[str, Any]] = {}

    def encode(batch: int, views: int = 1) -> Any:
        if ("encode", batch * views) not in inputs:
            images, _ = minibatch.make(batch, views, resolved.image_size)
            inputs["encode", batch * views] = {"images": tf.constant(images)}
            if resolved.uses("iterations_max"):
                inputs["encode", batch * views]["iterations"] = tf.constant(1)
        return signatures["encode"](**inputs["encode", batch * views])["codes"]

    def reconstruct(batch: int) -> Any:
        if ("reconstruct", batch) not in inputs:
            codes = tf.reshape(encode(batch * VIEWS), [batch, VIEWS, *encode(1).shape[2:]])
            inputs["reconstruct", batch] = {"codes": codes}
        return signatures["reconstruct"](**inputs["reconstruct", batch])["occupancy"]

    return {
        "encode": lambda batch: int(encode(batch).shape[0]),
        "reconstruct": lambda batch: int(reconstruct(batch).shape[0]),
        "image_size": lambda: resolved.image_size,
    }


def jpeg2000(side: int, repetitions: int) -> dict[str, Any]:
    """Return milliseconds of Pillow's encoder and decoder on a view of the demo set."""
    (png, *_) = RecordSet(dataset.DEMO, "test").record(0).views
    view = Image.open(io.BytesIO(png)).convert("RGB").resize((side, side))
    coded: list[bytes] = []

    def encode() -> None:
        stream = io.BytesIO()
        view.save(stream, "JPEG2000", quality_mode="rates", quality_layers=[JPEG2000_RATE])
        coded[:] = [stream.getvalue()]

    def decode() -> None:
        np.asarray(Image.open(io.BytesIO(coded[0])))

    actions = {"encode": encode, "decode": decode}
    seconds = timing.alternate(actions, 20 * repetitions, warmups=3)
    return {
        "milliseconds": {name: 1e3 * value for name, value in timing.medians(seconds).items()},
        "seconds": seconds,
        "rate": JPEG2000_RATE,
        "image_size": side,
    }


def processes(repetitions: int) -> dict[str, Any]:
    """Return seconds of whole processes: imports, --help, and a run up to its first step."""
    python = [sys.executable]
    actions: dict[str, Callable[[], object]] = {
        "python": partial(_run, [*python, "-c", ""]),
        "import tensorflow": partial(_run, [*python, "-c", "import tensorflow"]),
        "import tfjoint.trainer": partial(_run, [*python, "-c", "import tfjoint.trainer"]),
        "first step": _first_step,
    }
    actions |= {f"{name} --help": partial(_run, [*python, "-m", name, "--help"]) for name in _HELP}
    seconds = timing.alternate(actions, repetitions)
    return {"medians": timing.medians(seconds), "seconds": seconds}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


def _first_step() -> None:
    """Start the demo's training and wait for the line of its first step."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "tfjoint.train", "--model=direct", "--profile=mini"]
        command += ["--steps=1000", f"--run_dir={directory}/run"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            if not any(line.lstrip().startswith("step ") for line in process.stdout):
                raise RuntimeError(f"{' '.join(command)} ended before its first step")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
