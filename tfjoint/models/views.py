"""Views of objects as rows: image networks see all B V views of a minibatch in one call."""

from __future__ import annotations

import tensorflow as tf


def join(views: tf.Tensor) -> tf.Tensor:
    """Return [B, V, ...] as [B V, ...]."""
    rows = tf.reshape(views, tf.concat([[-1], tf.shape(views)[2:]], 0))
    return tf.ensure_shape(rows, [None, *views.shape[2:]])


def split(rows: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Return [B V, ...] as [B, V, ...] with the B and V of `like` [B, V, ...]."""
    views = tf.reshape(rows, tf.concat([tf.shape(like)[:2], tf.shape(rows)[1:]], 0))
    return tf.ensure_shape(views, [None, None, *rows.shape[1:]])
