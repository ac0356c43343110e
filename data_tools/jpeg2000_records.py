"""A record set once more at every JPEG 2000 rate: <output>/<rate>/manifest.json and its shards.

    objects of a shard -> [code at every rate] over all cores -> the same shard of every rate

Every rate is an ordinary record set: the objects, splits and shards of the source in their order,
the views whole and as they were decoded. A shard is written whole or not at all and noted in
`unfinished.json`; when all are there, the manifest takes that file's place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tfjoint
from data_tools import credits, jpeg2000, pool
from data_tools.jpeg2000 import CodedObject, Coding
from tfjoint import files, records
from tfjoint.errors import UserError
from tfjoint.records import Manifest, ObjectRecord, RecordSet, Shard

UNFINISHED = "unfinished.json"
_BESIDE_RECORDS = (credits.CREDITS, "split.json")  # what belongs to a set's objects, at any rate
_MEASURED = "measured"
_VIEWS_PER_JOB = 64  # at one rate each; enough that handing over a job costs nothing


@dataclasses.dataclass(frozen=True)
class Jpeg2000Config:
    """What is made of a record set."""

    rates: tuple[float, ...]
    mode: str = "asked"
    background: str = "black"


class Row(NamedTuple):
    """One line of the table: a rate and what it came to."""

    rate: float
    objects: int
    measured: dict[str, Any]
    """As in the manifest."""
    seconds: float | None
    """Of all processes together; None where the rate was there already."""


def build(
    source: Path,
    output: Path,
    config: Jpeg2000Config,
    processes: int = 1,
    run: pool.Runner = pool.run,
) -> list[Row]:
    """Write a record set of every rate that is not there yet; return what all of them came to.

    Args:
        source: record directory with views as they were rendered.
        output: directory of the rates' directories.
        config: rates, mode, background.
        processes: how many code at once.
        run: what codes, on this machine or elsewhere.

    Raises `UserError` for a source or an output that does not fit.
    """
    origin = records.read_manifest(source)
    if origin.jpeg2000:
        raise UserError(
            f"{source} holds JPEG 2000 views already ({origin.jpeg2000['rate']:g}:1): name the "
            "record directory that they were made from"
        )
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    with files.only_writer(output):
        sets = [_RateSet(output, _manifest(origin, source, config, rate)) for rate in config.rates]
        _refuse_anything_else(output, sets)
        for rate_set in sets:
            rate_set.resume()
        if unfinished := [rate_set for rate_set in sets if rate_set.finished is None]:
            sides = {split: RecordSet(source, split) for split in origin.splits}
            _write_shards(sides, unfinished, config, processes, run)
        return [rate_set.finish(source, origin) for rate_set in sets]


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table; bytes are means over views, `over` counts views above."""
    lines = [
        f"{'rate':>8}  {'objects':>7}  {'views':>8}  {'asked':>8}  {'file':>8}  {'payload':>8}"
        f"  {'over':>8}  {'PSNR dB':>7}  {'core s':>7}"
    ]
    for row in rows:
        found = row.measured
        seconds = "kept" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append(
            f"{row.rate:>6g}:1  {row.objects:>7}  {found['views']:>8}  {found['asked_bytes']:>8.1f}"
            f"  {found['file_bytes']:>8.1f}  {found['payload_bytes']:>8.1f}"
            f"  {found['views_over']:>8}  {found['psnr_db']:>7.2f}  {seconds:>7}"
        )
    return lines


def _manifest(
    origin: Manifest, source: Path, config: Jpeg2000Config, rate: float
) -> records.Manifest:
    coding = Coding(rate, config.mode, origin.image_size)
    return dataclasses.replace(
        origin,
        name=f"{origin.name} JPEG 2000 {config.mode}",
        splits={},
        sources={f"{origin.name}/{records.MANIFEST}": records.manifest_sha256(source)},
        jpeg2000={**coding.settings(), "background": config.background},
        tool_version=tfjoint.__version__,
    )


# --- One rate -------------------------------------------------------------------------------------


class _Totals(NamedTuple):
    """Sums over views."""

    views: int = 0
    asked: int = 0
    file: int = 0
    payload: int = 0
    over: int = 0
    """Views larger than what was asked for, in the bytes that the mode counts."""
    psnr: float = 0.0

    def plus(self, other: _Totals) -> _Totals:
        return _Totals._make(mine + others for mine, others in zip(self, other))

    @classmethod
    def of(cls, coded: CodedObject, coding: Coding) -> _Totals:
        asked, file, payload = coded.code_bytes.T
        counted = payload if coding.mode == "payload" else file
        return cls(
            views=len(asked),
            asked=int(asked.sum()),
            file=int(file.sum()),
            payload=int(payload.sum()),
            over=int((counted > coding.asked_bytes).sum()),
            psnr=float(coded.psnr.sum()),
        )

    def measured(self) -> dict[str, Any]:
        views = max(self.views, 1)
        return {
            "views": self.views,
            "asked_bytes": round(self.asked / views, 3),
            "file_bytes": round(self.file / views, 3),
            "payload_bytes": round(self.payload / views, 3),
            "views_over": self.over,
            "psnr_db": round(self.psnr / views, 3),
        }


class _RateSet:
    """The record set of one rate, as far as it is done."""

    def __init__(self, output: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        coded = manifest.jpeg2000
        self.coding = Coding(coded["rate"], coded["mode"], manifest.image_size)
        self.directory = output / f"{self.coding.rate:g}"
        self.finished: Manifest | None = None
        self.shards: dict[str, Shard] = {}
        self.totals: dict[str, _Totals] = {}
        self.seconds = 0.0

    def resume(self) -> None:
        """Find out what an earlier run has left; say what is kept."""
        for path in self.directory.glob(".*"):
            if files.is_temporary(path):  # of a run that was killed: no other is writing
                path.unlink()
        try:
            finished = records.read_manifest(self.directory)
        except records.RecordError:
            self._resume_unfinished()
            return
        if all(_is_whole(self.directory, s) for shards in finished.splits.values() for s in shards):
            self.finished = finished
            _say(f"{self.coding.rate:g}:1 is complete and kept")
        else:
            (self.directory / records.MANIFEST).unlink()
            self.note()
            _say(f"{self.coding.rate:g}:1 lacks shards or has damaged ones: it is coded again")

    def _resume_unfinished(self) -> None:
        path = self.directory / UNFINISHED
        if path.is_file():
            for fields in json.loads(path.read_text(encoding="utf-8"))["shards"]:
                shard = Shard(**fields["shard"])
                if _is_whole(self.directory, shard):
                    self.shards[shard.file] = shard
                    self.totals[shard.file] = _Totals(**fields["totals"])
        if self.shards:
            _say(f"{self.coding.rate:g}:1 goes on after {len(self.shards)} shards")
        else:
            self.note()

    def note(self) -> None:
        """Write down which shards are done."""
        done = [
            {"shard": shard._asdict(), "totals": self.totals[name]._asdict()}
            for name, shard in self.shards.items()
        ]
        text = {"manifest": self.manifest.to_json(), "shards": done}
        files.write_json(self.directory / UNFINISHED, text)

    def add(self, shard: Shard, totals: _Totals) -> None:
        self.shards[shard.file], self.totals[shard.file] = shard, totals
        self.note()

    def finish(self, source: Path, origin: Manifest) -> Row:
        """Write the manifest of a complete rate, where it is not there yet."""
        new = self.finished is None
        if self.finished is None:
            for name in _BESIDE_RECORDS:
                if (source / name).is_file():
                    with files.replacing(self.directory / name) as temporary:
                        temporary.write_bytes((source / name).read_bytes())
            self.finished = self._complete(origin)
            records.write_manifest(self.directory, self.finished)
        (self.directory / UNFINISHED).unlink(missing_ok=True)
        objects = sum(shard.records for shards in self.finished.splits.values() for shard in shards)
        measured = self.finished.jpeg2000[_MEASURED]
        return Row(self.coding.rate, objects, measured, self.seconds if new else None)

    def _complete(self, origin: Manifest) -> Manifest:
        splits, totals = {}, _Totals()
        for split, shards in origin.splits.items():
            splits[split] = tuple(self.shards[shard.file] for shard in shards)
            for shard in shards:  # in their order, however they were resumed
                totals = totals.plus(self.totals[shard.file])
        coded = {**self.manifest.jpeg2000, _MEASURED: totals.measured()}
        return dataclasses.replace(self.manifest, splits=splits, jpeg2000=coded)


def _is_whole(directory: Path, shard: Shard) -> bool:
    path = directory / shard.file
    return path.is_file() and records.shard_entry(path, shard.records) == shard


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- What may lie in the output -------------------------------------------------------------------


def _refuse_anything_else(output: Path, sets: Sequence[_RateSet]) -> None:
    """Raise `UserError` unless everything in `output` is of this source and these settings."""
    if (output / records.MANIFEST).exists():
        raise UserError(
            f"{output} is a record set itself, and would get others inside: choose another --output"
        )
    expected = {rate_set.directory.name: rate_set.manifest for rate_set in sets}
    for path in sorted(output.iterdir()):
        if path.is_dir() and all(map(files.is_temporary, path.iterdir())):
            continue  # killed before its first note
        found = _read_any_manifest(path)
        if found is None or path.name != f"{found.jpeg2000['rate']:g}":
            raise UserError(
                f"{output} holds something else, {path.name}: remove it or choose another --output"
            )
        # Other rates may lie beside the new ones: they share all but what depends on the rate.
        wanted = _identity(expected.get(path.name, sets[0].manifest))
        was = _identity(found)
        common = wanted if path.name in expected else ("sources", "mode", "background", "encoder")
        if different := [name for name in common if was.get(name) != wanted[name]]:
            texts = [f"{name} {was.get(name)!r}, not {wanted[name]!r}" for name in different]
            raise UserError(
                f"{path} was built with other settings ({'; '.join(texts)}): remove it or choose "
                "another --output"
            )


def _identity(manifest: Manifest) -> dict[str, Any]:
    """What decides the bytes of a rate."""
    coded = {name: value for name, value in manifest.jpeg2000.items() if name != _MEASURED}
    return {"sources": dict(manifest.sources), **coded}


def _read_any_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of a rate, finished or not; None where there is none."""
    try:
        if not (directory / UNFINISHED).is_file():
            manifest = records.read_manifest(directory)
        else:
            text = (directory / UNFINISHED).read_text(encoding="utf-8")
            manifest = Manifest(**json.loads(text)["manifest"])
    except (records.RecordError, OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if manifest.jpeg2000 else None


# --- All rates, shard by shard --------------------------------------------------------------------


class _Task(NamedTuple):
    """One shard of the source, and the rates that lack it."""

    side: RecordSet
    shard: Shard
    objects: list[int]
    sets: list[_RateSet]


def _tasks(sides: dict[str, RecordSet], sets: Sequence[_RateSet]) -> Iterator[_Task]:
    for split, side in sides.items():
        members: dict[int, list[int]] = {}
        for index, found in enumerate(side.objects):
            members.setdefault(found.shard, []).append(index)
        for number, shard in enumerate(side.manifest.splits[split]):
            lacking = [s for s in sets if shard.file not in s.shards]
            if lacking:
                yield _Task(side, shard, members.get(number, []), lacking)


def _write_shards(
    sides: dict[str, RecordSet],
    sets: Sequence[_RateSet],
    config: Jpeg2000Config,
    processes: int,
    run: pool.Runner,
) -> None:
    tasks = list(_tasks(sides, sets))
    total = sum(len(task.objects) for task in tasks)
    results = run(jpeg2000.code_objects, _jobs(tasks, config), processes if total > 1 else 1)
    objects = (coded for job in results for coded in job)
    with contextlib.closing(results):
        coded_objects = pool.report_progress(objects, total, "objects")
        for task in tasks:
            _write_shard(task, coded_objects)


def _jobs(tasks: Sequence[_Task], config: Jpeg2000Config) -> Iterator[jpeg2000.Job]:
    for task in tasks:
        codings = [rate_set.coding for rate_set in task.sets]
        stride = max(1, _VIEWS_PER_JOB // (len(codings) * task.side.manifest.views))
        for first in range(0, len(task.objects), stride):
            read = [task.side.record(i) for i in task.objects[first : first + stride]]
            objects = [(f"{r.category}/{r.object_id}", r.views) for r in read]
            yield jpeg2000.Job(objects, codings, config.background)


def _write_shard(task: _Task, coded_objects: Iterator[list[CodedObject]]) -> None:
    totals = [_Totals() for _ in task.sets]
    with contextlib.ExitStack() as stack:
        paths = [rate_set.directory / task.shard.file for rate_set in task.sets]
        writers = [stack.enter_context(records.writing_shard(path)) for path in paths]
        for index in task.objects:
            record, coded = task.side.record(index), next(coded_objects)
            for number, (rate_set, found) in enumerate(zip(task.sets, coded)):
                writers[number](_with_views(record, found))
                totals[number] = totals[number].plus(_Totals.of(found, rate_set.coding))
                rate_set.seconds += found.seconds
    for rate_set, path, total in zip(task.sets, paths, totals):
        rate_set.add(records.shard_entry(path, len(task.objects)), total)


def _with_views(record: ObjectRecord, coded: CodedObject) -> ObjectRecord:
    return dataclasses.replace(record, views=coded.views, code_bytes=coded.code_bytes)
