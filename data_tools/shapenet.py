"""ShapeNet as 3D-R2N2 distributes it: how much there is, what of it is bad, which split is whose.

The split of 3D-R2N2 takes, per category, the first int(0.8 n) of the n sorted names of its voxel
archive for training. Whoever has a part of the data would get another split by that rule. So the
first name of the test side, as the rule finds it in the whole data, is kept here: with it every
object is on its side, whatever else is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_tools import splits
from data_tools.layout import SYNSETS, Model
from data_tools.splits import TEST, TRAIN, Selection
from tfjoint.errors import UserError

R2N2, PIX2VOX = "r2n2", "pix2vox"


class Category(NamedTuple):
    """How many objects of a category the voxel archive holds, and the first one for testing."""

    objects: int
    first_test: str


CATEGORIES = {
    "02691156": Category(4045, "d18592d9615b01bbbc0909d98a1ff2b4"),
    "02828884": Category(1816, "c8298f70c094a9fd25d3c528e036a532"),
    "02933112": Category(1572, "aff3488d05343a89e42b7a6468e7283f"),
    "02958343": Category(7497, "cbc946b4f4c022305e524bb779a94481"),
    "03001627": Category(6778, "cbc47018135fc1b1462977c6d3c24550"),
    "03211117": Category(1095, "d7ab9503d7f6dac6b4382097c3e8bcf7"),
    "03636649": Category(2318, "d13f1adad399c9f1ea93fe4e1ab627a2"),
    "03691459": Category(1618, "c90cbb0458648665da49a3feeb6532eb"),
    "04090263": Category(2372, "ca25a955adaa031812b38b1d99376c0b"),
    "04256520": Category(3173, "cc644fad0b76a441d84c7dc40ac6d743"),
    "04379243": Category(8509, "cd44665771f7b7d2b2000d40d3899456"),
    "04401088": Category(1052, "d2bce5fd1fd04beeb3db4664acec42ef"),
    "04530566": Category(1939, "cd65ea1bb0e091d5a1ea2dd0a4cf317e"),
}
"""What is distributed, 43,784 objects; names and order as in `layout.SYNSETS`."""

_BAD_CAR = Model("02958343", "f9c1d7748c15499c6f2bd1c4e9adb41")
_BAD_RIFLE = Model("04090263", "4a32519f44dc84aabafe26e2eb69ebf4")
KNOWN_BAD = {_BAD_CAR.key: "it has no renderings", _BAD_RIFLE.key: "its mesh is empty"}
"""Objects that nobody can use, and why."""


def select(
    grids: Sequence[Model],
    split: str,
    split_list: Path | None = None,
    categories: Collection[str] = (),
    objects: Collection[str] = (),
) -> Selection:
    """Return the objects of a split, of some categories or by name, as the data has them.

    Args:
        grids: every object that has a grid in the data.
        split: "r2n2", "pix2vox" or the path of a split list, this project's or of Pix2Vox's kind.
        split_list: the lists of Pix2Vox, for "pix2vox" alone.
        categories: names or synsets; none means all.
        objects: `<model>` or `<category>/<model>`; none means all.

    Raises `UserError` for a list that is missing or damaged and for what is in no list.
    """
    if (split == PIX2VOX) != (split_list is not None):
        raise UserError(
            f"--split_list belongs to --split={PIX2VOX} and names its ShapeNet.json; received: "
            f"--split={split} and {split_list or 'no --split_list'}"
        )
    if split == R2N2:
        selection = _select_r2n2(grids, categories)
    else:
        selection = _select_listed(split, split_list)
    sides = {side: dict(keys) for side, keys in selection.sides.items()}
    if categories:
        present = {key.partition("/")[0] for keys in sides.values() for key in keys}
        folders = _folders(categories, present)
        sides = _keep(sides, lambda key: key.partition("/")[0] in folders)
    name = selection.name
    if objects:
        sides, name = _keep_objects(sides, objects), splits.part_of(name)
    bad = {key: KNOWN_BAD[key] for keys in sides.values() for key in keys if key in KNOWN_BAD}
    return dataclasses.replace(
        selection,
        name=name,
        sides=_keep(sides, lambda key: key not in bad),
        known_bad=bad,
        absent={} if objects else selection.absent,
    )


def _select_r2n2(grids: Sequence[Model], categories: Collection[str]) -> Selection:
    folders = _folders(categories, CATEGORIES) if categories else set(CATEGORIES)
    foreign = {model.category for model in grids} - set(CATEGORIES)
    if foreign and not categories:
        raise UserError(
            f"the split of 3D-R2N2 has no category {min(foreign)!r}: choose some of its own with "
            "--categories, or give --split=<file>"
        )
    sides: dict[str, dict[str, str]] = {TRAIN: {}, TEST: {}}
    absent = {}
    for folder in sorted(folders):
        names = {model.name for model in grids if model.category == folder}
        for name in sorted(names):
            side = TEST if name >= CATEGORIES[folder].first_test else TRAIN
            sides[side][f"{folder}/{name}"] = f"{folder}/{name}"
        # The voxel archive holds the car, and so the rule counts it; it does not hold the rifle.
        counted = names - {_BAD_RIFLE.name}
        if folder == _BAD_CAR.category:
            counted.add(_BAD_CAR.name)
        absent[folder] = CATEGORIES[folder].objects - len(counted)
        if absent[folder] <= 0:
            _require_rule(folder, counted)
    rule = json.dumps([R2N2, {key: value.first_test for key, value in CATEGORIES.items()}])
    digest = hashlib.sha256(rule.encode()).hexdigest()
    return Selection(R2N2, digest, sides, absent={key: n for key, n in absent.items() if n > 0})


def first_test(names: Iterable[str]) -> str:
    """Return the first name for testing of a whole category: its number int(0.8 n) in order."""
    ordered = sorted(names)
    return ordered[int(0.8 * len(ordered))]


def _require_rule(folder: str, names: Collection[str]) -> None:
    # With a whole category at hand, the rule itself has the last word.
    expected, found = CATEGORIES[folder].first_test, first_test(names)
    if found != expected:
        raise UserError(
            f"the {len(names)} grids of {SYNSETS[folder]} are not those of 3D-R2N2: by its rule "
            f"the test side would begin with {found}, not with {expected}; give --split=<file>"
        )


def _select_listed(split: str, split_list: Path | None) -> Selection:
    path = split_list or Path(split)
    if split == PIX2VOX or splits.is_taxonomy(path):
        found = splits.read_taxonomy(path, PIX2VOX if split == PIX2VOX else path.stem)
    else:
        found = splits.read_split_list(path)
    return Selection(found.name, splits.split_sha256(path), found.sides)


def _folders(categories: Collection[str], known: Collection[str]) -> set[str]:
    folder_of = {name: folder for folder, name in SYNSETS.items() if folder in known}
    folder_of.update({folder: folder for folder in known})
    unknown = sorted(set(categories) - set(folder_of))
    if unknown:
        raise UserError(
            f"no category {unknown[0]!r} among those of the split that are there: "
            f"{', '.join(sorted({SYNSETS.get(folder, folder) for folder in known}))}"
        )
    return {folder_of[category] for category in categories}


def _keep(
    sides: Mapping[str, Mapping[str, str]], wanted: Callable[[str], bool]
) -> dict[str, dict[str, str]]:
    return {
        side: {key: source for key, source in keys.items() if wanted(key)}
        for side, keys in sides.items()
    }


def _keep_objects(
    sides: Mapping[str, Mapping[str, str]], objects: Collection[str]
) -> dict[str, dict[str, str]]:
    found = {key for keys in sides.values() for key in keys}
    names = {name for key in found for name in (key, key.partition("/")[2])}
    unknown = sorted(set(objects) - names)
    if unknown:
        raise UserError(
            f"no object {unknown[0]!r} in the split and its categories: give <model> or "
            "<synset>/<model>"
        )
    return _keep(sides, lambda key: key in objects or key.partition("/")[2] in objects)
