"""The binarizer: a real activation in [-1, 1] becomes one bit in {-1, +1} (paper, Eq. 13)."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class BinarizerNoise(NamedTuple):
    """The training draw of the binarizer, a pure function of (seed, iteration, row).

    The draw is made for the rows of the whole minibatch and cut to this replica's rows, so that a
    row gets the same noise however many replicas share the minibatch.
    """

    seed: tf.Tensor
    """[2] int32, of (seed, step)."""
    first_row: tf.Tensor
    """[] int32, index of this replica's first row in the minibatch of all replicas."""
    total_rows: tf.Tensor
    """[] int32, number of rows of all replicas."""

    @property
    def step(self) -> tf.Tensor:
        """[] int32, index of the minibatch."""
        return self.seed[1]

    def uniform(self, iteration: tf.Tensor | int, activation: tf.Tensor) -> tf.Tensor:
        """Return U[0, 1) float32 of the shape of `activation` [N, ...], for one iteration."""
        shape = tf.shape(activation)
        seed = tf.random.experimental.stateless_fold_in(self.seed, iteration)
        drawn = tf.random.stateless_uniform(
            tf.concat([[self.total_rows], shape[1:]], axis=0), seed=seed
        )
        return tf.reshape(drawn[self.first_row : self.first_row + shape[0]], shape)


def binarize(activation: tf.Tensor, uniform: tf.Tensor | None = None) -> tf.Tensor:
    """Return bits in {-1, +1} of the shape and dtype of `activation`; its gradient is passed on.

    Args:
      activation: any shape, values in [-1, 1].
      uniform: the same shape, U[0, 1). With it, training: +1 with probability (1 + x) / 2
        (Eq. 13). Without it, inference: +1 where x >= 0; unlike `tf.sign`, never 0.
    """

    @tf.custom_gradient
    def straight_through(x):
        if uniform is None:
            positive = x >= 0
        else:
            positive = uniform < (1 + tf.cast(x, uniform.dtype)) / 2
        one = tf.ones([], x.dtype)
        return tf.where(positive, one, -one), lambda upstream: upstream

    return straight_through(activation)


class Binarizer(tf.keras.layers.Layer):
    """`binarize` as a layer: stochastic where it is given noise, a threshold at 0 where not."""

    def call(
        self,
        activation: tf.Tensor,
        noise: BinarizerNoise | None = None,
        iteration: tf.Tensor | int = 0,
    ) -> tf.Tensor:
        """Return the bits of `activation` [N, ...] in [-1, 1]; `iteration` picks the draw."""
        return binarize(activation, noise and noise.uniform(iteration, activation))
