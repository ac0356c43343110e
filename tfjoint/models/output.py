"""What every system returns; None stands for what a system does not make."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Output(NamedTuple):
    """Codes, decoded views and occupancy of V views of B objects in T iterations."""

    codes: tf.Tensor | None = None
    """[B, V, T, H/16, W/16, M], of the implicit model [B, V, K]; values in {-1, +1}, without
    binarizer in [-1, 1]."""
    decoded: tf.Tensor | None = None
    """[B, V, T, H, W, 3] float32, not clipped: every view after each iteration."""
    logits: tf.Tensor | None = None
    """[B, D, D, D] float32, occupancy logits."""
