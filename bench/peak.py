"""The best that this machine does in matrix products and convolutions, by whichever library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import timing, worker

SIDES = (2048, 4096)
_IMAGES, _PIXELS, _CHANNELS = 16, 64, 256


def tensorflow(precision: str, sides: tuple[int, ...] = SIDES) -> worker.Subject:
    """Return products of square matrices "matmul.<side>" and a convolution "conv"."""
    import tensorflow as tf

    dtype = tf.as_dtype(precision)
    product = tf.function(lambda matrix: tf.matmul(matrix, matrix))
    actions = {}
    for side in sides:
        matrix = tf.cast(tf.random.normal([side, side]), dtype)
        actions[f"matmul.{side}"] = _quiet(partial(product, matrix))
    images = tf.cast(tf.random.normal([_IMAGES, _PIXELS, _PIXELS, _CHANNELS]), dtype)
    kernel = tf.cast(tf.random.normal([3, 3, _CHANNELS, _CHANNELS]), dtype)
    actions["conv"] = _quiet(tf.function(lambda: tf.nn.conv2d(images, kernel, 1, "SAME")))
    return actions


def torch(precision: str, sides: tuple[int, ...] = SIDES) -> worker.Subject:
    """Return the same of PyTorch, its convolution with the channels last."""
    import torch

    dtype = getattr(torch, precision)
    actions = {}
    for side in sides:
        matrix = torch.randn(side, side).to(dtype)
        actions[f"matmul.{side}"] = _quiet(partial(torch.matmul, matrix, matrix))
    last = torch.channels_last
    images = torch.randn(_IMAGES, _CHANNELS, _PIXELS, _PIXELS).to(dtype)
    kernel = torch.randn(_CHANNELS, _CHANNELS, 3, 3).to(dtype)
    images, kernel = (x.contiguous(memory_format=last) for x in (images, kernel))
    actions["conv"] = _quiet(lambda: torch.conv2d(images, kernel, padding=1))
    return actions


def numpy(precision: str, sides: tuple[int, ...] = SIDES) -> worker.Subject:
    """Return the products of NumPy, which knows float32 alone."""
    rng = np.random.default_rng(0)
    matrices = {side: rng.random((side, side)).astype(precision) for side in sides}
    return {f"matmul.{side}": _quiet(partial(np.matmul, m, m)) for side, m in matrices.items()}


def _quiet(run: Callable[[], Any]) -> Callable[[], None]:
    def action() -> None:
        run()

    return action


def measure(
    precision: str, repetitions: int, with_torch: bool, sides: tuple[int, ...] = SIDES
) -> dict[str, Any]:
    """Return the best GFLOP/s, what reached it, and the median of everything that was tried."""
    libraries = ["tensorflow", *(["torch"] if with_torch else [])]
    if precision == "float32":
        libraries.append("numpy")
    seconds: dict[str, list[float]] = {}
    products = [f"matmul.{side}" for side in sides]
    for library in libraries:
        settings = {"precision": precision, "sides": sides}
        with worker.Worker(f"bench.peak:{library}", settings) as ask:
            names = products if library == "numpy" else [*products, "conv"]
            actions = {f"{library}.{name}": partial(ask, name) for name in names}
            seconds |= timing.alternate(actions, repetitions)
    rates = {n: _operations(n) / s / 1e9 for n, s in timing.medians(seconds).items()}
    best = max(rates, key=lambda name: rates[name])
    return {"gflops": rates[best], "by": best, "all_gflops": rates, "seconds": seconds}


def _operations(name: str) -> float:
    side = name.rpartition(".")[2]
    if side == "conv":
        return 2.0 * _IMAGES * _PIXELS**2 * 9 * _CHANNELS**2
    return 2.0 * int(side) ** 3
