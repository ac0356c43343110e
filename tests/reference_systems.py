"""Whole systems in float64 NumPy: what they make of images, and the loss that trains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import reference

from tfjoint.config import Config

Binarize = Callable[[np.ndarray, int], np.ndarray]
"""(activation, iteration) -> code."""


def keep(activation: np.ndarray, iteration: int) -> np.ndarray:
    """No binarizer: the code is the activation."""
    return activation


class StraightThrough:
    """A binarizer whose bits can be differentiated by trying.

    The first activation of an iteration decides its bits: by its sign, or where `uniform` numbers
    are drawn by b = +1 with probability (1 + x) / 2. Other activations of the same iteration get
    the difference between the first and its bits added. At the first the code is made of bits, and
    around it changes as the activation does, which is what a straight-through gradient claims.
    """

    def __init__(self, uniform: Callable[[int, np.ndarray], np.ndarray] | None = None) -> None:
        self.margin = np.inf
        """How far the nearest activation is from giving the other bit."""
        self._uniform = uniform
        self._shifts: dict[int, np.ndarray] = {}

    def __call__(self, activation: np.ndarray, iteration: int) -> np.ndarray:
        if iteration not in self._shifts:
            distance = activation
            if self._uniform:
                distance = (1 + activation) / 2 - self._uniform(iteration, activation)
            self.margin = min(self.margin, np.abs(distance).min())
            self._shifts[iteration] = np.where(distance >= 0, 1.0, -1.0) - activation
        return activation + self._shifts[iteration]


class Codec(reference.Codec):
    """The compression network with a binarizer of the caller's choice."""

    def compress(
        self, images: np.ndarray, iterations: int, binarize: Binarize
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return codes and decoded images, [N, T, ...] each, of images [N, H, W, 3]."""
        centred = images - 0.5
        estimate = np.zeros_like(centred, np.float64)
        encoder: list = [None] * len(self.encoder_cells)
        decoder: list = [None] * len(self.decoder_cells)
        codes, decoded = [], []
        for iteration in range(iterations):
            codes.append(binarize(self._encode(centred - estimate, encoder), iteration))
            estimate = self._decode(codes[-1], decoder) + self.gamma * estimate
            decoded.append(estimate + 0.5)
        return np.stack(codes, axis=1), np.stack(decoded, axis=1)


def volume(config: Config, sequence: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Return the logits of the sequences [B, S, K]."""
    first = 3 if config.shared_bias else 4
    hidden = reference.grid_lstm(sequence, *weights[:first], output_gate=config.output_gate)
    return reference.voxel_decoder(hidden, weights[first:], config.unpooling)


def run(
    config: Config,
    weights: Sequence[np.ndarray],
    images: np.ndarray,
    iterations: int,
    binarize: Binarize,
) -> dict[str, np.ndarray]:
    """Return "codes", "decoded" and "logits" of images [B, V, H, W, 3], as far as they are made.

    Args:
      config: of the system.
      weights: of the codec, of the image encoder, of grid and voxel decoder, where there is one.
      images: [B, V, H, W, 3].
      iterations: of the codec.
      binarize: the binarizer, or `keep`.
    """
    rows = images.reshape(-1, *images.shape[2:])
    of_codec = {"small_a": 15, "small_b": 15, "original": 18}[config.codec] * config.uses("codec")
    of_volume = (3 if config.shared_bias else 4) + 10
    made = {}
    if config.uses("codec"):
        codec = Codec(weights[:of_codec], config.gamma, config.codec)
        codes, decoded = codec.compress(rows, iterations, binarize)
        made |= {"codes": codes, "decoded": decoded}
        rows = np.clip(decoded[:, -1], 0, 1)
    if config.uses("feature_channels"):
        of_encoder = weights[of_codec:-of_volume]
        code = config.model == "implicit"
        vectors = reference.image_encoder(rows, of_encoder, code, config.pool_padding)
        if code:
            made["codes"] = vectors = binarize(vectors, 0)
    elif config.uses("grid_size"):
        vectors = made["codes"]
    made = {
        name: value.reshape(*images.shape[:2], *value.shape[1:]) for name, value in made.items()
    }
    if config.uses("grid_size"):
        size = config.code_size if config.model == "direct" else vectors.shape[-1]
        sequence = vectors.reshape(len(images), -1, size)  # view after view
        made["logits"] = volume(config, sequence, weights[-of_volume:])
    return made


def loss_terms(
    config: Config, images: np.ndarray, voxels: np.ndarray, made: dict[str, np.ndarray]
) -> dict[str, float]:
    """Return L_comp (Eq. 14), L_3D (Eq. 15 as a mean) and their weighted sum (Eq. 16)."""
    terms = {}
    if "decoded" in made:
        terms["L_comp"] = np.mean(np.abs(images[:, :, np.newaxis] - made["decoded"]))
    if "logits" in made:
        # log(1 + e^-l) where occupied, log(1 + e^l) where empty.
        terms["L_3D"] = np.mean(np.logaddexp(0, np.where(voxels, -1, 1) * made["logits"]))
    weight = {"L_comp": 1, "L_3D": config.loss_weight}
    return {**terms, "loss": sum(weight[name] * term for name, term in terms.items())}
