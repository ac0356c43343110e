"""From meshes to records, whatever the meshes are.

    entries -> [load -> render + voxelise] per object, over all cores -> layout
            -> split by near-duplicate group -> augmented copies of training objects
            -> records, contact sheet, card

Every object depends on (seed, object id) alone and is written whole or not at all: a run that was
stopped resumes, and any number of processes ends in the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from data_tools import holdings, layout, meshes, pool, render, splits, voxelize
from data_tools.layout import Model
from tfjoint import binvox, files, words
from tfjoint.errors import UserError

if TYPE_CHECKING:
    from tfjoint import records

SKIPPED = "skipped.json"
"""Beside the manifest: why objects are not in the records, where there are such."""


@dataclasses.dataclass(frozen=True)
class MeshSetConfig:
    """Everything that decides what the records hold, beside the meshes."""

    name: str
    image_size: int = 137
    """Side of a view in pixels."""
    smaller_sizes: tuple[int, ...] = (68,)
    """Sides of the same views, from the same rays, in records of their own: 68 leaves the crop to
    64 the room that 137 leaves to 128."""
    views: int = 24
    copies: int = 4
    """Augmented copies of every training object."""
    voxel_size: int = 32
    supersampling: int = 2
    """Rays per pixel and axis at `image_size`."""
    optimize_png: bool = False
    """Make the files of the views 4 % smaller and be four times as long about it."""
    seed: int = 0
    train_fraction: float = 0.8
    duplicate_iou: float = 0.85
    records_per_shard: int = 256

    def __post_init__(self) -> None:
        sizes = self.sizes
        if sorted(set(sizes), reverse=True) != list(sizes) or sizes[-1] < 8:
            raise UserError(
                f"image sizes must fall from the largest, the least 8. Received: {sizes}"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sides of views, falling."""
        return (self.image_size, *self.smaller_sizes)

    def settings(self) -> dict[str, Any]:
        """What a manifest says of this config; without the sizes that there are none of, and
        without how PNGs are packed, which changes no pixel."""
        settings = dataclasses.asdict(self)
        del settings["optimize_png"]
        if not self.smaller_sizes:
            del settings["smaller_sizes"]
        return settings

    def layout_settings(self) -> dict[str, Any]:
        """What of it decides the bytes of the layout."""
        names = ("image_size", "smaller_sizes", "views", "voxel_size", "supersampling", "seed")
        return {name: getattr(self, name) for name in (*names, "optimize_png")}


class Entry(Protocol):
    """An object to build, small enough to send to a process."""

    @property
    def model(self) -> Model:
        """Its name in the layout."""

    def load(self) -> meshes.Mesh:
        """Return its prepared mesh. Raises `UnusableMesh`."""


class Job(NamedTuple):
    """An entry, and which of its copies to build; 0 is the object itself."""

    entry: Entry
    copies: tuple[int, ...]


class Finding(NamedTuple):
    """Something about an object that whoever gave its mesh should know."""

    model: Model
    text: str
    unusable: bool
    """Whether the object is left out."""


class Built(NamedTuple):
    """What `build` made."""

    manifests: dict[Path, records.Manifest]
    """By record directory: of `image_size` first, then of the smaller sizes."""
    models: list[Model]
    """The objects that the records hold, without copies, sorted."""
    skipped: int
    """How many objects could not be used; SKIPPED tells why."""


def build(
    config: MeshSetConfig,
    entries: Sequence[Entry],
    sources: Mapping[str, str],
    work: Path,
    output: Path,
    split_list: Path | None = None,
    processes: int = 1,
    run: pool.Runner = pool.run,
) -> Built:
    """Build the records of a set of meshes, with split list, contact sheet and card beside them.

    Args:
        config: what to build.
        entries: the objects.
        sources: SHA-256 of what the meshes come from, by name.
        work: directory of the layout; a later run resumes from it.
        output: directory of the records; those of a smaller size lie in `<output>-<size>`.
        split_list: list to use; None makes a new one.
        processes: how many objects are built at once.
        run: what builds them, on this machine or elsewhere.

    Raises `UserError` for a directory or split list that does not fit, where an output holds other
    records, and without usable objects.
    """
    entries = sorted(entries, key=lambda entry: entry.model)
    if split_list is not None:
        _require_listed_exist(split_list, entries)
    directories = {s: output.with_name(_sized(output.name, s, config)) for s in config.sizes}
    for size, directory in directories.items():
        holdings.refuse_others(directory, _wanted(config, size, sources, split_list))
    work.mkdir(parents=True, exist_ok=True)
    with files.only_writer(work):
        _claim(work, {**config.layout_settings(), **sources})
        roots = {size: work / _sized("layout", size, config) for size in config.sizes}
        jobs = [Job(entry, (0,)) for entry in entries]
        print(
            f"{len(jobs)} objects; after them {config.copies} copies of each training object",
            file=sys.stderr,
        )
        findings = _build_models(roots, jobs, config, processes, run, "objects")
        unusable = {finding.model: finding.text for finding in findings if finding.unusable}
        entries = [entry for entry in entries if entry.model not in unusable]
        if not entries:
            first = next(iter(unusable.items()), ("none", "nothing there"))
            raise UserError(f"no usable object among {len(unusable)}, first {first[0]}: {first[1]}")
        models = [entry.model for entry in entries]

        if split_list is None:
            split_list = work / "split.json"
            splits.write_split_list(
                split_list, make_split(roots[config.image_size], models, config)
            )
        train = _require_listed(split_list, models).sides[splits.TRAIN]
        copies = tuple(range(1, config.copies + 1))
        jobs = [Job(entry, copies) for entry in entries if entry.model.key in train and copies]
        _build_models(roots, jobs, config, processes, run, "objects with copies")
        manifests = {}
        for size, root in roots.items():
            manifests[directories[size]] = _write_records(
                root, size, split_list, directories[size], config, sources, processes
            )
            _write_skipped(directories[size], unusable)
    return Built(manifests, models, len(unusable))


def _wanted(
    config: MeshSetConfig, size: int, sources: Mapping[str, str], split_list: Path | None
) -> dict[str, Any]:
    # As far as it is known before the work, of the manifest that is to be.
    wanted = {
        **{"name": config.name, "image_size": size, "views": config.views},
        **{"voxel_size": config.voxel_size, "sources": sources, "settings": config.settings()},
    }
    if split_list is not None:
        wanted["split_sha256"] = splits.split_sha256(split_list)
    return wanted


def _write_skipped(directory: Path, unusable: Mapping[Model, str]) -> None:
    if unusable:
        skipped = {model.key: reason for model, reason in unusable.items()}
        files.write_json(directory / SKIPPED, skipped)
    else:  # of an earlier build
        (directory / SKIPPED).unlink(missing_ok=True)


def _sized(name: str, size: int, config: MeshSetConfig) -> str:
    return name if size == config.image_size else f"{name}-{size}"


def _claim(work: Path, settings: Mapping[str, Any]) -> None:
    # A layout of other settings must not be resumed: half of it would be of each kind.
    lines = [f"{name} {value}" for name, value in settings.items()]
    stamp = work / "settings.txt"
    if not stamp.is_file():
        with files.replacing(stamp) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return
    before = stamp.read_text(encoding="utf-8").splitlines()
    if before != lines:
        was, now = (
            ", ".join(line for line in one if line not in other)
            for one, other in ((before, lines), (lines, before))
        )
        raise UserError(
            f"{work} was built with other settings or files ({was}; now {now}): remove it or "
            "choose another --work_dir"
        )


def make_split(root: Path, models: Sequence[Model], config: MeshSetConfig) -> splits.SplitList:
    """Return a new split of a layout's objects, near-duplicates on one side."""
    grids = [binvox.read_binvox(layout.voxel_file(root, model)).voxels for model in models]
    groups = splits.near_duplicates(grids, config.duplicate_iou)
    times = Counter(model.name for model in models)
    # A group is called like its first object; one name in two categories means two objects.
    names_of = [model.name if times[model.name] == 1 else model.key for model in models]
    sources = {model.key: names_of[group] for model, group in zip(models, groups)}
    names = ("seed", "train_fraction", "duplicate_iou", "voxel_size")
    return splits.SplitList(
        name=config.name,
        sides=splits.make_split(sources, config.seed, config.train_fraction),
        settings={name: getattr(config, name) for name in names},
    )


def _require_listed_exist(split_list: Path, entries: Sequence[Entry]) -> None:
    split = splits.read_split_list(split_list)
    listed = {key for keys in split.sides.values() for key in keys}
    absent = sorted(listed - {entry.model.key for entry in entries})
    if absent:
        raise UserError(
            f"{split_list} names {len(absent)} objects that are not among the {len(entries)} "
            f"given, first {absent[0]}: it belongs to other data; use --split_list=new"
        )


def _require_listed(split_list: Path, models: Sequence[Model]) -> splits.SplitList:
    split = splits.read_split_list(split_list)
    listed = {key for keys in split.sides.values() for key in keys}
    extra = sorted({model.key for model in models} - listed)
    if extra:
        raise UserError(
            f"{split_list} does not name {len(extra)} of {len(models)} objects, first {extra[0]}: "
            "it belongs to other data; use --split_list=new"
        )
    return split


def _write_records(
    root: Path,
    size: int,
    split_list: Path,
    directory: Path,
    config: MeshSetConfig,
    sources: Mapping[str, str],
    processes: int,
) -> records.Manifest:
    # TensorFlow only from here on: the processes that render never import it.
    from data_tools import contact_sheet, data_card, records_from_layout

    records_config = records_from_layout.RecordsConfig(
        name=config.name,
        views=config.views,
        image_size=size,
        voxel_size=config.voxel_size,
        copies=config.copies,
        records_per_shard=config.records_per_shard,
        strict=True,  # all of it was made here: something missing is a fault
        sources=sources,
        settings=config.settings(),
    )
    print(f"writing {directory}", file=sys.stderr)
    selection = splits.select_listed(split_list)
    with records_from_layout.opened(root, root, root.with_name(f"{root.name}-records")) as data:
        # Seconds on one core, less than what processes take to load TensorFlow.
        manifest = records_from_layout.build_records(data, selection, directory, records_config)
    with files.replacing(directory / "split.json") as temporary:
        temporary.write_bytes(split_list.read_bytes())
    contact_sheet.write(directory, processes=processes)
    data_card.write(directory)
    return manifest


def build_model(roots: Mapping[int, Path], config: MeshSetConfig, job: Job) -> list[Finding]:
    """Render and voxelise an object, or copies of it, into the layout of every size."""
    original = job.entry.model
    try:
        mesh = job.entry.load()
    except meshes.UnusableMesh as error:
        return [Finding(original, str(error), unusable=True)]
    for number in job.copies:
        model, shape = original, mesh
        if number:
            model = original.copy(number)
            shape = meshes.augment(mesh, config.seed, original.name, number)
        grid = voxelize.voxelize(shape.corners, config.voxel_size)
        occupied = int(grid.voxels.sum())
        # Whatever is in one piece fills a cell of every layer along its longest side.
        if not number and occupied < config.voxel_size:
            text = (
                f"it fills {words.count(occupied, 'cell')} of {grid.voxels.size}, a shape at least "
                f"{config.voxel_size}: its parts lie too far from each other"
            )
            return [Finding(original, text, unusable=True)]
        cameras = render.cameras(config.seed, model.name, config.views)
        images = _views(render.Renderer(shape), cameras, config)
        for size, root in roots.items():
            layout.write_model(root, model, images[size], cameras, grid, config.optimize_png)
    remarks = mesh.remarks if 0 in job.copies else ()  # once
    return [Finding(original, remark, unusable=False) for remark in remarks]


def _views(
    renderer: render.Renderer, cameras: np.ndarray, config: MeshSetConfig
) -> dict[int, list[np.ndarray]]:
    images: dict[int, list[np.ndarray]] = {size: [] for size in config.sizes}
    for camera in cameras:
        rays = renderer.cast(camera, config.image_size * config.supersampling)
        for size, views in images.items():
            views.append(render.develop(rays, size))
    return images


def _build_models(
    roots: Mapping[int, Path],
    jobs: Sequence[Job],
    config: MeshSetConfig,
    processes: int,
    run: pool.Runner,
    what: str,
) -> list[Finding]:
    missing = [job for job in (_without_complete(roots, job) for job in jobs) if job.copies]
    work = functools.partial(build_model, roots, config)
    results = run(work, missing, min(processes, len(missing)))
    results = pool.report_progress(results, len(missing), what)
    findings = []
    for found in itertools.chain.from_iterable(results):
        verb = "skipped" if found.unusable else "note on"
        print(f"{verb} {found.model.key}: {found.text}", file=sys.stderr)
        findings.append(found)
    return findings


def _without_complete(roots: Mapping[int, Path], job: Job) -> Job:
    model = job.entry.model
    return job._replace(
        copies=tuple(
            number
            for number in job.copies
            if not all(
                layout.is_complete(root, model.copy(number) if number else model)
                for root in roots.values()
            )
        )
    )


def read_sizes(texts: Sequence[str]) -> dict[str, Any]:
    """Return the settings that sides of views stand for. Raises `UserError` for what is none."""
    try:
        largest, *smaller = (int(text) for text in texts)
    except ValueError as error:
        raise UserError(
            f"image sizes are whole numbers, e.g. 137,68. Received: {','.join(texts)!r}"
        ) from error
    return {"image_size": largest, "smaller_sizes": tuple(smaller)}


def summary(built: Built) -> list[str]:
    """Return what a builder prints at its end, record directory by record directory."""
    from data_tools import contact_sheet, data_card, records_from_layout

    lines = []
    for directory, manifest in built.manifests.items():
        views = words.count(manifest.views, "view")
        lines += [f"{directory}: {manifest.image_size} pixels, {views}"]
        lines += [f"  {line}" for line in records_from_layout.summary(manifest)]
    first = next(iter(built.manifests))
    if built.skipped:
        lines.append(f"{built.skipped} objects were skipped: {first / SKIPPED} says why")
    return [*lines, f"look at {first / data_card.TEXT} and {first / contact_sheet.FILE}"]
