"""D3D, the voxel decoder of 3D-R2N2 (3D-LSTM-3): from the LSTM grid to the occupancy grid.

    h [4^3, F] -> up2, conv -> up2, conv -> up2, conv -> conv -> conv 2 -> {empty, occupied} [32^3]

All convolutions are 3x3x3; a leaky ReLU of slope 0.01 follows each but the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfjoint.layers import Conv3D, UpConv3D

LEAK = 0.01


class VoxelDecoder(tf.keras.Model):
    """D3D with the channels of its four hidden convolutions; the first three upsample first.

    `unpooling` is how they do it, "nearest" or "zeros" (Choy et al.).
    """

    def __init__(
        self,
        channels: Sequence[int] = (128, 128, 64, 32),
        unpooling: str = "nearest",
        **kwargs,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if len(channels) != 4:
            raise ValueError(f"channels needs 4 numbers. Received: {tuple(channels)}")
        *upsampled, last = channels
        # A tuple, because tf.train.Checkpoint does not see into the lists of a Keras 3 layer.
        self.upsampling = tuple(UpConv3D(c, unpooling) for c in upsampled)
        self.hidden = Conv3D(last)
        self.output_conv = Conv3D(2)

    def build(self, input_shape) -> None:
        """Make all weights for grids [B, G, G, G, input_shape[-1]]."""
        channels = input_shape[-1]
        for layer in self.upsampling:
            layer.build((None, None, None, None, channels))
            channels = layer.channels
        self.hidden.build((None, None, None, None, channels))
        self.output_conv.build((None, None, None, None, self.hidden.channels))
        self.built = True

    def call(self, grid: tf.Tensor) -> tf.Tensor:
        """Return occupancy logits [B, 8 G, 8 G, 8 G] float32 for a grid [B, G, G, G, F].

        The network ends in two channels; the logit of the softmax over {empty, occupied} is
        their difference.
        """
        features = grid
        for layer in self.upsampling:
            features = tf.nn.leaky_relu(layer(features), LEAK)
        features = tf.nn.leaky_relu(self.hidden(features), LEAK)
        empty, occupied = tf.unstack(tf.cast(self.output_conv(features), tf.float32), axis=-1)
        return occupied - empty
