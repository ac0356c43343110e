"""Near-duplicates and splits: what may never lie on both sides."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_tools import splits
from data_tools.splits import TEST, TRAIN, SplitError, SplitList


def _box(*size):
    grid = np.zeros((10, 10, 10), bool)
    grid[tuple(slice(0, side) for side in size)] = True
    return grid


def test_grids_above_the_threshold_are_one_group_and_others_are_not():
    # IoU with the first: 9/10, 8/10.
    grids = [_box(10, 10, 10), _box(10, 10, 9), _box(10, 10, 8)]
    assert splits.near_duplicates(grids[::2]) == [0, 1]
    assert splits.near_duplicates(grids[:2]) == [0, 0]


def test_groups_are_connected_through_what_lies_between():
    grids = [_box(10, 10, 8), _box(10, 10, 10), _box(1, 1, 1), _box(10, 10, 9)]
    assert splits.near_duplicates(grids) == [0, 0, 2, 0]


def test_groups_do_not_depend_on_how_many_grids_are_compared_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    grids = [_box(*size) for size in rng.integers(6, 11, (40, 3))]
    grids += [grid[:, :, ::-1] for grid in grids[:5]]
    groups = splits.near_duplicates(grids)
    assert 5 < len(set(groups)) < 35
    monkeypatch.setattr(splits, "_GRIDS_AT_ONCE", 7)
    assert splits.near_duplicates(grids) == groups


def test_mirror_images_are_near_duplicates_in_z_only():
    grid = np.random.default_rng(0).random((10, 10, 10)) < 0.3
    assert splits.near_duplicates([grid, grid[:, :, ::-1]]) == [0, 0]
    assert splits.near_duplicates([grid, grid[::-1]]) == [0, 1]


@pytest.fixture
def sources():
    rng = np.random.default_rng(0)
    found = {}
    for category, count in (("chair", 60), ("lamp", 20), ("sofa", 5)):
        for index in range(count):
            found[f"{category}/{index:02d}"] = f"{category}{index - rng.integers(0, 2):02d}"
    found["sofa/stool"] = found["chair/00"]  # a group across categories
    return found


def test_every_object_lies_on_one_side_and_every_group_too(sources):
    sides = splits.make_split(sources, seed=0)
    assert {**sides[TRAIN], **sides[TEST]} == sources
    assert not set(sides[TRAIN]) & set(sides[TEST])
    assert not set(sides[TRAIN].values()) & set(sides[TEST].values())


def test_the_test_side_has_its_share_of_every_category(sources):
    del sources["sofa/stool"]
    sides = splits.make_split(sources, seed=0)
    for category, count in (("chair", 60), ("lamp", 20), ("sofa", 5)):
        test = sum(key.startswith(category) for key in sides[TEST])
        assert test == pytest.approx(0.2 * count, abs=1)


def test_a_split_depends_on_the_seed_and_not_on_the_order(sources):
    first = splits.make_split(sources, seed=0)
    turned = dict(reversed(sources.items()))
    assert splits.make_split(turned, seed=0) == first
    assert splits.make_split(sources, seed=1) != first


def test_another_fraction_gives_another_share(sources):
    sides = splits.make_split(sources, seed=0, train_fraction=0.5)
    assert len(sides[TEST]) == pytest.approx(len(sources) / 2, abs=4)


@pytest.mark.parametrize("count", [1, 2])
def test_a_split_with_an_empty_side_is_refused(count):
    sources = {f"chair/{index}": "one group" for index in range(count)}
    with pytest.raises(SplitError, match=r"split '\w+' would be empty.*give more objects"):
        splits.make_split(sources, seed=0)


# --- Lists ----------------------------------------------------------------------------------------

LIST = SplitList("mine", {TRAIN: {"chair/a": "a"}, TEST: {"chair/b": "b"}}, {"seed": 0})


def test_a_list_survives_the_file_and_gives_the_same_bytes_again(tmp_path):
    path = tmp_path / "split.json"
    splits.write_split_list(path, LIST)
    assert splits.read_split_list(path) == LIST
    digest = splits.split_sha256(path)
    splits.write_split_list(path, splits.read_split_list(path))
    assert splits.split_sha256(path) == digest


def _sides(train, test):
    return json.dumps({"name": "x", "sides": {TRAIN: train, TEST: test}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a split list"),
        ("[]", "is not a split list"),
        ('{"name": "x"}', "is not a split list"),
        ('{"name": "x", "sides": {"train": {"a": "b"}}}', "is not a split list"),
        ('{"name": "x", "sides": {}, "more": 1}', "is not a split list"),
        (_sides(["chair/a"], {"chair/b": "b"}), "is not a split list"),
        (_sides({}, {"chair/b": "b"}), "split 'train' is empty"),
        (_sides({"chair/b": "b"}, {}), "split 'test' is empty"),
        (_sides({"chair/a": "g"}, {"chair/b": "g"}), "group 'g' lies on both sides"),
    ],
)
def test_wrong_lists_are_one_clear_error(text, reason, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(SplitError, match=reason) as caught:
        splits.read_split_list(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_list_is_one_clear_error(tmp_path):
    with pytest.raises(SplitError, match="no split list at"):
        splits.read_split_list(tmp_path / "absent.json")
