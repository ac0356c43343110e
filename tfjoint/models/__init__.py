"""One file per system of the paper; `MODELS` maps the value of `--model` to its class."""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.models.compression import Compression
from tfjoint.models.direct import Direct
from tfjoint.models.output import Output
from tfjoint.models.voxel_decoder import VoxelDecoder

MODELS = {"direct": Direct}

__all__ = ["MODELS", "Compression", "Direct", "Output", "VoxelDecoder", "create", "variables"]


def create(config: Config) -> tf.keras.Model:
    """Return the config's model, built; its initial weights depend on the config alone.

    Sets the global random seed of TensorFlow, NumPy and Python to the config's.
    """
    tf.keras.utils.set_random_seed(config.seed)
    previous = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(config.precision)
    try:
        model = MODELS[config.model](config)
        model.build()
    finally:
        tf.keras.mixed_precision.set_global_policy(previous)
    return model


def variables(model: tf.keras.Model) -> list[tf.Variable]:
    """Return all variables of a built model, in order, as TensorFlow's own.

    Checkpoints and exports hold this list: what they find by following a model's attributes
    differs between Keras 2 and Keras 3, which hides the lists of a layer.
    """
    # Keras 3 wraps a tf.Variable, Keras 2 uses it as it is.
    return [v if isinstance(v, tf.Variable) else v.value for v in model.variables]
