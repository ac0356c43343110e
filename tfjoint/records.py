"""The record contract: sharded TFRecords, one example per object, and the manifest beside them.

    <directory>/manifest.json
    <directory>/manifest.json.sha256
    <directory>/<split>-00000-of-00004.tfrecord

TFRecord's own checksums miss some truncations, so the manifest holds a SHA-256 per shard, and
`RecordSet` checks it before the first object is used. The manifest's own digest lies beside it, as
`sha256sum` writes it; what was made before there was one lacks it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfjoint import files, words
from tfjoint.errors import UserError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.json.sha256"
CODE_BYTE_FIELDS = ("asked", "file", "payload")
"""Bytes of a JPEG 2000 view: what the rate asked for, of the file, of the file without headers."""
CAMERA_FIELDS = ("azimuth_degrees", "elevation_degrees", "rotation_degrees", "distance_ratio")

# TFRecord framing: length (8 bytes), its CRC (4), the data, its CRC (4).
_LENGTH = struct.Struct("<Q")
_HEADER_BYTES, _FOOTER_BYTES = 12, 4

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# What the code relies on; the rest of a manifest is for the reader.
_TEXTS, _COUNTS = ("name", "split_name"), ("image_size", "views", "voxel_size")
_SHARD_TEXTS, _SHARD_COUNTS = ("file", "sha256"), ("records", "bytes")


class RecordError(UserError):
    """A record directory that is missing, damaged, or not of this schema."""


@dataclasses.dataclass(frozen=True, eq=False)
class ObjectRecord:
    """One object: its views as encoded images, its cameras, its occupancy grid."""

    category: str
    object_id: str
    source: str
    """Group of near-duplicate meshes; a group lies on one side of a split."""
    views: Sequence[bytes]
    """V encoded PNG images, RGBA or RGB, all of one size."""
    cameras: np.ndarray
    """[V, 4] float32, columns as in `CAMERA_FIELDS`."""
    voxels: np.ndarray
    """[D, D, D] bool, axes x, y (up), z."""
    code_bytes: np.ndarray | None = None
    """[V, 3] int32 of JPEG 2000 views, columns as in `CODE_BYTE_FIELDS`; None of raw views."""


class Shard(NamedTuple):
    """What the manifest says of one shard."""

    file: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says of a record directory."""

    name: str
    """Data set and variant, e.g. "open-demo"; printed beside every result."""
    split_name: str
    """Which split list was used, e.g. "r2n2"."""
    split_sha256: str
    image_size: int
    """Side of the square stored views in pixels, before the crop."""
    views: int
    """Views stored per object."""
    voxel_size: int
    """Side D of the occupancy grid."""
    splits: Mapping[str, tuple[Shard, ...]]
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 of every source file, by name."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The settings of the builder that made the records."""
    tool_version: str = ""
    schema: int = SCHEMA_VERSION
    jpeg2000: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of JPEG 2000 views: "rate", "mode", "background" and how they were coded; else empty."""
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Objects of the split that are not in the records, by `<category>/<object>`, and why."""

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        fields["splits"] = {k: [s._asdict() for s in v] for k, v in self.splits.items()}
        for name in ("jpeg2000", "left_out"):
            if not fields[name]:
                del fields[name]
        return fields


def encode_record(record: ObjectRecord) -> bytes:
    """Return the serialized `tf.train.Example` of an object; equal input gives equal bytes."""
    views = list(record.views)
    cameras = np.asarray(record.cameras, np.float32)
    voxels = np.asarray(record.voxels, bool)
    if not views or cameras.shape != (len(views), len(CAMERA_FIELDS)):
        raise ValueError(
            f"{record.object_id}: cameras must be [V, {len(CAMERA_FIELDS)}] with V >= 1 views. "
            f"Received: {words.count(len(views), 'view')}, cameras {cameras.shape}"
        )
    if voxels.ndim != 3 or len(set(voxels.shape)) != 1:
        raise ValueError(f"{record.object_id}: voxels must be [D, D, D]. Received: {voxels.shape}")
    feature = {
        "schema": _int64(SCHEMA_VERSION),
        "category": _bytes([record.category.encode()]),
        "object": _bytes([record.object_id.encode()]),
        "source": _bytes([record.source.encode()]),
        "views": _bytes(views),
        "cameras": tf.train.Feature(float_list=tf.train.FloatList(value=cameras.ravel())),
        "voxel_size": _int64(voxels.shape[0]),
        "voxels": _bytes([np.packbits(voxels).tobytes()]),
    }
    if record.code_bytes is not None:
        sizes = np.asarray(record.code_bytes)
        if sizes.shape != (len(views), len(CODE_BYTE_FIELDS)):
            raise ValueError(
                f"{record.object_id}: code_bytes must be [V, {len(CODE_BYTE_FIELDS)}]. "
                f"Received: {words.count(len(views), 'view')}, code_bytes {sizes.shape}"
            )
        feature["code_bytes"] = tf.train.Feature(int64_list=tf.train.Int64List(value=sizes.ravel()))
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def decode_record(serialized: bytes) -> ObjectRecord:
    """Invert `encode_record`. Raises `RecordError` for anything that is not such a record."""
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
        schema = feature["schema"].int64_list.value[0]
        if schema != SCHEMA_VERSION:
            raise RecordError(
                f"record schema {schema} is unknown; this version reads schema "
                f"{SCHEMA_VERSION}: rebuild the records with data_tools of this version"
            )
        size = feature["voxel_size"].int64_list.value[0]
        bits = np.frombuffer(feature["voxels"].bytes_list.value[0], np.uint8)
        if len(bits) != -(-(size**3) // 8):
            raise ValueError(f"{len(bits)} bytes of voxels, but voxel_size {size}")
        views = tuple(feature["views"].bytes_list.value)
        cameras = np.array(feature["cameras"].float_list.value, np.float32)
        sizes = None
        if "code_bytes" in feature:
            values = np.array(feature["code_bytes"].int64_list.value, np.int32)
            sizes = values.reshape(len(views), len(CODE_BYTE_FIELDS))
        return ObjectRecord(
            category=feature["category"].bytes_list.value[0].decode(),
            object_id=feature["object"].bytes_list.value[0].decode(),
            source=feature["source"].bytes_list.value[0].decode(),
            views=views,
            cameras=cameras.reshape(len(views), len(CAMERA_FIELDS)),
            voxels=np.unpackbits(bits, count=size**3).astype(bool).reshape(size, size, size),
            code_bytes=sizes,
        )
    except RecordError:
        raise
    except Exception as error:  # protobuf's DecodeError and missing features alike
        raise RecordError(
            f"not a record of schema {SCHEMA_VERSION} ({type(error).__name__}: {error}): "
            "rebuild the records with data_tools"
        ) from error


@contextlib.contextmanager
def writing_shard(path: str | os.PathLike) -> Iterator[Callable[[ObjectRecord], None]]:
    """Yield the function that writes a record; the shard gets its name when the block succeeds."""
    with files.replacing(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
        yield lambda record: writer.write(encode_record(record))


def shard_entry(path: str | os.PathLike, records: int) -> Shard:
    """Return what the manifest is to say of a shard with so many records."""
    path = Path(path)
    return Shard(path.name, records, path.stat().st_size, files.sha256(path))


def write_split(
    directory: str | os.PathLike,
    split: str,
    records: Iterable[ObjectRecord],
    count: int,
    records_per_shard: int = 512,
) -> tuple[Shard, ...]:
    """Write `count` records as the shards of one split and return their manifest entries.

    Raises `ValueError` if there are fewer or more; without a manifest, no shard counts.
    """
    directory = Path(directory)
    shards = max(1, -(-count // records_per_shard))
    iterator = iter(records)
    entries = []
    for index in range(shards):
        path = directory / f"{split}-{index:05d}-of-{shards:05d}.tfrecord"
        wanted = min(records_per_shard, count - index * records_per_shard)
        with writing_shard(path) as write:
            written = 0
            for record in islice(iterator, wanted):
                write(record)
                written += 1
            if written < wanted:
                raise ValueError(f"split {split!r}: fewer records than the {count} announced")
        entries.append(shard_entry(path, wanted))
    if next(iterator, None) is not None:
        raise ValueError(f"split {split!r}: more records than the {count} announced")
    return tuple(entries)


def write_manifest(directory: str | os.PathLike, manifest: Manifest) -> None:
    """Write `manifest.json` and its digest; do this last, it is what makes the shards count."""
    digest = Path(directory) / MANIFEST_DIGEST
    digest.unlink(missing_ok=True)  # a run that stops in between leaves none, not a wrong one
    files.write_json(Path(directory) / MANIFEST, manifest.to_json())
    with files.replacing(digest) as temporary:
        temporary.write_bytes(manifest_digest(directory))


def read_manifest(directory: str | os.PathLike) -> Manifest:
    """Read and check `manifest.json`. Raises `RecordError`."""
    path = Path(directory) / MANIFEST
    if not Path(directory).is_dir():
        raise RecordError(f"no record directory at {directory}: build one with data_tools")
    if not path.is_file():
        raise RecordError(f"{directory} has no {MANIFEST}: it is not a finished record directory")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        schema = fields["schema"]
        if schema != SCHEMA_VERSION:
            raise RecordError(
                f"{path} has schema {schema!r}; this version reads schema {SCHEMA_VERSION}: "
                "rebuild the records with data_tools of this version"
            )
        _require_types(fields, _TEXTS, _COUNTS)
        coded = fields.get("jpeg2000", {})
        if type(coded) is not dict or (coded and type(coded["rate"]) not in (int, float)):
            raise TypeError(f"jpeg2000 must be empty or say the rate. Received: {coded!r}")
        left_out = fields.get("left_out", {})
        if type(left_out) is not dict or not all(type(v) is str for v in left_out.values()):
            raise TypeError(f"left_out must map objects to reasons. Received: {left_out!r}")
        for shards in fields["splits"].values():
            for shard in shards:
                _require_types(shard, _SHARD_TEXTS, _SHARD_COUNTS)
        fields["splits"] = {
            name: tuple(Shard(**shard) for shard in shards)
            for name, shards in fields["splits"].items()
        }
        return Manifest(**fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(
            f"{path} is not a manifest ({type(error).__name__}: {error}): restore it from a copy "
            "or rebuild the records"
        ) from error


def manifest_digest(directory: str | os.PathLike) -> bytes:
    """Return what the file of the manifest's digest has to hold."""
    return f"{manifest_sha256(directory)}  {MANIFEST}\n".encode()


def manifest_sha256(directory: str | os.PathLike) -> str:
    """SHA-256 of `manifest.json`: the data hash that every result carries."""
    return files.sha256(Path(directory) / MANIFEST)


class ObjectEntry(NamedTuple):
    """Where an object lies and what it is, without its views."""

    category: str
    object_id: str
    source: str
    shard: int
    offset: int
    length: int


class RecordSet:
    """One split of a record directory, verified, with random access to its objects.

    Opening reads every shard once: size and SHA-256 against the manifest, then every record's
    schema, number and size of views, and side of the grid. Raises `RecordError` with one clear
    line for whatever does not hold.
    """

    def __init__(self, directory: str | os.PathLike, split: str) -> None:
        self.directory = Path(directory)
        self.split = split
        self.manifest = read_manifest(directory)
        self.data_sha256 = manifest_sha256(directory)
        if split not in self.manifest.splits:
            raise RecordError(
                f"{directory} has no split {split!r}; it has: {', '.join(self.manifest.splits)}"
            )
        self._paths = [self.directory / shard.file for shard in self.manifest.splits[split]]
        self.objects: list[ObjectEntry] = []
        for index, shard in enumerate(self.manifest.splits[split]):
            self.objects += _index_shard(self._paths[index], shard, index, self.manifest)
        if not self.objects:
            raise RecordError(f"split {split!r} of {directory} is empty: nothing to read")

    def __len__(self) -> int:
        return len(self.objects)

    def read(self, index: int) -> bytes:
        """Return the serialized record of object `index`, by its position alone."""
        entry = self.objects[index]
        with self._paths[entry.shard].open("rb") as handle:
            handle.seek(entry.offset)
            return handle.read(entry.length)

    def record(self, index: int) -> ObjectRecord:
        """Return object `index` decoded."""
        return decode_record(self.read(index))


def _index_shard(
    path: Path, shard: Shard, shard_index: int, manifest: Manifest
) -> list[ObjectEntry]:
    if not path.is_file():
        raise RecordError(f"{path} is missing, but the manifest lists it: rebuild the records")
    data = path.read_bytes()
    entries: list[ObjectEntry] = []
    if len(data) != shard.bytes or hashlib.sha256(data).hexdigest() != shard.sha256:
        raise RecordError(
            f"{path} is damaged: {len(data)} bytes, or a digest, differ from the manifest "
            f"({shard.bytes} bytes, sha256 {shard.sha256[:12]}...): rebuild the records"
        )
    position = 0
    while position < len(data):
        try:
            (length,) = _LENGTH.unpack_from(data, position)
        except struct.error as error:
            raise RecordError(f"{path} ends inside a record: rebuild the records") from error
        offset = position + _HEADER_BYTES
        try:
            record = decode_record(data[offset : offset + length])
            require_fit(record, manifest)
        except RecordError as error:
            raise RecordError(f"{path}, record {len(entries)}: {error}") from error
        entries.append(
            ObjectEntry(
                record.category, record.object_id, record.source, shard_index, offset, length
            )
        )
        position = offset + length + _FOOTER_BYTES
    if position != len(data):
        raise RecordError(f"{path} ends inside a record: rebuild the records")
    if len(entries) != shard.records:
        raise RecordError(
            f"{path} holds {len(entries)} records, the manifest says {shard.records}: "
            "rebuild the records"
        )
    return entries


def require_fit(record: ObjectRecord, manifest: Manifest) -> None:
    """Raise `RecordError` unless views, grid and code bytes are such as the manifest says."""
    if len(record.views) != manifest.views or len(record.voxels) != manifest.voxel_size:
        raise RecordError(
            f"{record.object_id!r} has {words.count(len(record.views), 'view')} and a grid of "
            f"side {len(record.voxels)}, the manifest says {manifest.views} and "
            f"{manifest.voxel_size}: rebuild the records"
        )
    if bool(manifest.jpeg2000) != (record.code_bytes is not None):
        state = "lacks" if manifest.jpeg2000 else "has"
        raise RecordError(
            f"{record.object_id!r} {state} code_bytes, against the manifest: rebuild the records"
        )
    for index, view in enumerate(record.views):
        if _png_size(view) != (manifest.image_size, manifest.image_size):
            raise RecordError(
                f"view {index} of {record.object_id!r} is not a PNG of {manifest.image_size} x "
                f"{manifest.image_size} pixels, as the manifest says: rebuild the records"
            )


def _png_size(data: bytes) -> tuple[int, int] | None:
    # Signature, then the header chunk: length (4 bytes), name (4), width (4), height (4).
    if data[:8] != _PNG_SIGNATURE or data[12:16] != b"IHDR":
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _require_types(values: Mapping[str, Any], texts: Sequence[str], counts: Sequence[str]) -> None:
    for name in (*texts, *counts):
        value = values[name]
        if name in texts and not isinstance(value, str):
            raise TypeError(f"{name} must be a text. Received: {value!r}")
        if name in counts and (type(value) is not int or value < 0):
            raise TypeError(f"{name} must be an integer of at least 0. Received: {value!r}")


def _int64(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def _bytes(values: Sequence[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
