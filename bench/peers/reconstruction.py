"""3D-R2N2 and the implicit model in PyTorch, as fast as PyTorch lets them be.

The same network with the same weights as tfjoint's: all views in one call, all gates in one
convolution, memory with the channels last, `torch.compile` on request.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional as F

from bench import minibatch, worker

LEAK = 0.01
# How the taps of a 3-tap kernel add up to those of the transposed one: see tfjoint.layers.
_FOLD = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))


class Reconstruction(torch.nn.Module):
    """Image encoder, grid and voxel decoder.

    Args:
      weights: `bench.ours.named_weights`; their shapes say how wide everything is.
      implicit: tanh and binarizer behind the image encoder.
      folded: upsampling and the convolution after it as one transposed convolution.
    """

    def __init__(
        self, weights: Mapping[str, np.ndarray], implicit: bool = False, folded: bool = False
    ) -> None:
        super().__init__()
        self.implicit, self.folded = implicit, folded
        self.poolings = sum(n.startswith("image.") and n.endswith(".kernel") for n in weights)
        self.doublings = sum(n.startswith("volume.") and n.endswith(".kernel") for n in weights)
        for name, value in weights.items():
            self.register_parameter(_attribute(name), torch.nn.Parameter(_from_ours(name, value)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return occupancy logits [B, D, D, D] of images [B, V, 3, H, W] in [0, 1]."""
        batch, views = images.shape[:2]
        codes = self._encode(images.flatten(0, 1))
        hidden = self._grid(codes.view(batch, views, -1))
        return self._decode(hidden)

    def _weights(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return getattr(self, _attribute(f"{name}.kernel")), getattr(
            self, f"{_attribute(name)}_bias"
        )

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        features = images
        for index in range(self.poolings):
            features = F.conv2d(features, *self._weights(f"image.{index}"), padding="same")
            features = F.leaky_relu(F.max_pool2d(features, 2), LEAK)
        # In our order, (H, W, C): with the channels last in memory nothing moves.
        features = features.permute(0, 2, 3, 1).flatten(1)
        features = F.linear(features, *self._weights("dense"))
        return self._binarize(features.tanh()) if self.implicit else F.leaky_relu(features, LEAK)

    def _binarize(self, activation: torch.Tensor) -> torch.Tensor:
        if self.training:
            positive = torch.rand_like(activation) < (1 + activation) / 2
        else:
            positive = activation >= 0
        bits = torch.where(positive, 1.0, -1.0).to(activation.dtype)
        return activation + (bits - activation).detach()

    def _grid(self, codes: torch.Tensor) -> torch.Tensor:
        kernel, bias = self.grid_hidden_kernel, self.grid_hidden_bias
        projected = F.linear(codes, self.grid_input_kernel) + self.grid_input_bias.flatten()
        size, gates = self.grid_input_bias.shape[0], self.grid_input_bias.shape[-1]
        projected = projected.view(*codes.shape[:2], size, size, size, gates)
        projected = projected.permute(1, 0, 5, 2, 3, 4)  # [V, B, gates F, G, G, G]
        hidden = cell = projected.new_zeros(())
        for view, now in enumerate(projected):
            # The first hidden state is zero: so is its convolution, but for the bias.
            now = now + (F.conv3d(hidden, kernel, bias, padding=1) if view else _spread(bias))
            i, f, g = now.chunk(3, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.tanh(cell)
        return hidden

    def _decode(self, features: torch.Tensor) -> torch.Tensor:
        for index in range(self.doublings):
            kernel, bias = self._weights(f"volume.{index}")
            if self.folded:
                kernel = _folded(kernel)
                features = F.conv_transpose3d(features, kernel, bias, stride=2, padding=1)
            else:
                features = F.interpolate(features, scale_factor=2, mode="nearest")
                features = F.conv3d(features, kernel, bias, padding=1)
            features = F.leaky_relu(features, LEAK)
        features = F.conv3d(features, *self._weights("hidden"), padding=1)
        features = F.conv3d(F.leaky_relu(features, LEAK), *self._weights("output"), padding=1)
        empty, occupied = features.float().unbind(1)
        return occupied - empty


def _attribute(name: str) -> str:
    return name.replace(".", "_")


def _spread(bias: torch.Tensor) -> torch.Tensor:
    return bias[:, None, None, None]


def _folded(kernel: torch.Tensor) -> torch.Tensor:
    fold = torch.tensor(_FOLD, dtype=kernel.dtype)
    return torch.einsum("ai,bj,ck,yxijk->xyabc", fold, fold, fold, kernel)


def _from_ours(name: str, value: np.ndarray) -> torch.Tensor:
    """Return a weight in PyTorch's order: outputs first, then inputs, then taps."""
    if name.endswith("kernel"):
        value = np.moveaxis(value, (-1, -2), (0, 1))
    return torch.tensor(np.ascontiguousarray(value))


def to_ours(name: str, value: np.ndarray) -> np.ndarray:
    """Return a weight or its gradient in tfjoint's order."""
    return np.moveaxis(value, (0, 1), (-1, -2)) if name.endswith("kernel") else value


def subject(
    weights: str,
    objects: int,
    views: int,
    side: int,
    voxel_size: int,
    implicit: bool = False,
    precision: str = "float32",
) -> worker.Subject:
    """Return the actions of every variant: "<variant>.step" -> loss.

    `eager` or `compiled`, with or without `_folded`, and `eager_contiguous`, the one that keeps the
    channels where PyTorch has them by default. `outputs(variant, path)` writes what `bench.ours`
    does, from inference's codes.
    """
    with np.load(weights) as archive:
        values = dict(archive)
    images, voxels = minibatch.make(objects, views, side, voxel_size)
    actions: dict = {"outputs": lambda name, path: variants[name].outputs(path)}
    variants: dict[str, _Variant] = {}
    for name in VARIANTS:
        variants[name] = _Variant(name, values, images, voxels, implicit, precision)
        actions[f"{name}.step"] = variants[name].step
    return actions


VARIANTS = ("eager_contiguous", "eager", "compiled", "eager_folded", "compiled_folded")


class _Variant:
    """One way to run the network; the model is made when it is first asked."""

    def __init__(self, name, values, images, voxels, implicit, precision) -> None:
        self._name, self._values, self._implicit = name, values, implicit
        self._images = torch.tensor(np.moveaxis(images, -1, 2).copy())
        self._voxels = torch.tensor(voxels, dtype=torch.float32)
        self._autocast = torch.autocast("cpu", torch.bfloat16, precision != "float32")
        self._model: Reconstruction | None = None

    def _make(self) -> Reconstruction:
        model = Reconstruction(self._values, self._implicit, "folded" in self._name)
        if "contiguous" not in self._name:
            for parameter in model.parameters():
                if parameter.ndim >= 4:
                    format = _channels_last(parameter)
                    parameter.data = parameter.data.contiguous(memory_format=format)
            rows = self._images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            self._images = rows.view(self._images.shape)
        self._run = torch.compile(model) if "compiled" in self._name else model
        self._optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-7, fused=True)
        return model

    def step(self) -> float:
        """Return the loss of a training step."""
        self._model = self._model or self._make()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self._run)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def _loss(self, run) -> torch.Tensor:
        with self._autocast:
            self._logits = run(self._images)
        return F.binary_cross_entropy_with_logits(self._logits, self._voxels)

    def outputs(self, path: str) -> None:
        self._model = self._model or self._make()
        self._optimizer.zero_grad(set_to_none=True)
        self._model.eval()
        self._loss(self._run).backward()
        self._model.train()
        parameters = dict(self._model.named_parameters())
        gradients = {
            name: to_ours(name, parameters[_attribute(name)].grad.numpy()) for name in self._values
        }
        np.savez(path, logits=self._logits.detach().numpy(), **gradients)


def _channels_last(tensor: torch.Tensor) -> torch.memory_format:
    return {4: torch.channels_last, 5: torch.channels_last_3d}[tensor.ndim]
