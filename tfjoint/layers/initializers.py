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
    """Kernels of the compression network: uniform, variance 6 / fan_in.

    The input and output gates of a cell start near 1/2, so a cell quarters its signal; with the
    usual variance the deep cells start out silent and the codes are noise for hundreds of steps.
    Fan-in alone, so that fusing the gates of a cell does not change it.
    """
    return tf.keras.initializers.VarianceScaling(6, "fan_in", "uniform")
