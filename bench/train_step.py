"""A training step of the 3D networks beside PyTorch's, and beside what the machine can do."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import peak, processor, timing, worker
from tfjoint import config
from tfjoint.errors import UserError

MODELS = ("reconstruction", "implicit")
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
PLAIN = ("eager_contiguous", "eager", "compiled")
FOLDED = ("eager_folded", "compiled_folded")
# What has to agree before speeds are compared: of the largest value. At paper width the gradients
# of TensorFlow with and without oneDNN differ by 0.0013: rounding decides on which side of a kink
# of LeakyReLU or max-pooling some of the activations are.
TOLERANCE = 5e-3
# Whatever takes longer, in seconds, is measured once and no more.
PATIENCE = 20.0


def measure(
    peer: bool,
    port: Path | None,
    repetitions: int,
    objects: int = 6,
    views: int = 5,
    profile: str = "paper",
    sides: tuple[int, ...] = peak.SIDES,
) -> dict[str, Any]:
    """Return, by model, float32 and below it bfloat16; and the machine's peaks.

    bfloat16 is left out where the processor has no instructions for it: products are then made of
    float32 ones and steps take minutes, whoever computes them.

    Args:
      peer: measure the PyTorch peers too, (b) and (c); PyTorch must be there.
      port: checkout of the public port (a), or None to leave it out.
      repetitions: of every measurement.
      objects: B.
      views: V.
      profile: set of widths; the port has those of the paper alone.
      sides: of the square matrices that the peak is looked for with.
    """
    precisions = list(PRECISIONS) if processor.has_bfloat16() else ["float32"]
    peaks = {name: peak.measure(name, repetitions, peer, sides) for name in precisions}
    found: dict[str, Any] = {"peak": peaks, "objects": objects, "views": views, "profile": profile}
    for model in MODELS:
        for precision in precisions:
            # The public port has one network and one precision.
            beside = port if (model, precision) == ("reconstruction", "float32") else None
            settings = {"model": model, "profile": profile, "precision": PRECISIONS[precision]}
            one = _one(settings, objects, views, peer, beside, repetitions)
            one |= _fractions(one, peaks[precision]["gflops"])
            if precision == "float32":
                found[model] = one
            else:
                found[model][precision] = one
    return found


def _one(
    settings: Mapping[str, Any],
    objects: int,
    views: int,
    peer: bool,
    port: Path | None,
    repetitions: int,
) -> dict[str, Any]:
    """Return medians, seconds and speed-ups of one model in one precision."""
    resolved = config.resolve(settings)[0]
    shape = {"objects": objects, "views": views}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments = {"settings": settings, **shape}
        # As every command starts TensorFlow, and without the kernels that it asks for then.
        ours = stack.enter_context(worker.Worker("bench.ours:subject", arguments))
        actions = {name: partial(ours, name) for name in ("step", "gradients", "forward")}
        if resolved.precision == "float32":
            bare = stack.enter_context(
                worker.Worker("bench.ours:subject", arguments, {"TF_ENABLE_ONEDNN_OPTS": "0"})
            )
            actions["step.without_onednn"] = partial(bare, "step")
        if peer:
            weights = directory / "weights.npz"
            ours("save", str(weights))
            arguments = {
                "weights": str(weights),
                **shape,
                "side": resolved.image_size,
                "voxel_size": resolved.voxel_size,
                "implicit": resolved.model == "implicit",
                "precision": resolved.precision,
            }
            torch = stack.enter_context(
                worker.Worker("bench.peers.reconstruction:subject", arguments)
            )
            if resolved.precision == "float32":
                _require_equal(ours, torch, directory)
            for name in (*PLAIN, *FOLDED):
                actions[f"peer.{name}"] = partial(torch, f"{name}.step")
        if port:
            arguments = {"checkout": str(port), **shape, "side": resolved.image_size}
            public = stack.enter_context(
                worker.Worker("bench.peers.public:reconstruction", arguments)
            )
            actions["port"] = partial(public, "step")
        seconds = timing.alternate(actions, repetitions, patience=PATIENCE)
        operations = ours("flops")
    return {
        "executed_gflop": operations / 1e9,
        "medians": timing.medians(seconds),
        "seconds": seconds,
        **_speedups(timing.medians(seconds)),
    }


def _speedups(median: Mapping[str, float]) -> dict[str, Any]:
    """Return how many times longer than ours the best of each kind of peer takes."""
    kinds = {"peer": PLAIN, "folded_peer": FOLDED}
    names = {kind: [f"peer.{name}" for name in of] for kind, of in kinds.items()}
    found: dict[str, Any] = {}
    for kind, candidates in {**names, "port": ["port"]}.items():
        if there := [name for name in candidates if name in median]:
            best = min(there, key=lambda name: median[name])
            found[f"speedup_vs_best_{kind}"] = median[best] / median["step"]
            found[f"best_{kind}"] = best
    return found


def _fractions(one: Mapping[str, Any], peak_gflops: float) -> dict[str, float]:
    """Return executed FLOP/s over the peak, of the step and of the step without optimizer."""
    rates = {name: one["executed_gflop"] / one["medians"][name] for name in ("step", "gradients")}
    return {
        "fraction_of_matmul_peak": rates["step"] / peak_gflops,
        "fraction_of_matmul_peak_without_optimizer": rates["gradients"] / peak_gflops,
    }


def _require_equal(ours: worker.Worker, peer: worker.Worker, directory: Path) -> None:
    """Raise `UserError` unless logits and gradients are the same in every way of running."""
    ours("outputs", str(directory / "ours.npz"))
    expected = dict(np.load(directory / "ours.npz"))
    for variant in (PLAIN[0], PLAIN[1], FOLDED[0]):
        peer("outputs", variant, str(directory / "peer.npz"))
        found = dict(np.load(directory / "peer.npz"))
        for name, value in expected.items():
            difference = np.abs(found[name] - value).max() / np.abs(value).max()
            if not difference <= TOLERANCE:
                raise UserError(
                    f"the peer differs in {name} by {difference:.2g} of its largest value, allowed "
                    f"{TOLERANCE:g}: {variant} is another network, and its speed says nothing"
                )
