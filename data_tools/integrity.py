"""Whether record sets are what was written: every byte against a digest, every record decoded.

Directories are searched for sets and their shards checked over all cores; of every set it is told
what it holds, or one line per fault.
"""

from __future__ import annotations

import collections
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c

from data_tools import pool
from tfjoint import files, records, words
from tfjoint.errors import UserError
from tfjoint.records import Manifest, Shard

_SPLIT_LIST = "split.json"
_WORK = "-work"  # how the builders' directories end that hold what records are made of
_RESTORE = "restore it from a copy or rebuild the records"

# Of a record: length (8 bytes), its checksum (4), the data, its checksum (4).
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_LENGTH_BYTES = 8

# A process loads TensorFlow for some seconds, in which another one checks as much.
_BYTES_PER_PROCESS = 2**31


class SetReport(NamedTuple):
    """What was found out about one record set."""

    directory: Path
    holdings: list[str]
    """Lines for the reader: what the set holds, and what is worth knowing."""
    faults: list[str]
    """One line each, with the file, the record and what to do; empty when all is intact."""


class ShardJob(NamedTuple):
    """One shard to check, and what the manifest says of it and of its records."""

    path: Path
    shard: Shard
    manifest: Manifest


class Found(NamedTuple):
    """An object of a shard, and its place there."""

    record: int
    key: str
    source: str


class ShardFindings(NamedTuple):
    """What `check_shard` found: the intact objects, and one line per fault."""

    objects: list[Found]
    faults: list[str]


def verify(directories: Sequence[str | os.PathLike], processes: int = 1) -> list[SetReport]:
    """Check every record set in and below the directories, shards over at most `processes`.

    Whatever is wrong is in the reports; nothing is raised for it. Of a directory in which something
    was passed over, there is a report of that.
    """
    searches = {Path(directory): find_sets(directory) for directory in directories}
    sets = [path for search in searches.values() for path in search.sets]
    opened = [_open(path) for path in sets]
    jobs = [
        ShardJob(path / shard.file, shard, manifest)
        for path, (manifest, _, _) in zip(sets, opened)
        if manifest
        for shard in _shards(manifest)
    ]
    wanted = -(-sum(job.shard.bytes for job in jobs) // _BYTES_PER_PROCESS)
    processes = min(processes, wanted, len(jobs))
    results = pool.run(check_shard, jobs, processes)
    if processes > 1:
        results = pool.report_progress(results, len(jobs), "shards")
    findings = iter(list(results))
    reports = [SetReport(path, s.passed, []) for path, s in searches.items() if s.passed]
    for path, (manifest, notes, faults) in zip(sets, opened):
        found = {shard.file: next(findings) for shard in _shards(manifest)}
        faults += [fault for shard in found.values() for fault in shard.faults]
        faults += _shared(path, manifest, found)
        reports.append(SetReport(path, _holdings(path, manifest, found) + notes, faults))
    return reports


def confirm(directories: Sequence[str | os.PathLike], processes: int = 1) -> str:
    """Verify record sets that were just made and return a line that says so.

    Raises `UserError` with the first fault.
    """
    reports = verify(directories, processes)
    faults = [fault for report in reports for fault in report.faults]
    if faults:
        more = f", and {len(faults) - 1} more: data_tools.verify names all" if faults[1:] else ""
        raise UserError(f"what was written is not what lies there: {faults[0]}{more}")
    return f"verified: {', '.join(str(directory) for directory in directories)}"


class Search(NamedTuple):
    """What lies in and below a directory."""

    sets: list[Path]
    """Directories with a manifest or shards; where there are none, the directory itself."""
    passed: list[str]
    """Of what is no record set, a line each."""


def find_sets(directory: str | os.PathLike) -> Search:
    """Find the record sets in and below a directory.

    Below it, the builders' work directories are passed over, and so is what holds no set.
    """
    if not os.path.isdir(directory):
        return Search([Path(directory)], [])
    found, seen, passed = [], set(), []
    for folder, folders, names in os.walk(os.fspath(directory), onerror=_refuse, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # a link to somewhere above
            folders.clear()
        elif records.MANIFEST in names or any(map(_looks_like_shard, names)):
            found.append(Path(folder))
        seen.add(place)
        work = sorted(name for name in folders if _is_work(Path(folder, name)))
        folders[:] = [name for name in folders if name not in work]
        passed += [f"{Path(folder, name)} is a work directory: passed over" for name in work]
    if found and Path(directory) not in found:
        for path in sorted(p for p in Path(directory).iterdir() if p.is_dir()):
            if not _is_work(path) and not any(path in (one, *one.parents) for one in found):
                passed.append(f"{path} holds no record set: passed over")
    return Search(sorted(found) or [Path(directory)], passed)


def _is_work(directory: Path) -> bool:
    return directory.name.endswith(_WORK) and not (directory / records.MANIFEST).exists()


def check_shard(job: ShardJob) -> ShardFindings:
    """Check size and digest of a shard, and checksums, schema and contents of its records."""
    path, findings = job.path, ShardFindings([], [])
    try:
        if not path.is_file():
            findings.faults.append(f"{path} is missing, but the manifest lists it: {_RESTORE}")
            return findings
        with path.open("rb") as handle:
            _check_content(handle, job, findings)
    except (OSError, ValueError) as error:
        findings.faults.append(f"{path} cannot be read ({error}): {_RESTORE}")
    return findings


def _open(directory: Path) -> tuple[Manifest | None, list[str], list[str]]:
    """Return the manifest, or None, with notes and faults of what is no shard of it."""
    notes: list[str] = []
    faults: list[str] = []
    try:
        faults += _digest_faults(directory, notes)
        manifest = records.read_manifest(directory)
        faults += _name_faults(directory, manifest)
        faults += _faults_beside(directory, manifest, notes)
    except UserError as error:
        return None, notes, [*faults, str(error)]
    except OSError as error:
        return None, notes, [*faults, f"{directory} cannot be read ({error}): {_RESTORE}"]
    return manifest, notes, faults


def _digest_faults(directory: Path, notes: list[str]) -> Iterator[str]:
    path = directory / records.MANIFEST_DIGEST
    if not (directory / records.MANIFEST).is_file():
        return  # which is a fault of its own
    if not path.exists():
        notes.append(
            f"no {path.name}, without which damage to texts in the manifest is not found: write it "
            f"there with `sha256sum {records.MANIFEST} > {path.name}`"
        )
    elif path.read_bytes() != records.manifest_digest(directory):
        yield (
            f"{path} is not the digest of {records.MANIFEST}: one of the two is damaged, or was "
            "edited; restore both from a copy or rebuild the records"
        )


def _name_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    path = directory / records.MANIFEST
    for name, times in collections.Counter(s.file for s in _shards(manifest)).items():
        if Path(name).name != name:
            yield f"{path} names a shard outside of its directory, {name!r}: {_RESTORE}"
        if times > 1:
            yield f"{path} names {name!r} {times} times: {_RESTORE}"


def _faults_beside(directory: Path, manifest: Manifest, notes: list[str]) -> Iterator[str]:
    listed = {shard.file for shard in _shards(manifest)}
    for path in sorted(directory.iterdir()):
        if files.is_temporary(path):
            notes.append(f"{path.name} is left over from a run that was stopped: remove it")
        elif _looks_like_shard(path.name) and path.name not in listed:
            yield (
                f"{path} is not in the manifest: remove it, or restore the manifest that lists it"
            )
    path = directory / _SPLIT_LIST
    if path.is_file() and files.sha256(path) != manifest.split_sha256:
        yield f"{path} is not the list that the manifest names by its digest: {_RESTORE}"


def _check_content(handle: BinaryIO, job: ShardJob, findings: ShardFindings) -> None:
    path, shard, manifest = job
    faults = findings.faults
    digest = hashlib.sha256()

    def read(count: int) -> bytes:
        data = handle.read(count)
        digest.update(data)
        return data

    size = os.fstat(handle.fileno()).st_size
    count, lost = 0, False
    for count, frame in enumerate(_frames(read, size), 1):
        where, lost = f"{path}, record {count - 1}", frame.lost
        if frame.broken:
            faults.append(f"{where}: {frame.broken}: {_RESTORE}")
            continue
        try:
            record = records.decode_record(frame.data)
            records.require_fit(record, manifest)
        except records.RecordError as error:
            faults.append(f"{where}: {error}")
        else:
            key = f"{record.category}/{record.object_id}"
            findings.objects.append(Found(count - 1, key, record.source))
    while read(1 << 20):
        pass
    if count != shard.records and not lost:
        faults.append(
            f"{path} holds {count} records, the manifest says {shard.records}: {_RESTORE}"
        )
    if not faults and (size, digest.hexdigest()) != (shard.bytes, shard.sha256):
        faults.append(
            f"{path} has {size} bytes and SHA-256 {digest.hexdigest()[:12]}..., the manifest says "
            f"{shard.bytes} and {shard.sha256[:12]}..., although every record is whole: one of the "
            f"two is of another set or damaged; {_RESTORE}"
        )


class _Frame(NamedTuple):
    data: bytes = b""
    broken: str = ""
    lost: bool = False
    """Whether a record does not end, so that none after it can be found."""


def _frames(read: Callable[[int], bytes], size: int) -> Iterator[_Frame]:
    position = 0
    while position < size:
        header = read(_HEADER.size)
        if len(header) < _HEADER.size:
            yield _Frame(broken=f"the file ends inside its header, at byte {size}", lost=True)
            return
        length, stored = _HEADER.unpack(header)
        if _checksum(header[:_LENGTH_BYTES]) != stored:
            yield _Frame(broken="the checksum of its length is wrong, the rest is lost", lost=True)
            return
        position += _HEADER.size + length + _FOOTER.size
        if position > size:
            yield _Frame(broken=f"the file ends inside its data, at byte {size}", lost=True)
            return
        data, footer = read(length), read(_FOOTER.size)
        right = footer == _FOOTER.pack(_checksum(data))
        yield _Frame(data, "" if right else "the checksum of its data is wrong")


def _checksum(data: bytes) -> int:
    """TFRecord's CRC: CRC-32C, rotated and moved, so that data may hold its own."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _shared(
    directory: Path, manifest: Manifest | None, found: dict[str, ShardFindings]
) -> Iterator[str]:
    """Yield a fault for every object that is there twice, and every source on several sides."""
    places: dict[str, str] = {}
    sides: dict[str, set[str]] = {}
    for split, shards in manifest.splits.items() if manifest else ():
        for shard in shards:
            for entry in found[shard.file].objects:
                place = f"{directory / shard.file}, record {entry.record}"
                if entry.key in places:
                    yield (
                        f"{place}: {entry.key} is there before, in {places[entry.key]}: "
                        "rebuild the records"
                    )
                places.setdefault(entry.key, place)
                sides.setdefault(entry.source, set()).add(split)
    for source, on in sides.items():
        if len(on) > 1:
            yield (
                f"{directory}: objects of {source!r} lie in {' and '.join(sorted(on))}: make the "
                "split list anew and rebuild the records"
            )


def _holdings(
    directory: Path, manifest: Manifest | None, found: dict[str, ShardFindings]
) -> list[str]:
    if manifest is None:
        return []
    rate = manifest.jpeg2000.get("rate")
    views = words.count(manifest.views, "view")
    lines = [
        f"{directory}: {manifest.name}, split {manifest.split_name}, {views} per object, "
        f"{manifest.image_size} pixels, grid {manifest.voxel_size}"
        + (f", JPEG 2000 at {rate:g}:1" if rate else "")
    ]
    for split, shards in manifest.splits.items():
        objects = [entry for shard in shards for entry in found[shard.file].objects]
        lines.append(
            f"{split}: {len(objects)} objects of {len({entry.source for entry in objects})} "
            f"sources, {sum(shard.bytes for shard in shards)} bytes in {len(shards)} shards, intact"
        )
    return lines


def _shards(manifest: Manifest | None) -> list[Shard]:
    splits = manifest.splits.values() if manifest else ()
    return [shard for shards in splits for shard in shards]


def _looks_like_shard(name: str) -> bool:
    return ".tfrecord" in name.lower()


def _refuse(error: OSError) -> None:
    raise error
