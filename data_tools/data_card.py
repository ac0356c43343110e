"""The data card of a record set: what it holds, where it is from, and what needs no network.

<records>/CARD.md      to read
<records>/card.json    the same numbers
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_tools import layout, pool
from tfjoint import baselines, files, records, words

TEXT, TABLES = "CARD.md", "card.json"
_TRAIN = "train"
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class Side(NamedTuple):
    """What a card needs of the objects of one split."""

    categories: list[str]
    sources: list[str]
    copies: int
    """How many of the objects are augmented copies of others."""
    grids: np.ndarray
    """[N, bytes] as `tfjoint.baselines` packs them."""


def write(directory: str | os.PathLike) -> dict[str, Any]:
    """Write the card of a record directory and return what card.json holds.

    Raises `UserError` when the records are missing or damaged.
    """
    manifest = records.read_manifest(directory)
    card = describe(manifest, {name: read_side(directory, name) for name in manifest.splits})
    card["manifest_sha256"] = records.manifest_sha256(directory)
    files.write_json(Path(directory) / TABLES, card)
    with files.replacing(Path(directory) / TEXT) as temporary:
        temporary.write_text("\n".join(as_text(card)) + "\n", encoding="utf-8")
    return card


def read_side(directory: str | os.PathLike, split: str) -> Side:
    """Read one split, views left aside. Raises `UserError`."""
    opened = records.RecordSet(directory, split)
    grids = (opened.record(index).voxels for index in range(len(opened)))
    names = [layout.Model(found.category, found.object_id) for found in opened.objects]
    return Side(
        categories=[name.category for name in names],
        sources=[found.source for found in opened.objects],
        copies=sum(name.copy_number > 0 for name in names),
        grids=baselines.pack(pool.report_progress(grids, len(opened), f"grids of {split}")),
    )


def describe(manifest: records.Manifest, sides: Mapping[str, Side]) -> dict[str, Any]:
    """Return the card of a record set as plain values."""
    shards = manifest.splits
    card: dict[str, Any] = {
        "name": manifest.name,
        "image_size": manifest.image_size,
        "views": manifest.views,
        "voxel_size": manifest.voxel_size,
        "licences": list(manifest.settings.get("licences", ())),
        "sources_sha256": dict(manifest.sources),
        "split_list": {"name": manifest.split_name, "sha256": manifest.split_sha256},
        "settings": dict(manifest.settings),
        "tool_version": manifest.tool_version,
        "splits": {
            name: {
                "objects": len(side.sources),
                "copies": side.copies,
                "groups": len(set(side.sources)),
                "bytes": sum(shard.bytes for shard in shards[name]),
                "categories": dict(sorted(Counter(side.categories).items())),
                "occupancy": _occupancy(side.grids, manifest.voxel_size),
            }
            for name, side in sides.items()
        },
        "baselines": {},
    }
    training = sides.get(_TRAIN)
    if training is not None:
        card["baselines"] = {
            name: _baselines(side, training) for name, side in sides.items() if name != _TRAIN
        }
    return card


def _occupancy(grids: np.ndarray, voxel_size: int) -> dict[str, Any]:
    shares = baselines.sizes(grids) / voxel_size**3
    quantiles = np.quantile(shares, _QUANTILES)
    return {
        "mean": round(float(shares.mean()), 6),
        "quantiles": {f"{q:g}": round(float(v), 6) for q, v in zip(_QUANTILES, quantiles)},
    }


def _baselines(side: Side, training: Side) -> dict[str, Any]:
    shape = baselines.mean_shape(side.grids, training.grids)
    nearest = baselines.best_training_grid(side.grids, training.grids)
    return {
        "mean_shape": {"threshold": shape.threshold, **_ious(shape.ious, side.categories)},
        "best_training_grid": _ious(nearest, side.categories),
    }


def _ious(ious: np.ndarray, categories: Sequence[str]) -> dict[str, Any]:
    names = np.array(categories)
    classes = {name: round(float(ious[names == name].mean()), 6) for name in sorted(set(names))}
    return {
        "mean": round(float(ious.mean()), 6),
        "std": round(float(ious.std()), 6),
        "class_mean": round(float(np.mean(list(classes.values()))), 6),
        "per_class": classes,
    }


def as_text(card: Mapping[str, Any]) -> list[str]:
    """Return the lines of CARD.md."""
    sides = card["splits"]
    size = card["voxel_size"]
    lines = [
        f"# Data card: {card['name']}",
        "",
        f"{words.count(card['views'], 'view')} of {card['image_size']} x {card['image_size']} "
        f"pixels and an occupancy grid of {size} x {size} x {size} per object. Written by "
        "`python -m data_tools.card`; the same numbers are in `card.json`.",
        "",
        "| split | objects | of them copies | source groups | MB | mean occupancy |",
        "|---|---|---|---|---|---|",
    ]
    for name, side in sides.items():
        lines.append(
            f"| {name} | {side['objects']} | {side['copies']} | {side['groups']} "
            f"| {side['bytes'] / 1e6:.1f} | {side['occupancy']['mean']:.2%} |"
        )
    lines += [
        "",
        "A source group holds near-duplicate meshes and lies on one side of the split.",
        *_provenance(card),
        *_quantiles(sides),
        *_categories(card),
        *_without_network(card["baselines"]),
    ]
    return lines


def _provenance(card: Mapping[str, Any]) -> list[str]:
    rows = {
        "licences": ", ".join(card["licences"]) or "not stated; those of the sources",
        "manifest": f"SHA-256 `{card['manifest_sha256']}`" if "manifest_sha256" in card else "",
        "split list": f"{card['split_list']['name']}, SHA-256 `{card['split_list']['sha256']}`",
        **{f"`{name}`": f"SHA-256 `{sha256}`" for name, sha256 in card["sources_sha256"].items()},
        "tfjoint": card["tool_version"],
    }
    return ["", "## Where it is from", "", *(f"- {k}: {v}" for k, v in rows.items() if v)]


def _quantiles(sides: Mapping[str, Any]) -> list[str]:
    names = [f"{100 * q:g} %" for q in _QUANTILES]
    lines = ["", "## Occupied share of the grid", "", f"| quantile | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for name, side in sides.items():
        values = side["occupancy"]["quantiles"].values()
        lines.append(f"| {name} | " + " | ".join(f"{value:.2%}" for value in values) + " |")
    return lines


def _categories(card: Mapping[str, Any]) -> list[str]:
    sides, found = card["splits"], card["baselines"]
    kinds = {"mean_shape": "mean shape", "best_training_grid": "best training grid"}
    columns = [f"{kinds[kind]}, {name}" for name in found for kind in kinds]
    heads = ["category", *sides, *columns]
    lines = ["", "## Categories", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for category in sorted({c for side in sides.values() for c in side["categories"]}):
        cells = [category, *(str(side["categories"].get(category, 0)) for side in sides.values())]
        for name in found:
            values = (found[name][kind]["per_class"].get(category) for kind in kinds)
            cells += ["" if value is None else f"{value:.3f}" for value in values]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _without_network(found: Mapping[str, Any]) -> list[str]:
    lines = ["", "## What needs no network", ""]
    for name, kinds in found.items():
        shape, nearest = kinds["mean_shape"], kinds["best_training_grid"]
        lines += [
            f"- {name}, mean shape of the training objects at its best threshold "
            f"{shape['threshold']}: mIoU {shape['mean']:.3f} +- {shape['std']:.3f}, "
            f"class mean {shape['class_mean']:.3f}",
            f"- {name}, best training grid of each object (an oracle): mIoU "
            f"{nearest['mean']:.3f} +- {nearest['std']:.3f}, class mean "
            f"{nearest['class_mean']:.3f}",
        ]
    return [*lines, "", "An mIoU says little without them."]
