"""Times of things done in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def alternate(
    actions: Mapping[str, Callable[[], object]],
    repetitions: int,
    warmups: int = 1,
    patience: float = math.inf,
) -> dict[str, list[float]]:
    """Return the seconds of every call of every action.

    The actions take turns, so that what slows the machine for a while slows all of them. One that
    took longer than `patience` seconds is called no more.
    """
    for _ in range(warmups):
        for action in actions.values():
            action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repetitions):
        for name, action in actions.items():
            if max(seconds[name], default=0) <= patience:
                start = time.perf_counter()
                action()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of every action's seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return a of costs = b sizes^a, fitted by least squares in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def line(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Return (per unit, fixed) of costs = per unit * sizes + fixed, by least squares."""
    slope, intercept = np.polyfit(sizes, costs, 1)
    return float(slope), float(intercept)
