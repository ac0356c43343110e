"""Which object lies on which side: near-duplicates together, and a list that can be committed.

A split list is a JSON file: a name, how it was made, and per side the source group of every
object by its key `<category>/<model>`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools import seeding
from tfjoint import baselines, files
from tfjoint.errors import UserError

TRAIN, VAL, TEST = "train", "val", "test"
PART = " (part)"
"""What the name of a split ends in of which not all objects are there."""

_GRIDS_AT_ONCE = 1024


class SplitError(UserError):
    """A split list that is missing, damaged, or contradicts itself."""


@dataclasses.dataclass(frozen=True)
class SplitList:
    """Per side ("train", "test", perhaps "val"), the source group of every object by its key."""

    name: str
    sides: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How the list was made."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which objects become records, on which side."""

    name: str
    """Of the split."""
    sha256: str
    """Of what defines the split: its file, or the rule."""
    sides: Mapping[str, Mapping[str, str]]
    """Per side, the source group of every object by its key; the data may lack some."""
    known_bad: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Objects of the split that are left out by name, and why."""
    absent: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many objects per category the split has beside all these, where that is known."""


def part_of(name: str) -> str:
    """Return what a split is called of which not all objects are there."""
    return name if name.endswith(PART) else name + PART


def near_duplicates(grids: Sequence[np.ndarray], threshold: float = 0.85) -> list[int]:
    """Return for every grid [D, D, D] the smallest index in its group of near-duplicates.

    Two grids are near-duplicates when the IoU of one with the other, or with its mirror image in
    z, exceeds the threshold; groups are the connected components.
    """
    packed = baselines.pack(grids)
    mirrored = baselines.pack(grid[:, :, ::-1] for grid in grids)
    group = np.arange(len(grids))
    for rows, columns in _block_pairs(len(grids)):
        left, right = baselines.unpack(packed[rows]), baselines.unpack(packed[columns])
        total = left.sum(1)[:, None] + right.sum(1)[None, :]
        common = np.maximum(left @ right.T, left @ baselines.unpack(mirrored[columns]).T)
        close = common > threshold * (total - common)
        for first, second in np.argwhere(close):
            low, high = sorted((group[rows.start + first], group[columns.start + second]))
            if low < high:
                group[group == high] = low
    return group.tolist()


def _block_pairs(count: int) -> Iterator[tuple[slice, slice]]:
    # Memory for two blocks, however many grids there are.
    for row in range(0, count, _GRIDS_AT_ONCE):
        for column in range(row, count, _GRIDS_AT_ONCE):
            yield slice(row, row + _GRIDS_AT_ONCE), slice(column, column + _GRIDS_AT_ONCE)


def make_split(
    sources: Mapping[str, str], seed: int, train_fraction: float = 0.8
) -> dict[str, dict[str, str]]:
    """Return {"train": {key: source}, "test": {key: source}}.

    Whole groups go to one side. Per category, groups drawn by (seed, group) go to the test side
    as long as that brings it nearer to its share; a group belongs to the category of the key
    that sorts first. Raises `SplitError` when a side stays empty.
    """
    members: dict[str, list[str]] = {}
    for key in sorted(sources):
        members.setdefault(sources[key], []).append(key)
    by_category: dict[str, list[str]] = {}
    for source, keys in members.items():
        by_category.setdefault(keys[0].partition("/")[0], []).append(source)
    sides: dict[str, dict[str, str]] = {TRAIN: {}, TEST: {}}
    for category in sorted(by_category):
        groups = [members[source] for source in _shuffled(by_category[category], seed)]
        for side, keys in _divide(groups, 1.0 - train_fraction):
            sides[side].update({key: sources[key] for key in keys})
    empty = [side for side in sides if not sides[side]]
    if empty:
        raise SplitError(
            f"split {empty[0]!r} would be empty: {len(members)} groups of {len(sources)} objects "
            f"cannot be divided {train_fraction:g} : {1 - train_fraction:g}; give more objects"
        )
    return {side: dict(sorted(keys.items())) for side, keys in sides.items()}


def _shuffled(groups: Sequence[str], seed: int) -> list[str]:
    return sorted(groups, key=lambda group: seeding.generator(seed, "split", group).random())


def _divide(groups: Sequence[list[str]], test_fraction: float) -> list[tuple[str, list[str]]]:
    wanted = test_fraction * sum(map(len, groups))
    taken, sides = 0, []
    for keys in groups:
        nearer = abs(taken + len(keys) - wanted) <= abs(taken - wanted)
        taken += len(keys) if nearer else 0
        sides.append((TEST if nearer else TRAIN, keys))
    return sides


def write_split_list(path: str | os.PathLike, split: SplitList) -> None:
    """Write a split list; equal lists give equal bytes."""
    files.write_json(path, dataclasses.asdict(split))


def read_split_list(path: str | os.PathLike) -> SplitList:
    """Read and check a split list. Raises `SplitError`."""
    if not Path(path).is_file():
        raise SplitError(f"no split list at {path}: give the JSON file that names both sides")
    try:
        split = SplitList(**json.loads(Path(path).read_text(encoding="utf-8")))
        groups = {side: set(map(_text, keys.values())) for side, keys in split.sides.items()}
        _text(split.name)
        if not all(map(str.isidentifier, groups)):  # they become names of files
            raise ValueError(f"sides are called {', '.join(groups)}")
        train, test = groups[TRAIN], groups[TEST]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SplitError(f"{path} is not a split list ({reason}): restore it") from error
    for one, other in itertools.combinations(groups.values(), 2):
        if one & other:
            raise SplitError(f"{path}: group {min(one & other)!r} lies on both sides: make it anew")
    if not train or not test:
        raise SplitError(f"{path}: split {TRAIN if not train else TEST!r} is empty: make it anew")
    return split


def select_listed(path: str | os.PathLike) -> Selection:
    """Return all objects of a split list. Raises `SplitError`."""
    split = read_split_list(path)
    return Selection(split.name, split_sha256(path), split.sides)


def is_taxonomy(path: str | os.PathLike) -> bool:
    """Return whether a file, if there is one, begins like the lists of Pix2Vox."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(64).lstrip().startswith("[")
    except (OSError, UnicodeDecodeError):
        return False


def read_taxonomy(path: str | os.PathLike, name: str) -> SplitList:
    """Read the lists of Pix2Vox: per category its id and the objects of train, val and test.

    The source group of an object is its own key. Raises `SplitError`.
    """
    if not Path(path).is_file():
        raise SplitError(f"no split list at {path}: give the JSON file that names all sides")
    sides: dict[str, dict[str, str]] = {TRAIN: {}, VAL: {}, TEST: {}}
    try:
        for taxonomy in json.loads(Path(path).read_text(encoding="utf-8")):
            category = _text(taxonomy["taxonomy_id"])
            for side, keys in sides.items():
                names = [f"{category}/{_text(model)}" for model in taxonomy[side]]
                keys.update(zip(names, names))
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SplitError(
            f"{path} is not a list of Pix2Vox's kind ({reason}): restore it"
        ) from error
    for one, other in itertools.combinations(sides, 2):
        twice = sides[one].keys() & sides[other].keys()
        if twice:
            raise SplitError(f"{path}: {min(twice)} lies in {one} and in {other}: restore it")
    if not sides[TRAIN] or not sides[TEST]:
        raise SplitError(f"{path}: split {TRAIN if not sides[TRAIN] else TEST!r} is empty")
    return SplitList(name, sides)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a text: {str(value)[:40]}")
    return value


def split_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a split list: what every record directory made with it carries."""
    return files.sha256(path)
