"""Short training runs on the tiny records, in this process or as a user would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.util import event_pb2

from tfjoint import config, trainer

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"model": "direct", "profile": "smoke", "batch_size": 4, "iterations_max": 4}
STEPS = 6


def settings(data: Path, run: Path, **given) -> config.Config:
    return config.resolve(_with_shared(str(data), str(run), given))[0]


def train(data: Path, run: Path, strategy: tf.distribute.Strategy | None = None, **given) -> Path:
    return trainer.train(settings(data, run, **given), strategy or tf.distribute.get_strategy())


def command(data: Path, run: Path, **given) -> list[str]:
    """The command line of `train` with the same settings."""
    flags = [f"--{name}={value}" for name, value in _with_shared(data, run, given).items()]
    return [sys.executable, "-m", "tfjoint.train", *flags]


def _with_shared(data: Path | str, run: Path | str, given: dict) -> dict:
    """What a test gives, with those of `SETTINGS` that have an effect on its system."""
    system = config.Config(model=given.get("model", SETTINGS["model"]))
    shared = {name: value for name, value in SETTINGS.items() if system.uses(name)}
    return {"data": data, "run_dir": run, "steps": STEPS, **shared, **given}


def environment(**variables: str) -> dict[str, str]:
    """The variables of this process without what its tests changed, for a process of its own."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", **variables}


def finish(arguments: list[str], **variables: str) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=240,
    )


def refusal(arguments: list[str], **variables: str) -> str:
    """Run a command that must refuse with exit code 2 and one line; return the line."""
    result = finish(arguments, **variables)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    # TensorFlow 2.21 prints a few lines while it is imported, whatever its log level.
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.endswith(lines[0] + "\n")
    return lines[0]


def steps(run: Path) -> list[int]:
    """The steps whose checkpoints a run lists."""
    return json.loads((run / "checkpoints" / "index.json").read_text())["steps"]


def state(run: Path) -> dict[str, np.ndarray]:
    """Everything in a run's newest checkpoint: weights, optimizer slots, step."""
    newest = run / "checkpoints" / f"step-{steps(run)[-1]:08d}" / "state"
    reader = tf.train.load_checkpoint(str(newest))
    names = sorted(reader.get_variable_to_shape_map())
    return {name: reader.get_tensor(name) for name in names if not name.startswith("_")}


def assert_same_state(run: Path, other: Path) -> None:
    """Compare the newest checkpoints of two runs bit by bit."""
    ours, theirs = state(run), state(other)
    assert len(ours) > 40
    assert ours.keys() == theirs.keys()
    different = [n for n in ours if np.array(ours[n]).tobytes() != np.array(theirs[n]).tobytes()]
    assert not different


def events(run: Path) -> list[tuple[int, str, str, np.ndarray]]:
    """What TensorBoard would read of a run: (step, tag, plugin, value), in order."""
    found = []
    for path in sorted((run / "logs").glob("events.*")):
        plugins: dict[str, str] = {}  # said only where a tag is written first
        for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(raw)
            for value in event.summary.value:
                plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
                content = tf.make_ndarray(value.tensor)
                found.append((event.step, value.tag, plugins[value.tag], content))
    return found


def curve(run: Path, tag: str) -> dict[int, float]:
    """The scalar `tag` of a run by step; where a step was repeated, its last value."""
    return {step: float(value) for step, name, _, value in events(run) if name == tag}
