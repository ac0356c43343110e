"""Compression and reconstruction trained apart: what the joint models have to be better than.

    views x_v --> Compression of a run of its own, frozen --> decoded views
                                                              |  the last one, clipped to [0, 1]
                                                              v
                                                       Reconstruction --> occupancy  (L_3D)

The data flow is that of the sequential model; only the reconstruction network is trained, on the
images that the finished codec decodes.
"""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.layers import BinarizerNoise
from tfjoint.models.output import Output
from tfjoint.models.sequential import Sequential


class Separate(Sequential):
    """A frozen codec, and the reconstruction network trained behind it by L_3D."""

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(config, **kwargs)
        self.compression.trainable = False

    def call(
        self, images: tf.Tensor, iterations: tf.Tensor | int, noise: BinarizerNoise | None = None
    ) -> Output:
        """Run the whole model on images [B, V, H, W, 3]; the codec is always at inference."""
        output = self.compression(images, iterations=iterations)
        logits = self._occupancy_of(tf.stop_gradient(output.decoded), training=noise is not None)
        return output._replace(logits=logits)
