"""Doubling the sides of a volume: upsampling and the convolution after it, as one operation."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfjoint.layers import initializers

# Row a says which taps of a 3-tap kernel add up to tap a of the transposed kernel of stride 2, for
# nearest-neighbour upsampling: out[2n] = w0 x[n-1] + (w1 + w2) x[n], out[2n+1] = (w0 + w1) x[n] +
# w2 x[n+1].
_NEAREST = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
# The same for zero insertion: out[2n] = w1 x[n], out[2n+1] = w0 x[n] + w2 x[n+1]; a fourth row of
# zeros, because "SAME" places a kernel of four taps where it is wanted and one of three elsewhere.
_ZEROS = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
FOLDS = {"nearest": _NEAREST, "zeros": _ZEROS}


class UpConv3D(tf.keras.layers.Layer):
    """Upsampling by 2, then a 3x3x3 convolution with "same" padding and bias.

    Both are computed as one 4x4x4 transposed convolution of stride 2 whose kernel is built from
    the 3x3x3 variable: equal outputs and gradients, less than half the multiplications.

    Args:
      channels: of the output.
      unpooling: "nearest" repeats every value; "zeros" puts it at the even positions and zeros at
        the others (Choy et al.).
    """

    def __init__(self, channels: int, unpooling: str = "nearest", **kwargs) -> None:
        super().__init__(**kwargs)
        if channels < 1 or unpooling not in FOLDS:
            raise ValueError(
                f"channels must be at least 1 and unpooling one of {', '.join(FOLDS)}. "
                f"Received: channels={channels}, unpooling={unpooling!r}"
            )
        self.channels = channels
        self.unpooling = unpooling

    def build(self, input_shape) -> None:
        """Make kernel and bias for volumes [B, D, H, W, input_shape[-1]]."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(3, 3, 3, input_shape[-1], self.channels),
            initializer=initializers.kernel(),
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.channels,), initializer=initializers.bias()
        )
        self.built = True

    def call(self, volume: tf.Tensor) -> tf.Tensor:
        """Return [B, 2 D, 2 H, 2 W, channels] for a volume [B, D, H, W, C]."""
        fold = tf.constant(FOLDS[self.unpooling], volume.dtype)
        kernel = tf.convert_to_tensor(self.kernel)
        folded = tf.einsum("ai,bj,ck,ijkxy->abcyx", fold, fold, fold, kernel)  # [4, 4, 4, out, in]
        batch, *sides = tf.unstack(tf.shape(volume)[:4])
        shape = tf.stack([batch, *(2 * side for side in sides), self.channels])
        doubled = tf.nn.conv3d_transpose(volume, folded, shape, strides=2, padding="SAME")
        # The static sides are lost in `shape`; give them back.
        static = [side and 2 * side for side in volume.shape[1:4]]
        doubled = tf.ensure_shape(doubled, [volume.shape[0], *static, self.channels])
        return doubled + self.bias

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "channels": self.channels,
            "unpooling": self.unpooling,
        }
