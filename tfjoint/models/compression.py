"""The small compression network of the paper, after Toderici et al. 2017 (LSTM variant).

    r_0 = x - 1/2
    r_t-1 --> conv/2 -> RNN/2 -> RNN/2 -> RNN/2 --> B --> b_t       [H/16, W/16, M] bits
    b_t ----> conv1x1, d2s -> RNN, d2s -> RNN, d2s -> RNN, d2s -> conv1x1, tanh/2 --> D_t(b_t)
    xhat_t = D_t(b_t) + gamma xhat_t-1,   r_t = x - 1/2 - xhat_t    (Eqs. 10 and 11)

Every iteration spends the same number of bits on what the iterations before it left over. The
small network of the paper lacks one of four upsamplings; here the first depth-to-space stays and
the RNN before it goes, which is the smallest change to the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfjoint.layers import Binarizer, BinarizerNoise, ConvLSTMCell, ConvLSTMState, initializers

DOWNSAMPLING = 16
"""Pixels per code position, in each direction."""


class Compressed(NamedTuple):
    """What `Compression` makes of N images in T iterations."""

    codes: tf.Tensor
    """[N, T, H/16, W/16, M], values in {-1, +1}."""
    decoded: tf.Tensor
    """[N, T, H, W, 3] float32, about [0, 1] and not clipped: the image after each iteration."""


class Compression(tf.keras.Model):
    """N^small: encoder, binarizer and decoder run T times on N images at once.

    Args:
      encoder_channels: of the first convolution and the RNNs after it; the last RNN has
        `code_channels` and is not listed.
      decoder_channels: of the first 1x1 convolution and the RNNs after it, before depth-to-space.
      code_channels: M, bits per 16 x 16 pixels and iteration.
      gamma: 1 adds each iteration's image to the one before, 0 predicts it anew (one-shot).
    """

    def __init__(
        self,
        encoder_channels: Sequence[int] = (64, 256, 512),
        decoder_channels: Sequence[int] = (256, 256, 128, 64),
        code_channels: int = 16,
        gamma: float = 1.0,
        **kwargs,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if len(encoder_channels) != 3 or len(decoder_channels) != 4:
            raise ValueError(
                "encoder_channels needs 3 numbers and decoder_channels 4. "
                f"Received: {tuple(encoder_channels)}, {tuple(decoder_channels)}"
            )
        if any(channels % 4 for channels in decoder_channels):
            raise ValueError(
                "decoder_channels must be multiples of 4, depth-to-space needs them. "
                f"Received: {tuple(decoder_channels)}"
            )
        self.code_channels = code_channels
        self.gamma = gamma
        first, *rest = encoder_channels
        # Tuples, because tf.train.Checkpoint does not see into the lists of a Keras 3 layer.
        self.encoder_conv = _conv(first, 3, stride=2)
        self.encoder_cells = tuple(ConvLSTMCell(c, 3, 1, stride=2) for c in (*rest, code_channels))
        self.binarizer = Binarizer()
        first, *rest = decoder_channels
        self.decoder_conv = _conv(first, 1)
        hidden_kernels = (1, 3, 3)
        self.decoder_cells = tuple(ConvLSTMCell(c, 3, kh) for c, kh in zip(rest, hidden_kernels))
        self.output_conv = _conv(3, 1)

    def build(self, input_shape=None) -> None:
        """Make all weights; they depend on no image size."""
        channels = 3
        for layer in (self.encoder_conv, *self.encoder_cells):
            layer.build((None, None, None, channels))
            channels = _channels(layer)
        for layer in (self.decoder_conv, *self.decoder_cells):
            layer.build((None, None, None, channels))
            channels = _channels(layer) // 4  # depth-to-space follows
        self.output_conv.build((None, None, None, channels))
        self.built = True

    def call(
        self, images: tf.Tensor, iterations: tf.Tensor | int, noise: BinarizerNoise | None = None
    ) -> Compressed:
        """Encode and decode images [N, H, W, 3] in [0, 1] in `iterations` iterations."""
        images = tf.cast(images, tf.float32)
        rows, height, width = _sides(images)
        centred = images - 0.5

        def iterate(t, encoder, decoder, estimate, codes, decoded):
            code, encoder = self._encode_step(centred - estimate, encoder, t, noise)
            estimate, decoder = self._decode_step(code, decoder, estimate)
            return (
                t + 1,
                encoder,
                decoder,
                estimate,
                codes.write(t, code),
                decoded.write(t, estimate + 0.5),
            )

        *_, codes, decoded = tf.while_loop(
            lambda t, *_: t < iterations,
            iterate,
            (
                tf.constant(0),
                self._encoder_state(rows, height, width),
                self._decoder_state(rows, height, width),
                tf.zeros_like(centred),
                tf.TensorArray(self.compute_dtype, iterations),
                tf.TensorArray(tf.float32, iterations),
            ),
        )
        return Compressed(_iterations_second(codes), _iterations_second(decoded))

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the images [N, T, H, W, 3] after each iteration of codes [N, T, h, w, M]."""
        codes = tf.cast(codes, self.compute_dtype)
        iterations = tf.shape(codes)[1]
        code_array = tf.TensorArray(codes.dtype, iterations).unstack(
            tf.transpose(codes, [1, 0, 2, 3, 4])  # [T, N, h, w, M]
        )
        rows, height, width = _sides(codes[:, 0])
        height, width = height * DOWNSAMPLING, width * DOWNSAMPLING

        def iterate(t, decoder, estimate, decoded):
            estimate, decoder = self._decode_step(code_array.read(t), decoder, estimate)
            return t + 1, decoder, estimate, decoded.write(t, estimate + 0.5)

        *_, decoded = tf.while_loop(
            lambda t, *_: t < iterations,
            iterate,
            (
                tf.constant(0),
                self._decoder_state(rows, height, width),
                tf.zeros([rows, height, width, 3]),
                tf.TensorArray(tf.float32, iterations),
            ),
        )
        return _iterations_second(decoded)

    def _encode_step(self, residual, states, t, noise):
        features = self.encoder_conv(residual)
        new_states = []
        for cell, state in zip(self.encoder_cells, states):
            state = cell(features, state)
            features = state.hidden
            new_states.append(state)
        return self.binarizer(features, noise=noise, iteration=t), tuple(new_states)

    def _decode_step(self, code, states, estimate):
        features = tf.nn.depth_to_space(self.decoder_conv(code), 2)
        new_states = []
        for cell, state in zip(self.decoder_cells, states):
            state = cell(features, state)
            features = tf.nn.depth_to_space(state.hidden, 2)
            new_states.append(state)
        update = tf.cast(tf.tanh(self.output_conv(features)), tf.float32) / 2
        return update + self.gamma * estimate, tuple(new_states)

    def _encoder_state(self, rows, height, width) -> tuple[ConvLSTMState, ...]:
        sides = (2, 4, 8)  # of each cell's input, after the first convolution
        return tuple(
            cell.zero_state(rows, height // s, width // s)
            for cell, s in zip(self.encoder_cells, sides)
        )

    def _decoder_state(self, rows, height, width) -> tuple[ConvLSTMState, ...]:
        sides = (8, 4, 2)
        return tuple(
            cell.zero_state(rows, height // s, width // s)
            for cell, s in zip(self.decoder_cells, sides)
        )


def _conv(channels: int, kernel_size: int, stride: int = 1) -> tf.keras.layers.Conv2D:
    return tf.keras.layers.Conv2D(
        channels,
        kernel_size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer=initializers.codec_kernel(),
    )


def _channels(layer: tf.keras.layers.Layer) -> int:
    return layer.filters if isinstance(layer, tf.keras.layers.Conv2D) else layer.channels


def _sides(images: tf.Tensor) -> tuple[tf.Tensor, int | tf.Tensor, int | tf.Tensor]:
    """Return rows (dynamic), height and width (static where known) of [N, H, W, C]."""
    dynamic = tf.shape(images)
    height, width = images.shape[1] or dynamic[1], images.shape[2] or dynamic[2]
    return dynamic[0], height, width


def _iterations_second(steps: tf.TensorArray) -> tf.Tensor:
    return tf.transpose(steps.stack(), [1, 0, 2, 3, 4])  # [T, N, ...] -> [N, T, ...]
