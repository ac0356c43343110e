"""Random draws that depend on names alone, never on the order of the work or on who does it."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator of (seed, names): the same everywhere, in any process."""
    text = "\0".join([str(seed), *map(str, names)])
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def uniform(rng: np.random.Generator, low: float, high: float, count: int) -> np.ndarray:
    """Return [count] float64 in [low, high)."""
    return low + (high - low) * rng.random(count)
