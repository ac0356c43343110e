"""A 3D convolution whose gradients are made of operations that processors are good at."""

from __future__ import annotations

import itertools

import tensorflow as tf

from tfjoint.layers import initializers


class Conv3D(tf.keras.layers.Layer):
    """A 3x3x3 convolution with "same" padding and bias: `keras.layers.Conv3D`, trained faster."""

    def __init__(self, channels: int, **kwargs) -> None:
        super().__init__(**kwargs)
        if channels < 1:
            raise ValueError(f"channels must be at least 1. Received: {channels}")
        self.channels = channels
        # Here and not in `build`, because an initializer draws its seed when it is made: the order
        # in which a model's are made is part of what its seed means.
        self._kernel_initializer, self._bias_initializer = (
            initializers.kernel(),
            initializers.bias(),
        )

    def build(self, input_shape) -> None:
        """Make kernel and bias for volumes [B, D, H, W, input_shape[-1]]."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(3, 3, 3, input_shape[-1], self.channels),
            initializer=self._kernel_initializer,
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.channels,), initializer=self._bias_initializer
        )
        self.built = True

    def call(self, volume: tf.Tensor) -> tf.Tensor:
        """Return [B, D, H, W, channels] for a volume [B, D, H, W, C]."""
        return convolve(volume, tf.convert_to_tensor(self.kernel)) + self.bias

    def get_config(self) -> dict:
        return {**super().get_config(), "channels": self.channels}


def convolve(volume: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Return `tf.nn.conv3d` of stride 1 and padding "SAME" for a kernel [3, 3, 3, C, channels].

    On a CPU the gradients that TensorFlow has for it take 4 to 8 times as long as the convolution
    itself (bench/NOTES.md). Here the volume's is a convolution with the mirrored kernel, and the
    kernel's nine matrix products: equal but for rounding, and a third of the time.
    """
    if tf.config.list_physical_devices("GPU"):  # which has gradients of its own
        return _convolution(volume, kernel)

    @tf.custom_gradient
    def run(volume, kernel):
        def gradient(upstream):
            mirrored = tf.transpose(tf.reverse(kernel, [0, 1, 2]), [0, 1, 2, 4, 3])
            return _convolution(upstream, mirrored), _kernel_gradient(volume, upstream)

        return _convolution(volume, kernel), gradient

    return run(volume, kernel)


def _convolution(volume: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv3d(volume, kernel, [1] * 5, "SAME")


def _kernel_gradient(volume: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Return the gradient [3, 3, 3, C, F] of volumes [B, D, H, W, C] and upstream [..., F].

    Tap (a, b, c) is the sum over all positions n of volume[n] upstream[n + 1 - (a, b, c)]. The
    upstream at three neighbours along W stands side by side, so that a product is three taps wide.
    """
    channels = volume.shape[-1]
    depth, height, width = tf.unstack(tf.shape(volume)[1:4])
    padded = tf.pad(upstream, [[0, 0], [1, 1], [1, 1], [1, 1], [0, 0]])
    wide = tf.concat([padded[:, :, :, c : c + width] for c in (2, 1, 0)], -1)  # [..., W, 3 F]
    rows = tf.reshape(volume, [-1, channels])  # [B D H W, C]
    taps = []
    for a, b in itertools.product((2, 1, 0), repeat=2):
        shifted = wide[:, a : a + depth, b : b + height]
        flat = tf.reshape(shifted, [-1, wide.shape[-1]])  # [B D H W, 3 F]
        taps.append(tf.matmul(rows, flat, transpose_a=True))
    stacked = tf.reshape(tf.stack(taps), [3, 3, channels, 3, upstream.shape[-1]])
    return tf.transpose(stacked, [0, 1, 3, 2, 4])
