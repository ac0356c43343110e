"""What needs no network: how near the mean shape and the training grids come to other grids.

Grids are packed as records hold them, [N, bytes] uint8 with D^3 bits a row: all of ShapeNet is 180
MB. They are unpacked a block at a time, and pairs are compared by matrix products.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""Occupancy probabilities that are tried as the least of an occupied voxel."""

_BLOCK = 1024
_BITS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def pack(grids: Iterable[np.ndarray]) -> np.ndarray:
    """Return grids [D, D, D] bool as [N, bytes] uint8."""
    return np.stack([np.packbits(grid) for grid in grids])


def unpack(packed: np.ndarray) -> np.ndarray:
    """Return packed grids as [N, D^3] float32 of 0 and 1, for matrix products."""
    return np.unpackbits(packed, axis=1).astype(np.float32)


def sizes(packed: np.ndarray) -> np.ndarray:
    """Return the number of occupied voxels of packed grids, [N] int64."""
    blocks = [_BITS[block].sum(axis=1, dtype=np.int64) for block in _blocks(packed)]
    return np.concatenate(blocks)


class MeanShape(NamedTuple):
    """The mean training grid as an answer for every object."""

    threshold: float
    """The one of `THRESHOLDS` with the highest mean IoU on the training grids."""
    ious: np.ndarray
    """[N] float64, of the grids that are not training grids."""


def mean_shape(truth: np.ndarray, training: np.ndarray) -> MeanShape:
    """Return how well the mean of the training grids [M, bytes] answers for `truth` [N, bytes]."""
    counts = sum(unpack(block).sum(axis=0) for block in _blocks(training))
    mean = np.asarray(counts, np.float64) / len(training)
    shapes = np.packbits(mean >= np.array(THRESHOLDS)[:, np.newaxis], axis=1)
    best = int(np.argmax(_all_ious(training, shapes).mean(axis=0)))
    return MeanShape(THRESHOLDS[best], _all_ious(truth, shapes[best : best + 1])[:, 0])


def best_training_grid(truth: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return the IoU of each of `truth` [N, bytes] with the nearest of `training` [M, bytes], [N].

    An oracle: it knows the grid that it is to find.
    """
    order = np.argsort(sizes(training), kind="stable")
    blocks = [training[order[i : i + _BLOCK]] for i in range(0, len(order), _BLOCK)]
    ranges = [(found[0], found[-1]) for found in map(sizes, blocks)]
    by_size = np.argsort(sizes(truth), kind="stable")
    best = np.zeros(len(truth))
    for rows in np.array_split(by_size, -(-len(truth) // (2 * _BLOCK))):
        grids, wanted = unpack(truth[rows]), sizes(truth[rows])
        # Two grids have at most the IoU of their sizes: those of like size first, and of the others
        # only what could still be nearer.
        bounds = np.stack([_highest_iou(wanted, low, high) for low, high in ranges])
        for index in np.argsort(-bounds.sum(axis=1), kind="stable"):
            open_ = bounds[index] > best[rows]
            if open_.any():
                ious = _ious(grids[open_], unpack(blocks[index]))
                best[rows[open_]] = np.maximum(best[rows[open_]], ious.max(axis=1))
    return best


def _highest_iou(wanted: np.ndarray, low: int, high: int) -> np.ndarray:
    # Of grids with `wanted` occupied voxels with any grid of `low` to `high`.
    nearest = np.clip(wanted, low, high)
    larger = np.maximum(wanted, nearest)
    return np.where(larger == 0, 1.0, np.minimum(wanted, nearest) / np.maximum(larger, 1))


def _all_ious(packed: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    others = unpack(shapes)
    return np.concatenate([_ious(unpack(block), others) for block in _blocks(packed)])


def _ious(grids: np.ndarray, others: np.ndarray) -> np.ndarray:
    # [n, D^3] and [m, D^3] float32 of 0 and 1 -> [n, m]; sums of ones are exact below 2^24.
    common = (grids @ others.T).astype(np.float64)
    union = grids.sum(axis=1)[:, np.newaxis] + others.sum(axis=1) - common
    return np.where(union == 0, 1.0, common / np.maximum(union, 1.0))


def _blocks(packed: np.ndarray) -> Iterator[np.ndarray]:
    return (packed[i : i + _BLOCK] for i in range(0, len(packed), _BLOCK))
