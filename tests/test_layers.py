"""Every layer against an independent computation: NumPy, or Keras' own layers."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfjoint.layers import (
    Binarizer,
    BinarizerNoise,
    ConvLSTMCell,
    ConvLSTMState,
    GridLSTM,
    UpConv3D,
    binarize,
    initializers,
    repeat,
)
from tfjoint.layers.convolution import WIDE, convolve


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomise(layer: tf.keras.layers.Layer, scale: float = 0.3, seed: int = 0) -> None:
    """Give every weight, biases too, its own values."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(0, scale, w.shape) for w in layer.get_weights()])


def same_gradients(function, *points: np.ndarray, tolerance: float = 1e-7) -> None:
    """Compare TensorFlow's gradient with finite differences, in float64."""
    arguments = [tf.constant(point, tf.float64) for point in points]
    found, expected = tf.test.compute_gradient(function, arguments, delta=1e-4)
    for analytic, numeric in zip(found, expected):
        assert np.abs(numeric).max() > 1e-3  # or there is nothing to compare
        np.testing.assert_allclose(analytic, numeric, atol=tolerance)


# --- ConvLSTMCell ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_cell_with_equal_kernels_is_keras_conv_lstm_2d(kernel_size, stride):
    images = normal(1, 2, 5, 8, 6, 3)  # [N, steps, H, W, C]
    keras = tf.keras.layers.ConvLSTM2D(
        7,
        kernel_size,
        strides=stride,
        padding="same",
        use_bias=False,
        recurrent_activation="sigmoid",
        return_sequences=True,
    )
    expected = keras(images).numpy()
    cell = ConvLSTMCell(7, kernel_size, kernel_size, stride)
    cell.build((None, None, None, 3))
    cell.set_weights(keras.get_weights())

    state = None
    for step in range(5):
        state = cell(images[:, step], state)
        np.testing.assert_allclose(state.hidden, expected[:, step], atol=1e-6)


@pytest.mark.parametrize(
    ("kernel_size", "hidden_kernel_size", "stride", "height", "width"),
    [(3, 1, 2, 8, 6), (3, 1, 2, 5, 7), (1, 3, 1, 4, 5), (5, 3, 2, 8, 8), (2, 3, 1, 4, 4)],
)
def test_the_cell_with_any_kernels_equals_numpy(
    kernel_size, hidden_kernel_size, stride, height, width
):
    cell = ConvLSTMCell(4, kernel_size, hidden_kernel_size, stride)
    cell.build((None, None, None, 3))
    randomise(cell)
    state = None
    expected = np.zeros((2, -(-height // stride), -(-width // stride), 4)), np.zeros(())
    for step in range(4):
        x = normal(step, 2, height, width, 3)
        state = cell(x, state)
        expected = reference.conv_lstm(x, *expected, cell.get_weights(), stride)
        np.testing.assert_allclose(state.hidden, expected[0], atol=1e-6)
        np.testing.assert_allclose(state.cell, expected[1], atol=2e-6)


@pytest.mark.parametrize(
    ("inputs", "channels", "kernel_size", "hidden_kernel_size", "parameters"),
    [
        # Rows of the table of the two published networks.
        (64, 256, 3, 1, 851_968),
        (256, 512, 3, 1, 5_767_168),
        (512, 512, 3, 1, 10_485_760),
        (512, 16, 3, 1, 295_936),
        (64, 256, 3, 1, 851_968),
        (64, 128, 3, 3, 884_736),
        (32, 64, 3, 3, 221_184),
        (128, 256, 3, 3, 3_538_944),
    ],
)
def test_the_cell_has_the_published_number_of_parameters(
    inputs, channels, kernel_size, hidden_kernel_size, parameters
):
    cell = ConvLSTMCell(channels, kernel_size, hidden_kernel_size)
    cell.build((None, None, None, inputs))
    assert cell.count_params() == parameters
    assert parameters == 4 * channels * (inputs * kernel_size**2 + channels * hidden_kernel_size**2)


def test_the_state_of_a_cell_starts_at_zero_and_carries_over():
    cell = ConvLSTMCell(4, stride=2)
    x = normal(0, 1, 8, 8, 3)
    first = cell(x)
    zeros = np.zeros((1, 4, 4, 4), np.float32)
    for ours, theirs in zip(cell(x, ConvLSTMState(zeros, zeros)), first):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(cell(x, first).hidden - first.hidden).max() > 1e-3
    np.testing.assert_array_equal(cell(x).hidden, first.hidden)


def test_a_cell_without_a_state_convolves_its_input_alone():
    cell = ConvLSTMCell(4)
    x = normal(0, 1, 8, 8, 3)

    def convolutions(*states) -> int:
        graph = tf.function(cell).get_concrete_function(x, *states).graph
        return sum(operation.type == "Conv2D" for operation in graph.get_operations())

    assert (convolutions(), convolutions(cell(x))) == (1, 2)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "height", "width"),
    [(3, 1, 7, 6), (3, 2, 8, 6), (3, 2, 5, 7), (2, 1, 4, 4), (1, 1, 4, 4)],
)
def test_a_wide_convolution_is_trained_as_tensorflow_would(
    kernel_size, stride, height, width, dtype, bound
):
    images = tf.cast(normal(0, 2, height, width, WIDE), dtype)
    kernel = tf.cast(normal(1, kernel_size, kernel_size, WIDE, 5), dtype)

    def differentiate(training: bool) -> tuple[list, bool]:
        def values(images, kernel):
            with tf.GradientTape() as tape:
                tape.watch([images, kernel])
                convolved = convolve(images, kernel, stride, training)
                loss = tf.reduce_sum(tf.square(convolved))
            return [convolved, *tape.gradient(loss, [images, kernel])]

        run = tf.function(values).get_concrete_function(images, kernel)
        kinds = {operation.type for operation in run.graph.get_operations()}
        found = [tf.cast(value, tf.float32).numpy() for value in run(images, kernel)]
        return found, "ExtractImagePatches" in kinds

    expected, by_product = differentiate(training=False)
    assert not by_product
    found, by_product = differentiate(training=True)
    assert by_product == (kernel_size > 1 and not tf.config.list_logical_devices("GPU"))
    for ours, theirs in zip(found, expected):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=bound)


def test_the_gradient_of_a_cell_equals_finite_differences():
    cell = ConvLSTMCell(2, 3, 3, 2, dtype="float64")
    cell.build((None, None, None, 2))
    randomise(cell)

    def two_steps(x, hidden, memory):
        state = cell(x, cell(x, ConvLSTMState(hidden, memory)))
        return tf.concat(state, -1)

    same_gradients(two_steps, normal(0, 1, 4, 4, 2), normal(1, 1, 2, 2, 2), normal(2, 1, 2, 2, 2))


# --- GridLSTM -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid() -> GridLSTM:
    layer = GridLSTM(grid_size=3, channels=2)
    layer.build((None, None, 5))
    randomise(layer)
    return layer


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_grid_equals_a_loop_over_cells_in_numpy(grid, steps):
    codes = np.sign(normal(steps, 2, steps, 5))
    expected = reference.grid_lstm(codes, *grid.get_weights())
    np.testing.assert_allclose(grid(codes), expected, atol=1e-6)


def test_the_grid_has_the_published_number_of_parameters():
    layer = GridLSTM(grid_size=4, channels=128)
    layer.build((None, None, 1024))
    assert layer.count_params() == 26_517_888
    assert [w.shape for w in layer.get_weights()] == [
        (1024, 4 * 4 * 4 * 3 * 128),
        (4, 4, 4, 3 * 128),
        (3, 3, 3, 128, 3 * 128),
        (3 * 128,),
    ]


def test_the_grid_has_no_output_gate(grid):
    """h = tanh(c) whatever the code is."""
    state = grid.zero_state(2)
    for step in range(3):
        state = grid.step(grid.project(tf.constant(3 * normal(step, 2, 5))), state)
        np.testing.assert_allclose(state.hidden, np.tanh(state.cell), atol=1e-6)


@pytest.mark.parametrize("output_gate", [False, True])
@pytest.mark.parametrize("shared_bias", [False, True])
def test_the_grid_with_an_output_gate_or_shared_biases_equals_numpy(output_gate, shared_bias):
    layer = GridLSTM(3, 2, output_gate=output_gate, shared_bias=shared_bias)
    layer.build((None, None, 5))
    randomise(layer)
    codes = np.sign(normal(3, 2, 4, 5))
    expected = reference.grid_lstm(codes, *layer.get_weights(), output_gate=output_gate)
    np.testing.assert_allclose(layer(codes), expected, atol=1e-6)
    gates = 4 if output_gate else 3
    own = [] if shared_bias else [(3, 3, 3, gates * 2)]
    assert [w.shape for w in layer.get_weights()] == [
        *((5, 27 * gates * 2), *own, (3, 3, 3, 2, gates * 2), (gates * 2,))
    ]


def test_shared_biases_are_those_of_every_cell():
    """The same as a bias per cell that is zero, so that the shared ones alone are left."""
    layers = [GridLSTM(2, 3, shared_bias=shared) for shared in (True, False)]
    for layer in layers:
        layer.build((None, None, 4))
    randomise(layers[0])
    kernel, *others = layers[0].get_weights()
    layers[1].set_weights([kernel, np.zeros((2, 2, 2, 9)), *others])
    codes = normal(0, 2, 3, 4)
    np.testing.assert_allclose(layers[0](codes), layers[1](codes), atol=1e-6)


def test_the_grid_of_choy_has_the_published_number_of_parameters():
    layer = GridLSTM(4, 128, shared_bias=True)
    layer.build((None, None, 1024))
    assert layer.count_params() == 26_493_312


def test_an_open_output_gate_is_none():
    layers = [GridLSTM(2, 3, output_gate=gate) for gate in (True, False)]
    for layer in layers:
        layer.build((None, None, 4))
    randomise(layers[1])
    kernel, cells, hidden, bias = layers[1].get_weights()
    kernel = np.concatenate([kernel.reshape(4, 8, 9), np.zeros((4, 8, 3))], -1).reshape(4, -1)
    cells = np.concatenate([cells, np.full((2, 2, 2, 3), 50.0)], -1)  # sigmoid(50) is 1
    hidden = np.concatenate([hidden, np.zeros((3, 3, 3, 3, 3))], -1)
    layers[0].set_weights([kernel, cells, hidden, np.concatenate([bias, np.zeros(3)])])
    codes = normal(1, 2, 3, 4)
    np.testing.assert_allclose(layers[0](codes), layers[1](codes), atol=1e-6)


def test_the_grid_step_by_step_gives_the_same_as_a_call(grid):
    codes = tf.constant(np.sign(normal(1, 3, 4, 5)))
    projected = grid.project(codes)
    assert projected.shape == (3, 4, 3, 3, 3, 6)
    state = grid.zero_state(3)
    assert not np.any(state.hidden) and not np.any(state.cell)
    for step in range(4):
        np.testing.assert_allclose(projected[:, step], grid.project(codes[:, step]), atol=1e-6)
        state = grid.step(projected[:, step], state)
    np.testing.assert_allclose(grid(codes), state.hidden, atol=1e-6)


def test_every_object_of_the_grid_starts_from_zero(grid):
    codes = np.sign(normal(2, 4, 3, 5))
    together = grid(codes).numpy()
    for index in (3, 0, 2, 1):
        np.testing.assert_allclose(grid(codes[[index]])[0], together[index], atol=1e-6)


@pytest.mark.parametrize("output_gate", [False, True])
def test_the_gradient_of_the_grid_equals_finite_differences(output_gate):
    layer = GridLSTM(grid_size=2, channels=2, output_gate=output_gate, dtype="float64")
    layer.build((None, None, 4))
    randomise(layer)
    same_gradients(layer, normal(0, 1, 3, 4))


# --- UpConv3D -------------------------------------------------------------------------------------


def insert_zeros(volume: tf.Tensor) -> tf.Tensor:
    """Put a zero behind every value along three axes, by stacking and reshaping."""
    for axis in (1, 2, 3):
        sides = volume.shape.as_list()
        sides[axis] *= 2
        volume = tf.reshape(tf.stack([volume, tf.zeros_like(volume)], axis + 1), sides)
    return volume


def upsample_then_convolve(
    volume: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, unpooling: str
) -> tf.Tensor:
    double = {"nearest": tf.keras.layers.UpSampling3D(2), "zeros": insert_zeros}[unpooling]
    return tf.nn.conv3d(double(volume), kernel, [1] * 5, "SAME") + bias


@pytest.mark.parametrize("unpooling", ["nearest", "zeros"])
@pytest.mark.parametrize("sides", [(4, 4, 4), (1, 1, 1), (3, 5, 2), (1, 7, 3)])
def test_up_conv_equals_unpooling_and_convolution_in_outputs_and_gradients(sides, unpooling):
    layer = UpConv3D(5, unpooling)
    layer.build((None, None, None, None, 3))
    randomise(layer)
    volume = tf.constant(normal(1, 2, *sides, 3))
    upstream = normal(2, 2, *(2 * side for side in sides), 5)
    with tf.GradientTape(persistent=True) as tape:
        kernel, bias = (tf.convert_to_tensor(weight) for weight in layer.get_weights())
        tape.watch([volume, kernel, bias])
        expected = upsample_then_convolve(volume, kernel, bias, unpooling)
        outputs = layer(volume)
        loss, expected_loss = (tf.reduce_sum(upstream * y) for y in (outputs, expected))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    gradients = tape.gradient(loss, [volume, *layer.trainable_variables])
    for found, wanted in zip(gradients, tape.gradient(expected_loss, [volume, kernel, bias])):
        scale = max(1, np.abs(wanted).max())
        np.testing.assert_allclose(found / scale, wanted / scale, atol=1e-5)


def test_zeros_are_inserted_behind_the_values():
    volume = normal(3, 2, 3, 1, 2, 4)
    expected = reference.insert_zeros(volume)
    assert np.count_nonzero(expected) == volume.size == expected.size // 8
    np.testing.assert_array_equal(insert_zeros(tf.constant(volume)), expected)
    # A kernel that is its centre alone copies: what comes out is what went in, between zeros.
    layer = UpConv3D(4, "zeros")
    layer.build((None, None, None, None, 4))
    kernel = np.zeros((3, 3, 3, 4, 4))
    kernel[1, 1, 1] = np.eye(4)
    layer.set_weights([kernel, np.zeros(4)])
    np.testing.assert_array_equal(layer(volume), expected)


def test_up_conv_equals_keras_layers():
    keras = tf.keras.layers.Conv3D(4, 3, padding="same")
    volume = normal(0, 1, 3, 3, 3, 2)
    expected = keras(tf.keras.layers.UpSampling3D(2)(volume))
    layer = UpConv3D(4)
    layer.build((None, 3, 3, 3, 2))
    layer.set_weights(keras.get_weights())
    np.testing.assert_allclose(layer(volume), expected, atol=1e-6)


def test_up_conv_equals_numpy():
    layer = UpConv3D(2)
    layer.build((None, 3, 2, 4, 3))
    randomise(layer)
    volume = normal(0, 2, 3, 2, 4, 3)
    kernel, bias = layer.get_weights()
    doubled = volume.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
    expected = reference.convolve(doubled, kernel) + bias
    np.testing.assert_allclose(layer(volume), expected, atol=1e-5)


def test_up_conv_serves_any_batch_and_side_in_one_trace():
    layer = UpConv3D(2)
    layer.build((None, None, None, None, 3))
    traced = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, None, 3])])
    for batch, side in ((1, 2), (3, 5), (2, 1)):
        volume = normal(batch, batch, side, side, side, 3)
        assert traced(volume).shape == (batch, 2 * side, 2 * side, 2 * side, 2)
        np.testing.assert_allclose(traced(volume), layer(volume), atol=1e-6)
    assert traced.experimental_get_tracing_count() == 1


def test_up_conv_knows_its_static_shape_inside_a_graph():
    layer = UpConv3D(2)
    layer.build((None, None, None, None, 3))
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec([None, 3, None, 4, 3]))
    assert graph.structured_outputs.shape.as_list() == [None, 6, None, 8, 2]


def test_the_gradient_of_up_conv_equals_finite_differences():
    layer = UpConv3D(2, dtype="float64")
    layer.build((None, None, None, None, 2))
    randomise(layer)
    same_gradients(layer, normal(0, 1, 2, 3, 1, 2))


# --- repeat ---------------------------------------------------------------------------------------


class Walk:
    """A recurrent step with two states, four inputs, two variables and outputs of two types.

    Two of the inputs are where the states start.
    """

    def __init__(self) -> None:
        self.turn = tf.Variable(normal(0, 3, 3) / 2)
        self.bias = tf.Variable(normal(1, 3))
        tensors = [tf.constant(normal(2 + index, 4, 3)) for index in range(4)]
        start = {"place": tensors[0], "speed": tensors[1]}
        self.inputs = start, tensors[2], tensors[3][0]

    def step(self, t, state, inputs):
        start, force, scale = inputs
        state = state or start
        time = tf.cast(t, tf.float32) / 10
        speed = tf.tanh(state["speed"] @ self.turn + force * tf.cos(time) + self.bias)
        place = state["place"] + speed * scale
        outputs = place**2, tf.cast(speed, tf.float64)
        return {"place": place, "speed": speed}, outputs

    def by_hand(self, count: int) -> tuple[list, list]:
        """The outputs of `count` steps, one after the other."""
        state, outputs = None, []
        for t in range(count):
            state, now = self.step(tf.constant(t), state, self.inputs)
            outputs.append(now)
        return [tf.stack(steps) for steps in zip(*outputs)]

    def repeated(self, count, recompute: bool) -> list:
        dtypes = (tf.float32, tf.float64)
        return repeat(self.step, count, self.inputs, dtypes, recompute)

    def differentiate(self, outputs_of) -> tuple[list, list]:
        """Outputs, and gradients of a sum of them to the inputs and the variables."""
        sources = [*tf.nest.flatten(self.inputs), self.turn, self.bias]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            places, speeds = outputs_of(self)
            # Weighted by time, so that every step has a gradient of its own.
            weights = tf.cast(tf.range(1, tf.shape(places)[0] + 1), tf.float32)[:, None, None]
            loss = tf.reduce_sum(weights * places) + tf.reduce_sum(
                weights**2 * tf.cast(speeds, tf.float32)
            )
        return [places, speeds], tape.gradient(loss, sources)


def same_values(found, expected) -> None:
    for ours, theirs in zip(tf.nest.flatten(found), tf.nest.flatten(expected)):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        scale = np.abs(theirs).max()
        assert scale > 0.01
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=2e-6)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_repeating_a_step_is_taking_it_again_and_again(count, recompute):
    walk = Walk()
    expected = walk.differentiate(lambda walk: walk.by_hand(count))
    found = walk.differentiate(lambda walk: walk.repeated(count, recompute))
    assert len(found[1]) == 6
    same_values(found, expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_repeating_a_step_works_in_one_graph_for_any_count(recompute):
    walk = Walk()

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def run(count):
        return walk.differentiate(lambda walk: walk.repeated(count, recompute))

    for count in (1, 2, 7):
        expected = Walk().differentiate(lambda walk, count=count: walk.by_hand(count))
        same_values(run(tf.constant(count)), expected)
    assert run.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("recompute", [False, True])
def test_a_repeated_step_may_do_without_variables_and_gradients(recompute):
    def double(t, state, inputs):
        now = inputs if state is None else state
        return 2 * now, [now]

    start = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(start)
        (outputs,) = repeat(double, 4, start, [tf.float32], recompute)
    np.testing.assert_array_equal(outputs, np.outer([1, 2, 4, 8], [1, 2]))
    np.testing.assert_array_equal(tape.gradient(outputs, start), [15, 15])
    (counted,) = repeat(lambda t, state, inputs: (t, [t * inputs]), 3, tf.constant(5), [tf.int32])
    np.testing.assert_array_equal(counted, [0, 5, 10])


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_of_one_output_alone_passes_through_a_repeated_step(recompute):
    walk = Walk()
    for index in (0, 1):
        gradients = []
        for outputs_of in (walk.by_hand, lambda count: walk.repeated(count, recompute)):
            with tf.GradientTape() as tape:
                last = outputs_of(5)[index][-1]
            gradients.append(tape.gradient(last, [walk.turn, walk.bias]))
        same_values(*gradients)


@pytest.mark.parametrize(("recompute", "times"), [(False, 1), (True, 2)])
def test_recomputing_runs_every_step_a_second_time_and_keeping_does_not(recompute, times):
    ran = []
    weight = tf.Variable(2.0)

    def step(t, state, inputs):
        tf.py_function(lambda t: ran.append(int(t)), [t], [])
        now = inputs if state is None else state
        return now * weight, [now]

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            (outputs,) = repeat(step, 3, tf.constant(1.0), [tf.float32], recompute)
        return tape.gradient(outputs, weight)

    assert float(gradient()) == 1 + 2 * 2  # of 1 + w + w^2
    assert sorted(ran) == sorted([0, 1, 2] * times)


# --- Binarizer ------------------------------------------------------------------------------------


def noise(seed: int = 3, step: int = 7, first_row: int = 0, total_rows: int = 6) -> BinarizerNoise:
    return BinarizerNoise(
        tf.constant([seed, step]), tf.constant(first_row), tf.constant(total_rows)
    )


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float64])
def test_bits_are_minus_one_or_one_with_and_without_noise(dtype):
    activation = tf.cast(tf.tanh(normal(0, 6, 8, 8, 4)), dtype)
    for bits in (
        Binarizer(dtype=dtype.name)(activation),
        Binarizer(dtype=dtype.name)(activation, noise=noise(), iteration=1),
    ):
        assert bits.dtype == dtype and bits.shape == activation.shape
        assert set(np.unique(tf.cast(bits, tf.float32))) == {-1.0, 1.0}


def test_at_inference_a_bit_is_the_sign_and_zero_is_plus_one():
    activation = [-1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0]
    np.testing.assert_array_equal(Binarizer()(tf.constant(activation)), [-1, -1, 1, 1, 1, 1])


def test_in_training_a_bit_is_one_with_probability_half_of_one_plus_x():
    count = 40_000
    for x in (-1.0, -0.9, -0.5, 0.0, 0.3, 0.8, 1.0):
        bits = Binarizer()(tf.fill([6, count], x), noise=noise())
        frequency = np.mean(bits == 1)
        probability = (1 + x) / 2
        # Five standard deviations of a binomial; none where the outcome is certain.
        bound = 5 * np.sqrt(probability * (1 - probability) / (6 * count))
        assert abs(frequency - probability) <= bound, x


def test_the_noise_is_uniform_and_independent_of_its_neighbours():
    drawn = noise(total_rows=100).uniform(0, tf.zeros([100, 1000])).numpy().astype(np.float64)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, 20, (0, 1))
    assert np.sum((counts - 5000) ** 2 / 5000) < 50  # chi square, 19 degrees: p < 1e-4
    for shifted in (drawn[1:], drawn[:, 1:]):
        pairs = drawn[: len(shifted), : shifted.shape[1]]
        assert abs(np.corrcoef(pairs.ravel(), shifted.ravel())[0, 1]) < 5 / np.sqrt(1e5)


@pytest.mark.parametrize("with_noise", [False, True])
def test_the_gradient_of_the_binarizer_is_the_upstream_one(with_noise):
    activation = tf.constant(np.tanh(normal(0, 6, 50)))
    upstream = normal(1, 6, 50)
    layer = Binarizer()
    with tf.GradientTape() as tape:
        tape.watch(activation)
        bits = layer(activation, noise=noise() if with_noise else None)
    np.testing.assert_array_equal(
        tape.gradient(bits, activation, output_gradients=upstream), upstream
    )


def test_the_gradient_of_the_binarizer_passes_through_a_graph_loop():
    @tf.function
    def gradient(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.zeros([])
            for t in tf.range(3):
                bits = Binarizer()(x, noise=noise(), iteration=t)
                total += tf.reduce_sum(upstream * bits)
        return tape.gradient(total, x)

    upstream = normal(1, 6, 5)
    found = gradient(tf.constant(np.tanh(normal(0, 6, 5))), upstream)
    np.testing.assert_allclose(found, 3 * upstream, rtol=1e-6)


def test_the_noise_is_a_pure_function_of_seed_step_and_iteration():
    activation = tf.zeros([6, 4, 4, 2])
    draws = {
        key: noise(*key[:2]).uniform(key[2], activation).numpy()
        for key in ((3, 7, 0), (3, 7, 1), (3, 8, 0), (4, 7, 0), (7, 3, 0), (3, 6, 1))
    }
    keys = list(draws)
    for index, key in enumerate(keys):
        tf.random.set_seed(index)  # the global seed plays no part
        again = noise(*key[:2]).uniform(key[2], activation)
        np.testing.assert_array_equal(again, draws[key])
        traced = tf.function(lambda t, key=key: noise(*key[:2]).uniform(t, activation))
        np.testing.assert_array_equal(traced(tf.constant(key[2])), draws[key])
        for other in keys[:index]:
            assert np.mean(draws[key] == draws[other]) < 0.05, (key, other)


@pytest.mark.parametrize(("first_row", "rows"), [(0, 6), (0, 2), (2, 3), (5, 1)])
def test_rows_drawn_for_a_part_of_the_minibatch_are_those_of_the_whole(first_row, rows):
    activation = tf.constant(np.tanh(normal(0, 6, 3, 3, 2)))
    whole = Binarizer()(activation, noise=noise(), iteration=2)
    mine = slice(first_row, first_row + rows)
    part = Binarizer()(activation[mine], noise=noise(first_row=first_row), iteration=2)
    np.testing.assert_array_equal(part, whole[mine])


def test_rows_that_the_minibatch_does_not_have_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError):
        noise(first_row=4).uniform(0, tf.zeros([3, 2]))


def test_binarize_compares_noise_with_the_probability():
    activation = tf.constant([-1.0, 0.0, 0.0, 0.5, 1.0])
    uniform = tf.constant([0.0, 0.499, 0.5, 0.75, 0.999])
    np.testing.assert_array_equal(binarize(activation, uniform), [-1, 1, -1, -1, 1])


# --- All layers -----------------------------------------------------------------------------------


LAYERS = {
    "ConvLSTMCell": (ConvLSTMCell, {"channels": 3, "kernel_size": 5, "stride": 2}, (2, 4, 4, 3)),
    "GridLSTM": (GridLSTM, {"grid_size": 2, "channels": 3}, (2, 3, 4)),
    "GridLSTM of Choy": (
        GridLSTM,
        {"grid_size": 2, "channels": 3, "output_gate": True, "shared_bias": True},
        (2, 3, 4),
    ),
    "UpConv3D": (UpConv3D, {"channels": 3}, (2, 2, 2, 2, 3)),
    "UpConv3D with zeros": (UpConv3D, {"channels": 3, "unpooling": "zeros"}, (2, 2, 2, 2, 3)),
    "Binarizer": (Binarizer, {}, (2, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_can_be_made_again_from_its_config(name):
    kind, arguments, shape = LAYERS[name]
    layer = kind(**arguments, name="first")
    again = kind.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.name == "first"
    for made in (layer, again):
        made.build(shape)
    assert [w.shape for w in again.get_weights()] == [w.shape for w in layer.get_weights()]
    assert {**again.get_config(), **arguments} == again.get_config()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ConvLSTMCell, {"channels": 0}),
        (ConvLSTMCell, {"channels": 1, "stride": 0}),
        (ConvLSTMCell, {"channels": 1, "hidden_kernel_size": 0}),
        (GridLSTM, {"grid_size": 0}),
        (GridLSTM, {"channels": -1}),
        (UpConv3D, {"channels": 0}),
    ],
)
def test_a_layer_without_size_is_refused_with_what_was_received(kind, arguments):
    with pytest.raises(ValueError, match=f"at least 1.*Received: .*{min(arguments.values())}"):
        kind(**arguments)


def test_an_unknown_unpooling_is_refused_with_what_was_received():
    with pytest.raises(ValueError, match=r"one of nearest, zeros. Received: .*unpooling='tile'"):
        UpConv3D(2, "tile")


def test_kernels_start_with_the_published_spread_and_biases_at_a_tenth():
    tf.keras.utils.set_random_seed(0)
    shape = (3, 3, 3, 40, 60)
    values = np.asarray(initializers.kernel()(shape))
    fans = 27 * 40, 27 * 60
    assert values.std() == pytest.approx(np.sqrt(2 / (sum(fans) / 2)), rel=0.02)
    assert np.abs(values).max() > 3.5 * values.std()  # normal, not truncated
    np.testing.assert_array_equal(initializers.bias()((5,)), np.full(5, 0.1, np.float32))


def test_kernels_of_the_codec_start_uniform_by_fan_in_alone():
    """So that fusing the gates of a cell does not change it."""
    tf.keras.utils.set_random_seed(0)
    spread = {}
    for inputs, outputs in ((16, 64), (16, 256), (64, 64)):
        values = np.asarray(initializers.codec_kernel()((3, 3, inputs, outputs)))
        spread[inputs, outputs] = values.std()
        assert np.abs(values).max() == pytest.approx(np.sqrt(3) * values.std(), rel=0.02)
        assert abs(values.mean()) < 0.05 * values.std()
    assert spread[16, 256] == pytest.approx(spread[16, 64], rel=0.02)
    assert spread[64, 64] == pytest.approx(spread[16, 64] / 2, rel=0.02)
