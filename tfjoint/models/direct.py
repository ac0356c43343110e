"""The direct joint model (paper, Fig. 6): the codes themselves feed the 3D grid.

    views x_v --> Compression, T iterations --> codes b_v,1 .. b_v,T --> decoded views  (L_comp)
                                                  |
                       view after view, one step per code, flattened to K values
                                                  v
                                        GridLSTM --> VoxelDecoder --> occupancy         (L_3D)

The 3D image encoder of 3D-R2N2 does not exist; the image decoder is trained beside the grid.
"""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.layers import BinarizerNoise, GridState
from tfjoint.models.compression import Compression
from tfjoint.models.output import Output
from tfjoint.models.volume import Volume


class Direct(tf.keras.Model):
    """Compression, grid and voxel decoder, trained together by L_comp and L_3D (Eq. 16)."""

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(autocast=False, **kwargs)
        self.code_size = config.code_size
        self.compression = Compression(config)
        self.volume = Volume(config)

    def build(self, input_shape=None) -> None:
        """Make all weights; the image size is the config's."""
        self.compression.build()
        self.volume.build((None, None, self.code_size))
        self.built = True

    def call(
        self, images: tf.Tensor, iterations: tf.Tensor | int, noise: BinarizerNoise | None = None
    ) -> Output:
        """Run the whole model on images [B, V, H, W, 3] in [0, 1]; with `noise`, training."""
        output = self.compression(images, iterations=iterations, noise=noise)
        return output._replace(logits=self.occupancy(output.codes))

    def encode(self, images: tf.Tensor, iterations: tf.Tensor | int) -> tf.Tensor:
        """Return the codes [B, V, T, h, w, M] of images [B, V, H, W, 3] in [0, 1]."""
        return self.compression.encode(images, iterations)

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the images [B, V, T, H, W, 3] after each iteration of codes [B, V, T, h, w, M]."""
        return self.compression.decode(codes)

    def occupancy(self, codes: tf.Tensor) -> tf.Tensor:
        """Return occupancy logits [B, D, D, D] of codes [B, V, T, h, w, M]."""
        return self.volume(self._sequence(codes))

    def refine(self, codes: tf.Tensor, state: GridState) -> tuple[tf.Tensor, GridState]:
        """Return logits and state after codes [B, V, T, h, w, M] of further views; see
        `Volume.refine`.
        """
        return self.volume.refine(self._sequence(codes), state)

    def _sequence(self, codes: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(codes)
        return tf.reshape(codes, [shape[0], shape[1] * shape[2], self.code_size])
