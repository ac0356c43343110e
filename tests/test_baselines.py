"""Mean shape and nearest training grid against every pair, one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from tfjoint import baselines


def iou(first: np.ndarray, second: np.ndarray) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


@pytest.fixture(scope="module")
def grids():
    """Grids of every size from empty to full, in no order; the first 20 are to be answered."""
    rng = np.random.default_rng(0)
    shares = rng.permutation(np.linspace(0, 1, 120))
    return rng.random((120, 4, 4, 4)) < shares[:, None, None, None]


@pytest.fixture(scope="module")
def split(grids):
    return baselines.pack(grids[:20]), baselines.pack(grids[20:])


def test_packed_grids_are_the_bits_of_records(grids):
    packed = baselines.pack(grids)
    assert packed.shape == (120, 8) and packed.dtype == np.uint8
    np.testing.assert_array_equal(packed[3], np.packbits(grids[3]))
    np.testing.assert_array_equal(baselines.unpack(packed[:5]), grids[:5].reshape(5, -1))
    np.testing.assert_array_equal(baselines.sizes(packed), grids.sum(axis=(1, 2, 3)))


@pytest.mark.parametrize("block", [1024, 7])
def test_the_nearest_training_grid_is_that_of_all_pairs(block, grids, split, monkeypatch):
    monkeypatch.setattr(baselines, "_BLOCK", block)
    expected = [max(iou(grid, other) for other in grids[20:]) for grid in grids[:20]]
    np.testing.assert_allclose(baselines.best_training_grid(*split), expected)


def test_grids_of_other_sizes_are_not_compared(monkeypatch):
    # One voxel, two, ... of a row: a grid of n voxels has its like, so no other block is needed.
    grids = baselines.pack(np.arange(64).reshape(4, 4, 4) < n for n in range(1, 65))
    monkeypatch.setattr(baselines, "_BLOCK", 4)
    compared = []
    ious = baselines._ious
    monkeypatch.setattr(
        baselines, "_ious", lambda a, b: compared.append(len(a) * len(b)) or ious(a, b)
    )
    np.testing.assert_array_equal(baselines.best_training_grid(grids, grids), 1)
    assert sum(compared) < 64 * 64 / 4


def test_an_empty_grid_is_nearest_to_an_empty_one():
    full, empty = (baselines.pack([np.full((2, 2, 2), value)]) for value in (True, False))
    both = np.concatenate([full, empty])
    np.testing.assert_array_equal(baselines.best_training_grid(empty, both), [1])
    np.testing.assert_array_equal(baselines.best_training_grid(empty, full), [0])
    np.testing.assert_array_equal(baselines.best_training_grid(full, empty), [0])


@pytest.mark.parametrize("block", [1024, 7])
def test_the_mean_shape_has_the_threshold_that_suits_the_training_grids(
    block, grids, split, monkeypatch
):
    monkeypatch.setattr(baselines, "_BLOCK", block)
    mean = grids[20:].mean(axis=0)
    scores = {
        t: np.mean([iou(mean >= t, grid) for grid in grids[20:]]) for t in baselines.THRESHOLDS
    }
    found = baselines.mean_shape(*split)
    assert found.threshold == max(scores, key=scores.get)
    expected = [iou(mean >= found.threshold, grid) for grid in grids[:20]]
    np.testing.assert_allclose(found.ious, expected)
