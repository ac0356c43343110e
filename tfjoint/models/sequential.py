"""The sequential joint model (paper, Fig. 5): reconstruction from decoded views, trained as one.

views x_v --> Compression, T iterations --> codes --> decoded views  (L_comp)
                                                          |  the last one, clipped to [0, 1]
                                                          v
                                                   Reconstruction --> occupancy  (L_3D)
"""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.layers import BinarizerNoise, GridState
from tfjoint.models.compression import Compression
from tfjoint.models.output import Output
from tfjoint.models.reconstruction import Reconstruction


class Sequential(tf.keras.Model):
    """Compression, then the reconstruction network, trained by L_comp and L_3D (Eq. 16)."""

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(autocast=False, **kwargs)
        self.compression = Compression(config)
        self.reconstruction = Reconstruction(config)
        self.original_views_steps = config.original_views_steps

    def build(self, input_shape=None) -> None:
        """Make all weights; the image size is the config's."""
        self.compression.build()
        self.reconstruction.build()
        self.built = True

    def call(
        self, images: tf.Tensor, iterations: tf.Tensor | int, noise: BinarizerNoise | None = None
    ) -> Output:
        """Run the whole model on images [B, V, H, W, 3] in [0, 1]; with `noise`, training.

        In the first `original_views_steps` minibatches the reconstruction network is shown the
        views themselves: what an untrained codec decodes is grey and bright, and large rates drive
        the gates of the grid so far into saturation by it that no view moves them again.
        """
        output = self.compression(images, iterations=iterations, noise=noise)
        seen = _last(output.decoded)
        if noise is not None and self.original_views_steps:
            seen = tf.where(noise.step < self.original_views_steps, images, seen)
        logits = self.reconstruction.occupancy(seen, training=noise is not None)
        return output._replace(logits=logits)

    def encode(self, images: tf.Tensor, iterations: tf.Tensor | int) -> tf.Tensor:
        """Return the codes [B, V, T, h, w, M] of images [B, V, H, W, 3] in [0, 1]."""
        return self.compression.encode(images, iterations)

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the images [B, V, T, H, W, 3] after each iteration of codes [B, V, T, h, w, M]."""
        return self.compression.decode(codes)

    def occupancy(self, codes: tf.Tensor) -> tf.Tensor:
        """Return occupancy logits [B, D, D, D] of codes [B, V, T, h, w, M]."""
        return self._occupancy_of(self.decode(codes))

    def refine(self, codes: tf.Tensor, state: GridState) -> tuple[tf.Tensor, GridState]:
        """Return logits and state after codes [B, V, T, h, w, M] of further views; see
        `Volume.refine`.
        """
        return self.reconstruction.refine(_last(self.decode(codes)), state)

    def _occupancy_of(self, decoded: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.reconstruction.occupancy(_last(decoded), training)


def _last(decoded: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(decoded[:, :, -1], 0, 1)
