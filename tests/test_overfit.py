"""Every system learns four real objects by heart, with the trainer's step and noise.

For that, what tells one object from another has to get through the whole system.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfjoint import config, dataset, models, trainer
from tfjoint.records import ObjectRecord, RecordSet

pytest_plugins = ("trained",)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_determinism")]

CATEGORIES = ("bed", "cabinet", "chair", "table")
VIEWS, ITERATIONS, SIZE = 3, 2, 32
THRESHOLD = 0.4
LAST = 20
"""Steps whose losses are averaged: the noise of the binarizer makes single ones differ."""

NARROW = {
    "profile": "smoke",
    "batch_size": len(CATEGORIES),
    "views_min": VIEWS,
    "views_max": VIEWS,
    "iterations_min": ITERATIONS,
    "iterations_max": ITERATIONS,
    "image_size": SIZE,
    "feature_channels": (16, 32, 32, 32),
    "features": 64,
    "code_bits": 64,
    "grid_channels": 16,
    "voxel_channels": (16, 16, 16, 8),
}
SMALL = {"encoder_channels": (16, 32, 32), "decoder_channels": (32, 32, 16, 16)}
ORIGINAL = {
    "codec": "original",
    "encoder_channels": (16, 32, 32, 32),
    "decoder_channels": (32, 32, 32, 16, 16),
}


class FourObjects:
    """The first object of each category, with three of its views at half their size."""

    def __init__(self, records: RecordSet) -> None:
        categories = [entry.category for entry in records.objects]
        chosen = [categories.index(category) for category in CATEGORIES]
        self.objects = [records.objects[index] for index in chosen]
        self.data_sha256 = records.data_sha256
        self.manifest = dataclasses.replace(records.manifest, image_size=SIZE, views=VIEWS)
        self._records = [_smaller(records.record(index)) for index in chosen]

    def record(self, index: int) -> ObjectRecord:
        return self._records[index]


def _smaller(record: ObjectRecord) -> ObjectRecord:
    return dataclasses.replace(record, views=[_halved(view) for view in record.views[:VIEWS]])


def _halved(png: bytes) -> bytes:
    half = Image.open(io.BytesIO(png)).reduce(2)
    margin = (half.width - SIZE) // 2
    stream = io.BytesIO()
    half.crop((margin, margin, margin + SIZE, margin + SIZE)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def records() -> dataset.Split:
    return dataset.Split([FourObjects(RecordSet(dataset.DEMO, "test"))])


@dataclasses.dataclass(frozen=True)
class Learned:
    """A trained system, its loss at the start and at the end, and what it makes at inference."""

    model: tf.keras.Model
    first: float
    last: float
    images: np.ndarray
    output: models.Output
    ious: np.ndarray | None


def learn(
    records: dataset.Split,
    model: str,
    steps: int,
    frozen: tf.keras.Model | None = None,
    **settings,
) -> Learned:
    """Train a system from scratch, but for the codec that it is given `frozen`."""
    shared = set(NARROW) - set().union(*config.USES.values())
    settings = {"learning_rate": 3e-3, **NARROW, **settings}
    used = {
        n: v for n, v in settings.items() if n not in NARROW or n in shared | config.USES[model]
    }
    # An epoch is one step here.
    halvings = steps * 6 // 10, steps * 8 // 10
    resolved = config.resolve({"model": model, "halve_at_epochs": halvings, **used})[0]
    tf.config.experimental.enable_op_determinism()
    system = models.create(resolved)
    if frozen:
        system.compression.set_weights(frozen.get_weights())
    schedule = trainer.learning_rate_schedule(resolved, len(records))
    optimizer = trainer.make_optimizer(resolved, schedule)
    trainer.build_optimizer(optimizer, system.trainable_variables)
    strategy = tf.distribute.get_strategy()
    trained = trainer._steps(resolved, strategy, system, optimizer, records, 0, steps)
    losses = [terms["loss"] for terms in trained]

    examples = list(dataset.evaluation_examples(resolved, records, VIEWS, seed=0))
    images = np.stack([example.images for example in examples])
    voxels = np.stack([example.voxels for example in examples])
    output = system(images, iterations=ITERATIONS)
    ious = None
    if output.logits is not None:
        found = tf.sigmoid(output.logits).numpy() >= THRESHOLD
        axes = (1, 2, 3)
        ious = np.sum(found & voxels, axis=axes) / np.sum(found | voxels, axis=axes)
    last = float(np.mean(losses[-LAST:]))
    print(f"{model}: {steps} steps, loss {losses[0]:.4f} -> {last:.4f}, IoU {ious}")
    return Learned(system, losses[0], last, images, output, ious)


def error(images: np.ndarray, decoded: np.ndarray) -> float:
    return float(np.abs(images - decoded).mean())


def assert_shapes_are_learned(learned: Learned) -> None:
    assert learned.last < learned.first / 4
    assert learned.ious.mean() > 0.9
    assert learned.ious.min() > 0.75


def assert_images_are_learned(learned: Learned) -> None:
    """Better than the one image that is best for all views."""
    images, decoded = learned.images, learned.output.decoded[:, :, -1]
    median = np.median(images, axis=(0, 1), keepdims=True)
    print(f"error {error(images, decoded):.4f}, of the median image {error(images, median):.4f}")
    assert error(images, decoded) < 0.75 * error(images, median)


@pytest.fixture(scope="module")
def compression(records) -> Learned:
    return learn(records, "compression", 300, **ORIGINAL)


@pytest.mark.long
def test_compression_learns_four_objects(compression):
    assert compression.last < compression.first / 4
    assert_images_are_learned(compression)


@pytest.mark.long
def test_reconstruction_learns_four_objects(records):
    assert_shapes_are_learned(learn(records, "reconstruction", 200))


@pytest.mark.long
def test_separate_learns_four_objects_from_what_a_trained_codec_decodes(records, compression):
    codec = compression.model
    before = codec.get_weights()
    separate = learn(records, "separate", 200, codec, **ORIGINAL)
    assert_shapes_are_learned(separate)
    for ours, theirs in zip(separate.model.compression.get_weights(), before):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.long
def test_sequential_learns_four_objects(records):
    """With more weight, L_3D takes away from the views what it cannot tell apart at first."""
    settings = {"learning_rate": 2e-3, "loss_weight": 0.1, **ORIGINAL}
    sequential = learn(records, "sequential", 400, **settings)
    assert_shapes_are_learned(sequential)
    assert_images_are_learned(sequential)


@pytest.mark.long
def test_direct_learns_four_objects(records):
    assert_shapes_are_learned(learn(records, "direct", 250, **SMALL))


@pytest.mark.long
def test_direct_learns_four_objects_without_a_binarizer(records):
    direct = learn(records, "direct", 200, binarizer=False, **SMALL)
    assert_shapes_are_learned(direct)
    assert_images_are_learned(direct)


@pytest.mark.long
def test_implicit_learns_four_objects(records):
    assert_shapes_are_learned(learn(records, "implicit", 250))
