"""How good a shape and an image are. NumPy only; grids and images as the dataset gives them."""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.4
"""Occupancy probability from which a voxel counts as occupied (Eq. 17)."""

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales of Wang et al. 2003, from the image itself to a sixteenth of it."""
MS_SSIM_FILTER = 11
"""Side of the window in pixels."""


def iou(probabilities: np.ndarray, voxels: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Return intersection over union per object (Eq. 17); two empty grids give 1.

    Args:
      probabilities: [..., D, D, D] in [0, 1].
      voxels: [..., D, D, D] bool.
      threshold: occupied from this probability on.
    """
    return _ratio(*overlap(probabilities, voxels, threshold))


def overlap(
    probabilities: np.ndarray, voxels: np.ndarray, threshold: float = THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of voxels in intersection and union per object; arguments as of `iou`."""
    found = probabilities >= threshold
    axes = (-3, -2, -1)
    return np.sum(found & voxels, axis=axes), np.sum(found | voxels, axis=axes)


def cross_entropy(probabilities: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return the mean voxel cross-entropy in nats per object; shapes as in `iou`."""
    # A float32 probability of exactly 0 or 1 stands for one within rounding of it; near 1 that is
    # 2^-25 away.
    found = np.clip(probabilities.astype(np.float64), np.finfo(np.float32).tiny, 1 - 2.0**-25)
    return -np.log(np.where(voxels, found, 1 - found)).mean(axis=(-3, -2, -1))


def average_precision(probabilities: np.ndarray, voxels: np.ndarray) -> float:
    """Return the area under the precision-recall steps of one grid; NaN where it is all empty."""
    scores, labels = probabilities.ravel(), voxels.ravel()
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(labels[order])
    last_of_tie = np.append(scores[1:] != scores[:-1], True)
    hits, ranks = hits[last_of_tie], np.arange(1, len(scores) + 1)[last_of_tie]
    if hits[-1] == 0:
        return float("nan")
    return float(np.sum(np.diff(hits, prepend=0) * (hits / ranks)) / hits[-1])


def psnr(images: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio in dB per image, peak 1; at most 100 (equal images).

    Args:
      images: [..., H, W, 3] in [0, 1].
      decoded: the same shape; clipped to [0, 1] here.
    """
    error = np.mean((images - np.clip(decoded, 0, 1)) ** 2, axis=(-3, -2, -1), dtype=np.float64)
    return -10 * np.log10(np.maximum(error, 1e-10))


def ms_ssim_weights(side: int) -> tuple[float, ...]:
    """Return the weights of the scales of MS-SSIM that images of `side` pixels have; sum 1.

    Five scales of Wang et al. 2003 need 176 pixels, because the window has to fit the smallest. Of
    smaller images only the first scales count, with the same weights relative to each other: 4 at
    128 pixels, 3 at 64. Values at different sizes are not comparable.
    """
    scales = sum(side >> scale >= MS_SSIM_FILTER for scale in range(len(MS_SSIM_WEIGHTS)))
    kept = MS_SSIM_WEIGHTS[: max(1, scales)]
    return tuple(weight / sum(kept) for weight in kept)


def pooled_iou(overlaps: np.ndarray, objects: int) -> float:
    """Return the mean over minibatches of the IoU of all voxels of a minibatch together.

    The released code of the paper did this with 6 objects until May 2020; the last minibatch may
    be smaller.

    Args:
      overlaps: [N, 2], intersection and union of each object as `overlap` counts them.
      objects: number of objects in a minibatch.
    """
    starts = range(0, len(overlaps), objects)
    pooled = np.array([overlaps[i : i + objects].sum(axis=0) for i in starts])
    return float(np.mean(_ratio(*pooled.T)))


def _ratio(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))
