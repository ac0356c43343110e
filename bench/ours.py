"""tfjoint's systems as they are trained, for `bench.worker`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bench import flops, minibatch, worker
from tfjoint import config, losses, models, optimizers, trainer
from tfjoint.layers import BinarizerNoise


def subject(
    settings: Mapping[str, Any], objects: int, views: int, iterations: int = 1
) -> worker.Subject:
    """Return the actions of a system with the config's `settings`, on one minibatch.

    step             a training step: forward, backward, optimizer -> loss
    gradients        the same without optimizer
    forward          what `evaluate` runs
    save(path)       weights by name, see `named_weights`
    outputs(path)    writes logits and gradients at inference's codes, to compare peers with
    flops            of the matrix products and convolutions of `gradients`; where a system
                     has one loop: either codec or grid
    parameters       how many numbers are trained
    """
    resolved = config.resolve({**settings, "batch_size": objects, "steps": 1})[0]
    model = models.create(resolved)
    images, voxels = minibatch.make(objects, views, resolved.image_size, resolved.voxel_size)
    batch = {
        "images": tf.constant(images),
        "voxels": tf.constant(voxels),
        "iterations": tf.constant(iterations),
        "step": tf.constant(0),
        "first_object": tf.constant(0),
    }
    # What runs in a loop: the grid, or the codec from its second iteration on.
    trips = views if resolved.uses("grid_size") else iterations - 1
    noise = BinarizerNoise(tf.constant([0, 0]), tf.constant(0), tf.constant(objects * views))

    # Everything that is run is an output of its graph; what is no output would be left out of it.
    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            output = model(batch["images"], iterations=iterations, noise=noise)
            loss = losses.loss_terms(resolved, batch, output)["loss"]
        return loss, tape.gradient(loss, model.trainable_variables)

    @tf.function
    def forward():
        output = model(batch["images"], iterations=iterations)
        return [tensor for tensor in output if tensor is not None]

    def run(function: Callable[[], Any]) -> float:
        return float(tf.reduce_mean(tf.cast(tf.nest.flatten(function())[0], tf.float32)))

    return {
        "step": _step(resolved, model, batch),
        "gradients": lambda: run(gradients),
        "forward": lambda: run(forward),
        "save": lambda path: np.savez(path, **named_weights(model)),
        "outputs": lambda path: np.savez(path, **_outputs(resolved, model, batch)),
        "flops": lambda: flops.of_graph(gradients.get_concrete_function().graph, trips),
        "parameters": lambda: sum(int(np.prod(v.shape)) for v in model.trainable_variables),
    }


def _step(resolved: config.Config, model: tf.keras.Model, batch: Mapping[str, tf.Tensor]):
    made: list[Callable[..., Any]] = []

    def step() -> float:
        if not made:  # the optimizer's variables are twice the model: only for whoever steps
            optimizer = optimizers.make_optimizer(
                resolved, optimizers.learning_rate_schedule(resolved, resolved.batch_size)
            )
            optimizers.build_optimizer(optimizer, model.trainable_variables)
            made.append(tf.function(trainer.training_step(resolved, model, optimizer)))
        return float(made[0](batch)["loss"])

    return step


def named_weights(model: tf.keras.Model) -> dict[str, np.ndarray]:
    """Return the weights of a reconstruction or implicit model by the place they have in it."""
    encoder, volume = model.image_encoder, model.volume
    decoder = volume.voxel_decoder
    layers = {f"image.{i}": layer for i, layer in enumerate(encoder.convolutions)}
    layers |= {"dense": encoder.dense}
    layers |= {f"volume.{i}": layer for i, layer in enumerate(decoder.upsampling)}
    layers |= {"hidden": decoder.hidden, "output": decoder.output_conv}
    named = {f"{n}.{part}": getattr(x, part) for n, x in layers.items() for part in _PARTS}
    names = ("input_kernel", "input_bias", "hidden_kernel", "hidden_bias")
    named |= {f"grid.{name}": getattr(volume.grid, name) for name in names}
    return {name: np.asarray(tf.convert_to_tensor(value)) for name, value in named.items()}


_PARTS = ("kernel", "bias")


def _outputs(
    resolved: config.Config, model: tf.keras.Model, batch: Mapping[str, tf.Tensor]
) -> dict[str, np.ndarray]:
    """Return `logits` and the gradients of L_3D, named as the weights are."""
    with tf.GradientTape() as tape:
        output = model(batch["images"])
        loss = losses.loss_terms(resolved, batch, output)["loss"]
    found = tape.gradient(loss, model.trainable_variables)
    # The gradients stand where the weights do, so that one list of names serves both.
    copy = models.create(resolved)
    for variable, gradient in zip(copy.trainable_variables, found):
        variable.assign(tf.cast(gradient, variable.dtype))
    return {"logits": output.logits.numpy(), **named_weights(copy)}


def codec(variant: str, profile: str, rows: int, side: int, iterations: int) -> worker.Subject:
    """Return the actions of the compression network alone on `rows` images of `side` pixels."""
    settings = {"model": "compression", "codec": variant, "profile": profile, "image_size": side}
    return subject(settings, rows, 1, iterations)


def export(model: str, profile: str, directory: Path) -> config.Config:
    """Write the SavedModel of a new model and return its config."""
    from tfjoint.export import Signatures

    resolved = config.resolve({"model": model, "profile": profile})[0]
    Signatures(models.create(resolved), resolved).save(directory)
    return resolved
