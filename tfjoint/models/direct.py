"""The direct joint model (paper, Fig. 6): the codes themselves feed the 3D grid.

    views x_v --> compression, T iterations --> codes b_v,1 .. b_v,T --> decoded views  (L_comp)
                                                  |
                       view after view, one step per code, flattened to K bits
                                                  v
                                        GridLSTM --> VoxelDecoder --> occupancy         (L_3D)

The 3D image encoder of 3D-R2N2 does not exist; the image decoder is trained beside the grid.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.layers import BinarizerNoise, GridLSTM
from tfjoint.models.compression import DOWNSAMPLING, Compression
from tfjoint.models.voxel_decoder import VoxelDecoder


class DirectOutput(NamedTuple):
    """What the direct model makes of V views of B objects in T iterations."""

    codes: tf.Tensor
    """[B, V, T, H/16, W/16, M], values in {-1, +1}."""
    decoded: tf.Tensor
    """[B, V, T, H, W, 3] float32, not clipped: every view after each iteration."""
    logits: tf.Tensor
    """[B, D, D, D] float32, occupancy logits."""


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
    ) -> DirectOutput:
        """Run the whole model on images [B, V, H, W, 3] in [0, 1]; with `noise`, training."""
        flat = tf.reshape(images, tf.concat([[-1], tf.shape(images)[2:]], 0))  # [B * V, H, W, 3]
        flat = tf.ensure_shape(flat, [None, *images.shape[2:]])
        codes, decoded = self.compression(flat, iterations=iterations, noise=noise)
        views = tf.shape(images)[:2]
        codes = _split_rows(codes, views)
        return DirectOutput(codes, _split_rows(decoded, views), self.occupancy(codes))

    def occupancy(self, codes: tf.Tensor) -> tf.Tensor:
        """Return occupancy logits [B, D, D, D] of codes [B, V, T, h, w, M]."""
        shape = tf.shape(codes)
        sequence = tf.reshape(codes, [shape[0], shape[1] * shape[2], self.code_bits])
        return self.voxel_decoder(self.grid(tf.cast(sequence, self.compute_dtype)))

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the images [B, V, T, H, W, 3] after each iteration of codes [B, V, T, h, w, M]."""
        shape = tf.shape(codes)
        flat = tf.reshape(codes, tf.concat([[shape[0] * shape[1]], shape[2:]], 0))
        flat = tf.ensure_shape(flat, [None, *codes.shape[2:]])
        return _split_rows(self.compression.decode(flat), shape[:2])


def _split_rows(rows: tf.Tensor, views: tf.Tensor) -> tf.Tensor:
    # [B * V, ...] -> [B, V, ...]
    return tf.reshape(rows, tf.concat([views, tf.shape(rows)[1:]], 0))
