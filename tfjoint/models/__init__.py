"""One file per system of the paper; `MODELS` maps the value of `--model` to its class."""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.models.compression import Compression
from tfjoint.models.direct import Direct
from tfjoint.models.output import Output
from tfjoint.models.voxel_decoder import VoxelDecoder

MODELS = {"direct": Direct}

__all__ = ["MODELS", "Compression", "Direct", "Output", "VoxelDecoder", "create"]


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
