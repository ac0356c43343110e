"""The convolutional LSTM of Toderici et al. 2017: strided input, its own hidden kernel, no bias."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfjoint.layers import initializers
from tfjoint.layers.convolution import convolve


class ConvLSTMState(NamedTuple):
    """Hidden and cell state, both [N, H / stride, W / stride, channels]."""

    hidden: tf.Tensor
    cell: tf.Tensor


class ConvLSTMCell(tf.keras.layers.Layer):
    """One step of a convolutional LSTM.

        i, f, g, o = split(x * Wx + h * Wh)
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')

    `*` is convolution with "same" padding, on x with `stride`. One input and one hidden
    convolution serve all gates. With equal kernel sizes this is the cell of
    `keras.layers.ConvLSTM2D(use_bias=False, recurrent_activation="sigmoid")`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        hidden_kernel_size: int = 1,
        stride: int = 1,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if min(channels, kernel_size, hidden_kernel_size, stride) < 1:
            raise ValueError(
                "channels, kernel sizes and stride must be at least 1. "
                f"Received: {channels}, {kernel_size}, {hidden_kernel_size}, {stride}"
            )
        self.channels = channels
        self.kernel_size = kernel_size
        self.hidden_kernel_size = hidden_kernel_size
        self.stride = stride

    def build(self, input_shape) -> None:
        """Make both kernels for inputs [N, H, W, input_shape[-1]]."""
        k, kh, gates = self.kernel_size, self.hidden_kernel_size, 4 * self.channels
        self.input_kernel = self.add_weight(
            name="input_kernel",
            shape=(k, k, input_shape[-1], gates),
            initializer=initializers.codec_kernel(),
        )
        self.hidden_kernel = self.add_weight(
            name="hidden_kernel",
            shape=(kh, kh, self.channels, gates),
            initializer=initializers.codec_kernel(),
        )
        self.built = True

    def call(
        self, inputs: tf.Tensor, state: ConvLSTMState | None = None, training: bool = False
    ) -> ConvLSTMState:
        """Return the next state for `inputs` [N, H, W, C]; its `hidden` is the output.

        No state stands for zeros, with nothing to convolve: it is 40 to 50 % of the products of a
        codec's first iteration.
        """
        kernels = tf.convert_to_tensor(self.input_kernel), tf.convert_to_tensor(self.hidden_kernel)
        gates = convolve(inputs, kernels[0], self.stride, training)
        if state:
            gates += convolve(state.hidden, kernels[1], 1, training)
        i, f, g, o = tf.split(gates, 4, axis=-1)
        cell = tf.sigmoid(i) * tf.tanh(g)
        if state:
            cell += tf.sigmoid(f) * state.cell
        return ConvLSTMState(tf.sigmoid(o) * tf.tanh(cell), cell)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "channels": self.channels,
            "kernel_size": self.kernel_size,
            "hidden_kernel_size": self.hidden_kernel_size,
            "stride": self.stride,
        }
