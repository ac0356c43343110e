"""A convolution whose kernel is trained in less time on a CPU."""

from __future__ import annotations

import tensorflow as tf

WIDE = 64
"""Channels of the input from which the product is worth its patches."""


def convolve(images: tf.Tensor, kernel: tf.Tensor, stride: int, training: bool) -> tf.Tensor:
    """Return `tf.nn.conv2d(images, kernel, stride, "SAME")`: [N, H / stride, W / stride, out].

    In training on a CPU the gradient of a wide kernel is one product of all patches that it met
    and the upstream gradient. TensorFlow's own takes twice the time, a quarter of a training step
    of the codec at paper width (bench/NOTES.md, change 6); the patches of one kernel are held for
    it, as many values as it has taps times those of `images`.

    Args:
      images: [N, H, W, in].
      kernel: [k, k, in, out].
      stride: in both directions.
      training: whether a gradient will be taken. Without, no custom gradient is in the graph.
    """
    side, _, channels, outputs = kernel.shape
    by_product = training and side > 1 and channels >= WIDE
    if not by_product or tf.config.list_logical_devices("GPU"):
        return tf.nn.conv2d(images, kernel, stride, "SAME")

    @tf.custom_gradient
    def convolved(images, kernel):
        def gradient(upstream):
            strides = [1, stride, stride, 1]
            patches = tf.image.extract_patches(
                images, [1, side, side, 1], strides, [1, 1, 1, 1], "SAME"
            )
            d_kernel = tf.matmul(
                tf.reshape(patches, [-1, side * side * channels]),
                tf.reshape(upstream, [-1, outputs]),
                transpose_a=True,
            )
            d_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images),
                filter=kernel,
                out_backprop=upstream,
                strides=strides,
                padding="SAME",
            )
            return d_images, tf.reshape(d_kernel, kernel.shape)

        return tf.nn.conv2d(images, kernel, stride, "SAME"), gradient

    return convolved(images, kernel)
