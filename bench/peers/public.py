"""Public PyTorch code as it trains itself, from a checkout beside the repository.

One checkout per process: both call their modules `network` and `modules`.
"""

from __future__ import annotations

import importlib
import sys

import numpy as np
import torch

from bench import minibatch, worker


def reconstruction(checkout: str, objects: int, views: int, side: int) -> worker.Subject:
    """Return `step` of alex-golts/Pytorch-3D-R2N2, which has the network 3D-LSTM-3 alone.

    As its train.py does: view after view, decoder, NLLLoss, Adam.
    """
    network = _network(checkout)
    modules = network.Encoder(), network.ConvRNN3d(), network.Decoder()
    encoder, convrnn, decoder = modules
    solver = torch.optim.Adam([{"params": m.parameters()} for m in modules], lr=1e-4)
    criterion = torch.nn.NLLLoss()
    images, voxels = minibatch.make(objects, views, side)
    data = torch.tensor(np.moveaxis(images, -1, 2).copy())
    label = torch.tensor(voxels, dtype=torch.long)

    def step() -> float:
        hidden = tuple(torch.zeros(objects, 128, 4, 4, 4) for _ in range(2))
        solver.zero_grad()
        for view in range(views):
            hidden = convrnn(encoder(data[:, view]), hidden)
        loss = criterion(decoder(hidden[0]), label)
        loss.backward()
        solver.step()
        return float(loss.detach())

    return {"step": step}


def codec(checkout: str, rows: int, side: int, iterations: int) -> worker.Subject:
    """Return `step` of 1zb/pytorch-image-comp-rnn, the original network of Toderici et al.

    As its train.py does, on `rows` images of `side` pixels.
    """
    network = _network(checkout)
    modules = network.EncoderCell(), network.Binarizer(), network.DecoderCell()
    encoder, binarizer, decoder = modules
    solver = torch.optim.Adam([{"params": m.parameters()} for m in modules], lr=5e-4)
    images, _ = minibatch.make(rows, 1, side)
    patches = torch.tensor(np.moveaxis(images[:, 0], -1, 1).copy())

    def states(*channels_and_scales: tuple[int, int]) -> list:
        return [
            tuple(torch.zeros(rows, channels, side // scale, side // scale) for _ in range(2))
            for channels, scale in channels_and_scales
        ]

    def step() -> float:
        encoder_states = states((256, 4), (512, 8), (512, 16))
        decoder_states = states((512, 16), (512, 8), (256, 4), (128, 2))
        solver.zero_grad()
        losses = []
        residual = patches - 0.5
        for _ in range(iterations):
            encoded, *encoder_states = encoder(residual, *encoder_states)
            output, *decoder_states = decoder(binarizer(encoded), *decoder_states)
            residual = residual - output
            losses.append(residual.abs().mean())
        loss = sum(losses) / iterations
        loss.backward()
        solver.step()
        return float(loss.detach())

    return {"step": step}


def _network(checkout: str):
    sys.path.insert(0, checkout)
    return importlib.import_module("network")
