"""From a layout and a split list to records: one code path, whatever made the layout."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tfjoint
from data_tools import layout, splits
from data_tools.layout import LayoutError, Model
from tfjoint import binvox, records


@dataclasses.dataclass(frozen=True)
class RecordsConfig:
    """What is made of a layout."""

    name: str
    """Name of the data set, printed beside every result."""
    views: int
    """Views stored per object, the first of the layout."""
    copies: int = 0
    """How many of the layout's augmented copies of every training object to take."""
    records_per_shard: int = 512
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 of every source file, by name."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The settings of whoever made the layout."""


def build_records(
    root: str | os.PathLike,
    split_list: str | os.PathLike,
    output: str | os.PathLike,
    config: RecordsConfig,
) -> records.Manifest:
    """Write the objects of a split list, and copies of training objects, as records.

    Raises `UserError` when the layout lacks an object of the list or holds a damaged one.
    """
    split = splits.read_split_list(split_list)
    models = layout.list_models(root)
    members = {side: members_of(models, split, side, config.copies) for side in split.sides}
    first = members[splits.TRAIN][0]
    manifest = records.Manifest(
        name=config.name,
        split_name=split.name,
        split_sha256=splits.split_sha256(split_list),
        image_size=layout.image_size(layout.read_views(root, first, 1).images[0]),
        views=config.views,
        voxel_size=binvox.read_binvox(layout.voxel_file(root, first)).voxels.shape[0],
        splits={},
        sources=dict(config.sources),
        settings=dict(config.settings),
        tool_version=tfjoint.__version__,
    )
    shards = {}
    for side, side_models in members.items():
        objects = _records(root, side_models, split.sides[side], manifest)
        shards[side] = records.write_split(
            output, side, objects, len(side_models), config.records_per_shard
        )
    manifest = dataclasses.replace(manifest, splits=shards)
    records.write_manifest(output, manifest)
    _remove_stale_shards(Path(output), manifest)
    return manifest


def summary(manifest: records.Manifest) -> list[str]:
    """Return one line per split: objects, bytes, shards."""
    return [
        f"{side}: {sum(shard.records for shard in shards)} objects, "
        f"{sum(shard.bytes for shard in shards)} bytes, {len(shards)} shards"
        for side, shards in manifest.splits.items()
    ]


def members_of(
    models: Sequence[Model], split: splits.SplitList, side: str, copies: int = 0
) -> list[Model]:
    """Return the objects of one side, sorted, for training with up to `copies` copies of each.

    Raises `LayoutError` when the layout lacks an object of the list.
    """
    wanted = split.sides[side]
    missing = sorted(set(wanted) - {model.key for model in models})
    if missing:
        raise LayoutError(
            f"the layout lacks {len(missing)} objects of split {split.name!r}, first {missing[0]}: "
            "the list belongs to other data, or the layout is incomplete"
        )
    most = copies if side == splits.TRAIN else 0
    return sorted(m for m in models if m.original.key in wanted and m.copy_number <= most)


def _records(
    root: str | os.PathLike,
    models: Sequence[Model],
    sources: Mapping[str, str],
    manifest: records.Manifest,
) -> Iterator[records.ObjectRecord]:
    for model in models:
        views = layout.read_views(root, model, manifest.views)
        voxels = binvox.read_binvox(layout.voxel_file(root, model)).voxels
        sizes = {layout.image_size(png) for png in views.images}
        if sizes != {manifest.image_size} or voxels.shape[0] != manifest.voxel_size:
            raise LayoutError(
                f"{model.key} has views of {sorted(sizes)} pixels and a grid of {voxels.shape[0]}, "
                f"the others have {manifest.image_size} and {manifest.voxel_size}: render it anew"
            )
        yield records.ObjectRecord(
            category=layout.SYNSETS.get(model.category, model.category),
            object_id=model.name,
            source=sources[model.original.key],
            views=views.images,
            cameras=views.cameras,
            voxels=voxels,
        )


def _remove_stale_shards(output: Path, manifest: records.Manifest) -> None:
    # An earlier run with another shard size leaves files that no manifest lists.
    listed = {shard.file for shards in manifest.splits.values() for shard in shards}
    for side in manifest.splits:
        for path in output.glob(f"{side}-*-of-*.tfrecord"):
            if path.name not in listed:
                path.unlink()
