"""Checkpoints that are whole or absent: one directory each, with a digest of every file.

    <run>/checkpoints/step-00000400/   state.index, state.data-..., checkpoint.json
    <run>/checkpoints/index.json       the steps that must be there

A checkpoint is written under a temporary name, renamed, then listed. Whatever is listed and does
not verify is refused: a run never starts again silently.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import tensorflow as tf

from tfjoint import files
from tfjoint.errors import UserError

KEEP = 2
_STATE = "state"
_META = "checkpoint.json"


class CheckpointError(UserError):
    """A checkpoint directory that is damaged or belongs to another model."""


class Checkpoints:
    """The checkpoints of one run; `state` holds everything that training changes."""

    def __init__(self, directory: Path, state: tf.train.Checkpoint) -> None:
        self.directory = directory
        self._state = state

    def save(self, step: int) -> None:
        """Write the state after `step` steps; keep the newest `KEEP` checkpoints."""
        path = self.directory / _name(step)
        if path.exists():  # not listed: the process ended between the rename and the list
            shutil.rmtree(path)
        with files.replacing(path) as temporary:
            temporary.mkdir(parents=True)
            self._state.write(str(temporary / _STATE))
            digests = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
            files.write_json(temporary / _META, {"step": step, "sha256": digests})
        steps = [*self._listed(), step][-KEEP:]
        files.write_json(self.directory / "index.json", {"steps": steps})
        self._remove_unlisted(steps)

    def restore(self, partial: bool = False) -> int:
        """Restore the newest checkpoint and return its step; 0 where there is none.

        Args:
          partial: the state may be a part of what was saved, as the model without its optimizer.

        Raises:
          CheckpointError: a listed checkpoint is missing or damaged, or does not fit the model.
        """
        steps = self._listed()
        if not steps:
            return 0
        path = self.directory / _name(steps[-1])
        _verify(path, steps[-1])
        try:
            status = self._state.read(str(path / _STATE))
            status.assert_existing_objects_matched()
            if partial:
                status.expect_partial()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0][:200]
            raise CheckpointError(
                f"{path} does not fit this model and these versions ({reason}): "
                "use the versions in the run's config.json, or another --run_dir"
            ) from error
        return steps[-1]

    def _listed(self) -> list[int]:
        index = self.directory / "index.json"
        present = sorted(self.directory.glob("step-*"))
        if not index.exists():
            # One unlisted directory is a first checkpoint whose listing was cut off.
            if len(present) > 1:
                raise CheckpointError(
                    f"{index} is missing beside {len(present)} checkpoints: restore it, or start "
                    "afresh with another --run_dir"
                )
            return []
        try:
            steps = json.loads(index.read_text(encoding="utf-8"))["steps"]
            if not steps or not all(type(step) is int for step in steps):
                raise ValueError("no list of steps")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{index} is damaged ({error}): restore it, or start afresh with another --run_dir"
            ) from error
        return steps

    def _remove_unlisted(self, steps: list[int]) -> None:
        kept = {_name(step) for step in steps}
        for path in self.directory.iterdir():
            if path.is_dir() and path.name not in kept and re.match(r"\.?step-", path.name):
                shutil.rmtree(path)


def _verify(path: Path, step: int) -> None:
    meta = path / _META
    advice = (
        f"to go on from an older checkpoint, delete {path.name} and take {step} out of index.json; "
        "to start afresh, use another --run_dir"
    )
    try:
        digests = json.loads(meta.read_text(encoding="utf-8"))["sha256"]
        damaged = [n for n, digest in digests.items() if _sha256(path / n) != digest]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}): {advice}") from error
    if damaged:
        raise CheckpointError(
            f"checkpoint {path} is damaged ({', '.join(damaged)} differ from their digest): "
            f"{advice}"
        )


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
