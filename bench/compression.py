"""What a forward and a training pass of every system costs, and a codec iteration beside a peer's.

The paper's Table III: forward times relative to compression by the original network, then
reconstruction from what it decodes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import timing, worker

SYSTEMS = {
    "original": {"model": "compression", "codec": "original"},
    "small": {"model": "compression", "codec": "small_a"},
    "reconstruction": {"model": "reconstruction"},
    "sequential": {"model": "sequential"},
    "direct": {"model": "direct"},
    "implicit": {"model": "implicit"},
}
REFERENCE = ("original", "reconstruction")
PAPER_FORWARD = {"sequential": 0.85, "direct": 0.74, "implicit": 0.25}
PASSES = {"forward": "forward", "gradients": "forward_and_backward"}


def measure(
    peer: Path | None,
    repetitions: int,
    objects: int = 1,
    views: int = 5,
    iterations: int = 4,
    profile: str = "paper",
) -> dict[str, Any]:
    """Return the table and, where there is a checkout `peer`, the codec beside it."""
    found: dict[str, Any] = {"table": table(repetitions, objects, views, iterations, profile)}
    if peer:
        found["codec"] = codec(peer, repetitions, profile)
    return found


def table(
    repetitions: int, objects: int, views: int, iterations: int, profile: str
) -> dict[str, Any]:
    """Return the seconds of both passes of all systems, and what they are of the reference's."""
    shape = {"objects": objects, "views": views, "iterations": iterations}
    with contextlib.ExitStack() as stack:
        actions: dict[str, Callable[[], Any]] = {}
        for name, settings in SYSTEMS.items():
            arguments = {"settings": {**settings, "profile": profile}, **shape}
            ask = stack.enter_context(worker.Worker("bench.ours:subject", arguments))
            actions |= {f"{name}.{p}": partial(ask, p) for p in PASSES}
        seconds = timing.alternate(actions, repetitions)
    median = timing.medians(seconds)
    relative = {}
    for action, name in PASSES.items():
        reference = sum(median[f"{part}.{action}"] for part in REFERENCE)
        relative[name] = {s: median[f"{s}.{action}"] / reference for s in SYSTEMS}
    return {
        "relative": relative,
        "paper_forward": PAPER_FORWARD,
        "medians": median,
        "seconds": seconds,
        **shape,
        "profile": profile,
    }


def codec(
    peer: Path, repetitions: int, profile: str, rows: int = 6, iterations: int = 4, side: int = 128
) -> dict[str, Any]:
    """Return the seconds of a training step of the original network, ours and the peer's."""
    shape = {"rows": rows, "side": side, "iterations": iterations}
    own = {"variant": "original", "profile": profile, **shape}
    with (
        worker.Worker("bench.ours:codec", own) as ours,
        worker.Worker("bench.peers.public:codec", {"checkout": str(peer), **shape}) as theirs,
    ):
        actions = {"ours": partial(ours, "step"), "peer": partial(theirs, "step")}
        seconds = timing.alternate(actions, repetitions)
        operations = ours("flops")
    median = timing.medians(seconds)
    return {
        "seconds_per_iteration": {name: s / iterations for name, s in median.items()},
        "speedup": median["peer"] / median["ours"],
        "executed_gflop_per_iteration": operations / 1e9 / iterations,
        "seconds": seconds,
        **shape,
    }
