"""The compression networks of the paper, after Toderici et al. 2017 (LSTM variant).

    r_0 = x - 1/2
    r_t-1 --> conv/2 -> RNN/2 -> RNN/2 -> RNN/2 --> B --> b_t       [H/16, W/16, M] bits
    b_t ----> conv1x1, d2s -> RNN, d2s -> RNN, d2s -> RNN, d2s -> conv1x1, tanh/2 --> D_t(b_t)
    xhat_t = D_t(b_t) + gamma xhat_t-1,   r_t = x - 1/2 - xhat_t    (Eqs. 10 and 11)

Every iteration spends the same number of bits on what the iterations before it left over. The
picture is of `small_a`, the default. The small decoder of the paper lacks one of four upsamplings;
what to do about it is the difference between the two small variants:

    original   encoder ends RNN/2 -> conv1x1, tanh; decoder conv1x1 -> 4 x (RNN, d2s) -> conv1x1
    small_a    encoder ends in the RNN that has M channels; the first RNN of the decoder is left
               out and its d2s stays, which is the smallest change to the original
    small_b    the same encoder; decoder conv1x1 -> 3 x (RNN, d2s) -> conv3x3, d2s
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfjoint.config import DOWNSAMPLING
from tfjoint.layers import Binarizer, BinarizerNoise, ConvLSTMCell, initializers, repeat


class Variant(NamedTuple):
    """What the variants differ in, besides their widths."""

    encoder_rnns: int
    """RNNs of the encoder, the one that makes the code included where there is one."""
    rnn_makes_code: bool
    """Whether the last RNN's hidden state is the code, or a 1x1 convolution and tanh follow."""
    doubles_first: bool
    """Whether the code is doubled in size before the first RNN of the decoder."""
    doubles_last: bool
    """Whether the last convolution is 3x3 and makes four pixels of each position."""
    decoder_rnns: int


VARIANTS = {
    "original": Variant(3, False, False, False, 4),
    "small_a": Variant(3, True, True, False, 3),
    "small_b": Variant(3, True, False, True, 3),
}


class Compressed(NamedTuple):
    """What `Codec` makes of N images in T iterations."""

    codes: tf.Tensor
    """[N, T, H/16, W/16, M], values in {-1, +1}; without binarizer in [-1, 1]."""
    decoded: tf.Tensor
    """[N, T, H, W, 3] float32, about [0, 1] and not clipped: the image after each iteration."""


class Codec(tf.keras.Model):
    """Encoder, binarizer and decoder, which run T times on N images at once.

    Args:
      variant: a name in `VARIANTS`.
      encoder_channels: of the first convolution and the RNNs after it; where the last RNN makes
        the code, it has `code_channels` and is not listed.
      decoder_channels: of the first 1x1 convolution and the RNNs after it, before depth-to-space.
      code_channels: M, values per 16 x 16 pixels and iteration.
      gamma: 1 adds each iteration's image to the one before, 0 predicts it anew (one-shot).
      binarizer: without it the codes are the real activations.
      recompute: in training, see `layers.repeat`; changes memory and time, not results.
    """

    def __init__(
        self,
        variant: str = "small_a",
        encoder_channels: Sequence[int] = (64, 256, 512),
        decoder_channels: Sequence[int] = (256, 256, 128, 64),
        code_channels: int = 16,
        gamma: float = 1.0,
        binarizer: bool = True,
        recompute: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.variant = VARIANTS[variant]
        self.code_channels = code_channels
        self.gamma = gamma
        self.recompute = recompute
        first, *rest = encoder_channels
        if self.variant.rnn_makes_code:
            rest.append(code_channels)
        _check(self.variant, rest, decoder_channels)
        # Tuples, because tf.train.Checkpoint does not see into the lists of a Keras 3 layer.
        self.encoder_conv = _conv(first, 3, stride=2)
        self.encoder_cells = tuple(ConvLSTMCell(c, 3, 1, stride=2) for c in rest)
        self.code_conv = None if self.variant.rnn_makes_code else _conv(code_channels, 1)
        self.binarizer = Binarizer() if binarizer else None
        first, *rest = decoder_channels
        self.decoder_conv = _conv(first, 1)
        # From H/4 on, the hidden state is convolved 3x3.
        self.decoder_cells = tuple(
            ConvLSTMCell(c, 3, 3 if scale <= 4 else 1)
            for c, scale in zip(rest, self._decoder_scales)
        )
        self.output_conv = _conv(12, 3) if self.variant.doubles_last else _conv(3, 1)

    def build(self, input_shape=None) -> None:
        """Make all weights; they depend on no image size."""
        channels = 3
        encoder = (self.encoder_conv, *self.encoder_cells)
        for layer in (*encoder, self.code_conv) if self.code_conv else encoder:
            layer.build((None, None, None, channels))
            channels = _channels(layer)
        self.decoder_conv.build((None, None, None, channels))
        channels = _channels(self.decoder_conv) // (4 if self.variant.doubles_first else 1)
        for cell in self.decoder_cells:
            cell.build((None, None, None, channels))
            channels = cell.channels // 4  # depth-to-space follows
        self.output_conv.build((None, None, None, channels))
        self.built = True

    def call(
        self, images: tf.Tensor, iterations: tf.Tensor | int, noise: BinarizerNoise | None = None
    ) -> Compressed:
        """Encode and decode images [N, H, W, 3] in [0, 1] in `iterations` iterations."""
        centred = tf.cast(images, tf.float32) - 0.5

        def iterate(t, state, centred):
            encoder, decoder, estimate = state or (None, None, 0.0)
            code, encoder = self._encode_step(centred - estimate, encoder, t, noise)
            estimate, decoder = self._decode_step(code, decoder, estimate, noise is not None)
            return (encoder, decoder, estimate), (code, estimate + 0.5)

        dtypes = (self.compute_dtype, tf.float32)
        # In training alone: a gradient that computes again cannot be saved in an export.
        recompute = self.recompute and noise is not None
        steps = repeat(iterate, iterations, centred, dtypes, recompute)
        return Compressed(*map(_iterations_second, steps))

    def encode_padded(self, images: tf.Tensor, iterations: tf.Tensor | int, most: int) -> tf.Tensor:
        """Return the codes [N, most, h, w, M] of images [N, H, W, 3]; zeros from `iterations` on.

        The codes of `call` without its TensorArrays, which TensorFlow Lite cannot convert: all
        sides of `images` are static.
        """
        centred = tf.cast(images, tf.float32) - 0.5

        def iterate(t, encoder, decoder, estimate, codes):
            code, encoder = self._encode_step(centred - estimate, encoder, t, None)
            estimate, decoder = self._decode_step(code, decoder, estimate)
            here = tf.reshape(tf.one_hot(t, most, dtype=code.dtype), [1, most, 1, 1, 1])
            return t + 1, encoder, decoder, estimate, codes + here * code[:, tf.newaxis]

        first = iterate(tf.constant(0), None, None, 0.0, 0.0)
        return tf.while_loop(lambda t, *_: t < iterations, iterate, first)[-1]

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the images [N, T, H, W, 3] after each iteration of codes [N, T, h, w, M]."""
        codes = tf.transpose(tf.cast(codes, self.compute_dtype), [1, 0, 2, 3, 4])  # [T, N, ...]

        def iterate(t, state, codes):
            decoder, estimate = state or (None, 0.0)
            estimate, decoder = self._decode_step(codes[t], decoder, estimate)
            return (decoder, estimate), (estimate + 0.5,)

        (decoded,) = repeat(iterate, tf.shape(codes)[0], codes, (tf.float32,))
        return _iterations_second(decoded)

    def _encode_step(self, residual, states, t, noise):
        training = noise is not None
        features, states = _through(
            self.encoder_cells, self.encoder_conv(residual), states, training
        )
        if self.code_conv:
            features = tf.tanh(self.code_conv(features))
        if self.binarizer:
            features = self.binarizer(features, noise=noise, iteration=t)
        return features, states

    def _decode_step(self, code, states, estimate, training=False):
        features = self.decoder_conv(code)
        if self.variant.doubles_first:
            features = tf.nn.depth_to_space(features, 2)
        features, states = _through(self.decoder_cells, features, states, training, doubling=True)
        features = self.output_conv(features)
        if self.variant.doubles_last:
            features = tf.nn.depth_to_space(features, 2)
        update = tf.cast(tf.tanh(features), tf.float32) / 2
        return update + self.gamma * estimate, states

    @property
    def _decoder_scales(self) -> list[int]:
        # Pixels per position of each decoder RNN.
        first = DOWNSAMPLING // 2 if self.variant.doubles_first else DOWNSAMPLING
        return [first // 2**i for i in range(self.variant.decoder_rnns)]


def _check(variant: Variant, encoder_rnns: Sequence[int], decoder_channels: Sequence[int]) -> None:
    wanted = (variant.encoder_rnns, variant.decoder_rnns + 1)
    if (len(encoder_rnns), len(decoder_channels)) != wanted:
        raise ValueError(
            f"the variant needs {wanted[0] + 1 - variant.rnn_makes_code} numbers in "
            f"encoder_channels and {wanted[1]} in decoder_channels. Received: "
            f"{len(encoder_rnns) + 1 - variant.rnn_makes_code} and {len(decoder_channels)}"
        )
    if any(channels % 4 for channels in decoder_channels):
        raise ValueError(
            "decoder_channels must be multiples of 4, depth-to-space needs them. "
            f"Received: {tuple(decoder_channels)}"
        )


def _through(cells, features, states, training, doubling=False):
    """Return what leaves the last cell and all new states; `doubling` the size after each."""
    new_states = []
    for cell, state in zip(cells, states or [None] * len(cells)):
        state = cell(features, state, training=training)
        features = tf.nn.depth_to_space(state.hidden, 2) if doubling else state.hidden
        new_states.append(state)
    return features, tuple(new_states)


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


def _iterations_second(steps: tf.Tensor) -> tf.Tensor:
    return tf.transpose(steps, [1, 0, 2, 3, 4])  # [T, N, ...] -> [N, T, ...]
