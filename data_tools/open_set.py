"""The open mesh set, from the libraries to records.

    fetch -> catalogue -> [prepare -> render + voxelise] per object, over all cores -> layout
          -> split by near-duplicate group -> augmented copies of training objects -> records

Every object depends on (seed, object id) alone and is written whole or not at all: a run that was
stopped resumes, and any number of processes ends in the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_tools import (
    binvox,
    categories,
    credits,
    layout,
    meshes,
    pool,
    render,
    splits,
    sweethome3d,
    voxelize,
)
from data_tools.layout import Model
from data_tools.sweethome3d import CatalogueModel, Source
from tfjoint import files
from tfjoint.errors import UserError

if TYPE_CHECKING:
    from tfjoint import records


@dataclasses.dataclass(frozen=True)
class OpenSetConfig:
    """Everything that decides what the records hold."""

    name: str = "open-demo"
    licences: tuple[str, ...] = ("CC0",)
    image_size: int = 68
    """Side of a view in pixels; 68 leaves the crop to 64 the room that 137 leaves to 128."""
    views: int = 7
    copies: int = 2
    """Augmented copies of every training object."""
    voxel_size: int = 32
    supersampling: int = 2
    seed: int = 0
    train_fraction: float = 0.8
    duplicate_iou: float = 0.85
    least_per_category: int = 4
    records_per_shard: int = 128


class Entry(NamedTuple):
    """An object to build: where it comes from and where it goes."""

    library: Path
    source: CatalogueModel
    model: Model


class Skipped(NamedTuple):
    """An object that cannot be built, and why."""

    model: Model
    reason: str


def build(
    config: OpenSetConfig,
    source: Source,
    work: Path,
    output: Path,
    split_list: Path | None = None,
    processes: int = 1,
    run: pool.Runner = pool.run,
) -> records.Manifest:
    """Build the records of the open mesh set and return their manifest.

    Args:
        config: what to build.
        source: what `sweethome3d.fetch` returned.
        work: directory for the libraries and the layout; a later run resumes from it.
        output: directory of the records, with CREDITS.md and the split list beside them.
        split_list: committed list to use; None makes a new one.
        processes: how many objects are built at once.
        run: what builds them, on this machine or elsewhere.

    Raises `UserError` for a source, directory or split list that does not fit.
    """
    if split_list is not None:
        splits.read_split_list(split_list)  # a wrong list is told before the long work
    entries = select(sweethome3d.unpack(source.path, work / "libraries"), config)
    root = work / "layout"
    _claim(root, config, source)
    objects = [(entry, 0) for entry in entries]
    skipped = _build_models(root, objects, config, processes, run, "objects")
    unusable = {skip.model for skip in skipped}
    entries = [entry for entry in entries if entry.model not in unusable]

    if split_list is None:
        split_list = work / "split.json"
        splits.write_split_list(split_list, _split(root, entries, config))
    train = _check_listed(split_list, entries).sides[splits.TRAIN]
    copies = [
        (entry, number)
        for entry in entries
        if entry.model.key in train
        for number in range(1, config.copies + 1)
    ]
    _build_models(root, copies, config, processes, run, "copies")

    # TensorFlow only from here on: the processes above never import it.
    from data_tools import records_from_layout

    records_config = records_from_layout.RecordsConfig(
        name=config.name,
        views=config.views,
        image_size=config.image_size,
        voxel_size=config.voxel_size,
        copies=config.copies,
        records_per_shard=config.records_per_shard,
        strict=True,  # all of it was made here: something missing is a fault
        sources={source.name: source.sha256},
        settings=dataclasses.asdict(config),
    )
    selection = splits.select_listed(split_list)
    with records_from_layout.opened(root, root, work / "records") as data:
        # Seconds on one core, less than what processes take to load TensorFlow.
        manifest = records_from_layout.build_records(data, selection, output, records_config)
    with files.replacing(output / "split.json") as temporary:
        temporary.write_bytes(split_list.read_bytes())
    models = [entry.source for entry in entries]
    credits.write_credits(output / credits.CREDITS, models, source)
    return manifest


def select(libraries: Sequence[Path], config: OpenSetConfig) -> list[Entry]:
    """Return the catalogue's usable models of the wanted licences, sorted by category and id.

    Raises `UserError` when none is left.
    """
    chosen = {
        model.object_id: (library, model)
        for library in libraries
        for model in sweethome3d.read_catalogue(library)
        if model.licence in config.licences and _has_volume(model)
    }
    if not chosen:
        raise UserError(
            f"no model under {' or '.join(config.licences)} in "
            f"{', '.join(library.name for library in libraries)}: check --source and --licence"
        )
    names = {key: categories.category_of(model.name) for key, (_, model) in chosen.items()}
    names = categories.merge_small(names, config.least_per_category)
    entries = [Entry(*chosen[key], Model(names[key], key)) for key in chosen]
    return sorted(entries, key=lambda entry: entry.model)


def _has_volume(model: CatalogueModel) -> bool:
    dropped = categories.category_of(model.name) == categories.DROPPED
    return not model.door_or_window and not dropped


def _check_listed(split_list: Path, entries: Sequence[Entry]) -> splits.SplitList:
    split = splits.read_split_list(split_list)
    listed = {key for keys in split.sides.values() for key in keys}
    extra = sorted({entry.model.key for entry in entries} - listed)
    if extra:
        raise UserError(
            f"{split_list} does not name {len(extra)} of {len(entries)} objects, first {extra[0]}: "
            "it belongs to other data; use --split_list=new"
        )
    return split


def _claim(root: Path, config: OpenSetConfig, source: Source) -> None:
    # A layout of other settings must not be resumed: half of it would be of each kind.
    fields = ("image_size", "views", "voxel_size", "supersampling", "seed")
    settings = {name: getattr(config, name) for name in fields}
    settings["source"] = source.sha256
    text = "".join(f"{name} {value}\n" for name, value in settings.items())
    stamp = root / "settings.txt"
    if not stamp.is_file():
        with files.replacing(stamp) as temporary:
            temporary.write_text(text, encoding="ascii")
    elif stamp.read_text(encoding="ascii") != text:
        was = ", ".join(stamp.read_text(encoding="ascii").splitlines())
        raise UserError(
            f"{root} was built with other settings ({was}): remove it or choose another --work_dir"
        )


def _split(root: Path, entries: Sequence[Entry], config: OpenSetConfig) -> splits.SplitList:
    models = [entry.model for entry in entries]
    grids = [binvox.read_binvox(layout.voxel_file(root, model)).voxels for model in models]
    groups = splits.near_duplicates(grids, config.duplicate_iou)
    sources = {model.key: models[group].name for model, group in zip(models, groups)}
    names = ("seed", "train_fraction", "duplicate_iou", "voxel_size")
    return splits.SplitList(
        name=config.name,
        sides=splits.make_split(sources, config.seed, config.train_fraction),
        settings={name: getattr(config, name) for name in names},
    )


def build_model(root: Path, config: OpenSetConfig, job: tuple[Entry, int]) -> Skipped | None:
    """Render and voxelise one object, or copy number `job[1]` of it, into the layout."""
    entry, copy = job
    original = entry.model
    model = original.copy(copy) if copy else original
    folder = sweethome3d.read_folder(entry.library, entry.source.path)
    try:
        mesh = meshes.load_obj(folder, Path(entry.source.path).name)
        mesh = meshes.prepare(mesh, sweethome3d.catalogue_matrix(entry.source))
    except meshes.UnusableMesh as error:
        return Skipped(model, str(error))
    if copy:
        mesh = meshes.augment(mesh, config.seed, original.name, copy)
    cameras = render.cameras(config.seed, model.name, config.views)
    renderer = render.Renderer(mesh)
    images = [renderer.render(c, config.image_size, config.supersampling) for c in cameras]
    grid = voxelize.voxelize(mesh.corners, config.voxel_size)
    layout.write_model(root, model, images, cameras, grid)
    return None


def _build_models(
    root: Path,
    jobs: Sequence[tuple[Entry, int]],
    config: OpenSetConfig,
    processes: int,
    run: pool.Runner,
    what: str,
) -> list[Skipped]:
    missing = [
        (entry, copy)
        for entry, copy in jobs
        if not layout.is_complete(root, entry.model.copy(copy) if copy else entry.model)
    ]
    work = functools.partial(build_model, root, config)
    results = run(work, missing, min(processes, len(missing)))
    results = pool.report_progress(results, len(missing), what)
    skipped = [result for result in results if result is not None]
    for skip in skipped:
        print(f"skipped {skip.model.key}: {skip.reason}", file=sys.stderr)
    return skipped
