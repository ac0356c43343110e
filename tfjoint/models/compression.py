"""The compression network by itself: a learned image codec, trained by L_comp alone.

views x_v --> Codec, T iterations --> codes b_v,1 .. b_v,T --> decoded views  (L_comp)
"""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.layers import BinarizerNoise
from tfjoint.models import views
from tfjoint.models.codec import Codec
from tfjoint.models.output import Output


class Compression(tf.keras.Model):
    """The config's codec for views of objects; all views go through in one call."""

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(autocast=False, **kwargs)
        self.codec = Codec(
            config.codec,
            config.encoder_channels,
            config.decoder_channels,
            config.code_channels,
            config.gamma,
            config.binarizer,
            config.recompute,
        )

    def build(self, input_shape=None) -> None:
        """Make all weights; they depend on no image size."""
        self.codec.build()
        self.built = True

    def call(
        self, images: tf.Tensor, iterations: tf.Tensor | int, noise: BinarizerNoise | None = None
    ) -> Output:
        """Encode and decode images [B, V, H, W, 3] in [0, 1]; with `noise`, training."""
        compressed = self.codec(views.join(images), iterations=iterations, noise=noise)
        codes, decoded = (views.split(rows, images) for rows in compressed)
        return Output(codes=codes, decoded=decoded)

    def encode(self, images: tf.Tensor, iterations: tf.Tensor | int) -> tf.Tensor:
        """Return the codes [B, V, T, h, w, M] of images [B, V, H, W, 3] in [0, 1]."""
        return self(images, iterations=iterations).codes

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the images [B, V, T, H, W, 3] after each iteration of codes [B, V, T, h, w, M]."""
        return views.split(self.codec.decode(views.join(codes)), codes)
