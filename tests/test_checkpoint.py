"""Checkpoints are whole or absent, and what is damaged is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from tfjoint import files
from tfjoint.checkpoint import KEEP, CheckpointError, Checkpoints


class State(tf.Module):
    """Some weights, in a file of a few hundred bytes."""

    def __init__(self, shape: tuple[int, ...] = (3, 2), **more: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.zeros(shape))
        self.step = tf.Variable(0, dtype=tf.int64)
        self.more = {name: tf.Variable(tf.zeros(size)) for name, size in more.items()}

    def train(self, step: int) -> None:
        self.weight.assign(tf.fill(self.weight.shape, step / 3))
        self.step.assign(step)


def checkpoints(directory: Path, state: State | None = None) -> tuple[Checkpoints, State]:
    state = state or State()
    return Checkpoints(directory / "checkpoints", tf.train.Checkpoint(state=state)), state


def save(directory: Path, *steps: int) -> Path:
    """Save at the given steps; return the newest checkpoint's directory."""
    saver, state = checkpoints(directory)
    for step in steps:
        state.train(step)
        saver.save(step)
    return directory / "checkpoints" / f"step-{steps[-1]:08d}"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def refusal(directory: Path, state: State | None = None) -> str:
    """The message with which restoring is refused; nothing may have been changed by trying."""
    with pytest.raises(CheckpointError) as caught:
        checkpoints(directory, state)[0].restore()
    assert "\n" not in str(caught.value)
    assert "--run_dir" in str(caught.value)
    return str(caught.value)


def test_where_nothing_was_saved_training_starts_at_step_0(tmp_path):
    assert checkpoints(tmp_path)[0].restore() == 0
    assert not (tmp_path / "checkpoints").exists()


def test_the_newest_checkpoint_is_restored_bit_by_bit(tmp_path):
    save(tmp_path, 5, 7)
    restorer, state = checkpoints(tmp_path)
    assert restorer.restore() == 7
    expected = State()
    expected.train(7)
    assert state.weight.numpy().tobytes() == expected.weight.numpy().tobytes()
    assert state.step.numpy() == 7


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 10, 20, 30, 40, 100_000_000)
    assert KEEP == 2
    assert names(tmp_path) == ["index.json", "step-00000040", "step-100000000"]
    assert json.loads((tmp_path / "checkpoints/index.json").read_text()) == {
        "steps": [40, 100_000_000]
    }


# --- Damage ---------------------------------------------------------------------------------------


def test_every_flipped_byte_of_the_newest_checkpoint_is_refused(tmp_path):
    newest = save(tmp_path, 5, 7)
    everything = sorted(newest.iterdir())
    assert len(everything) == 3
    for path in everything:
        whole = path.read_bytes()
        # JSON may have other white space and mean the same; every other byte counts.
        counts = [i for i, byte in enumerate(whole) if path.suffix != ".json" or byte > 32]
        for position in counts[:: max(1, len(counts) // 60)]:
            broken = bytearray(whole)
            broken[position] ^= 4
            path.write_bytes(broken)
            assert newest.name in refusal(tmp_path), (path.name, position)
        path.write_bytes(whole)
    assert checkpoints(tmp_path)[0].restore() == 7


@pytest.mark.parametrize("pattern", ["state.index", "state.data-*", "checkpoint.json"])
def test_a_truncated_an_empty_and_a_deleted_file_are_refused(tmp_path, pattern):
    (path,) = save(tmp_path, 5, 7).glob(pattern)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 0):
        path.write_bytes(whole[:length])
        if path.suffix != ".json" or length < len(whole) - 1:  # its last byte is a line end
            assert "is damaged" in refusal(tmp_path)
    path.unlink()
    assert "is damaged" in refusal(tmp_path)


def test_a_foreign_file_in_a_checkpoint_is_refused(tmp_path):
    (save(tmp_path, 5, 7) / "state.data-00001-of-00002").touch()
    assert "is damaged" in refusal(tmp_path)


def test_a_deleted_checkpoint_is_refused(tmp_path):
    newest = save(tmp_path, 5, 7)
    shutil.rmtree(newest)
    assert newest.name in refusal(tmp_path)


def test_the_checkpoint_of_another_step_is_refused(tmp_path):
    newest = save(tmp_path, 5, 7)
    shutil.rmtree(newest)
    shutil.copytree(newest.with_name("step-00000005"), newest)
    assert newest.name in refusal(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", "\xff"),
        *('{"steps": null}', '{"steps": 7}', '{"steps": ["7"]}', '{"steps": [true]}'),
        *('{"steps": []}', '{"steps": [7, 5]}', '{"steps": [0]}', '{"steps": [5, 7.0]}'),
        '{"steps": [5, 8]}',
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text):
    save(tmp_path, 5, 7)
    (tmp_path / "checkpoints" / "index.json").write_text(text, encoding="latin-1")
    refusal(tmp_path)


@pytest.mark.parametrize("steps", [(5,), (5, 7)])
def test_a_missing_index_beside_checkpoints_is_refused(tmp_path, steps):
    save(tmp_path, *steps)
    (tmp_path / "checkpoints" / "index.json").unlink()
    assert "index.json is missing" in refusal(tmp_path)


def test_saving_refuses_a_damaged_index_too(tmp_path):
    save(tmp_path, 5, 7)
    (tmp_path / "checkpoints" / "index.json").unlink()
    with pytest.raises(CheckpointError):
        checkpoints(tmp_path)[0].save(9)
    assert names(tmp_path) == ["step-00000005", "step-00000007"]


def test_the_advice_of_the_refusal_works(tmp_path):
    newest = save(tmp_path, 5, 7)
    (newest / "state.index").unlink()
    message = refusal(tmp_path)
    assert f"delete {newest.name} and take 7 out of index.json" in message
    shutil.rmtree(newest)
    index = tmp_path / "checkpoints" / "index.json"
    index.write_text(json.dumps({"steps": [5]}))
    assert checkpoints(tmp_path)[0].restore() == 5


# --- Interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [(), (5,), (3, 5)])
def test_an_interruption_of_a_save_at_any_moment_is_harmless(tmp_path, before, monkeypatch):
    """Stop the save of step 7 before its n-th rename or removal, for every n."""
    for stop in range(20):
        directory = tmp_path / str(stop)
        if before:
            save(directory, *before)
        with monkeypatch.context() as patch:
            left = iter(range(stop))
            for module, name in ((os, "replace"), (shutil, "rmtree"), (os, "fsync")):
                patch.setattr(module, name, _until(left, getattr(module, name)))
            # A killed process cleans nothing up.
            patch.setattr(files, "_remove", lambda path: None)
            try:
                save(directory, 7)
                finished = True
            except InterruptedError:
                finished = False
        restored = checkpoints(directory)[0].restore()
        assert restored in (before[-1] if before else 0, 7)
        assert restored == 7 or not finished
        if restored < 7:
            save(directory, 7)
        save(directory, 9)
        assert checkpoints(directory)[0].restore() == 9
        listed = ["index.json", "step-00000007", "step-00000009"]
        assert [n for n in names(directory) if not n.endswith(".tmp")] == listed
        assert not [n for n in names(directory) if n.startswith(".step")]
        if finished:
            return
    raise AssertionError("the save never finished")


def _until(left, function):
    """`function`, that raises InterruptedError once `left` is exhausted."""

    def call(*arguments, **keywords):
        if next(left, None) is None:
            raise InterruptedError
        return function(*arguments, **keywords)

    return call


def test_what_an_interrupted_save_leaves_is_not_restored_but_cleared(tmp_path):
    newest = save(tmp_path, 5)
    for name in (".step-00000007.99.tmp", "step-00000007"):
        shutil.copytree(newest, newest.with_name(name))
    (newest.parent / ".index.json.99.tmp").write_text("{")
    assert checkpoints(tmp_path)[0].restore() == 5
    save(tmp_path, 7)
    assert checkpoints(tmp_path)[0].restore() == 7
    assert [n for n in names(tmp_path) if "step" in n] == ["step-00000005", "step-00000007"]


# --- Another model --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [State((4, 2)), State((3, 2), extra=(2,)), State((6,))],
    ids=["wider", "deeper", "another rank"],
)
def test_a_checkpoint_of_another_architecture_does_not_fit(tmp_path, state):
    newest = save(tmp_path, 5)
    message = refusal(tmp_path, state)
    assert f"{newest} does not fit this model" in message


def test_a_checkpoint_with_more_weights_than_the_model_does_not_fit(tmp_path):
    saver, _ = checkpoints(tmp_path, State((3, 2), extra=(2,)))
    saver.save(5)
    assert "does not fit this model" in refusal(tmp_path)


def test_a_part_of_the_state_is_restored_where_that_is_asked_for(tmp_path):
    saver, state = checkpoints(tmp_path, State((3, 2), extra=(2,)))
    state.train(5)
    saver.save(5)
    part, state = checkpoints(tmp_path)
    assert part.restore(partial=True) == 5
    assert state.step.numpy() == 5
