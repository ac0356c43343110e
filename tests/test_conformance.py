"""One table of every layer, network and system, and what has to hold for each of its rows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference
import reference_systems
import tensorflow as tf
from tensorflow.python.framework import config as framework

from tfjoint import config, dataset, export, models, trainer
from tfjoint.layers import (
    Binarizer,
    BinarizerNoise,
    ConvLSTMCell,
    GridLSTM,
    UpConv3D,
    initializers,
    repeat,
)
from tfjoint.losses import loss_terms
from tfjoint.models import Codec, ImageEncoder, VoxelDecoder
from tfjoint.records import ObjectRecord, RecordSet

pytest_plugins = ("trained",)

STEP = 3
"""The training step whose noise is drawn."""
SIZES = [(1, 1, 1), (2, 3, 2), (3, 2, 4)]
"""Objects, views, iterations."""


# --- The table ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer, network or system: how it is made, fed and called, and the same in NumPy."""

    make: Callable[..., tf.keras.layers.Layer]
    """(**changes) -> the layer, built or not."""
    shape: tuple[int | None, ...] | None
    """What it is built for."""
    inputs: Callable[[np.random.Generator, int, int, int], np.ndarray]
    """(generator, B, V, T) -> inputs, objects first."""
    call: Callable[..., dict[str, tf.Tensor]]
    """(layer, inputs, T, training step or None) -> outputs by name, objects first."""
    reference: Callable[..., dict[str, np.ndarray]]
    """(weights, inputs, T, binarize) -> the same outputs."""
    shapes: Callable[[int, int, int], dict[str, tuple[int, ...]]]
    """(B, V, T) -> shapes of the outputs."""
    paper: Callable[[], tf.keras.layers.Layer] | None = None
    """Makes it at the paper's widths."""
    parameters: int = 0
    """The number of weights it then has."""
    binarizer: bool = False
    draws: bool = False
    """Whether the binarizer draws in training."""
    settings: dict[str, Any] | None = None
    """Of a system."""

    def build(self, precision: str = "float32", **changes) -> tf.keras.layers.Layer:
        if self.settings:  # of which the precision is one
            changes["precision"] = precision
        with _policy(precision):
            layer = self.make(**changes)
            if not layer.built:
                layer.build(self.shape)
        return layer

    @property
    def config(self) -> config.Config:
        assert self.settings is not None
        return config.resolve(self.settings)[0]


@contextlib.contextmanager
def _policy(precision: str) -> Iterator[None]:
    previous = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(precision)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(previous)


def noise(rows: int, step: int | None) -> BinarizerNoise | None:
    if step is None:
        return None
    return BinarizerNoise(tf.constant([0, step]), tf.constant(0), tf.convert_to_tensor(rows))


def _built(layer: tf.keras.layers.Layer, *shape: int | None) -> tf.keras.layers.Layer:
    layer.build(shape)
    return layer


def _cell(kernel: int, hidden: int, stride: int) -> Row:
    side = 6 // stride

    def call(layer, x, iterations, step):
        state = None
        for t in range(iterations):
            state = layer(x[:, t], state)
        return state._asdict()

    def expected(weights, x, iterations, binarize):
        state = np.zeros((len(x), side, side, 4)), np.zeros(())
        for t in range(iterations):
            state = reference.conv_lstm(x[:, t], *state, weights, stride)
        return {"hidden": state[0], "cell": state[1]}

    return Row(
        make=lambda: ConvLSTMCell(4, kernel, hidden, stride),
        shape=(None, None, None, 3),
        inputs=lambda rng, b, v, t: rng.normal(size=(b, t, 6, 6, 3)),
        call=call,
        reference=expected,
        shapes=lambda b, v, t: {"hidden": (b, side, side, 4), "cell": (b, side, side, 4)},
        paper=lambda: _built(ConvLSTMCell(512, kernel, hidden, stride), None, None, None, 256),
        parameters=4 * 512 * (256 * kernel**2 + 512 * hidden**2),
    )


def _grid(parameters: int, **settings) -> Row:
    gate = settings.get("output_gate", False)
    return Row(
        make=lambda: GridLSTM(2, 3, **settings),
        shape=(None, None, 5),
        inputs=lambda rng, b, v, t: rng.choice([-1.0, 1.0], size=(b, v * t, 5)),
        call=lambda layer, x, t, step: {"hidden": layer(x)},
        reference=lambda weights, x, t, binarize: {
            "hidden": reference.grid_lstm(x, *weights, output_gate=gate)
        },
        shapes=lambda b, v, t: {"hidden": (b, 2, 2, 2, 3)},
        paper=lambda: _built(GridLSTM(**settings), None, None, 1024),
        parameters=parameters,
    )


def _up_conv(unpooling: str) -> Row:
    double = {
        "nearest": lambda x: x.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3),
        "zeros": reference.insert_zeros,
    }[unpooling]
    return Row(
        make=lambda: UpConv3D(5, unpooling),
        shape=(None, None, None, None, 3),
        inputs=lambda rng, b, v, t: rng.normal(size=(b, v, t, 4, 3)),
        call=lambda layer, x, t, step: {"volume": layer(x)},
        reference=lambda weights, x, t, binarize: {
            "volume": reference.convolve(double(x), weights[0]) + weights[1]
        },
        shapes=lambda b, v, t: {"volume": (b, 2 * v, 2 * t, 8, 5)},
        paper=lambda: _built(UpConv3D(128, unpooling), None, None, None, None, 128),
        parameters=27 * 128 * 128 + 128,
    )


class Recurrence(tf.keras.layers.Layer):
    """s' = tanh(s W + x (t + 1)), the outputs s' and s' x; written with `repeat`."""

    def __init__(self, recompute: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.recompute = recompute

    def build(self, input_shape) -> None:
        size = input_shape[-1]
        self.kernel = self.add_weight(name="kernel", shape=(size, size))
        self.built = True

    def call(self, inputs: tf.Tensor, iterations: int) -> list[tf.Tensor]:
        def step(t, state, inputs):
            before = 0.0 if state is None else state @ self.kernel
            state = tf.tanh(before + inputs * tf.cast(t + 1, inputs.dtype))
            return state, (state, state * inputs)

        outputs = repeat(step, iterations, inputs, [inputs.dtype] * 2, self.recompute)
        return [tf.transpose(output, [1, 0, 2]) for output in outputs]

    @staticmethod
    def reference(weights, x, iterations, binarize) -> dict[str, np.ndarray]:
        states = [np.zeros_like(x)]
        for t in range(iterations):
            states.append(np.tanh(states[-1] @ weights[0] + x * (t + 1)))
        after = np.stack(states[1:], axis=1)
        return {"states": after, "products": after * x[:, np.newaxis]}


REPEAT = Row(
    make=Recurrence,
    shape=(None, 3),
    inputs=lambda rng, b, v, t: rng.normal(size=(b, 3)),
    call=lambda layer, x, t, step: dict(zip(("states", "products"), layer(x, iterations=t))),
    reference=Recurrence.reference,
    shapes=lambda b, v, t: {"states": (b, t, 3), "products": (b, t, 3)},
)


def _recomputing(row: Row) -> Row:
    """The same, with activations computed again in the backward pass."""
    settings = row.settings and {**row.settings, "recompute": True}
    make = functools.partial(row.make, recompute=True)
    return dataclasses.replace(row, make=make, settings=settings, paper=None)


NARROW = {
    "small_a": {"encoder_channels": (4, 6, 8), "decoder_channels": (8, 12, 8, 4)},
    "small_b": {"encoder_channels": (4, 6, 8), "decoder_channels": (8, 12, 8, 4)},
    "original": {"encoder_channels": (4, 6, 8, 6), "decoder_channels": (8, 12, 8, 8, 4)},
}
PAPER_CODECS = {"small_a": 8_878_832, "small_b": 11_282_496, "original": 35_456_800}


def _codec(variant: str, gamma: float, binarizer: bool) -> Row:
    def call(layer, x, iterations, step):
        return layer(x, iterations=iterations, noise=noise(len(x), step))._asdict()

    def expected(weights, x, iterations, binarize):
        codec = reference_systems.Codec(weights, gamma, variant)
        return dict(zip(("codes", "decoded"), codec.compress(x, iterations, binarize)))

    def paper():
        settings = config.resolve({"model": "compression", "codec": variant})[0]
        widths = {name: getattr(settings, name) for name in (*NARROW[variant], "code_channels")}
        return _built(Codec(variant, **widths, gamma=gamma, binarizer=binarizer))

    return Row(
        make=functools.partial(
            Codec, variant, **NARROW[variant], code_channels=5, gamma=gamma, binarizer=binarizer
        ),
        shape=None,
        inputs=lambda rng, b, v, t: rng.random((b * v, 32, 48, 3)),
        call=call,
        reference=expected,
        shapes=lambda b, v, t: {"codes": (b * v, t, 2, 3, 5), "decoded": (b * v, t, 32, 48, 3)},
        paper=paper if gamma and binarizer else None,  # which have no weights
        parameters=PAPER_CODECS[variant],
        binarizer=binarizer,
        draws=binarizer,
    )


def _image_encoder(parameters: int, padding: bool) -> Row:
    size = 23 if padding else 24  # 23 -> 12 -> 7 -> 4, or 24 -> 12 -> 6 -> 3
    return Row(
        make=lambda: ImageEncoder((4, 6, 5), 7, pool_padding=padding),
        shape=(None, size, size, 3),
        inputs=lambda rng, b, v, t: rng.random((b * v, size, size, 3)),
        call=lambda layer, x, t, step: {"vectors": layer(x)},
        reference=lambda weights, x, t, binarize: {
            "vectors": reference.image_encoder(x, weights, padding=padding)
        },
        shapes=lambda b, v, t: {"vectors": (b * v, 7)},
        paper=lambda: _built(ImageEncoder(pool_padding=padding), None, 128, 128, 3),
        parameters=parameters,
    )


def _voxel_decoder(unpooling: str) -> Row:
    return Row(
        make=lambda: VoxelDecoder((4, 3, 5, 4), unpooling),
        shape=(None, None, None, None, 3),
        inputs=lambda rng, b, v, t: np.tanh(rng.normal(size=(b, 2, 2, 2, 3))),
        call=lambda layer, x, t, step: {"logits": layer(x)},
        reference=lambda weights, x, t, binarize: {
            "logits": reference.voxel_decoder(x, weights, unpooling)
        },
        shapes=lambda b, v, t: {"logits": (b, 16, 16, 16)},
        paper=lambda: _built(VoxelDecoder(unpooling=unpooling), None, None, None, None, 128),
        parameters=1_163_298,
    )


TINY = {
    "profile": "smoke",
    "batch_size": 4,
    "views_min": 2,
    "views_max": 2,
    "iterations_min": 2,
    "iterations_max": 2,
    "image_size": 32,
    "code_channels": 5,
    "code_bits": 12,
    "feature_channels": (4, 5, 6, 5),
    "features": 7,
    "grid_size": 2,
    "grid_channels": 3,
    "voxel_channels": (4, 3, 5, 4),
}
"""The settings of all systems here, where they are used; sides and channels tell each other."""
CHOY = {"pool_padding": True, "shared_bias": True, "unpooling": "zeros"}


def _system(parameters: int, model: str, size: int = 32, paper_size: int = 128, **settings) -> Row:
    tiny = {**TINY, **NARROW[settings.get("codec", "small_a")], "image_size": size}
    partial = set().union(*config.USES.values())
    used = {n: v for n, v in tiny.items() if n not in partial or n in config.USES[model]}
    settings = {"model": model, **settings}
    resolved = config.resolve({**used, **settings})[0]

    def make(**changes):
        return models.create(config.resolve({**used, **settings, **changes})[0])

    def call(layer, x, iterations, step):
        rows = tf.shape(x)[0] * tf.shape(x)[1]
        output = layer(x, iterations=iterations, noise=noise(rows, step))
        return {n: value for n, value in output._asdict().items() if value is not None}

    def shapes(b, v, t):
        code = (12,) if model == "implicit" else (t, 2, 2, 5)
        found = {"codes": (b, v, *code)} if resolved.code_size else {}
        if resolved.uses("codec"):
            found["decoded"] = (b, v, t, size, size, 3)
        return {**found, "logits": (b, 16, 16, 16)} if resolved.uses("grid_size") else found

    binarizer = resolved.binarizer and bool(resolved.code_size)
    return Row(
        make=make,
        shape=None,
        inputs=lambda rng, b, v, t: rng.random((b, v, size, size, 3)),
        call=call,
        reference=lambda weights, x, t, binarize: reference_systems.run(
            resolved, weights, x, t, binarize
        ),
        shapes=shapes,
        paper=lambda: models.create(
            config.resolve({"profile": "paper", "image_size": paper_size, **settings})[0]
        ),
        parameters=parameters,
        binarizer=binarizer,
        draws=binarizer and model != "separate",
        settings={**used, **settings},
    )


GRID, OPEN_GRID, DECODER = 26_517_888, 26_493_312, 1_163_298
"""The paper's grid of 1024 values per step, with a bias for every cell or not; voxel decoder."""
RECONSTRUCTION, SMALL = 30_921_122, PAPER_CODECS["small_a"]
# A fourth gate: 4^3 cells of 128 channels from 1024 values, with their biases, and from 3^3 cells.
GATE = 64 * 128 * (1024 + 1) + 27 * 128 * 128 + 128


def implicit_parameters(bits: int) -> int:
    """Weights of the implicit model with K bits, from the table of the 3D network."""
    convolutions = 14_208 + 110_720 + 295_168 + 590_080 + 590_080 + (9 * 256 + 1) * bits // 4
    dense = (bits + 1) * bits  # 2 x 2 positions of K/4 channels
    grid = (bits + 1) * 64 * 3 * 128 + (27 * 128 + 1) * 3 * 128
    return convolutions + dense + grid + DECODER


LAYERS = {
    "Binarizer": Row(
        make=Binarizer,
        shape=(None, None, None, 4),
        inputs=lambda rng, b, v, t: np.tanh(rng.normal(size=(b, v, t, 4))),
        call=lambda layer, x, t, step: {"codes": layer(x, noise=noise(len(x), step))},
        reference=lambda weights, x, t, binarize: {"codes": binarize(x, 0)},
        shapes=lambda b, v, t: {"codes": (b, v, t, 4)},
        binarizer=True,
        draws=True,
    ),
    "ConvLSTMCell": _cell(3, 1, 2),
    "ConvLSTMCell, equal kernels": _cell(3, 3, 1),
    "GridLSTM": _grid(GRID),
    "GridLSTM, output gate": _grid(GRID + GATE, output_gate=True),
    "GridLSTM, shared bias": _grid(OPEN_GRID, shared_bias=True),
    "GridLSTM, output gate, shared bias": _grid(
        OPEN_GRID + GATE - 64 * 128, output_gate=True, shared_bias=True
    ),
    "UpConv3D": _up_conv("nearest"),
    "UpConv3D, zeros": _up_conv("zeros"),
    "repeat": REPEAT,
    "repeat, recompute": _recomputing(REPEAT),
}
CODECS = {
    f"Codec, {variant}, gamma {gamma:g}{'' if binarizer else ', floats'}": _codec(
        variant, gamma, binarizer
    )
    for variant in PAPER_CODECS
    for gamma in (1.0, 0.0)
    for binarizer in (True, False)
}
NETWORKS = {
    **CODECS,
    "ImageEncoder": _image_encoder(3_239_936, padding=False),
    # 3 x 3 instead of 2 x 2 positions of 256 channels reach the dense layer.
    "ImageEncoder, padded": _image_encoder(3_239_936 + 5 * 256 * 1024, padding=True),
    "VoxelDecoder": _voxel_decoder("nearest"),
    "VoxelDecoder, zeros": _voxel_decoder("zeros"),
}
SYSTEMS = {
    "compression": _system(SMALL, "compression"),
    "compression, small_b": _system(PAPER_CODECS["small_b"], "compression", codec="small_b"),
    "compression, original, one-shot": _system(
        PAPER_CODECS["original"], "compression", codec="original", gamma=0.0
    ),
    "reconstruction": _system(RECONSTRUCTION, "reconstruction"),
    "reconstruction, Choy": _system(32_207_266, "reconstruction", 31, 127, **CHOY),
    "reconstruction, output gate": _system(
        RECONSTRUCTION + GATE, "reconstruction", output_gate=True
    ),
    "jpeg2000": _system(RECONSTRUCTION, "jpeg2000"),
    "separate": _system(SMALL + RECONSTRUCTION, "separate"),
    "sequential": _system(SMALL + RECONSTRUCTION, "sequential"),
    "sequential, floats": _system(SMALL + RECONSTRUCTION, "sequential", binarizer=False),
    "direct": _system(SMALL + GRID + DECODER, "direct"),
    "direct, floats": _system(SMALL + GRID + DECODER, "direct", binarizer=False),
    # 2048 bits per iteration instead of 1024.
    "direct, original": _system(
        PAPER_CODECS["original"] + GRID + 1024 * 64 * 3 * 128 + DECODER, "direct", codec="original"
    ),
    "implicit": _system(implicit_parameters(1024), "implicit"),
    "implicit, floats": _system(implicit_parameters(1024), "implicit", binarizer=False),
}
SYSTEMS["sequential, recompute"] = _recomputing(SYSTEMS["sequential"])
ROWS = {**LAYERS, **NETWORKS, **SYSTEMS}

# Only in a training step do these compute what the rows of the same name do not.
RECOMPUTING = {
    f"{name}, recompute": _recomputing(SYSTEMS[name])
    for name in (
        "compression",
        "compression, small_b",
        "compression, original, one-shot",
        "sequential",
        "direct",
    )
}
TRAINED_ROWS = {**ROWS, **RECOMPUTING}

every_row = pytest.mark.parametrize("name", ROWS)
every_trained_row = pytest.mark.parametrize("name", TRAINED_ROWS)
every_trained_system = pytest.mark.parametrize("name", {**SYSTEMS, **RECOMPUTING})


def some(names: Iterable[str], of: Iterable[str]) -> pytest.MarkDecorator:
    """All names of `of`; those that are not among `names` take long for what they add."""
    names = tuple(names)
    assert set(names) <= set(of)
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=[] if n in names else pytest.mark.long) for n in of]
    )


# --- What the checks share ------------------------------------------------------------------------


def randomise(layer: tf.keras.layers.Layer, seed: int = 0) -> None:
    """Give weights that do not depend on the version of TensorFlow, large enough to matter."""
    rng = np.random.default_rng(seed)
    shapes = [w.shape for w in layer.get_weights()]
    fans = [np.prod(shape[:-1]) if len(shape) > 1 else 10 for shape in shapes]
    # A volume has no gates to get through.
    gains = [2 if len(shape) == 4 else 1.2 for shape in shapes]
    layer.set_weights([rng.normal(0, g / np.sqrt(f), s) for g, f, s in zip(gains, fans, shapes)])


def given(row: Row, seed: int, *sizes: int) -> np.ndarray:
    """Inputs of a row for B objects, V views and T iterations."""
    return row.inputs(np.random.default_rng(seed), *sizes).astype(np.float32)


@pytest.fixture(scope="module")
def built() -> Callable[[str], tf.keras.layers.Layer]:
    """By a row's name, its layer with random weights; not to be changed."""

    @functools.cache
    def make(name: str) -> tf.keras.layers.Layer:
        layer = TRAINED_ROWS[name].build()
        randomise(layer)
        return layer

    return make


def trainable(layer: tf.keras.layers.Layer) -> list[int]:
    """The positions of the trainable weights among all."""
    wanted = {id(weight) for weight in layer.trainable_weights}
    found = [index for index, weight in enumerate(layer.weights) if id(weight) in wanted]
    assert len(found) == len(wanted)
    return found


def upstream(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def voxels(objects: int, side: int = 16) -> np.ndarray:
    return (np.random.default_rng(8).random((objects, *[side] * 3)) < 0.3).astype(np.float32)


# --- Shapes, sizes, values ------------------------------------------------------------------------


@every_row
def test_outputs_have_the_shapes_that_objects_views_and_iterations_ask_for(name, built):
    row = ROWS[name]
    for sizes in SIZES:
        outputs = row.call(built(name), given(row, 0, *sizes), sizes[2], None)
        assert {n: tuple(output.shape) for n, output in outputs.items()} == row.shapes(*sizes)
        assert {output.dtype for output in outputs.values()} == {tf.float32}
        if row.binarizer:
            assert set(np.unique(outputs["codes"])) <= {-1.0, 1.0}


@pytest.fixture
def without_values(monkeypatch):
    """Weights of zeros, which cost no random numbers; and none is kept."""
    gc.freeze()  # what there is need not be looked through
    for name in ("kernel", "bias", "codec_kernel"):
        monkeypatch.setattr(initializers, name, tf.keras.initializers.Zeros)
    yield
    gc.collect()  # a Keras model is full of cycles
    gc.unfreeze()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.paper])
def test_the_paper_widths_have_the_published_number_of_weights(name, without_values):
    row = ROWS[name]
    assert row.paper().count_params() == row.parameters


@pytest.mark.parametrize("bits", [820, 2048, 8192])
def test_the_implicit_model_of_any_rate_has_the_weights_of_the_formula(bits, without_values):
    settings = {"model": "implicit", "profile": "paper", "code_bits": bits}
    model = models.create(config.resolve(settings)[0])
    assert model.count_params() == implicit_parameters(bits)


def binarize(row: Row, step: int | None) -> reference_systems.Binarize:
    """The row's binarizer in NumPy, at inference or in a training step."""
    if not row.binarizer:
        return reference_systems.keep
    if step is None or not row.draws:
        return reference_systems.StraightThrough()

    def uniform(iteration, activation):
        return noise(len(activation), step).uniform(iteration, activation).numpy()

    return reference_systems.StraightThrough(uniform)


@pytest.mark.parametrize(
    ("name", "step"),
    [(name, None) for name in ROWS] + [(name, STEP) for name, row in ROWS.items() if row.draws],
)
def test_outputs_equal_numpy_at_inference_and_with_the_noise_of_training(name, step, built):
    row, sizes = ROWS[name], (2, 2, 3)
    layer, inputs, bits = built(name), given(row, 1, *sizes), binarize(row, step)
    expected = row.reference(layer.get_weights(), inputs.astype(np.float64), sizes[2], bits)
    found = row.call(layer, inputs, sizes[2], step)
    assert found.keys() == expected.keys() == row.shapes(*sizes).keys()
    if row.binarizer:
        assert bits.margin > 1e-5, "a bit hangs on rounding: choose another seed"
    for key, value in found.items():
        assert np.std(expected[key]) > 1e-3
        np.testing.assert_allclose(value, expected[key], atol=1e-4)


# --- Keras' own layers ----------------------------------------------------------------------------


def _with_weights(layer: tf.keras.layers.Layer, inputs: np.ndarray, weights: Sequence[np.ndarray]):
    layer.build(inputs.shape)
    layer.set_weights(weights)
    return layer(inputs)


def _keras_cell(weights, x):
    """Every step's hidden state is an output; the last one counts."""
    layer = tf.keras.layers.ConvLSTM2D(
        4, 3, padding="same", use_bias=False, recurrent_activation="sigmoid"
    )
    return _with_weights(layer, x, weights)


def _keras_grid(weights, x):
    """ConvLSTM3D over the projected codes, which its input kernel passes on unchanged."""
    input_kernel, *input_bias, hidden_kernel, hidden_bias = weights
    projected = (x @ input_kernel).reshape(*x.shape[:2], 2, 2, 2, -1) + sum(input_bias)
    unchanged = np.zeros((3, 3, 3, *[hidden_kernel.shape[-1]] * 2), np.float32)
    unchanged[1, 1, 1] = np.eye(hidden_kernel.shape[-1])
    layer = tf.keras.layers.ConvLSTM3D(
        3, 3, padding="same", recurrent_activation="sigmoid", unit_forget_bias=False
    )
    return _with_weights(layer, projected, [unchanged, hidden_kernel, hidden_bias])


def _keras_up_conv(weights, x):
    channels = weights[0].shape[-1]
    doubled = tf.keras.layers.UpSampling3D(2)(x)
    return _with_weights(tf.keras.layers.Conv3D(channels, 3, padding="same"), doubled, weights)


def _keras_zeros_conv(weights, x):
    """A transposed convolution; its kernel points the other way, and it starts one too early."""
    kernel, bias = weights
    turned = np.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    layer = tf.keras.layers.Conv3DTranspose(kernel.shape[-1], 3, strides=2)
    return _with_weights(layer, x, [turned, bias])[:, 1:, 1:, 1:]


def _keras_image_encoder(weights, x, padding=False):
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2]):
        size, channels = kernel.shape[0], kernel.shape[-1]
        layer = tf.keras.layers.Conv2D(channels, size, padding="same")
        x = _with_weights(layer, x, [kernel, bias])
        if padding:
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
        x = tf.keras.layers.LeakyReLU(0.01)(tf.keras.layers.MaxPooling2D(2)(x))
    x = tf.keras.layers.Flatten()(x)
    x = _with_weights(tf.keras.layers.Dense(weights[-1].shape[0]), x, weights[-2:])
    return tf.keras.layers.LeakyReLU(0.01)(x)


def _keras_voxel_decoder(weights, x, up_conv=_keras_up_conv):
    *hidden, last = zip(weights[::2], weights[1::2])
    for index, pair in enumerate(hidden):
        if index < 3:
            x = up_conv(pair, np.asarray(x))
        else:
            layer = tf.keras.layers.Conv3D(len(pair[1]), 3, padding="same")
            x = _with_weights(layer, x, pair)
        x = tf.keras.layers.LeakyReLU(0.01)(x)
    x = _with_weights(tf.keras.layers.Conv3D(2, 3, padding="same"), x, last)
    # The logit of a probability is what the softmax and its inverse make of it.
    occupied = tf.keras.layers.Softmax(dtype="float64")(x)[..., 1]
    return tf.math.log(occupied / (1 - occupied))


KERAS = {
    "ConvLSTMCell, equal kernels": ("hidden", _keras_cell),
    "GridLSTM, output gate": ("hidden", _keras_grid),
    "GridLSTM, output gate, shared bias": ("hidden", _keras_grid),
    "UpConv3D": ("volume", _keras_up_conv),
    "UpConv3D, zeros": ("volume", _keras_zeros_conv),
    "ImageEncoder": ("vectors", _keras_image_encoder),
    "ImageEncoder, padded": ("vectors", functools.partial(_keras_image_encoder, padding=True)),
    "VoxelDecoder": ("logits", _keras_voxel_decoder),
    "VoxelDecoder, zeros": (
        "logits",
        functools.partial(_keras_voxel_decoder, up_conv=_keras_zeros_conv),
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_outputs_equal_what_keras_layers_make(name, built):
    row, (output, keras) = ROWS[name], KERAS[name]
    inputs = given(row, 2, 2, 2, 3)
    found = row.call(built(name), inputs, 3, None)[output]
    np.testing.assert_allclose(
        found, keras(built(name).get_weights(), inputs), rtol=1e-5, atol=1e-4
    )


# --- Gradients ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a row's gradients are of: of a system its training loss, else a weighted sum."""

    row: Row
    inputs: np.ndarray
    sizes: tuple[int, int, int]

    def of_tensors(self, outputs: dict[str, tf.Tensor], inputs: tf.Tensor) -> tf.Tensor:
        if self.row.settings:
            batch = {"images": inputs, "voxels": voxels(self.sizes[0])}
            return loss_terms(self.row.config, batch, models.Output(**outputs))["loss"]
        weights = upstream(self.row.shapes(*self.sizes))
        return tf.add_n([tf.reduce_sum(weights[name] * y) for name, y in outputs.items()])

    def of_arrays(self, outputs: dict[str, np.ndarray], inputs: np.ndarray) -> float:
        if self.row.settings:
            truth = voxels(self.sizes[0])
            return reference_systems.loss_terms(self.row.config, inputs, truth, outputs)["loss"]
        weights = upstream(self.row.shapes(*self.sizes))
        return sum(np.sum(weights[name] * y) for name, y in outputs.items())


def differentiate(objective: Objective, layer: tf.keras.layers.Layer) -> tuple[float, list]:
    """Return the objective in a training step and its gradients: of inputs, trainable weights."""
    inputs = tf.constant(objective.inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = objective.row.call(layer, inputs, objective.sizes[2], STEP)
        loss = objective.of_tensors(outputs, inputs)
    gradients = tape.gradient(loss, [inputs, *layer.trainable_variables])
    return float(loss), gradients


@pytest.fixture(scope="module")
def gradients(built) -> Callable[[str], tuple[Objective, float, list]]:
    """By a row's name: the objective, its value and its gradients."""

    @functools.cache
    def of(name: str):
        sizes = (2, 2, 2)
        row = TRAINED_ROWS[name]
        objective = Objective(row, given(row, 3, *sizes), sizes)
        return objective, *differentiate(objective, built(name))

    return of


@every_trained_row
def test_gradients_equal_finite_differences_of_numpy(name, gradients, built):
    """Along the gradient of every tensor, so that each counts the same, and along a random line."""
    row, layer = TRAINED_ROWS[name], built(name)
    objective, loss, found = gradients(name)
    bits = binarize(row, STEP)
    positions = trainable(layer)
    weights = [w.astype(np.float64) for w in layer.get_weights()]
    images = objective.inputs.astype(np.float64)

    def numpy(steps: Sequence[np.ndarray]) -> float:
        changed = list(weights)
        for position, step in zip(positions, steps[1:]):
            changed[position] = weights[position] + step
        inputs = images + steps[0]
        return objective.of_arrays(row.reference(changed, inputs, objective.sizes[2], bits), inputs)

    assert loss == pytest.approx(numpy([np.zeros_like(g) for g in found]), rel=1e-4)
    rng = np.random.default_rng(0)
    exact = [np.asarray(g, np.float64) for g in found]
    for line in (
        [rng.choice([-1, 1]) * g / np.sum(g**2) for g in exact],
        [rng.normal(size=g.shape) * np.linalg.norm(g) for g in exact],
    ):
        length = np.sqrt(sum(np.sum(step**2) for step in line))
        line = [1e-5 / length * step for step in line]
        numeric = (numpy(line) - numpy([-step for step in line])) / 2
        parts = [np.sum(g * step) for g, step in zip(exact, line)]
        assert abs(numeric - sum(parts)) <= 2e-4 * np.linalg.norm(parts)


@every_trained_system
def test_the_training_loss_reaches_every_trainable_weight(name, gradients, built):
    model = built(name)
    *_, found = gradients(name)
    weights = model.trainable_variables
    assert len(found) == 1 + len(weights) > 10
    for weight, gradient in zip(weights, found[1:]):
        values = np.abs(gradient)
        assert np.all(np.isfinite(values)), weight.name
        assert np.mean(values > 0) > 0.5, weight.name


def test_all_weights_of_a_system_are_trained_but_the_codec_of_separate(built):
    for name, row in SYSTEMS.items():
        model = built(name)
        of_codec = model.compression.weights if row.settings["model"] == "separate" else []
        assert len(trainable(model)) + len(of_codec) == len(model.weights)
        assert not {id(w) for w in of_codec} & {id(w) for w in model.trainable_weights}


def test_no_gradient_reaches_the_codec_of_separate_even_where_one_is_asked_for(built):
    row, model = ROWS["separate"], built("separate")
    codec = models.variables(model.compression)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(codec)
        outputs = row.call(model, given(row, 3, 2, 2, 2), 2, STEP)
    assert tape.gradient(outputs["logits"], codec) == [None] * len(codec)
    assert all(g is not None for g in tape.gradient(outputs["decoded"], codec))


# --- Computing activations again ------------------------------------------------------------------


def _traced(row: Row, layer: tf.keras.layers.Layer, sizes: tuple[int, int, int]):
    """As it is trained: one graph, in which no size but that of an image is known."""
    first = given(row, 3, *sizes)
    known = {1: 1, 4: 1, 5: 2}.get(first.ndim, 1)  # how many sizes of objects and views
    shape = [None] * known + list(first.shape[known:])

    @tf.function(input_signature=[tf.TensorSpec(shape), tf.TensorSpec([], tf.int32)])
    def step(inputs, iterations):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = row.call(layer, inputs, iterations, STEP)
            loss = Objective(row, first, sizes).of_tensors(outputs, inputs)
        return loss, outputs, tape.gradient(loss, [inputs, *layer.trainable_variables])

    return step(first, sizes[2])


def assert_same_gradients(found: Sequence[tf.Tensor], expected: Sequence[tf.Tensor]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("name", [*CODECS, "repeat"])
def test_networks_that_compute_activations_again_have_the_same_outputs_and_gradients(
    name, built, gradients
):
    row = ROWS[name]
    objective, _, expected = gradients(name)
    layer = row.build(recompute=True)
    layer.set_weights(built(name).get_weights())
    *_, iterations = objective.sizes
    outputs = row.call(built(name), objective.inputs, iterations, STEP)
    for key, value in row.call(layer, objective.inputs, iterations, STEP).items():
        np.testing.assert_allclose(value, outputs[key], atol=1e-6)
    assert_same_gradients(differentiate(objective, layer)[1], expected)


@pytest.mark.parametrize("name", RECOMPUTING)
def test_a_training_graph_that_computes_activations_again_gives_the_same(name, built, gradients):
    """The gradient of a loop in a graph is made in another way than that of a row of operations."""
    row, plain = TRAINED_ROWS[name], name.replace(", recompute", "")
    objective, loss, expected = gradients(plain)
    outputs = row.call(built(plain), objective.inputs, objective.sizes[2], STEP)
    found_loss, found, found_gradients = _traced(row, built(name), objective.sizes)
    assert float(found_loss) == pytest.approx(loss, rel=1e-6)
    for key, value in found.items():
        np.testing.assert_allclose(value, outputs[key], atol=1e-5)
    assert_same_gradients(found_gradients, expected)


# --- Saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ROWS if name != "Binarizer"])
def test_weights_saved_by_one_seed_make_another_seed_compute_the_same(name, built, tmp_path):
    row, layer = ROWS[name], built(name)
    state = tf.train.Checkpoint(weights=models.variables(layer))
    path = state.save(str(tmp_path / "checkpoint"))
    tf.keras.utils.set_random_seed(5)
    other = row.build(**({"seed": 5} if row.settings else {}))
    inputs, expected = given(row, 4, 2, 2, 2), None
    expected = row.call(layer, inputs, 2, None)
    before = row.call(other, inputs, 2, None)
    assert any(np.abs(before[key] - expected[key]).max() > 1e-3 for key in expected)
    restored = tf.train.Checkpoint(weights=models.variables(other))
    restored.restore(path).assert_consumed()
    for key, value in row.call(other, inputs, 2, None).items():
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("repeat")])
def test_a_layer_made_again_from_its_config_computes_the_same(name, built):
    row, layer = ROWS[name], built(name)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    again.build(row.shape)
    again.set_weights(layer.get_weights())
    inputs = given(row, 4, 2, 2, 2)
    expected = row.call(layer, inputs, 2, None)
    for key, value in row.call(again, inputs, 2, None).items():
        np.testing.assert_array_equal(value, expected[key])


@some([*config.USES, "direct, floats"], SYSTEMS)
def test_an_export_computes_what_the_model_computes(name, built, tmp_path):
    row, model = ROWS[name], built(name)
    signatures = export.Signatures(model, row.config)
    signatures.save(tmp_path / "export")
    loaded = tf.saved_model.load(str(tmp_path / "export")).signatures
    assert set(loaded) == set(signatures.by_name)
    for sizes in SIZES[:2]:
        inputs = given(row, 5, *sizes)
        expected = row.call(model, inputs, sizes[2], None)
        values = {"images": tf.constant(inputs), "iterations": tf.constant(sizes[2])}
        made = {}
        for signature in export.ORDER:
            if signature in loaded:
                _, wanted = loaded[signature].structured_input_signature
                results = loaded[signature](**{key: values[key] for key in wanted})
                made |= results
                values |= results
        assert ("codes" in made, "images" in made, "occupancy" in made) == tuple(
            key in expected for key in ("codes", "decoded", "logits")
        )
        if "codes" in made:
            assert made["codes"].dtype == (tf.int8 if row.binarizer else tf.float32)
            np.testing.assert_allclose(made["codes"], expected["codes"], atol=1e-6)
        if "images" in made:
            clipped = np.clip(expected["decoded"], 0, 1)
            np.testing.assert_allclose(made["images"], clipped, atol=1e-6)
        if "occupancy" in made:
            probabilities = reference.sigmoid(expected["logits"].numpy())
            np.testing.assert_allclose(made["occupancy"], probabilities, atol=1e-6)


@pytest.mark.slow
def test_an_export_is_checked_by_a_process_without_the_package(tmp_path):
    row = ROWS["sequential, recompute"]
    signatures = export.Signatures(row.build(), row.config)
    signatures.save(tmp_path / "export")
    images = given(row, 5, 2, 2, 2)
    export.check_export(tmp_path / "export", signatures, images)
    signatures.weights[0].assign_add(tf.ones_like(signatures.weights[0]))  # another model
    with pytest.raises(export.ExportError, match="differs from the model"):
        export.check_export(tmp_path / "export", signatures, images)


# --- Who may know of whom -------------------------------------------------------------------------


@every_row
def test_the_order_of_objects_changes_no_object_and_company_neither(name, built):
    row, layer = ROWS[name], built(name)
    inputs = given(row, 6, 3, 2, 3)
    together = row.call(layer, inputs, 3, None)
    order = np.random.default_rng(0).permutation(len(inputs))
    alone = [row.call(layer, inputs[[index]], 3, None) for index in range(len(inputs))]
    for key, permuted in row.call(layer, inputs[order], 3, None).items():
        np.testing.assert_allclose(permuted, together[key].numpy()[order], atol=1e-5)
        apart = np.concatenate([outputs[key] for outputs in alone])
        np.testing.assert_allclose(apart, together[key], atol=1e-5)
        # Objects differ, or their order would not matter.
        assert len({outputs[key].numpy().tobytes() for outputs in alone}) == len(inputs)


@every_row
def test_a_call_leaves_no_state_behind(name, built):
    row, layer = ROWS[name], built(name)
    inputs, other = given(row, 7, 2, 2, 2), given(row, 8, 1, 3, 4)
    before = row.call(layer, inputs, 2, None)
    row.call(layer, other, 4, STEP)
    for key, value in row.call(layer, inputs, 2, None).items():
        np.testing.assert_array_equal(value, before[key])


# --- Lower precision ------------------------------------------------------------------------------

ALWAYS_FLOAT32 = {"decoded", "logits"}


def _array(tensor: tf.Tensor) -> np.ndarray:
    return tf.cast(tensor, tf.float32).numpy()


def assert_near(low: tf.Tensor, full: tf.Tensor) -> None:
    """Another precision, but no other function.

    bfloat16 has 8 bits. Of a whole network the difference is up to 3 %, a little more on
    processors without instructions for it, where sums are rounded in other places.
    """
    difference = _array(low) - _array(full)
    assert np.abs(difference).max() > 1e-6
    assert np.std(difference) < 0.04 * np.std(full)


@every_row
def test_bfloat16_computes_nearly_the_same_and_its_results_are_float32(name, built):
    row, full = ROWS[name], built(name)
    low = row.build("mixed_bfloat16")
    assert {tf.as_dtype(weight.dtype) for weight in low.weights} <= {tf.float32}
    low.set_weights(full.get_weights())
    inputs = given(row, 9, 2, 2, 2)
    expected, found = row.call(full, inputs, 2, None), row.call(low, inputs, 2, None)
    for key, value in found.items():
        assert value.dtype == (tf.float32 if key in ALWAYS_FLOAT32 else tf.bfloat16)
    if not row.binarizer:
        for key, value in found.items():
            assert_near(value, expected[key])
        return
    # A bit may turn where its activation is near 0, and then everything after it is another.
    assert np.mean(_array(found["codes"]) == expected["codes"]) > 0.9
    for key, function in (("decoded", "decode"), ("logits", "occupancy")):
        if key in found:
            low_made, full_made = (getattr(m, function)(expected["codes"]) for m in (low, full))
            assert low_made.dtype == tf.float32
            assert_near(low_made, full_made)


# --- Training -------------------------------------------------------------------------------------


class Coarse:
    """A record set whose grids have another side: every second or fourth voxel of the given."""

    def __init__(self, records: RecordSet, side: int) -> None:
        self._records, self._step = records, records.manifest.voxel_size // side
        self.manifest = dataclasses.replace(records.manifest, voxel_size=side)
        self.objects, self.data_sha256 = records.objects, records.data_sha256

    def record(self, index: int) -> ObjectRecord:
        record = self._records.record(index)
        voxels = record.voxels[(slice(None, None, self._step),) * 3]
        return dataclasses.replace(record, voxels=voxels)


@pytest.fixture(scope="module")
def records(data) -> RecordSet:
    return RecordSet(data, "train")


@contextlib.contextmanager
def _without_graphs() -> Iterator[None]:
    """The trainer's step as a row of operations: the same values, without the time for a graph."""
    tf.config.run_functions_eagerly(True)
    try:
        with warnings.catch_warnings():
            # That minibatches are made by a graph all the same.
            warnings.filterwarnings("ignore", "Even though the `tf.config", UserWarning)
            yield
    finally:
        tf.config.run_functions_eagerly(False)


class Training(NamedTuple):
    """What the trainer makes of a row with gradient descent of rate 1."""

    terms: list[dict[str, float]]
    """The loss terms of every step."""
    weights: list[list[np.ndarray]]
    """All weights, before the first step and after each."""


def train(
    row: Row,
    records: RecordSet,
    steps: int,
    strategy: tf.distribute.Strategy | None = None,
    **settings,
) -> Training:
    strategy = strategy or tf.distribute.get_strategy()
    resolved = config.resolve({**row.settings, **settings})[0]
    coarse = Coarse(records, resolved.voxel_size)
    # Raw views stand for JPEG 2000 views of two rates.
    rates = [10.0, 20.0] if resolved.uses("rates") else []
    split = dataset.Split([coarse] * (len(rates) or 1), rates)
    with strategy.scope():
        model = models.create(resolved)
        optimizer = tf.keras.optimizers.SGD(1.0)
        trainer.build_optimizer(optimizer, model.trainable_variables)
    training = Training([], [model.get_weights()])
    results = trainer._steps(resolved, strategy, model, optimizer, split, 0, steps + 1)
    for _ in range(steps):
        training.terms.append(next(results))
        training.weights.append(model.get_weights())
    return training


def train_deterministically(row: Row, records: RecordSet) -> Training:
    """Two steps without a graph."""
    tf.config.experimental.enable_op_determinism()
    try:
        with _without_graphs():
            return train(row, records, 2)
    finally:
        framework.disable_op_determinism()


@pytest.fixture(scope="module")
def trained(records) -> Callable[[str], Training]:
    """By a system's name, two steps of one replica."""

    @functools.cache
    def of(name: str) -> Training:
        return train_deterministically(TRAINED_ROWS[name], records)

    return of


@some([*config.USES, "direct, floats"], SYSTEMS)
def test_two_trainings_with_one_seed_are_bit_identical(name, records, trained, built):
    first = trained(name)
    tf.random.normal([3])  # whatever ran before plays no part
    second = train_deterministically(ROWS[name], records)
    assert first.terms == second.terms
    for ours, theirs in zip(first.weights, second.weights):
        assert [w.tobytes() for w in ours] == [w.tobytes() for w in theirs]
    before, *_, after = first.weights
    moved = [index for index, (a, b) in enumerate(zip(before, after)) if np.any(a != b)]
    assert moved == trainable(built(name))


def assert_two_replicas_agree(one: Training, row: Row, records: RecordSet, devices: list[str]):
    # Collective operations remember the shapes of another system's gradients by their number.
    strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    two = train(row, records, 1, strategy)
    assert two.terms[0].keys() == one.terms[0].keys()
    for term in set(two.terms[0]) - {"gradient_norm"}:  # of one replica's own rows
        assert two.terms[0][term] == pytest.approx(one.terms[0][term], rel=1e-5), term
    for start, of_one, start_of_two, of_two in zip(*one.weights[:2], *two.weights):
        np.testing.assert_array_equal(start, start_of_two)
        gradient = start - of_one
        scale = max(np.abs(gradient).max(), 1e-2)
        np.testing.assert_allclose((start - of_two) / scale, gradient / scale, atol=5e-5)


@pytest.mark.parametrize("name", [*config.USES, "direct, floats", "sequential, recompute"])
def test_two_replicas_compute_the_loss_and_the_gradient_of_one(name, records, trained, two_cpus):
    with _without_graphs():
        assert_two_replicas_agree(trained(name), TRAINED_ROWS[name], records, two_cpus)


@pytest.mark.slow
@some(["direct, floats"], {**SYSTEMS, **RECOMPUTING})
def test_two_replicas_do_so_in_graphs_too(name, records, trained, two_cpus):
    assert_two_replicas_agree(trained(name), TRAINED_ROWS[name], records, two_cpus)


@some(["compression", "implicit", "direct"], SYSTEMS)
def test_a_training_step_in_bfloat16_is_finite_and_moves_float32_weights(name, records):
    row = ROWS[name]
    # Of volumes of side 2, oneDNN's bfloat16 gradient of a 3x3x3 kernel is not defined.
    larger = {"grid_size": 4} if "grid_size" in row.settings else {}
    with _without_graphs():
        training = train(row, records, 1, precision="mixed_bfloat16", **larger)
    (terms,), (before, after) = training
    assert np.all(np.isfinite(list(terms.values())))
    assert 0 < terms["gradient_norm"] < 100
    assert {weight.dtype for weight in after} == {np.dtype(np.float32)}
    assert all(np.all(np.isfinite(weight)) for weight in after)
    assert any(np.any(a != b) for a, b in zip(before, after))
