"""E3D, the image encoder of 3D-R2N2 (3D-LSTM-3): from a view to a vector.

    view -> [conv, max-pool 2x2, leaky ReLU] x 6 -> flatten -> dense -> activation

The first convolution is 7x7, the others 3x3; slope 0.01, no normalisation. 128 x 128 pixels end as
2 x 2; an image of half the size has one convolution less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfjoint.layers import initializers
from tfjoint.layers.convolution import convolve

LEAK = 0.01


def leaky_relu(features: tf.Tensor) -> tf.Tensor:
    """Return the leaky ReLU of slope 0.01."""
    return tf.nn.leaky_relu(features, LEAK)


class ImageEncoder(tf.keras.Model):
    """E3D.

    Args:
      channels: of the convolutions.
      units: size of the vector.
      activation: of the vector.
      pool_padding: pad every pooling by one pixel of -inf on each side (Choy et al.), so that
        sides become s // 2 + 1 instead of s / 2.
    """

    def __init__(
        self,
        channels: Sequence[int] = (96, 128, 256, 256, 256, 256),
        units: int = 1024,
        activation: Callable[[tf.Tensor], tf.Tensor] = leaky_relu,
        pool_padding: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if min((*channels, units), default=0) < 1:
            raise ValueError(
                f"channels and units must be at least 1. Received: {tuple(channels)}, {units}"
            )
        self.units = units
        self.activation = activation
        self.pool_padding = pool_padding
        kernels = (7, *[3] * (len(channels) - 1))
        # A tuple, because tf.train.Checkpoint does not see into the lists of a Keras 3 layer.
        self.convolutions = tuple(_conv(c, size) for c, size in zip(channels, kernels))
        self.dense = tf.keras.layers.Dense(
            units, kernel_initializer=initializers.kernel(), bias_initializer=initializers.bias()
        )

    def build(self, input_shape) -> None:
        """Make all weights for images [N, H, W, C], of which H, W and C are known."""
        _, *sides, channels = input_shape
        for layer in self.convolutions:
            if not self.pool_padding and any(side % 2 for side in sides):
                raise ValueError(
                    f"{len(self.convolutions)} poolings do not divide the sides of the images. "
                    f"Received: {input_shape[1]} x {input_shape[2]}"
                )
            layer.build((None, None, None, channels))
            channels = layer.filters
            sides = [side // 2 + self.pool_padding for side in sides]
        self.flat_size = sides[0] * sides[1] * channels
        self.dense.build((None, self.flat_size))
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return vectors [N, units] of images [N, H, W, C] in [0, 1]."""
        padding = [[0, 0], [1, 1], [1, 1], [0, 0]] if self.pool_padding else "VALID"
        features = tf.cast(images, self.compute_dtype)
        for layer in self.convolutions:
            features = layer(features, training=training)
            features = leaky_relu(tf.nn.max_pool2d(features, 2, 2, padding))
        return self.activation(self.dense(tf.reshape(features, [-1, self.flat_size])))


class Conv2D(tf.keras.layers.Conv2D):
    """Keras' convolution, of stride 1, "same" and biased, whose kernel `convolve` trains."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return [N, H, W, filters] of inputs [N, H, W, C]."""
        features = convolve(inputs, tf.convert_to_tensor(self.kernel), 1, training)
        return tf.nn.bias_add(features, tf.convert_to_tensor(self.bias))


def _conv(channels: int, kernel_size: int) -> Conv2D:
    return Conv2D(
        channels,
        kernel_size,
        padding="same",
        kernel_initializer=initializers.kernel(),
        bias_initializer=initializers.bias(),
    )
