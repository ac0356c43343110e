"""What TensorBoard shows of a run: scalars, views before and after the codec, voxel meshes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorboard.plugins.mesh import summary_v2 as mesh_summary

from tfjoint import voxels
from tfjoint.dataset import Example
from tfjoint.metrics import THRESHOLD
from tfjoint.models import Output

GREEN, GREY = (90, 170, 90), (150, 150, 150)


class Summaries:
    """Writes a run's TensorBoard log; pictures always show the same few test objects."""

    def __init__(self, directory: Path, examples: Sequence[Example]) -> None:
        self._writer = tf.summary.create_file_writer(str(directory))
        self._examples = examples

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point of every curve."""
        with self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writer.flush()

    def pictures(self, step: int, output: Output) -> None:
        """Write strips and meshes of a model's output for the examples, in their order."""
        with self._writer.as_default(step):
            for index, example in enumerate(self._examples):
                name = f"{example.category} {example.object_id}"
                if output.decoded is not None:
                    strip = _strip(example.images[0], output.decoded[index, 0].numpy())
                    tf.summary.image(f"{name}/original, then each iteration", strip[np.newaxis])
                if output.logits is not None:
                    found = tf.sigmoid(output.logits[index]).numpy() >= THRESHOLD
                    _mesh(f"{name}/reconstruction", found, GREEN)
                    _mesh(f"{name}/truth", example.voxels, GREY)
        self._writer.flush()


def _strip(image: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    # [H, W, 3] and [T, H, W, 3] -> [H, (1 + T) W, 3]
    return np.concatenate([image, *np.clip(decoded, 0, 1)], axis=1)


def _mesh(name: str, grid: np.ndarray, colour: tuple[int, int, int]) -> None:
    vertices, faces = voxels.surface(grid)
    colours = np.broadcast_to(np.array(colour, np.uint8), vertices.shape)
    mesh_summary.mesh(name, vertices[None], faces=faces[None], colors=colours[None])
