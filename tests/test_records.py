"""The record contract: what is written comes back, and whatever is wrong is one clear line."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from tfjoint import records
from tfjoint.errors import UserError
from tfjoint.records import ObjectRecord, RecordError, RecordSet


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("records"))


DEMO = Path(records.__file__).parent / "demo"


def png(side: int = 4, mode: str = "RGBA", colour=(10, 20, 30, 255), height: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (side, height or side), colour[: len(mode)]).save(stream, "PNG")
    return stream.getvalue()


def small(index: int = 0, **changes) -> ObjectRecord:
    """An object of few bytes: one view of 4 pixels, a grid of side 3."""
    voxels = np.zeros((3, 3, 3), bool)
    voxels[0, 1, 2] = voxels[2, 2, 2] = True
    fields = {
        "category": "chair",
        "object_id": f"object-{index}",
        "source": f"mesh-{index}",
        "views": [png()],
        "cameras": np.arange(4, dtype=np.float32)[np.newaxis],
        "voxels": voxels,
    }
    return ObjectRecord(**{**fields, **changes})


def write(root: Path, *objects: ObjectRecord, **changes) -> Path:
    shards = records.write_split(root, "train", objects, len(objects))
    fields = {"image_size": 4, "views": 1, "voxel_size": 3, "splits": {"train": shards}}
    manifest = records.Manifest("small", "mine", "0" * 64, **{**fields, **changes})
    records.write_manifest(root, manifest)
    return root / shards[0].file


def edit_manifest(root: Path, **changes) -> None:
    path = root / records.MANIFEST
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


def replace_shard(path: Path, data: bytes, count: int) -> None:
    """Put other bytes into a shard and make the manifest agree with them."""
    path.write_bytes(data)
    shard = records.Shard(path.name, count, len(data), hashlib.sha256(data).hexdigest())
    edit_manifest(path.parent, splits={"train": [shard._asdict()]})


def refusal(root: Path, split: str = "train") -> str:
    """The one line that opening a record set ends in."""
    with pytest.raises(RecordError) as caught:
        RecordSet(root, split)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert message and "\n" not in message
    return message


def equal(first: ObjectRecord, second: ObjectRecord) -> bool:
    return (
        (first.category, first.object_id, first.source, list(first.views))
        == (second.category, second.object_id, second.source, list(second.views))
        and np.array_equal(first.cameras, second.cameras)
        and np.array_equal(first.voxels, second.voxels)
        and (first.code_bytes is None) == (second.code_bytes is None)
        and (first.code_bytes is None or np.array_equal(first.code_bytes, second.code_bytes))
    )


# --- What comes back ------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_written():
    for size in (1, 2, 3, 5, 8):  # 1, 8, 27, 125 and 512 bits: whole bytes and parts
        rng = np.random.default_rng(size)
        record = small(
            category="Stühle",
            views=[png(4), png(5, "RGB"), b""],
            cameras=rng.normal(size=(3, 4)).astype(np.float32),
            voxels=rng.random((size, size, size)) < 0.5,
        )
        again = records.decode_record(records.encode_record(record))
        assert equal(record, again)
        assert again.voxels.dtype == bool and again.cameras.dtype == np.float32


def test_bytes_of_coded_views_come_back_as_they_were_written():
    code_bytes = np.array([[289, 303, 77], [289, 291, 2**31 - 1]])
    record = small(views=[png(), png()], cameras=np.zeros((2, 4)), code_bytes=code_bytes)
    again = records.decode_record(records.encode_record(record))
    assert equal(record, again) and again.code_bytes.dtype == np.int32
    assert records.decode_record(records.encode_record(small())).code_bytes is None


def test_what_has_no_coded_views_is_written_as_ever():
    """The committed demo set was written before there were any."""
    for split in ("train", "test"):
        opened = RecordSet(DEMO, split)
        for index in range(0, len(opened), 9):
            assert records.encode_record(opened.record(index)) == opened.read(index)
    text = (DEMO / records.MANIFEST).read_text(encoding="utf-8")
    again = json.dumps(records.read_manifest(DEMO).to_json(), indent=1, sort_keys=True) + "\n"
    assert again == text


def test_axes_of_the_grid_keep_their_order():
    voxels = np.zeros((4, 4, 4), bool)
    voxels[1, 2, 3] = True
    again = records.decode_record(records.encode_record(small(voxels=voxels)))
    assert np.argwhere(again.voxels).tolist() == [[1, 2, 3]]


def test_equal_objects_give_equal_bytes():
    assert records.encode_record(tiny.record(3)) == records.encode_record(tiny.record(3))
    assert records.encode_record(tiny.record(3)) != records.encode_record(tiny.record(4))


def test_every_object_of_a_set_comes_back_from_its_position(directory):
    for split, first, count in (("train", 0, 12), ("test", 12, 5)):
        opened = RecordSet(directory, split)
        assert len(opened) == count
        for index in reversed(range(count)):
            record = tiny.record(first + index)
            assert equal(opened.record(index), record)
            entry = opened.objects[index]
            assert (entry.category, entry.object_id, entry.source) == (
                record.category,
                record.object_id,
                record.source,
            )


def test_shards_are_plain_tfrecords(directory):
    """TensorFlow's own reader, checksums included, finds the same bytes in the same order."""
    opened = RecordSet(directory, "train")
    names = [shard.file for shard in opened.manifest.splits["train"]]
    assert names == [f"train-{i:05d}-of-00003.tfrecord" for i in range(3)]
    read = tf.data.TFRecordDataset([str(directory / name) for name in names])
    expected = [opened.read(index) for index in range(12)]
    assert [item.numpy() for item in read] == expected


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    shards = records.write_split(tmp_path, "train", [small()], 1)
    manifest = records.Manifest(
        name="mine",
        split_name="r2n2",
        split_sha256="ab",
        image_size=4,
        views=1,
        voxel_size=3,
        splits={"train": shards, "test": ()},
        sources={"a.deb": "cd"},
        settings={"seed": 3},
        tool_version="1.2",
    )
    records.write_manifest(tmp_path, manifest)
    assert records.read_manifest(tmp_path) == manifest
    coded = dataclasses.replace(manifest, jpeg2000={"rate": 48.0, "mode": "asked"})
    records.write_manifest(tmp_path, coded)
    assert records.read_manifest(tmp_path) == coded != manifest
    assert "left_out" not in json.loads((tmp_path / records.MANIFEST).read_text())
    with_gaps = dataclasses.replace(manifest, left_out={"chair/b": "b.png is missing"})
    records.write_manifest(tmp_path, with_gaps)
    assert records.read_manifest(tmp_path) == with_gaps


def test_the_data_hash_is_that_of_the_manifest_and_sees_a_change_of_any_object(tmp_path):
    hashes = set()
    for name, objects in (("a", [small(0)]), ("b", [small(1)]), ("c", [small(0), small(1)])):
        write(tmp_path / name, *objects)
        text = (tmp_path / name / records.MANIFEST).read_bytes()
        assert RecordSet(tmp_path / name, "train").data_sha256 == hashlib.sha256(text).hexdigest()
        hashes.add(hashlib.sha256(text).hexdigest())
    assert len(hashes) == 3
    write(tmp_path / "d", small(0))
    assert (tmp_path / "d" / records.MANIFEST).read_bytes() == (
        tmp_path / "a" / records.MANIFEST
    ).read_bytes()


# --- What cannot be written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": [], "cameras": np.zeros((0, 4))}, "V >= 1 views"),
        ({"cameras": np.zeros((2, 4))}, r"1 view, cameras \(2, 4\)"),
        ({"cameras": np.zeros((1, 3))}, r"cameras \(1, 3\)"),
        ({"voxels": np.zeros((3, 3, 2), bool)}, r"voxels must be \[D, D, D\].*\(3, 3, 2\)"),
        ({"voxels": np.zeros((3, 3), bool)}, r"Received: \(3, 3\)"),
        ({"code_bytes": np.zeros((2, 3), int)}, r"1 view, code_bytes \(2, 3\)"),
        ({"code_bytes": np.zeros(3, int)}, r"must be \[V, 3\].*code_bytes \(3,\)"),
    ],
)
def test_an_object_that_fits_no_record_is_not_written(changes, message):
    with pytest.raises(ValueError, match=message):
        records.encode_record(small(**changes))


@pytest.mark.parametrize("announced", [1, 3, 4])
def test_another_number_of_records_than_announced_is_refused(tmp_path, announced):
    with pytest.raises(ValueError, match=f"than the {announced} announced"):
        records.write_split(tmp_path, "train", [small(0), small(1)], announced, 2)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_shards_hold_as_many_records_as_asked(tmp_path):
    shards = records.write_split(tmp_path, "train", map(small, range(7)), 7, 3)
    assert [shard.records for shard in shards] == [3, 3, 1]
    for shard in shards:
        data = (tmp_path / shard.file).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_shard_that_was_begun_and_not_finished_has_no_name(tmp_path):
    path = tmp_path / "train-00000-of-00001.tfrecord"
    with pytest.raises(KeyboardInterrupt), records.writing_shard(path) as write_record:
        write_record(small())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with records.writing_shard(path) as write_record:
        write_record(small())
    data = path.read_bytes()
    assert records.shard_entry(path, 1) == (
        path.name,
        1,
        len(data),
        hashlib.sha256(data).hexdigest(),
    )


# --- What is refused ------------------------------------------------------------------------------


def test_a_missing_directory_manifest_or_split_is_one_line(tmp_path, directory):
    assert "no record directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no manifest.json" in refusal(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    assert "no record directory" in refusal(tmp_path / "file")
    assert "no split 'validation'; it has: test, train" in refusal(directory, "validation")


def test_an_empty_split_is_one_line(tmp_path):
    write(tmp_path / "no-records")
    assert "is empty" in refusal(tmp_path / "no-records")
    write(tmp_path / "no-shards", small(), splits={"train": ()})
    assert "is empty" in refusal(tmp_path / "no-shards")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '"text"', "null", "{}", '{"schema": 1}', "\0\0", '{"schema": 1,']
)
def test_what_is_no_manifest_is_one_line(tmp_path, text):
    write(tmp_path, small())
    (tmp_path / records.MANIFEST).write_text(text)
    assert "is not a manifest" in refusal(tmp_path)


def test_a_manifest_that_is_not_text_is_one_line(tmp_path):
    write(tmp_path, small())
    (tmp_path / records.MANIFEST).write_bytes(b"\xff\xfe\x00{")
    assert "is not a manifest" in refusal(tmp_path)


@pytest.mark.parametrize("schema", [0, 2, "1", None, 1.5])
def test_an_unknown_schema_of_a_manifest_is_one_line_that_says_what_to_do(tmp_path, schema):
    write(tmp_path, small())
    edit_manifest(tmp_path, schema=schema)
    message = refusal(tmp_path)
    assert f"schema {schema!r}" in message and "reads schema 1" in message and "rebuild" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"views": "1"},
        {"views": None},
        {"views": ...},
        {"image_size": 4.0},
        {"voxel_size": -3},
        {"voxel_size": True},
        {"name": 3},
        {"surprise": 1},
        {"jpeg2000": 48},
        {"jpeg2000": {"mode": "asked"}},
        {"jpeg2000": {"rate": "48"}},
        {"jpeg2000": {"rate": None}},
        {"left_out": ["chair/b"]},
        {"left_out": {"chair/b": 3}},
        {"splits": ...},
        {"splits": []},
        {"splits": {"train": 3}},
        {"splits": {"train": [3]}},
        {"splits": {"train": [{"file": "x"}]}},
        {"splits": {"train": [{"file": 3, "records": 1, "bytes": 1, "sha256": ""}]}},
        {"splits": {"train": [{"file": "x", "records": "1", "bytes": 1, "sha256": ""}]}},
        {"splits": {"train": [{"file": "x", "records": 1, "bytes": 1, "sha256": "", "more": 1}]}},
    ],
    ids=str,
)
def test_a_manifest_with_a_wrong_missing_or_unknown_field_is_one_line(tmp_path, changes):
    write(tmp_path, small())
    edit_manifest(tmp_path, **changes)
    assert "is not a manifest" in refusal(tmp_path)


def test_a_missing_shard_is_one_line(tmp_path):
    path = write(tmp_path, small())
    path.unlink()
    message = refusal(tmp_path)
    assert path.name in message and "is missing" in message


def test_every_flipped_byte_and_every_truncation_of_a_shard_is_caught(tmp_path):
    path = write(tmp_path, small(0), small(1))
    data = path.read_bytes()
    RecordSet(tmp_path, "train")
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert "is damaged" in refusal(tmp_path), position
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert "is damaged" in refusal(tmp_path), length
    path.write_bytes(data + b"\0")
    assert "is damaged" in refusal(tmp_path)
    path.write_bytes(data)
    RecordSet(tmp_path, "train")


def test_every_truncation_that_the_manifest_agrees_with_is_caught(tmp_path):
    path = write(tmp_path, small(0), small(1))
    data = path.read_bytes()
    for length in range(1, len(data)):
        replace_shard(path, data[:length], 2)
        assert str(path) in refusal(tmp_path), length


def test_no_flipped_byte_that_the_manifest_agrees_with_ends_in_a_traceback(tmp_path):
    path = write(tmp_path, small())
    data = path.read_bytes()
    refused = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x81
        replace_shard(path, bytes(damaged), 1)
        try:
            RecordSet(tmp_path, "train")
        except RecordError as error:
            refused += 1
            assert "\n" not in str(error), position
    assert refused > len(data) / 4  # the rest changes a pixel, a name or a checksum


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_records_is_one_line(tmp_path, count):
    path = write(tmp_path, small(0), small(1))
    replace_shard(path, path.read_bytes(), count)
    assert f"holds 2 records, the manifest says {count}" in refusal(tmp_path)


def tfrecord(path: Path, *serialized: bytes) -> bytes:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for item in serialized:
            writer.write(item)
    return path.read_bytes()


def test_a_foreign_record_is_one_line_that_names_it(tmp_path):
    path = write(tmp_path, small())
    example = tf.train.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(b"jpeg")
    foreign = {
        "another example": example.SerializeToString(),
        "no protobuf": b"\xff" * 40,
        "nothing": b"",
        "text": b"hello world",
    }
    for name, serialized in foreign.items():
        good = records.encode_record(small())
        replace_shard(path, tfrecord(path, good, serialized), 2)
        message = refusal(tmp_path)
        assert f"{path}, record 1: not a record of schema 1" in message, name


def test_a_record_of_an_unknown_schema_is_one_line(tmp_path):
    path = write(tmp_path, small())
    example = tf.train.Example.FromString(records.encode_record(small()))
    example.features.feature["schema"].int64_list.value[0] = 2
    replace_shard(path, tfrecord(path, example.SerializeToString()), 1)
    assert "record schema 2 is unknown; this version reads schema 1" in refusal(tmp_path)


@pytest.mark.parametrize(
    "feature",
    ["schema", "category", "object", "source", "views", "cameras", "voxel_size", "voxels"],
)
def test_a_record_without_one_of_its_features_is_refused(feature):
    example = tf.train.Example.FromString(records.encode_record(small()))
    del example.features.feature[feature]
    with pytest.raises(RecordError, match="not a record of schema 1"):
        records.decode_record(example.SerializeToString())


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_record_whose_code_bytes_do_not_fit_its_views_is_refused(count):
    record = small(code_bytes=np.ones((1, 3), int))
    example = tf.train.Example.FromString(records.encode_record(record))
    feature = example.features.feature["code_bytes"]
    feature.int64_list.value[:] = range(count)
    with pytest.raises(RecordError, match="not a record of schema 1"):
        records.decode_record(example.SerializeToString())


def test_coded_views_and_their_manifest_belong_together(tmp_path):
    coded = small(code_bytes=np.ones((1, 3), int))
    write(tmp_path / "coded", coded, jpeg2000={"rate": 48})
    assert len(RecordSet(tmp_path / "coded", "train")) == 1
    write(tmp_path / "no-bytes", small(), jpeg2000={"rate": 48})
    assert "'object-0' lacks code_bytes, against the manifest" in refusal(tmp_path / "no-bytes")
    write(tmp_path / "no-rate", coded)
    assert "'object-0' has code_bytes, against the manifest" in refusal(tmp_path / "no-rate")


@pytest.mark.parametrize("size", [0, 2, 4, -3, 2**40])
def test_a_record_whose_voxels_do_not_fit_their_size_is_refused(size):
    example = tf.train.Example.FromString(records.encode_record(small()))
    example.features.feature["voxel_size"].int64_list.value[0] = size
    with pytest.raises(RecordError, match="not a record of schema 1"):
        records.decode_record(example.SerializeToString())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (small(views=[png()] * 2, cameras=np.zeros((2, 4))), "has 2 views and a grid of side 3"),
        (small(voxels=np.zeros((4, 4, 4), bool)), "has 1 view and a grid of side 4"),
        (small(views=[png(5)]), "view 0 of 'odd' is not a PNG of 4 x 4 pixels"),
        (small(views=[png(4, height=5)]), "is not a PNG of 4 x 4 pixels"),
        (small(views=[b"GIF89a" + png()]), "is not a PNG of 4 x 4 pixels"),
        (small(views=[b""]), "is not a PNG of 4 x 4 pixels"),
    ],
)
def test_an_object_that_differs_from_the_manifest_is_one_line(tmp_path, record, message):
    path = write(tmp_path, small(), dataclasses.replace(record, object_id="odd"))
    found = refusal(tmp_path)
    assert f"{path}, record 1: " in found and message in found


def test_a_length_beyond_the_file_is_one_line(tmp_path):
    path = write(tmp_path, small())
    data = path.read_bytes()
    for length in (len(data), 2**32, 2**64 - 1):
        replace_shard(path, struct.pack("<Q", length) + data[8:], 1)
        assert f"{path}, record 0: not a record" in refusal(tmp_path), length


def test_a_shard_that_cannot_be_opened_as_a_file_is_one_line(tmp_path):
    path = write(tmp_path, small())
    path.unlink()
    os.mkdir(path)
    assert "is missing" in refusal(tmp_path)
