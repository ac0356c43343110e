"""Checkpoints that are whole or absent: one directory each, with a digest of every file.

    <run>/checkpoints/step-00000400/   state.index, state.data-..., checkpoint.json
    <run>/checkpoints/index.json       the steps that must be there

A checkpoint is written under a temporary name, renamed, then listed. Whatever is listed and does
not verify is refused: a run never starts again silently.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfjoint import files
from tfjoint.errors import UserError

KEEP = 2
_STATE = "state"
_META = "checkpoint.json"
_INDEX = "index.json"


class CheckpointError(UserError):
    """A checkpoint directory that is damaged or belongs to another model."""


class Checkpoints:
    """The checkpoints of one run; `state` holds everything that training changes."""

    def __init__(self, directory: Path, state: tf.train.Checkpoint) -> None:
        self.directory = directory
        self._state = state

    def save(self, step: int) -> None:
        """Write the state after `step` steps; keep the newest `KEEP` checkpoints."""
        listed = self._listed()
        if not listed:  # from here on, a missing index is a lost one
            files.write_json(self.directory / _INDEX, {"steps": []})
        path = self.directory / _name(step)
        with files.replacing(path) as temporary:
            temporary.mkdir(parents=True)
            self._state.write(str(temporary / _STATE))
            files.write_json(temporary / _META, _description(temporary, step))
        steps = [*listed, step][-KEEP:]
        files.write_json(self.directory / _INDEX, {"steps": steps})
        self._remove_unlisted(steps)

    def newest(self) -> int:
        """Return the step of the newest checkpoint, 0 where there is none. Raises as `restore`."""
        return max(self._listed(), default=0)

    def restore(self, partial: bool = False) -> int:
        """Restore the newest checkpoint and return its step; 0 where there is none.

        Args:
          partial: the state may be a part of what was saved, as the model without its optimizer.

        Raises:
          CheckpointError: a listed checkpoint is missing or damaged, or does not fit the model.
        """
        step = self.newest()
        if not step:
            return 0
        path = self.directory / _name(step)
        _verify(path, step)
        try:
            status = self._state.read(str(path / _STATE))
            status.assert_existing_objects_matched()
            if partial:
                status.expect_partial()
            else:
                status.assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0][:200]
            raise CheckpointError(
                f"{path} does not fit this model and these versions ({reason}): "
                "use the versions in the run's config.json, or another --run_dir"
            ) from error
        return step

    def _listed(self) -> list[int]:
        index = self.directory / _INDEX
        present = len(list(self.directory.glob("step-*")))
        advice = "restore it, or start afresh with another --run_dir"
        if not index.exists():
            if present:
                raise CheckpointError(f"{index} is missing beside {present} checkpoints: {advice}")
            return []
        try:
            steps = json.loads(index.read_text(encoding="utf-8"))["steps"]
            if not all(type(step) is int and step > 0 for step in steps):
                raise ValueError("no list of steps")
            if steps != sorted(set(steps)):
                raise ValueError("steps out of order")
            # One unlisted directory is a first checkpoint whose listing was cut off.
            if not steps and present > 1:
                raise ValueError(f"no steps beside {present} checkpoints")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{index} is damaged ({error}): {advice}") from error
        return steps

    def _remove_unlisted(self, steps: list[int]) -> None:
        kept = {_name(step) for step in steps}
        for path in self.directory.iterdir():
            if path.is_dir() and path.name not in kept and re.match(r"\.?step-", path.name):
                shutil.rmtree(path)


def _verify(path: Path, step: int) -> None:
    advice = (
        f"to go on from an older checkpoint, delete {path.name} and take {step} out of {_INDEX}; "
        "to start afresh, use another --run_dir"
    )
    try:
        written = json.loads((path / _META).read_text(encoding="utf-8"))
        found = _description(path, step)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}): {advice}") from error
    if written != found:
        raise CheckpointError(
            f"checkpoint {path} is damaged (its files differ from the digests in {_META}): {advice}"
        )


def _description(path: Path, step: int) -> dict[str, Any]:
    digests = {file.name: files.sha256(file) for file in path.iterdir() if file.name != _META}
    return {"step": step, "sha256": digests}


def _name(step: int) -> str:
    return f"step-{step:08d}"
