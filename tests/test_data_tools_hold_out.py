"""Training objects held out to choose settings on: groups stay together, copies are not tests."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import runs
import tiny

from data_tools import hold_out
from tfjoint import records

TRAIN, TEST = 30, 4


def grouped(index: int) -> records.ObjectRecord:
    """Of every three objects one is a copy of another, and two share a source."""
    record = tiny.record(index)
    name = f"object-{index - index % 3}.copy1" if index % 3 == 1 else record.object_id
    return dataclasses.replace(record, object_id=name, source=f"mesh-{index // 3}")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("records"), grouped, TRAIN, TEST)


def read(directory: Path, split: str) -> list[records.ObjectRecord]:
    opened = records.RecordSet(directory, split)
    return [opened.record(index) for index in range(len(opened))]


def test_a_group_lies_on_one_side_and_no_test_object_on_either(source, tmp_path):
    hold_out.hold_out(source, tmp_path / "held", 0.3, seed=0)
    train, test = read(tmp_path / "held", "train"), read(tmp_path / "held", "test")
    groups = {side: {r.source for r in found} for side, found in (("a", train), ("b", test))}
    assert not groups["a"] & groups["b"]
    assert groups["a"] | groups["b"] == {r.source for r in read(source, "train")}
    assert len(groups["b"]) == 3  # of ten
    kept = {r.object_id for r in (*train, *test)}
    assert not kept & {r.object_id for r in read(source, "test")}
    assert len(train) == 21
    assert len(test) == 6 and not any("copy" in r.object_id for r in test)
    before = {r.object_id: records.encode_record(r) for r in read(source, "train")}
    for record in (*train, *test):
        assert records.encode_record(record) == before[record.object_id]


def test_the_same_call_ends_in_the_same_bytes_and_another_seed_in_others(source, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        hold_out.hold_out(source, tmp_path / name, 0.3, seed)
    first, again, other = (records.manifest_sha256(tmp_path / name) for name in "abc")
    assert first == again != other
    assert records.read_manifest(tmp_path / "a").name == "tiny-held-out"
    hold_out.hold_out(source, tmp_path / "a", 0.3, 0)
    assert records.manifest_sha256(tmp_path / "a") == first


@pytest.mark.parametrize("fraction", [0, 0.01, 1])
def test_a_part_that_leaves_a_side_empty_is_refused(source, tmp_path, fraction):
    with pytest.raises(hold_out.HoldOutError, match="leaves one side empty"):
        hold_out.hold_out(source, tmp_path / "held", fraction, seed=0)
    assert not (tmp_path / "held").exists()


def test_the_command_tells_how_many_lie_where(source, tmp_path):
    command = [sys.executable, "-m", "data_tools.hold_out", f"--records={source}"]
    finished = runs.finish([*command, f"--output={tmp_path / 'held'}", "--fraction=0.3"])
    assert finished.returncode == 0, finished.stderr
    assert "21 training objects, 6 held out" in finished.stdout
    assert "no record directory" in runs.refusal(
        [*command[:-1], f"--records={tmp_path / 'none'}", f"--output={tmp_path / 'x'}"]
    )
