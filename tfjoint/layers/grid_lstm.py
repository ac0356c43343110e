"""The 3D convolutional LSTM grid of 3D-R2N2 (3D-LSTM-3): one LSTM per cell of a small cube."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfjoint.layers import initializers


class GridState(NamedTuple):
    """Hidden and cell state, both [B, G, G, G, F]."""

    hidden: tf.Tensor
    cell: tf.Tensor


class GridLSTM(tf.keras.layers.Layer):
    """A G x G x G grid of LSTM cells with F channels that takes a sequence of code vectors.

        i, f, g = split(Wx x + bx + h * Wh + bh)
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = tanh(c')

    Wx is dense with separate weights for every cell; Wh is a 3x3x3 convolution that all cells
    share. Every object starts from zeros. One dense product serves all gates and steps of a
    sequence, one 3D convolution all gates of a step.

    Args:
      grid_size: G.
      channels: F.
      output_gate: h' = sigmoid(o) tanh(c') with a fourth gate o, as in the paper's Eqs. 5 and 8;
        its code has none.
      shared_bias: leave out bx, which every cell has for itself (Choy et al.).
    """

    def __init__(
        self,
        grid_size: int = 4,
        channels: int = 128,
        output_gate: bool = False,
        shared_bias: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if min(grid_size, channels) < 1:
            raise ValueError(
                "grid_size and channels must be at least 1. "
                f"Received: grid_size={grid_size}, channels={channels}"
            )
        self.grid_size = grid_size
        self.channels = channels
        self.output_gate = output_gate
        self.shared_bias = shared_bias
        self._gates = 4 if output_gate else 3

    def build(self, input_shape) -> None:
        """Make the weights for sequences [B, S, K], K = input_shape[-1]."""
        size, gates = self.grid_size, self._gates * self.channels
        self.input_kernel = self.add_weight(
            name="input_kernel",
            shape=(input_shape[-1], size**3 * gates),
            initializer=initializers.kernel(),
        )
        if not self.shared_bias:
            self.input_bias = self.add_weight(
                name="input_bias", shape=(size, size, size, gates), initializer=initializers.bias()
            )
        self.hidden_kernel = self.add_weight(
            name="hidden_kernel",
            shape=(3, 3, 3, self.channels, gates),
            initializer=initializers.kernel(),
        )
        self.hidden_bias = self.add_weight(
            name="hidden_bias", shape=(gates,), initializer=initializers.bias()
        )
        self.built = True

    def zero_state(self, batch: tf.Tensor | int) -> GridState:
        """Return the state before the first code of `batch` objects."""
        size = self.grid_size
        zeros = tf.zeros([batch, size, size, size, self.channels], self.compute_dtype)
        return GridState(zeros, zeros)

    def project(self, codes: tf.Tensor) -> tf.Tensor:
        """Return Wx x + bx + bh of codes [..., K] as [..., G, G, G, gates F]."""
        cell_shape = [*[self.grid_size] * 3, self._gates * self.channels]
        dense = tf.matmul(codes, self._cast(self.input_kernel))
        cells = tf.reshape(dense, tf.concat([tf.shape(codes)[:-1], cell_shape], 0))
        if not self.shared_bias:
            cells += self._cast(self.input_bias)
        return cells + self._cast(self.hidden_bias)

    def step(self, projected: tf.Tensor, state: GridState) -> GridState:
        """Return the state after one code, given as its projection [B, G, G, G, gates F]."""
        kernel = self._cast(self.hidden_kernel)
        gates = projected + tf.nn.conv3d(state.hidden, kernel, [1] * 5, "SAME")
        i, f, g, *o = tf.split(gates, self._gates, axis=-1)
        cell = tf.sigmoid(f) * state.cell + tf.sigmoid(i) * tf.tanh(g)
        hidden = tf.sigmoid(o[0]) * tf.tanh(cell) if self.output_gate else tf.tanh(cell)
        return GridState(hidden, cell)

    def call(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the last hidden state [B, G, G, G, F] for a sequence of codes [B, S, K]."""
        return self.advance(codes, self.zero_state(tf.shape(codes)[0])).hidden

    def advance(self, codes: tf.Tensor, state: GridState) -> GridState:
        """Return the state after a sequence of codes [B, S, K] that begins in `state`."""
        batch, steps = tf.shape(codes)[0], tf.shape(codes)[1]
        flat = tf.reshape(codes, [batch * steps, codes.shape[-1]])
        projected = self.project(flat)  # [B * S, G, G, G, gates F]
        projected = tf.reshape(projected, tf.concat([[batch, steps], projected.shape[1:]], 0))
        projected = tf.transpose(projected, [1, 0, 2, 3, 4, 5])  # [S, B, G, G, G, gates F]
        # A TensorArray, because the gradient of `projected[index]` would be as large as all steps.
        inputs = tf.TensorArray(projected.dtype, steps).unstack(projected)
        _, state = tf.while_loop(
            lambda index, state: index < steps,
            lambda index, state: (index + 1, self.step(inputs.read(index), state)),
            (tf.constant(0), state),
        )
        return state

    def _cast(self, weight: tf.Variable) -> tf.Tensor:
        # Keras casts the weights inside `call` alone.
        return tf.cast(weight, self.compute_dtype)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "grid_size": self.grid_size,
            "channels": self.channels,
            "output_gate": self.output_gate,
            "shared_bias": self.shared_bias,
        }
