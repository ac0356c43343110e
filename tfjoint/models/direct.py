"""The direct joint model (paper, Fig. 6): the codes themselves feed the 3D grid.

    views x_v --> compression, T iterations --> codes b_v,1 .. b_v,T --> decoded views  (L_comp)
                                                  |
                       view after view, one step per code, flattened to K bits
                                                  v
                                        GridLSTM --> VoxelDecoder --> occupancy         (L_3D)

The 3D image encoder of 3D-R2N2 does not exist; the image decoder is trained beside the grid.
"""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.layers import BinarizerNoise, GridLSTM
from tfjoint.models.compression import DOWNSAMPLING, Compression
from tfjoint.models.output import Output
from tfjoint.models.voxel_decoder import VoxelDecoder


class Direct(tf.keras.Model):
    """Compression, grid and voxel decoder, trained together by L_comp and L_3D (Eq. 16)."""

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(autocast=False, **kwargs)
        self.code_side = config.image_size // DOWNSAMPLING
        self.code_bits = self.code_side**2 * config.code_channels
        self.compression = Compression(
            config.encoder_channels, config.decoder_channels, config.code_channels, config.gamma
        )
        self.grid = GridLSTM(config.grid_size, config.grid_channels)
        self.voxel_decoder = VoxelDecoder(config.voxel_channels)

    def build(self, input_shape=None) -> None:
        """Make all weights; the image size is the config's."""
        self.compression.build()
        self.grid.build((None, None, self.code_bits))
        self.voxel_decoder.build((None, None, None, None, self.grid.channels))
        self.built = True

    def call(
        self, images: tf.Tensor, iterations: tf.Tensor | int, noise: BinarizerNoise | None = None
    ) -> Output:
        """Run the whole model on images [B, V, H, W, 3] in [0, 1]; with `noise`, training."""
        codes, decoded = self._compress(images, iterations, noise)
        return Output(codes, decoded, self.occupancy(codes))

    def encode(self, images: tf.Tensor, iterations: tf.Tensor | int) -> tf.Tensor:
        """Return the codes [B, V, T, h, w, M] of images [B, V, H, W, 3] in [0, 1]."""
        return self._compress(images, iterations, noise=None)[0]

    def occupancy(self, codes: tf.Tensor) -> tf.Tensor:
        """Return occupancy logits [B, D, D, D] of codes [B, V, T, h, w, M]."""
        shape = tf.shape(codes)
        sequence = tf.reshape(codes, [shape[0], shape[1] * shape[2], self.code_bits])
        return self.voxel_decoder(self.grid(tf.cast(sequence, self.compute_dtype)))

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the images [B, V, T, H, W, 3] after each iteration of codes [B, V, T, h, w, M]."""
        return _split_rows(self.compression.decode(_join_rows(codes)), tf.shape(codes)[:2])

    def _compress(self, images, iterations, noise) -> tuple[tf.Tensor, tf.Tensor]:
        compressed = self.compression(_join_rows(images), iterations=iterations, noise=noise)
        views = tf.shape(images)[:2]
        return _split_rows(compressed.codes, views), _split_rows(compressed.decoded, views)


def _join_rows(views: tf.Tensor) -> tf.Tensor:
    # [B, V, ...] -> [B * V, ...]
    rows = tf.reshape(views, tf.concat([[-1], tf.shape(views)[2:]], 0))
    return tf.ensure_shape(rows, [None, *views.shape[2:]])


def _split_rows(rows: tf.Tensor, views: tf.Tensor) -> tf.Tensor:
    # [B * V, ...] -> [B, V, ...]
    return tf.reshape(rows, tf.concat([views, tf.shape(rows)[1:]], 0))
