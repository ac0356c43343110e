"""Verification: whatever was changed is found, and told in one line that says where."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from stderr import own_lines

from data_tools import integrity, splits
from tfjoint import files, records

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tfjoint" / "demo"
TRAIN, TEST = "train-00000-of-00001.tfrecord", "test-00000-of-00001.tfrecord"
MANIFEST, DIGEST, SPLIT_LIST = "manifest.json", "manifest.json.sha256", "split.json"


def make(directory: Path, sides: Mapping[str, tuple[int, ...]], **fields) -> Path:
    """Write a set of objects of few bytes: a view of 2 pixels, a grid of side 2."""
    shards = {
        side: records.write_split(directory, side, map(small, objects), len(objects))
        for side, objects in sides.items()
    }
    lists = {side: {f"chair/{i}": f"mesh-{i}" for i in objects} for side, objects in sides.items()}
    splits.write_split_list(directory / SPLIT_LIST, splits.SplitList("mine", lists))
    fields = {
        "split_sha256": splits.split_sha256(directory / SPLIT_LIST),
        "image_size": 2,
        "views": 1,
        "voxel_size": 2,
        "sources": {"a.deb": "0" * 64},
        "settings": {"seed": 3},
        **fields,
    }
    records.write_manifest(
        directory, records.Manifest("small", "mine", splits=shards, tool_version="1", **fields)
    )
    return directory


def small(index: int) -> records.ObjectRecord:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), (index, 20, 30)).save(stream, "PNG")
    return records.ObjectRecord(
        category="chair",
        object_id=str(index),
        source=f"mesh-{index}",
        views=[stream.getvalue()],
        cameras=np.zeros((1, 4)),
        voxels=np.ones((2, 2, 2), bool),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made"), {"train": (0, 1), "test": (2,)})


@pytest.fixture()
def root(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def faults(*directories: Path) -> list[str]:
    found = [f for report in integrity.verify(directories) for f in report.faults]
    assert not [fault for fault in found if "\n" in fault]
    return found


def fault(directory: Path) -> str:
    (found,) = faults(directory)
    return found


def notes(directory: Path) -> str:
    (report,) = integrity.verify([directory])
    assert not report.faults
    return "\n".join(report.holdings)


def edit_manifest(directory: Path, edit) -> None:
    """Change the manifest and make its digest agree."""
    path = directory / MANIFEST
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))
    (directory / DIGEST).write_bytes(records.manifest_digest(directory))


def agreeing(path: Path, data: bytes, count: int) -> list[str]:
    """The faults of a shard of other bytes whose size, count and digest the manifest knows."""
    path.write_bytes(data)
    shard = records.Shard(path.name, count, len(data), hashlib.sha256(data).hexdigest())
    manifest = records.read_manifest(path.parent)
    return integrity.check_shard(integrity.ShardJob(path, shard, manifest)).faults


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the position of every bit and the data with that bit flipped."""
    damaged = bytearray(data)
    for position in range(8 * len(data)):
        damaged[position // 8] ^= 1 << position % 8
        yield position, bytes(damaged)
        damaged[position // 8] ^= 1 << position % 8


def offsets(data: bytes) -> list[int]:
    """Where the records of a shard begin, and its end."""
    found = [0]
    while found[-1] < len(data):
        found.append(found[-1] + 16 + struct.unpack_from("<Q", data, found[-1])[0])
    return found


# --- What is intact -------------------------------------------------------------------------------


def test_of_an_intact_set_it_is_told_what_it_holds(root):
    (report,) = integrity.verify([root])
    assert not report.faults
    sizes = [(root / name).stat().st_size for name in (TEST, TRAIN)]
    assert report.holdings == [
        f"{root}: small, split mine, 1 view per object, 2 pixels, grid 2",
        f"test: 1 objects of 1 sources, {sizes[0]} bytes in 1 shards, intact",
        f"train: 2 objects of 2 sources, {sizes[1]} bytes in 1 shards, intact",
    ]


def test_the_demo_set_is_intact_to_the_last_bit():
    assert len(notes(DEMO).splitlines()) == 3  # the set and its two sides: no note


def test_every_set_below_a_directory_is_checked(root, tmp_path):
    for name in ("sets/c48", "sets/c96", "sets/deep/down"):
        shutil.copytree(root, tmp_path / name)
    reports = integrity.verify([tmp_path / "sets", root])
    found = [report.directory for report in reports]
    names = ("sets/c48", "sets/c96", "sets/deep/down", "set")
    assert found == [tmp_path / name for name in names]
    (tmp_path / "sets/c96" / TEST).write_bytes(b"")
    assert [len(report.faults) for report in integrity.verify([tmp_path / "sets"])] == [0, 1, 0]


def test_a_set_behind_a_link_is_checked_and_a_link_in_a_circle_is_not_followed(root, tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "linked").symlink_to(root)
    (root / "up").symlink_to(tmp_path / "sets")
    (report,) = integrity.verify([tmp_path / "sets"])
    assert report.directory == tmp_path / "sets" / "linked" and not report.faults


def test_work_directories_and_what_is_no_set_are_passed_over_with_a_word(root, tmp_path):
    shutil.copytree(root, tmp_path / "sets" / "open")
    work = tmp_path / "sets" / "open-work"
    for name in ("shards/train-00000-of-00001.tfrecord.json", "spool/x.tfrecord", "a/b.png"):
        (work / name).parent.mkdir(parents=True)
        (work / name).write_bytes(b"none of this is a record")
    (tmp_path / "sets" / "photos").mkdir()
    passed, report = integrity.verify([tmp_path / "sets"])
    assert report.directory == tmp_path / "sets" / "open" and not report.faults
    assert passed.directory == tmp_path / "sets" and not passed.faults
    assert passed.holdings == [
        f"{work} is a work directory: passed over",
        f"{tmp_path / 'sets' / 'photos'} holds no record set: passed over",
    ]
    # A set is one under any name, and a set without its manifest stays a fault.
    shutil.copytree(root, tmp_path / "sets" / "at-work")
    assert len(integrity.verify([tmp_path / "sets"])) == 3
    (tmp_path / "sets" / "open" / MANIFEST).unlink()
    assert "has no manifest.json" in fault(tmp_path / "sets")


def test_over_several_processes_the_reports_are_the_same(root, tmp_path, monkeypatch, capsys):
    other = Path(shutil.copytree(root, tmp_path / "other"))
    (other / TRAIN).write_bytes((other / TRAIN).read_bytes()[:-1])
    alone = integrity.verify([root, other])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(integrity, "_BYTES_PER_PROCESS", 1)
    assert integrity.verify([root, other], processes=2) == alone
    assert "shards: 4/4" in capsys.readouterr().err


def test_the_checksum_is_that_of_a_tfrecord():
    def slow(data: bytes) -> int:
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        crc ^= 0xFFFFFFFF
        return ((crc >> 15 | crc << 17) % 2**32 + 0xA282EAD8) % 2**32

    for length in (0, 1, 8, 9, 100):
        data = bytes(range(7, 7 + length))
        assert integrity._checksum(data) == slow(data)


# --- Every bit and every length -------------------------------------------------------------------


@pytest.mark.parametrize("name", [TRAIN, MANIFEST, DIGEST, SPLIT_LIST])
def test_every_flipped_bit_is_found(root, name):
    path = root / name
    data = path.read_bytes()
    missed = []
    for position, damaged in flips(data):
        path.write_bytes(damaged)
        if not faults(root):
            missed.append(position)
    assert not missed
    path.write_bytes(data)
    assert not faults(root)


@pytest.mark.parametrize("name", [TRAIN, MANIFEST, DIGEST, SPLIT_LIST])
def test_every_truncation_is_found(root, name):
    path = root / name
    data = path.read_bytes()
    missed = []
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if not faults(root):
            missed.append(length)
    assert not missed


def test_every_flipped_bit_is_found_by_the_checksums_even_where_the_digests_agree(root):
    path = root / TRAIN
    data = path.read_bytes()
    begin, end, _ = offsets(data)
    for position, damaged in flips(data):
        (found,) = agreeing(path, damaged, 2)
        record = int(position // 8 >= end)
        in_length = position // 8 - (end if record else begin) < 12
        what = "the checksum of its " + ("length" if in_length else "data")
        assert found.startswith(f"{path}, record {record}: {what} is wrong"), position


def test_every_truncation_is_found_even_where_the_digests_agree(root):
    path = root / TRAIN
    data = path.read_bytes()
    begin, end, _ = offsets(data)
    for length in range(len(data)):
        (found,) = agreeing(path, data[:length], 2)
        if length in (begin, end):
            held = [begin, end].index(length)
            assert f"{path} holds {held} records, the manifest says 2" in found
        else:
            where = f"{path}, record {int(length > end)}: the file ends inside its "
            assert found.startswith(where) and f"at byte {length}" in found


def test_without_the_manifests_digest_a_note_says_what_is_not_found(root):
    (root / DIGEST).unlink()
    assert notes(root).endswith(f"`sha256sum {MANIFEST} > {DIGEST}`")
    text = (root / MANIFEST).read_text()
    (root / MANIFEST).write_text(text.replace('"small"', '"smell"'))
    assert "smell" in notes(root)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_manifests_digest_is_what_sha256sum_writes_and_checks(root):
    command = ["sha256sum", MANIFEST]
    printed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    assert (root / DIGEST).read_bytes() == printed
    assert (DEMO / DIGEST).read_bytes() == records.manifest_digest(DEMO)


def test_a_manifest_that_is_written_again_has_the_digest_of_the_new_one(root):
    make(root, {"train": (5,), "test": (6,)})
    assert not faults(root)


# --- What else is found ---------------------------------------------------------------------------


def test_all_faults_are_listed_each_with_its_file_its_record_and_what_to_do(tmp_path):
    root = make(tmp_path / "set", {"train": (0, 1, 2, 3), "test": (4,)})
    data = bytearray((root / TRAIN).read_bytes())
    starts = offsets(bytes(data))
    data[starts[0] + 30] ^= 1
    data[starts[2] + 30] ^= 1
    (root / TRAIN).write_bytes(data[:-1])
    (root / TEST).unlink()
    (root / "more.tfrecord").touch()
    found = faults(root)
    assert len(found) == 5
    for part in (
        f"{root / 'more.tfrecord'} is not in the manifest: remove it",
        f"{root / TEST} is missing, but the manifest lists it: restore it",
        f"{root / TRAIN}, record 0: the checksum of its data is wrong: restore it",
        f"{root / TRAIN}, record 2: the checksum of its data is wrong: restore it",
        f"{root / TRAIN}, record 3: the file ends inside its data, at byte {len(data) - 1}",
    ):
        assert [line for line in found if line.startswith(part)], part


@pytest.mark.parametrize("record", [0, 1, 2])
def test_bytes_too_many_are_found(root, record):
    data = (root / TRAIN).read_bytes()
    position = offsets(data)[record]
    (root / TRAIN).write_bytes(data[:position] + b"\0" * 12 + data[position:])
    assert f"{TRAIN}, record {record}: the checksum of its length is wrong" in fault(root)


def test_a_shard_of_another_set_is_found_though_it_is_whole(root, tmp_path):
    other = make(tmp_path / "other", {"train": (7, 8), "test": (2,)})
    shutil.copy(other / TRAIN, root / TRAIN)
    assert "although every record is whole" in fault(root)


def test_records_in_another_order_are_found(root):
    data = (root / TRAIN).read_bytes()
    _, middle, _ = offsets(data)
    (root / TRAIN).write_bytes(data[middle:] + data[:middle])
    assert "although every record is whole" in fault(root)


def test_a_record_of_another_kind_is_found_and_named(root):
    path = root / TRAIN
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(records.encode_record(small(0)))
        writer.write(b"no record")
    (found,) = agreeing(path, path.read_bytes(), 2)
    assert found.startswith(f"{path}, record 1: not a record of schema 1")
    assert "rebuild the records" in found


def test_records_unlike_what_the_manifest_says_are_found(root):
    edit_manifest(root, lambda fields: fields.update(views=2))
    assert len(faults(root)) == 3
    assert all("the manifest says 2" in line for line in faults(root))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_count_is_found(root, count):
    (found,) = agreeing(root / TRAIN, (root / TRAIN).read_bytes(), count)
    assert f"holds 2 records, the manifest says {count}: restore" in found


@pytest.mark.parametrize("name", ["train-00001-of-00002.tfrecord", "a.TFRecords", "b.tfrecord.bak"])
def test_what_looks_like_a_shard_and_is_not_listed_is_found(root, name):
    (root / name).touch()
    assert f"{root / name} is not in the manifest: remove it" in fault(root)


def test_what_a_stopped_run_left_over_is_a_note(root):
    with files.replacing(root / "train-00000-of-00002.tfrecord") as temporary:
        name = temporary.name
        temporary.touch()
    (root / "train-00000-of-00002.tfrecord").replace(root / name)
    assert f"{name} is left over from a run that was stopped: remove it" in notes(root)


def test_shards_without_a_manifest_are_found(root):
    (root / MANIFEST).unlink()
    assert "has no manifest.json: it is not a finished record directory" in fault(root)


def test_a_split_list_of_another_set_is_found(root, tmp_path):
    other = make(tmp_path / "other", {"train": (7, 8), "test": (2,)})
    shutil.copy(other / SPLIT_LIST, root / SPLIT_LIST)
    assert "is not the list that the manifest names" in fault(root)
    (root / SPLIT_LIST).unlink()  # not every builder lays it beside
    assert not faults(root)


def test_an_object_that_is_there_twice_is_found(tmp_path):
    root = make(tmp_path / "set", {"train": (0, 1, 0), "test": (2,)})
    place = f"{root / TRAIN}, record"
    assert fault(root) == f"{place} 2: chair/0 is there before, in {place} 0: rebuild the records"


def test_a_source_on_both_sides_is_found(tmp_path):
    root = make(tmp_path / "set", {"train": (0,)})
    twin = make(tmp_path / "twin", {"test": (1,)})
    data = (twin / TEST).read_bytes()
    record = records.decode_record(data[12:-4])
    record = dataclasses.replace(record, source="mesh-0")
    shards = records.write_split(root, "test", [record], 1)
    edit_manifest(root, lambda f: f["splits"].update(test=[shard._asdict() for shard in shards]))
    assert "objects of 'mesh-0' lie in test and train: make the split list anew" in fault(root)


@pytest.mark.parametrize("name", ["../outside.tfrecord", "/outside.tfrecord", "deep/in.tfrecord"])
def test_a_manifest_that_names_a_file_elsewhere_is_found(root, name):
    edit_manifest(root, lambda fields: fields["splits"]["test"][0].update(file=name))
    assert any("names a shard outside of its directory" in line for line in faults(root))


def test_a_shard_that_is_listed_twice_is_found(root):
    edit_manifest(root, lambda fields: fields["splits"]["test"].append(*fields["splits"]["test"]))
    assert any(f"names '{TEST}' 2 times" in line for line in faults(root))


def test_a_directory_that_is_no_set_is_found(tmp_path):
    assert "no record directory at" in fault(tmp_path / "nowhere")
    assert "has no manifest.json" in fault(tmp_path)
    (tmp_path / "file").touch()
    assert "no record directory at" in fault(tmp_path / "file")


IMPOSSIBLE = ("", ".", "..", "a\0b", "a\nb", "x" * 300, "\ud800")


@pytest.mark.parametrize("name", IMPOSSIBLE, ids=ascii)
def test_a_manifest_with_an_impossible_name_is_a_fault(root, name):
    edit_manifest(root, lambda fields: fields["splits"]["test"][0].update(file=name))
    (report,) = integrity.verify([root])
    assert any(str(root) in line and integrity._RESTORE in line for line in report.faults)


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, '{"schema": 1, "views": 1e400}', '{"schema": ' + "9" * 5000 + "}", "\0"],
    ids=["empty", "deep", "infinite", "long", "zero"],
)
def test_a_manifest_that_is_none_never_ends_in_a_traceback(root, text):
    (root / MANIFEST).write_text(text)
    (root / DIGEST).write_bytes(records.manifest_digest(root))
    assert MANIFEST in fault(root)


def test_a_manifest_that_is_a_directory_never_ends_in_a_traceback(root):
    (root / DIGEST).unlink()
    (root / DIGEST).mkdir()
    assert "cannot be read" in fault(root)


# --- The command ----------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "data_tools.verify", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_command_tells_what_is_intact_and_every_fault_and_ends_with_2(root, tmp_path):
    other = Path(shutil.copytree(root, tmp_path / "other"))
    result = run(f"--records={root}", f"--records={other}")
    assert (result.returncode, own_lines(result.stderr)) == (0, [])
    assert len(result.stdout.splitlines()) == 6 and result.stdout.count("intact") == 4

    (other / TRAIN).unlink()
    (other / TEST).unlink()
    result = run(f"--records={root}", f"--records={other}")
    assert result.returncode == 2
    assert str(root) in result.stdout and str(other) not in result.stdout
    lines = own_lines(result.stderr)
    assert [bool(re.match(r"error: .*/other/.* is missing", line)) for line in lines] == [True] * 2


def test_whatever_stands_in_a_manifest_every_line_is_a_fault_and_none_a_traceback(root, tmp_path):
    for number, name in enumerate(IMPOSSIBLE):
        other = Path(shutil.copytree(root, tmp_path / "sets" / str(number)))
        edit_manifest(other, lambda f, name=name: f["splits"]["test"][0].update(file=name))
        edit_manifest(other, lambda f, name=name: f.update(name=name))
    result = run(f"--records={tmp_path / 'sets'}")
    assert result.returncode == 2 and not result.stdout
    lines = own_lines(result.stderr)
    assert all(line.startswith("error: ") for line in lines)
    assert len({number for number in range(7) if f"/sets/{number}" in result.stderr}) == 7
