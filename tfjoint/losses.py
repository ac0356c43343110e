"""The two parts of the joint loss (paper, Eq. 16)."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.models import Output


def compression_loss(images: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
    """Return L_comp (Eq. 14): the mean of |x - xhat_t| over everything, iterations included.

    Args:
      images: [B, V, H, W, 3] in [0, 1].
      decoded: [B, V, T, H, W, 3], the image after each iteration, not clipped.
    """
    return tf.reduce_mean(tf.abs(images[:, :, tf.newaxis] - decoded))


def occupancy_loss(voxels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return L_3D: the mean voxel cross-entropy in nats (Eq. 15, with its sign and a mean).

    Args:
      voxels: [B, D, D, D], 1 where occupied.
      logits: [B, D, D, D], occupancy logits.
    """
    labels = tf.cast(voxels, logits.dtype)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


def loss_terms(
    config: Config, batch: Mapping[str, tf.Tensor], output: Output
) -> dict[str, tf.Tensor]:
    """Return the terms that apply to a system's output and their weighted sum, "loss" (Eq. 16)."""
    terms = {}
    if output.decoded is not None:
        terms["L_comp"] = compression_loss(batch["images"], output.decoded)
    if output.logits is not None:
        terms["L_3D"] = occupancy_loss(batch["voxels"], output.logits)
    weights = {"L_comp": 1.0, "L_3D": config.loss_weight}
    return {**terms, "loss": tf.add_n([weights[name] * term for name, term in terms.items()])}
