"""One file per system of the paper; `MODELS` maps the value of `--model` to its class.

Every system is called as `model(images, iterations=T, noise=noise)` with images [B, V, H, W, 3] in
[0, 1] and returns an `Output`. Beyond that:

    encode(images[, iterations]) -> codes    where there is a code
    decode(codes) -> images                  where views are decoded
    occupancy(codes) -> logits               where there is a grid; without a code, of images
    refine(codes, state) -> logits, state    likewise: of further views, from the grid's state
"""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.models.codec import Codec
from tfjoint.models.compression import Compression
from tfjoint.models.direct import Direct
from tfjoint.models.image_encoder import ImageEncoder
from tfjoint.models.implicit import Implicit
from tfjoint.models.output import Output
from tfjoint.models.reconstruction import Reconstruction
from tfjoint.models.separate import Separate
from tfjoint.models.sequential import Sequential
from tfjoint.models.voxel_decoder import VoxelDecoder

MODELS: dict[str, type[tf.keras.Model]] = {
    "compression": Compression,
    "reconstruction": Reconstruction,
    "jpeg2000": Reconstruction,
    "separate": Separate,
    "sequential": Sequential,
    "direct": Direct,
    "implicit": Implicit,
}

__all__ = [
    "MODELS",
    "Codec",
    "Compression",
    "Direct",
    "ImageEncoder",
    "Implicit",
    "Output",
    "Reconstruction",
    "Separate",
    "Sequential",
    "VoxelDecoder",
    "create",
    "variables",
]


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
