"""Initial values; every call returns a new initializer, as Keras 2 repeats a reused one."""

from __future__ import annotations

import tensorflow as tf


def kernel() -> tf.keras.initializers.Initializer:
    """Kernels of the 3D networks (Choy et al.): normal, variance 2 / ((fan_in + fan_out) / 2)."""
    return tf.keras.initializers.VarianceScaling(2, "fan_avg", "untruncated_normal")


def bias() -> tf.keras.initializers.Initializer:
    """Biases of the 3D networks (Choy et al.): the constant 0.1."""
    return tf.keras.initializers.Constant(0.1)


def codec_kernel() -> tf.keras.initializers.Initializer:
    """Kernels of the compression network: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).

    Fan-in alone, so that fusing the gates of a cell does not change it.
    """
    return tf.keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
