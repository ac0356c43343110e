"""3D-R2N2 with the network 3D-LSTM-3 (Choy et al. 2016): views to an occupancy grid.

    views x_v --> ImageEncoder --> K values, one step per view --> GridLSTM --> VoxelDecoder (L_3D)

On raw views it is the paper's uncompressed reference; on decoded JPEG 2000 views, its baseline.
"""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.layers import BinarizerNoise, GridState
from tfjoint.models import views
from tfjoint.models.image_encoder import ImageEncoder
from tfjoint.models.output import Output
from tfjoint.models.volume import Volume


class Reconstruction(tf.keras.Model):
    """Image encoder, grid and voxel decoder, trained by L_3D."""

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(autocast=False, **kwargs)
        self.image_size = config.image_size
        self.image_encoder = ImageEncoder(
            config.feature_channels, config.features, pool_padding=config.pool_padding
        )
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
        """Reconstruct from images [B, V, H, W, 3] in [0, 1]; with `noise`, training.

        Nothing is compressed here, so there is nothing to add noise to.
        """
        return Output(logits=self.occupancy(images, training=noise is not None))

    def occupancy(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return occupancy logits [B, D, D, D] of images [B, V, H, W, 3] in [0, 1]."""
        return self.volume(self._sequence(images, training))

    def refine(self, images: tf.Tensor, state: GridState) -> tuple[tf.Tensor, GridState]:
        """Return logits and state after images [B, V, H, W, 3] of further views, in [0, 1]; see
        `Volume.refine`.
        """
        return self.volume.refine(self._sequence(images), state)

    def _sequence(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return views.split(self.image_encoder(views.join(images), training=training), images)
