"""How the cost of a training pass grows with what a user can choose, and with workers."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench import timing, worker

_RECONSTRUCTION = {"model": "reconstruction"}
_CODEC = {"model": "compression"}


class Sweep(NamedTuple):
    """One size that changes while the others stay."""

    settings: Mapping[str, Any]
    """Of the config."""
    name: str
    """What changes: an argument of `bench.ours.subject`, or else a setting."""
    values: tuple[int, ...]
    fixed: Mapping[str, int]
    """The other arguments."""


SWEEPS = {
    "V": Sweep(_RECONSTRUCTION, "views", (1, 2, 4, 8), {"objects": 2}),
    "T": Sweep(_CODEC, "iterations", (1, 2, 4, 8), {"objects": 2, "views": 1}),
    "K": Sweep({"model": "implicit"}, "code_bits", (1024, 2048, 4096, 8192),
               {"objects": 1, "views": 5}),
    "side": Sweep(_CODEC, "image_size", (64, 128, 256, 512),
                  {"objects": 1, "views": 1, "iterations": 2}),
    "batch": Sweep(_RECONSTRUCTION, "objects", (1, 2, 4, 8), {"views": 5}),
}  # fmt: skip
_ARGUMENTS = ("objects", "views", "iterations")

# What the step on 64 GPUs is reckoned with; none of it was measured.
GPUS = 64
GPU_GFLOPS = 10_000.0
BANDWIDTH_GB_PER_S = 12.5
_REDUCED = ("reconstruction", "sequential", "direct", "implicit")

WORKER_STEPS = 30


def measure(
    repetitions: int,
    profile: str = "paper",
    sweeps: Mapping[str, Sweep] = SWEEPS,
    steps: int = WORKER_STEPS,
) -> dict[str, Any]:
    """Return every sweep's cost and memory, two workers beside one, and 64 GPUs on paper."""
    return {
        "sweeps": {name: sweep(s, profile, repetitions) for name, s in sweeps.items()},
        "weak": weak(steps),
        "paper": on_paper(profile),
        "profile": profile,
    }


def sweep(described: Sweep, profile: str, repetitions: int) -> dict[str, Any]:
    """Return the seconds of forward and backward and the peak memory at every value."""
    seconds: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for value in described.values:
        settings = {**described.settings, "profile": profile}
        arguments: dict[str, Any] = dict(described.fixed)
        of = arguments if described.name in _ARGUMENTS else settings
        of[described.name] = value
        with worker.Worker("bench.ours:subject", {"settings": settings, **arguments}) as ask:
            actions = {str(value): partial(ask, "gradients")}
            seconds |= timing.alternate(actions, repetitions)
            memory[str(value)] = ask("peak_megabytes")
    median = timing.medians(seconds)
    costs = [median[str(value)] for value in described.values]
    per_unit, fixed = timing.line(described.values, costs)
    return {
        "exponent": timing.exponent(described.values, costs),
        "memory_exponent": timing.exponent(described.values, list(memory.values())),
        "seconds_per_unit": per_unit,
        "seconds_fixed": fixed,
        "peak_megabytes": memory,
        "medians": median,
        "seconds": seconds,
        "settings": {**described.settings, **described.fixed},
        "values": described.values,
    }


def weak(steps: int) -> dict[str, Any]:
    """Return objects/s of one worker on one core, and of two that have one each and share a step.

    Every worker has six objects of a step. The loss of the two is compared with that of one worker
    that has all twelve: the same minibatches, so the same numbers but for rounding.
    """
    with tempfile.TemporaryDirectory() as directory:
        one = _train(Path(directory) / "one", 1, 6, steps)
        two = _train(Path(directory) / "two", 2, 12, steps)
        alone = _train(Path(directory) / "alone", 1, 12, steps)
    return {
        "objects_per_second": {"one": one["speed"], "two": two["speed"]},
        "efficiency": two["speed"] / (2 * one["speed"]),
        "loss": {"two": two["loss"], "alone": alone["loss"]},
        "steps": steps,
        "note": "each worker pinned to one core; both share caches and memory of one machine",
    }


def _train(run: Path, workers: int, batch: int, steps: int) -> dict[str, float]:
    """Train with `workers` processes, a core each, and return what the chief's last lines say."""
    command = [sys.executable, "-m", "tfjoint.train", "--model=implicit", "--profile=mini"]
    command += [f"--steps={steps}", f"--batch_size={batch}", f"--run_dir={run}", "--log_every=1"]
    command += ["--views_min=5", "--views_max=5"]
    cores = sorted(os.sched_getaffinity(0))
    addresses = [f"localhost:{port}" for port in _free_ports(workers)]
    processes = []
    for index in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, **({"TF_CONFIG": json.dumps(task)} if workers > 1 else {})}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        os.sched_setaffinity(process.pid, {cores[index % len(cores)]})
        processes.append(process)
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(printed))
    return _progress(printed[0])


def _progress(printed: str) -> dict[str, float]:
    """Return the median of objects/s over the later half of the steps, and the last loss."""
    found = re.findall(r"^step .*?([\d.]+) objects/s.*?L_3D ([\d.]+)", printed, re.MULTILINE)
    if not found:
        raise RuntimeError(f"no progress in what training printed: {printed}")
    speeds = [float(speed) for speed, _ in found]
    return {"speed": statistics.median(speeds[len(speeds) // 2 :]), "loss": float(found[-1][1])}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


def on_paper(profile: str, objects: int = 6, views: int = 5) -> dict[str, Any]:
    """Return, by system, the bytes that 64 GPUs exchange for a step, and the efficiency to expect.

    A ring all-reduce sends and receives 2 (N - 1) / N of the float32 gradients at every GPU. The
    worst case is assumed, that none of it happens while gradients are still being computed. The
    step itself is taken from this machine's median, and from a GPU's assumed speed.
    """
    found: dict[str, Any] = {
        "assumed": {"gpu_gflops": GPU_GFLOPS, "bandwidth_gb_per_s": BANDWIDTH_GB_PER_S},
        "gpus": GPUS,
    }
    shape = {"objects": objects, "views": views}
    for model in _REDUCED:
        arguments = {"settings": {"model": model, "profile": profile}, **shape}
        with worker.Worker("bench.ours:subject", arguments) as ask:
            parameters = ask("parameters")
            reduced = 2 * (GPUS - 1) / GPUS * 4 * parameters
            exchange = reduced / (BANDWIDTH_GB_PER_S * 1e9)
            here = min(_gradient_seconds(ask) for _ in range(2))
            found[model] = {
                "parameters": parameters,
                "bytes_all_reduced": reduced,
                "seconds_exchanging": exchange,
                "seconds_of_a_step_here": here,
                "efficiency_at_the_step_time_here": here / (here + exchange),
            }
            if model in ("reconstruction", "implicit"):
                step = ask("flops") / 1e9 / GPU_GFLOPS
                found[model]["efficiency_at_the_assumed_gpu"] = step / (step + exchange)
    return found


def _gradient_seconds(ask: worker.Worker) -> float:
    return timing.alternate({"gradients": partial(ask, "gradients")}, 1, warmups=0)["gradients"][0]
