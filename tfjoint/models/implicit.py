"""The implicit joint model (paper, Fig. 7): 3D-R2N2 with a binarizer behind its image encoder.

    views x_v --> ImageEncoder, tanh --> B --> K bits, one step per view --> GridLSTM
                                                         --> VoxelDecoder --> occupancy  (L_3D)

There is no image decoder: the code is whatever the reconstruction needs. K sets the rate, one model
per rate.
"""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.layers import Binarizer, BinarizerNoise, GridState
from tfjoint.models import views
from tfjoint.models.image_encoder import ImageEncoder
from tfjoint.models.output import Output
from tfjoint.models.volume import Volume


class Implicit(tf.keras.Model):
    """Image encoder that ends in K/4 channels and K values, binarizer, grid, voxel decoder."""

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(autocast=False, **kwargs)
        self.image_size = config.image_size
        channels = (*config.feature_channels[:-1], config.code_bits // 4)
        self.image_encoder = ImageEncoder(channels, config.code_bits, tf.tanh, config.pool_padding)
        self.binarizer = Binarizer() if config.binarizer else None
        self.volume = Volume(config)

    def build(self, input_shape=None) -> None:
        """Make all weights; the image size is the config's."""
        self.image_encoder.build((None, self.image_size, self.image_size, 3))
        self.volume.build((None, None, self.image_encoder.units))
        self.built = True

    def call(
        self,
        images: tf.Tensor,
        iterations: tf.Tensor | int | None = None,
        noise: BinarizerNoise | None = None,
    ) -> Output:
        """Run the whole model on images [B, V, H, W, 3] in [0, 1]; with `noise`, training."""
        codes = self.encode(images, noise)
        return Output(codes=codes, logits=self.occupancy(codes))

    def encode(self, images: tf.Tensor, noise: BinarizerNoise | None = None) -> tf.Tensor:
        """Return the codes [B, V, K] of images [B, V, H, W, 3] in [0, 1]."""
        values = self.image_encoder(views.join(images), training=noise is not None)
        if self.binarizer:
            values = self.binarizer(values, noise=noise)
        return views.split(values, images)

    def occupancy(self, codes: tf.Tensor) -> tf.Tensor:
        """Return occupancy logits [B, D, D, D] of codes [B, V, K]."""
        return self.volume(codes)

    def refine(self, codes: tf.Tensor, state: GridState) -> tuple[tf.Tensor, GridState]:
        """Return logits and state after codes [B, V, K] of further views; see `Volume.refine`."""
        return self.volume.refine(codes, state)
