"""Times of things done in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(
    actions: Mapping[str, Callable[[], object]], repetitions: int, warmups: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of every call of every action.

    The actions take turns, so that what slows the machine for a while slows all of them.
    """
    for _ in range(warmups):
        for action in actions.values():
            action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repetitions):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of every action's seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}
