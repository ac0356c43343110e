"""From a layout and a selection of its objects to records: one way, whatever made the layout.

    grids -> selection -> shards: sorted objects, so many each -> per shard: read, check, write

A shard holds what the split and the number of objects per shard say, in sorted order. So it has the
same bytes whether it comes from trees or archives, whatever the order of members or processes; a
later run finds it whole and keeps it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import tfjoint
from data_tools import archives, holdings, layout, pool
from data_tools.archives import Archive, Spooled
from data_tools.layout import LayoutError, Model, Read, Tree
from data_tools.splits import TRAIN, Selection, part_of
from tfjoint import files, records

_SHARDS = "*-*-of-*.tfrecord"
_MOST_SHOWN = 20
_MOST_REASON = 300  # characters; what somebody's file says may be long


@dataclasses.dataclass(frozen=True)
class RecordsConfig:
    """What is made of a layout."""

    name: str
    """Name of the data set, printed beside every result."""
    views: int
    """Views stored per object, the first of the layout."""
    image_size: int
    """Side of a view in pixels."""
    voxel_size: int
    copies: int = 0
    """How many of the layout's augmented copies of every training object to take."""
    records_per_shard: int = 512
    strict: bool = False
    """Whether a bad object ends the work; else it is left out and the manifest names it."""
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 of every source file, by name, beside those of archives."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The settings of whoever made the layout."""


class Data(NamedTuple):
    """A layout that is open for conversion."""

    renderings: Tree | Archive
    voxels: Tree | Spooled
    grids: Sequence[Model]
    """Every object that has a grid, sorted."""
    sources: Mapping[str, str]
    """SHA-256 of the archives, by name."""
    work: Path


class ShardJob(NamedTuple):
    """One shard to write: everything that a process needs to know."""

    path: Path
    note: Path
    """What a later run needs to keep the shard."""
    members: tuple[tuple[Model, str], ...]
    """Objects and their source groups, sorted."""
    renderings: Tree | Spooled
    voxels: Tree | Spooled
    config: RecordsConfig


class ShardResult(NamedTuple):
    """What became of a shard."""

    file: str
    shard: records.Shard | None
    """None when no object was left: then there is no such file."""
    left_out: Mapping[str, str]
    """Why objects are not in it, by their keys."""


@contextlib.contextmanager
def opened(renderings: Path, voxels: Path, work: Path) -> Iterator[Data]:
    """Yield the layout whose halves lie in directories or archives.

    Args:
        renderings: `ShapeNetRendering`, what holds it, or its archive.
        voxels: the same of `ShapeNetVox32`.
        work: directory for what is read from archives, and for the notes of which shards are whole.

    Raises `UserError` for what is neither, and while another process works in `work`.
    """
    work.mkdir(parents=True, exist_ok=True)
    with files.only_writer(work):
        spool = work / "spool"
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir()
        try:
            halves = _half(renderings, layout.RENDERINGS), _half(voxels, layout.VOXELS)
            sources = {half.path.name: half.sha256 for half in halves if isinstance(half, Archive)}
            views, grids = halves
            if isinstance(views, Tree):
                views.require_renderings()
            if isinstance(grids, Tree):
                yield Data(views, grids, grids.list_grids(), sources, work)
            else:
                spooled = Spooled(spool / "grids", grids.sha256)
                models = archives.spool_grids(grids, spooled)
                yield Data(views, spooled, models, sources, work)
        finally:
            shutil.rmtree(spool, ignore_errors=True)


def _half(path: Path, name: str) -> Tree | Archive:
    if path.is_dir():
        return layout.tree(path, name)
    if not path.is_file():
        raise LayoutError(f"no {name} at {path}: give its archive or its directory")
    print(f"SHA-256 of {path.name} ...", file=sys.stderr)  # gigabytes take a while
    return Archive(path, files.sha256(path))


def build_records(
    data: Data,
    selection: Selection,
    output: str | os.PathLike,
    config: RecordsConfig,
    processes: int = 1,
    run: pool.Runner = pool.run,
) -> records.Manifest:
    """Write the selected objects, and copies of training objects, as records.

    Shards that an earlier run finished from the same files are kept. Raises `UserError` when
    `output` holds other records, when nothing can be converted or, if `config.strict`, when
    anything is absent or bad.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    absent = _absent(data, selection)
    if absent and config.strict:
        raise LayoutError(
            f"the layout lacks objects of split {selection.name!r} ({_counts(absent)}): the split "
            "belongs to other data, or the layout is incomplete"
        )
    draft = records.Manifest(
        name=config.name,
        split_name=part_of(selection.name) if absent else selection.name,
        split_sha256=selection.sha256,
        image_size=config.image_size,
        views=config.views,
        voxel_size=config.voxel_size,
        splits={},
        sources={**config.sources, **data.sources},
        settings={**config.settings, **({"absent": absent} if absent else {})},
        tool_version=tfjoint.__version__,
    )
    with files.only_writer(output):
        _refuse_others(output, draft, data)
        jobs = _jobs(data, selection, output, config)
        all_jobs = [job for side_jobs in jobs.values() for job in side_jobs]
        results = _convert_all(data, all_jobs, draft, output, processes, run) if all_jobs else {}
        shards = {side: [results[job.path.name].shard for job in jobs[side]] for side in jobs}
        entries = {side: tuple(s for s in found if s is not None) for side, found in shards.items()}
        left_out = dict(selection.known_bad)
        for result in results.values():
            left_out.update(result.left_out)
        if not any(entries.values()):
            raise LayoutError(_nothing(selection, left_out))
        found = {side: shards for side, shards in entries.items() if shards}
        manifest = dataclasses.replace(draft, splits=found, left_out=left_out)
        records.write_manifest(output, manifest)
        (output / holdings.UNFINISHED).unlink(missing_ok=True)
        _remove_stale_shards(output, manifest)
    return manifest


def summary(manifest: records.Manifest) -> list[str]:
    """Return one line per split, and one for whatever is not in the records."""
    lines = [
        f"{side}: {sum(shard.records for shard in shards)} objects, "
        f"{sum(shard.bytes for shard in shards)} bytes, {len(shards)} shards"
        for side, shards in manifest.splits.items()
    ]
    shown = list(manifest.left_out.items())[:_MOST_SHOWN]
    lines += [f"left out {key}: {reason}" for key, reason in shown]
    if len(manifest.left_out) > len(shown):
        lines.append(f"left out {len(manifest.left_out)} objects: the manifest names them all")
    absent = manifest.settings.get("absent")
    if absent:
        lines.append(
            f"not there of split {manifest.split_name}: {_counts(absent)}. Every object is on its "
            "side, but numbers are not those of the whole split"
        )
    return lines


def _refuse_others(output: Path, draft: records.Manifest, data: Data) -> None:
    holdings.refuse_others(output, draft.to_json())
    known = (output / records.MANIFEST).exists() or (output / holdings.UNFINISHED).exists()
    for path in () if known else sorted(output.glob(_SHARDS)):
        if not _note(data, path.name).exists():
            raise LayoutError(
                f"{output} holds {path.name}, which no manifest names: choose another --output, or "
                "remove it first"
            )


def _note(data: Data, shard: str) -> Path:
    return data.work / "shards" / f"{shard}.json"


def _absent(data: Data, selection: Selection) -> dict[str, int]:
    there = {model.key for model in data.grids}
    counts = Counter(selection.absent)
    for keys in selection.sides.values():
        counts.update(key.partition("/")[0] for key in keys if key not in there)
    return {layout.SYNSETS.get(category, category): n for category, n in sorted(counts.items())}


def _counts(absent: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {category}" for category, count in absent.items())


def _nothing(selection: Selection, left_out: Mapping[str, str]) -> str:
    first = next((f"; first, {key}: {left_out[key]}" for key in sorted(left_out)), "")
    return (
        f"no object of split {selection.name!r} could be converted, {len(left_out)} were left "
        f"out{first}"
    )


def _jobs(
    data: Data, selection: Selection, output: Path, config: RecordsConfig
) -> dict[str, list[ShardJob]]:
    there = set(data.grids)
    jobs: dict[str, list[ShardJob]] = {}
    for side, sources in selection.sides.items():
        members = _members(data.grids, sources, config.copies if side == TRAIN else 0)
        shards = range(0, len(members), config.records_per_shard)
        jobs[side] = []
        for index, first in enumerate(shards):
            name = f"{side}-{index:05d}-of-{len(shards):05d}.tfrecord"
            found = [m for m in members[first : first + config.records_per_shard] if m in there]
            job = ShardJob(
                path=output / name,
                note=_note(data, name),
                members=tuple((model, sources[model.original.key]) for model in found),
                renderings=_of_shard(data.renderings, data.work, f"{name}.renderings"),
                voxels=_of_shard(data.voxels, data.work, f"{name}.grids"),
                config=config,
            )
            if found:
                jobs[side].append(job)
    return jobs


def _members(grids: Sequence[Model], sources: Mapping[str, str], copies: int) -> list[Model]:
    # Objects of the list stay in it where the data lacks them: the others keep their shards.
    listed = {Model(*key.partition("/")[::2]) for key in sources}
    return sorted(listed | {m for m in grids if m.original in listed and m.copy_number <= copies})


def _of_shard(half: Tree | Archive | Spooled, work: Path, name: str) -> Tree | Spooled:
    if isinstance(half, Tree):
        return half
    sha256 = half.sha256 if isinstance(half, Archive) else half.archive_sha256
    return Spooled(work / "spool" / name, sha256)


def _convert_all(
    data: Data,
    jobs: Sequence[ShardJob],
    draft: records.Manifest,
    output: Path,
    processes: int,
    run: pool.Runner,
) -> dict[str, ShardResult]:
    results = {job.path.name: kept for job in jobs if (kept := _finished(job)) is not None}
    todo = [job for job in jobs if job.path.name not in results]
    if results:
        print(f"{len(results)} of {len(jobs)} shards are there already", file=sys.stderr)
    manifest = output / records.MANIFEST
    if todo or not manifest.exists():
        # From here on the shards are not those of a manifest that may lie there. Without one, all
        # shards may be whole, but it is not known whether the end of an archive was ever seen.
        files.write_json(output / holdings.UNFINISHED, draft.to_json())
        manifest.unlink(missing_ok=True)
        for path in filter(files.is_temporary, output.iterdir()):
            path.unlink()
        ready = _ready(data, todo, jobs)
        converted = run(convert_shard, ready, min(processes, len(todo)))
        for result in pool.report_progress(converted, len(todo), "shards"):
            results[result.file] = result
    return results


def _ready(data: Data, todo: Sequence[ShardJob], jobs: Sequence[ShardJob]) -> Iterator[ShardJob]:
    # Yields every job as soon as what it reads is there.
    if isinstance(data.voxels, Spooled):
        with data.voxels.reading() as read:
            for job in todo:
                for name in (layout.voxel_name(model) for model, _ in job.members):
                    cast(Spooled, job.voxels).append(name, read(name))
    if isinstance(data.renderings, Tree):
        yield from todo
        return
    waiting = {job.renderings: job for job in todo}
    spools = {
        model: cast(Spooled, job.renderings) if job.renderings in waiting else None
        for job in jobs
        for model, _ in job.members
    }
    views = jobs[0].config.views
    for spooled in archives.spool_renderings(data.renderings, spools, views):
        yield waiting[spooled]


def convert_shard(job: ShardJob) -> ShardResult:
    """Check the objects of a shard, write the good ones and a note of it all."""
    made_of = _made_of(job)  # before the files are read: they may change meanwhile
    left_out: dict[str, str] = {}
    written = 0
    with contextlib.ExitStack() as stack:
        read_rendering = stack.enter_context(job.renderings.reading())
        read_grid = stack.enter_context(job.voxels.reading())
        write = None
        for model, source in job.members:
            try:
                record = _record(model, source, read_rendering, read_grid, job.config)
            except LayoutError as error:
                reason = " ".join(str(error).split())[:_MOST_REASON]
                if job.config.strict:
                    raise LayoutError(f"{model.key}: {reason}: restore it") from error
                left_out[model.key] = reason
                continue
            write = write or stack.enter_context(records.writing_shard(job.path))
            write(record)
            written += 1
    shard = records.shard_entry(job.path, written) if written else None
    note = {"made_of": made_of, "shard": shard and shard._asdict(), "left_out": left_out}
    files.write_json(job.note, note)
    for half in (job.renderings, job.voxels):
        if isinstance(half, Spooled):
            half.path.unlink()
    return ShardResult(job.path.name, shard, left_out)


def _record(
    model: Model, source: str, read_rendering: Read, read_grid: Read, config: RecordsConfig
) -> records.ObjectRecord:
    voxels = layout.read_grid(read_grid, model, config.voxel_size)
    views = layout.read_views(read_rendering, model, config.views, config.image_size)
    return records.ObjectRecord(
        category=layout.SYNSETS.get(model.category, model.category),
        object_id=model.name,
        source=source,
        views=views.images,
        cameras=views.cameras,
        voxels=voxels,
    )


def _finished(job: ShardJob) -> ShardResult | None:
    """Return what an earlier run made of the same job, if it still stands."""
    try:
        note = json.loads(job.note.read_text(encoding="utf-8"))
        shard = records.Shard(**note["shard"]) if note["shard"] else None
        result = ShardResult(job.path.name, shard, dict(note["left_out"]))
        if note["made_of"] != _made_of(job) or (job.config.strict and result.left_out):
            return None
        if shard is not None and records.shard_entry(job.path, shard.records) != shard:
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result


def _made_of(job: ShardJob) -> str:
    config, models = job.config, [model for model, _ in job.members]
    names = [
        layout.rendering_name(model, file)
        for model in models
        for file in layout.rendering_files(config.views)
    ]
    grids = [layout.voxel_name(model) for model in models]
    everything = [
        *(records.SCHEMA_VERSION, tfjoint.__version__),
        *(config.views, config.image_size, config.voxel_size),
        *(job.members, job.renderings.state(names), job.voxels.state(grids)),
    ]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def _remove_stale_shards(output: Path, manifest: records.Manifest) -> None:
    # An earlier run with another shard size or split leaves files that no manifest lists.
    listed = {shard.file for shards in manifest.splits.values() for shard in shards}
    for path in output.glob(_SHARDS):
        if path.name not in listed:
            path.unlink()
