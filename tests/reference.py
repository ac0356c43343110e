"""The networks once more, in float64 NumPy and the slowest way: what the fast ones must equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def convolve(inputs: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """Convolve [N, *sides, C] in 2D or 3D with "same" padding, one product for every tap."""
    sides, taps = inputs.shape[1:-1], kernel.shape[:-2]
    outputs = [-(-side // stride) for side in sides]
    missing = [max((o - 1) * stride + k - s, 0) for o, k, s in zip(outputs, taps, sides)]
    padded = np.pad(inputs, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
    result = np.zeros((inputs.shape[0], *outputs, kernel.shape[-1]))
    for tap in np.ndindex(*taps):
        window = [slice(t, t + (o - 1) * stride + 1, stride) for t, o in zip(tap, outputs)]
        result += padded[(slice(None), *window)] @ kernel[tap].astype(np.float64)
    return result


def depth_to_space(x: np.ndarray) -> np.ndarray:
    """[N, H, W, 4 C] -> [N, 2 H, 2 W, C]: four groups of channels become a 2 x 2 square."""
    rows, height, width, channels = x.shape
    result = np.zeros((rows, 2 * height, 2 * width, channels // 4), x.dtype)
    for group, (i, j) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        result[:, i::2, j::2] = x[..., group * channels // 4 : (group + 1) * channels // 4]
    return result


def conv_lstm(
    x: np.ndarray, hidden: np.ndarray, cell: np.ndarray, kernels: Sequence[np.ndarray], stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """One step of the compression network's cell; returns hidden and cell state."""
    gates = convolve(x, kernels[0], stride) + convolve(hidden, kernels[1])
    i, f, g, o = np.split(gates, 4, axis=-1)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


def grid_lstm(
    codes: np.ndarray, input_kernel: np.ndarray, *others: np.ndarray, output_gate: bool = False
) -> np.ndarray:
    """The 3D grid, cell after cell: codes [B, S, K] -> last hidden state [B, G, G, G, F].

    `others` are the bias of every cell, the hidden kernel and the hidden bias; where all cells
    share their biases, the first is left out.
    """
    *input_bias, hidden_kernel, hidden_bias = others
    objects, steps, bits = codes.shape
    channels, gate_count = hidden_kernel.shape[-2], 4 if output_gate else 3
    size = round((input_kernel.shape[1] / (gate_count * channels)) ** (1 / 3))
    own_kernels = input_kernel.reshape(bits, size, size, size, -1).astype(np.float64)
    biases = np.broadcast_to(sum(input_bias) + hidden_bias, own_kernels.shape[1:])
    hidden = np.zeros((objects, size, size, size, channels))
    cells = np.zeros_like(hidden)
    for step in range(steps):
        before = np.pad(hidden, [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)])
        for b in range(objects):
            for x, y, z in np.ndindex(size, size, size):
                gates = codes[b, step] @ own_kernels[:, x, y, z] + biases[x, y, z]
                for dx, dy, dz in np.ndindex(3, 3, 3):
                    gates = gates + before[b, x + dx, y + dy, z + dz] @ hidden_kernel[dx, dy, dz]
                i, f, g, *o = np.split(gates, gate_count)
                cells[b, x, y, z] = sigmoid(f) * cells[b, x, y, z] + sigmoid(i) * np.tanh(g)
                hidden[b, x, y, z] = np.tanh(cells[b, x, y, z])
                if output_gate:
                    hidden[b, x, y, z] *= sigmoid(o[0])
    return hidden


class Codec:
    """The compression network: same weights, same iterations, for images [N, H, W, 3].

    Its weights are those of a `models.Codec` in their order: the encoder's convolution, its three
    cells with two kernels each, of the original network the convolution that makes the code, the
    decoder's convolution, its cells, the last convolution.
    """

    def __init__(
        self,
        weights: Sequence[np.ndarray],
        gamma: float = 1.0,
        variant: str = "small_a",
        binarizer: bool = True,
    ) -> None:
        self.gamma = gamma
        self.variant = variant
        self.binarizer = binarizer
        original = variant == "original"
        rest = iter(weights)
        self.encoder_conv = next(rest)
        self.encoder_cells = [(next(rest), next(rest)) for _ in range(3)]
        self.code_conv = next(rest) if original else None
        self.decoder_conv = next(rest)
        self.decoder_cells = [(next(rest), next(rest)) for _ in range(4 if original else 3)]
        self.output_conv = next(rest)
        assert not list(rest)

    def run(self, images: np.ndarray, iterations: int) -> tuple[np.ndarray, ...]:
        """Return activations before the binarizer, codes and images, [N, T, ...] each."""
        centred = images - 0.5
        estimate = np.zeros_like(centred, np.float64)
        encoder: list = [None] * len(self.encoder_cells)
        decoder: list = [None] * len(self.decoder_cells)
        activations, codes, decoded = [], [], []
        for _ in range(iterations):
            activations.append(self._encode(centred - estimate, encoder))
            bits = np.where(activations[-1] >= 0, 1.0, -1.0)
            codes.append(bits if self.binarizer else activations[-1])
            estimate = self._decode(codes[-1], decoder) + self.gamma * estimate
            decoded.append(estimate + 0.5)
        return tuple(np.stack(steps, axis=1) for steps in (activations, codes, decoded))

    def _encode(self, residual: np.ndarray, states: list) -> np.ndarray:
        x = convolve(residual, self.encoder_conv, 2)
        for index, kernels in enumerate(self.encoder_cells):
            x = _advance(x, states, index, kernels, 2)
        return x if self.code_conv is None else np.tanh(convolve(x, self.code_conv))

    def _decode(self, code: np.ndarray, states: list) -> np.ndarray:
        x = convolve(code, self.decoder_conv)
        if self.variant == "small_a":
            x = depth_to_space(x)
        for index, kernels in enumerate(self.decoder_cells):
            x = depth_to_space(_advance(x, states, index, kernels, 1))
        x = convolve(x, self.output_conv)
        if self.variant == "small_b":
            x = depth_to_space(x)
        return np.tanh(x) / 2


def _advance(
    x: np.ndarray, states: list, index: int, kernels: Sequence[np.ndarray], stride: int
) -> np.ndarray:
    if states[index] is None:
        rows, height, width, _ = x.shape
        zeros = np.zeros((rows, height // stride, width // stride, kernels[1].shape[-2]))
        states[index] = zeros, zeros
    states[index] = conv_lstm(x, *states[index], kernels, stride)
    return states[index][0]


def leaky_relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.01 * x)


def image_encoder(
    images: np.ndarray, weights: Sequence[np.ndarray], code: bool = False, padding: bool = False
) -> np.ndarray:
    """Images [N, H, W, 3] -> vectors [N, K]; weights are kernel, bias, kernel, ... of all layers.

    With `code` the vector ends in tanh, not in a leaky ReLU. With `padding` one more row and column
    surrounds what is pooled.
    """
    x, last = images, len(weights) - 2
    for index in range(0, last, 2):
        x = convolve(x, weights[index]) + weights[index + 1]
        x = np.pad(x, [(0, 0), *[(int(padding),) * 2] * 2, (0, 0)], constant_values=-np.inf)
        height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        corners = [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
        x = leaky_relu(np.max(corners, axis=0))
    x = x.reshape(len(x), -1) @ weights[last].astype(np.float64) + weights[last + 1]
    return np.tanh(x) if code else leaky_relu(x)


def insert_zeros(volume: np.ndarray) -> np.ndarray:
    """Double the sides of [B, D, H, W, C]: the values at the even places, zeros at the others."""
    batch, *sides, channels = volume.shape
    doubled = np.zeros((batch, *(2 * side for side in sides), channels), volume.dtype)
    doubled[:, ::2, ::2, ::2] = volume
    return doubled


def voxel_decoder(
    grid: np.ndarray, weights: Sequence[np.ndarray], unpooling: str = "nearest"
) -> np.ndarray:
    """The five convolutions (kernel, bias, kernel, ...) of the voxel decoder; returns logits."""
    x = grid
    for index in range(5):
        kernel, bias = weights[2 * index], weights[2 * index + 1]
        if index < 3 and unpooling == "nearest":
            x = x.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
        elif index < 3:
            x = insert_zeros(x)
        x = convolve(x, kernel) + bias
        if index < 4:
            x = leaky_relu(x)
    return x[..., 1] - x[..., 0]
