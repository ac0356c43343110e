"""The networks against their tables, against NumPy, and in the ways they are used."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfjoint import config, models
from tfjoint.layers import BinarizerNoise, UpConv3D
from tfjoint.losses import loss_terms
from tfjoint.models import Codec, Direct, ImageEncoder, VoxelDecoder

SMOKE = {"profile": "smoke"}
SIZE = 32


def make(**settings) -> tf.keras.Model:
    return models.create(config.resolve({**SMOKE, **settings})[0])


def randomise(model: tf.keras.Model, scale: float, seed: int = 0) -> None:
    """Give weights that do not depend on the version of TensorFlow, large enough to matter."""
    rng = np.random.default_rng(seed)
    fans = [np.prod(w.shape[:-1]) if w.ndim > 1 else 10 for w in model.get_weights()]
    model.set_weights(
        [rng.normal(0, scale / np.sqrt(f), w.shape) for f, w in zip(fans, model.get_weights())]
    )


def images(seed: int, *rows: int, size: int = SIZE) -> np.ndarray:
    """Smooth pictures with a little noise, [*rows, size, size, 3] in [0, 1]."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, size)
    weights = rng.random((*rows, 1, 1, 3))
    picture = weights * ramp[:, np.newaxis, np.newaxis] + (1 - weights) * ramp[:, np.newaxis]
    return np.clip(picture + rng.normal(0, 0.05, picture.shape), 0, 1).astype(np.float32)


def codes(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.float32([-1, 1]), shape)


def noise(rows: int, step: int = 0) -> BinarizerNoise:
    return BinarizerNoise(tf.constant([0, step]), tf.constant(0), tf.constant(rows))


@pytest.fixture(scope="module")
def direct() -> Direct:
    model = make()
    randomise(model, 1.5)
    return model


@pytest.fixture(scope="module")
def run(direct):
    """The model as one graph for every number of objects, views and iterations."""
    signature = [tf.TensorSpec([None, None, SIZE, SIZE, 3]), tf.TensorSpec([], tf.int32)]
    return tf.function(lambda x, t: direct(x, iterations=t), input_signature=signature)


# --- Against the tables ---------------------------------------------------------------------------


PARAMETERS = {
    "small_a": [1_728, 851_968, 5_767_168, 295_936, 4_096, 851_968, 884_736, 221_184, 48],
    "small_b": [1_728, 851_968, 5_767_168, 295_936, 4_096, 2_621_440, 851_968, 884_736, 3_456],
    "original": [
        *(1_728, 851_968, 5_767_168, 10_485_760, 16_384),
        *(16_384, 10_485_760, 3_407_872, 3_538_944, 884_736, 96),
    ],
}
"""By variant of the codec: the parameters of its layers in the paper profile, in their order."""
TOTALS = {"small_a": 8_878_832, "small_b": 11_282_496, "original": 35_456_800}


def layers_of(codec: Codec) -> list:
    encoder = [codec.encoder_conv, *codec.encoder_cells, *filter(None, [codec.code_conv])]
    return [*encoder, codec.decoder_conv, *codec.decoder_cells, codec.output_conv]


@pytest.mark.parametrize("variant", config.CODECS)
def test_a_codec_has_the_parameters_of_its_table(variant):
    codec = make(model="compression", profile="paper", codec=variant).codec
    assert [layer.count_params() for layer in layers_of(codec)] == PARAMETERS[variant]
    assert codec.count_params() == sum(PARAMETERS[variant]) == TOTALS[variant]


def test_the_image_encoder_has_the_parameters_of_its_table():
    encoder = ImageEncoder()
    encoder.build((None, 128, 128, 3))
    assert [layer.count_params() for layer in (*encoder.convolutions, encoder.dense)] == [
        *(14_208, 110_720, 295_168, 590_080, 590_080, 590_080, 1_049_600)
    ]
    # Choy's poolings are padded: 128 pixels end as 3 x 3 instead of 2 x 2.
    padded = ImageEncoder(pool_padding=True)
    padded.build((None, 128, 128, 3))
    assert padded.dense.count_params() == (9 * 256 + 1) * 1024


def test_the_implicit_model_has_a_quarter_of_its_bits_as_channels():
    """480:1 is 819.2 bits; 820 is the next number that four positions share."""
    model = make(model="implicit", code_bits=820)
    encoder = model.image_encoder
    assert [layer.filters for layer in encoder.convolutions] == [8, 16, 16, 205]
    assert encoder.dense.count_params() == (4 * 205 + 1) * 820
    assert model.volume.grid.input_kernel.shape[0] == 820


def test_the_direct_model_is_its_three_parts_and_all_of_it_is_trained():
    paper = make(profile="paper")
    assert paper.compression.count_params() == 8_878_832
    assert paper.volume.voxel_decoder.count_params() == 1_163_298
    assert paper.volume.grid.count_params() == 26_517_888
    total = 8_878_832 + 26_517_888 + 1_163_298
    assert paper.count_params() == total
    assert sum(np.prod(w.shape) for w in paper.trainable_variables) == total


def test_the_reconstruction_network_has_the_parameters_of_the_specification():
    assert make(model="reconstruction", profile="paper").count_params() == 30_921_122


def test_systems_are_made_of_the_same_parts():
    """Smoke widths; the sum of the parts is the whole, so no system has a part of its own."""
    sizes = {name: make(model=name).count_params() for name in models.MODELS}
    assert sizes["sequential"] == sizes["separate"]
    assert sizes["sequential"] == sizes["compression"] + sizes["reconstruction"]
    assert sizes["jpeg2000"] == sizes["reconstruction"]
    volume = make().volume.count_params()
    assert sizes["direct"] == sizes["compression"] + volume
    encoder = make(model="implicit").image_encoder.count_params()
    assert sizes["implicit"] == encoder + volume


class Witness:
    """A config that notes what is read of it."""

    def __init__(self, settings: config.Config) -> None:
        self._settings = settings
        self.read: set[str] = set()

    def __getattr__(self, name: str):
        self.read.add(name)
        return getattr(self._settings, name)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_system_is_made_of_the_settings_that_it_is_said_to_use(name):
    settings, _ = config.resolve({**SMOKE, "model": name})
    witness = Witness(settings)
    models.MODELS[name](witness)
    # What the loss, the minibatch and the trainer read.
    elsewhere = {"loss_weight", "iterations_min", "iterations_max", "rates", "codec_run"}
    partial = set().union(*config.USES.values())
    # A frozen codec has no backward pass, and nothing to wait for.
    frozen = {"recompute", "original_views_steps"} if name == "separate" else set()
    assert (witness.read & partial) - frozen == config.USES[name] - elsewhere


def test_defaults_of_the_parts_are_the_paper_profile():
    codec, decoder = Codec(), VoxelDecoder()
    codec.build()
    decoder.build((None, 4, 4, 4, 128))
    assert codec.count_params() == 8_878_832
    assert decoder.count_params() == 1_163_298


# --- Shapes, codes, prefixes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objects", "views", "iterations"), [(1, 1, 1), (2, 3, 2), (3, 1, 5), (1, 5, 8)]
)
def test_shapes_follow_objects_views_and_iterations(direct, run, objects, views, iterations):
    given = images(0, objects, views)
    output = run(given, iterations)
    assert output.codes.shape == (objects, views, iterations, 2, 2, 16)
    assert output.decoded.shape == (objects, views, iterations, SIZE, SIZE, 3)
    assert output.logits.shape == (objects, 32, 32, 32)
    assert set(np.unique(output.codes)) == {-1.0, 1.0}
    assert {t.dtype for t in output} == {tf.float32}


def test_one_trace_serves_every_number_of_objects_views_and_iterations(direct):
    traced = tf.function(
        lambda x, t: direct(x, iterations=t),
        input_signature=[tf.TensorSpec([None, None, SIZE, SIZE, 3]), tf.TensorSpec([], tf.int32)],
    )
    for objects, views, iterations in ((1, 2, 3), (2, 1, 1), (3, 2, 4)):
        given = images(1, objects, views)
        found, expected = traced(given, iterations), direct(given, iterations=iterations)
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_allclose(found.decoded, expected.decoded, atol=1e-6)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    assert traced.experimental_get_tracing_count() == 1


def test_a_code_is_a_prefix_of_a_longer_one(run):
    given = images(2, 2, 2)
    long = run(given, 6)
    for iterations in (1, 3, 5):
        short = run(given, iterations)
        np.testing.assert_array_equal(short.codes, long.codes[:, :, :iterations])
        np.testing.assert_allclose(short.decoded, long.decoded[:, :, :iterations], atol=1e-6)


def test_iterations_differ_and_views_differ(run):
    output = run(images(3, 1, 2), 3)
    flat = np.reshape(output.codes, [6, -1])
    assert len(np.unique(flat, axis=0)) == 6


def test_codes_alone_give_the_decoded_views_and_the_shape_of_the_call(direct, run):
    given = images(4, 2, 3)
    output = run(given, 4)
    np.testing.assert_array_equal(direct.encode(given, 4), output.codes)
    np.testing.assert_allclose(direct.decode(output.codes), output.decoded, atol=1e-6)
    np.testing.assert_allclose(direct.occupancy(output.codes), output.logits, atol=1e-5)


def test_codes_may_be_int8(direct, run):
    output = run(images(5, 1, 2), 2)
    sent = tf.cast(output.codes, tf.int8)
    np.testing.assert_allclose(direct.decode(sent), output.decoded, atol=1e-6)
    np.testing.assert_allclose(direct.occupancy(sent), output.logits, atol=1e-5)


def test_the_image_decoder_reads_an_iteration_only_after_the_ones_before(direct):
    given = codes(0, 1, 1, 4, 2, 2, 16)
    changed = given.copy()
    changed[:, :, 2] *= -1
    first, second = direct.decode(given).numpy(), direct.decode(changed).numpy()
    np.testing.assert_array_equal(first[:, :, :2], second[:, :, :2])
    assert (np.abs(first - second).max(axis=(0, 1, 3, 4, 5))[2:] > 1e-3).all()


# --- Against NumPy --------------------------------------------------------------------------------


NARROW = {
    "small_a": {"encoder_channels": (8, 8, 12), "decoder_channels": (8, 16, 8, 12)},
    "small_b": {"encoder_channels": (8, 8, 12), "decoder_channels": (8, 16, 8, 12)},
    "original": {"encoder_channels": (8, 8, 12, 8), "decoder_channels": (8, 16, 8, 12, 8)},
}


@pytest.mark.parametrize(
    ("variant", "gamma", "binarizer"),
    [
        ("small_a", 1.0, True),
        ("small_a", 0.0, True),
        ("small_a", 0.5, False),
        ("small_b", 1.0, True),
        ("small_b", 0.0, False),
        ("original", 1.0, True),
        ("original", 0.5, False),
    ],
)
def test_the_compression_network_equals_numpy(variant, gamma, binarizer):
    codec = Codec(variant, **NARROW[variant], code_channels=4, gamma=gamma, binarizer=binarizer)
    codec.build()
    randomise(codec, 2.5)
    given = np.stack([images(seed, size=48)[:32] for seed in range(2)])  # any multiple of 16
    written_again = reference.Codec(codec.get_weights(), gamma, variant, binarizer)
    activations, expected_codes, expected = written_again.run(given, 4)
    assert 0.2 < np.mean(expected_codes > 0) < 0.8
    found = codec(given, iterations=4)
    if binarizer:
        assert np.abs(activations).min() > 1e-5  # no bit hangs on rounding
        np.testing.assert_array_equal(found.codes, expected_codes)
    else:
        assert len(np.unique(expected_codes)) > 100
        np.testing.assert_allclose(found.codes, expected_codes, atol=2e-5)
    np.testing.assert_allclose(found.decoded, expected, atol=5e-5)
    np.testing.assert_allclose(codec.decode(expected_codes), expected, atol=5e-5)


@pytest.mark.parametrize(("code", "padding"), [(False, False), (True, False), (False, True)])
def test_the_image_encoder_equals_numpy(code, padding):
    activation = {"activation": tf.tanh} if code else {}
    encoder = ImageEncoder((4, 6, 5), 7, **activation, pool_padding=padding)
    sides = (18, 26) if padding else (16, 24)
    encoder.build((None, *sides, 3))
    randomise(encoder, 1.5)
    given = np.random.default_rng(0).random((3, *sides, 3)).astype(np.float32)
    expected = reference.image_encoder(given, encoder.get_weights(), code, padding)
    assert np.std(expected) > 0.05 and np.any(expected < 0)
    found = encoder(given)
    assert found.shape == (3, 7)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("unpooling", ["nearest", "zeros"])
def test_the_voxel_decoder_equals_numpy(unpooling):
    decoder = VoxelDecoder((6, 5, 4, 3), unpooling)
    decoder.build((None, None, None, None, 2))
    randomise(decoder, 1.0)
    grid = np.tanh(np.random.default_rng(0).normal(size=(2, 2, 2, 2, 2))).astype(np.float32)
    expected = reference.voxel_decoder(grid, decoder.get_weights(), unpooling)
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(decoder(grid), expected, atol=1e-5)


def shape_of(sequences, volume, unpooling: str = "nearest", **settings) -> np.ndarray:
    """Logits of sequences [B, S, K] by NumPy, with the weights of a model's last part."""
    hidden = reference.grid_lstm(np.array(sequences), *volume.grid.get_weights(), **settings)
    return reference.voxel_decoder(hidden, volume.voxel_decoder.get_weights(), unpooling)


def test_the_shape_of_a_code_equals_numpy(direct):
    """Grid and voxel decoder together; views in order, the iterations of a view in a row."""
    given = codes(1, 1, 2, 3, 2, 2, 16)
    sequence = [given[0, v, t].ravel() for v in range(2) for t in range(3)]
    np.testing.assert_allclose(
        direct.occupancy(given), shape_of([sequence], direct.volume), atol=1e-5
    )


def residual_recursion(model: Codec, given: np.ndarray, iterations: int) -> tf.Tensor:
    """Eqs. 10 and 11 with the model's layers, one image at a time; images [N, T, H, W, 3]."""
    rows = []
    for image in given:
        encoder, decoder, steps = {}, {}, []
        reconstructed = np.full((1, *image.shape), 0.5, np.float32)
        for _ in range(iterations):
            x = model.encoder_conv(image[np.newaxis] - reconstructed)
            for cell in model.encoder_cells:
                encoder[cell] = cell(x, encoder.get(cell))
                x = encoder[cell].hidden
            x = model.decoder_conv(np.where(x >= 0, np.float32(1), np.float32(-1)))
            x = reference.depth_to_space(x.numpy())
            for cell in model.decoder_cells:
                decoder[cell] = cell(x, decoder.get(cell))
                x = reference.depth_to_space(decoder[cell].hidden.numpy())
            update = np.tanh(model.output_conv(x)) / 2
            reconstructed = 0.5 + update + model.gamma * (reconstructed - 0.5)
            steps.append(reconstructed[0])
        rows.append(steps)
    return np.array(rows)


@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_images_follow_the_residual_recursion_step_by_step(gamma):
    model = make(gamma=gamma)
    randomise(model, 2.0)
    given = images(6, 3)
    codec = model.compression.codec
    expected = residual_recursion(codec, given, 4)
    found = codec(given, iterations=4)
    np.testing.assert_allclose(found.decoded, expected, atol=2e-5)


def vectors_of(given: np.ndarray, encoder: ImageEncoder, **settings) -> np.ndarray:
    """What the image encoder makes of views [B, V, H, W, 3], by NumPy: [B, V, K]."""
    rows = given.reshape(-1, *given.shape[2:])
    vectors = reference.image_encoder(rows, encoder.get_weights(), **settings)
    return vectors.reshape(*given.shape[:2], -1)


def test_the_reconstruction_network_equals_numpy():
    model = make(model="reconstruction")
    randomise(model, 1.5)
    given = images(20, 2, 3)
    output = model(given, iterations=7)  # which has no meaning here
    assert output.codes is None and output.decoded is None
    expected = shape_of(vectors_of(given, model.image_encoder), model.volume)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)
    np.testing.assert_allclose(model.occupancy(given), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("padding", "unpooling", "shared_bias", "output_gate"),
    [(True, "zeros", True, False), (False, "nearest", False, True)],
)
def test_the_settings_of_choy_and_the_output_gate_equal_numpy(
    padding, unpooling, shared_bias, output_gate
):
    given = {"pool_padding": padding, "unpooling": unpooling, "shared_bias": shared_bias}
    model = make(model="reconstruction", **given, output_gate=output_gate)
    assert len(model.volume.grid.weights) == (3 if shared_bias else 4)
    randomise(model, 1.5)
    views = images(21, 1, 2)
    vectors = vectors_of(views, model.image_encoder, padding=padding)
    expected = shape_of(vectors, model.volume, unpooling, output_gate=output_gate)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(model.occupancy(views), expected, atol=1e-5)


@pytest.mark.parametrize("binarizer", [True, False])
def test_the_implicit_model_equals_numpy(binarizer):
    model = make(model="implicit", binarizer=binarizer)
    randomise(model, 1.5)
    given = images(22, 2, 3)
    values = vectors_of(given, model.image_encoder, code=True)
    assert np.abs(values).min() > 1e-6  # no bit hangs on rounding
    bits = np.where(values >= 0, 1, -1) if binarizer else values
    output = model(given)
    assert output.decoded is None
    np.testing.assert_allclose(output.codes, bits, atol=1e-5)
    np.testing.assert_array_equal(model.encode(given), output.codes)
    expected = shape_of(bits, model.volume)
    np.testing.assert_allclose(output.logits, expected, atol=2e-5)
    np.testing.assert_allclose(model.occupancy(output.codes), expected, atol=2e-5)


@pytest.fixture(scope="module")
def sequential() -> tf.keras.Model:
    model = make(model="sequential")
    randomise(model, 2.0)
    return model


def test_the_sequential_model_reconstructs_from_the_last_decoded_views_clipped(sequential):
    output = sequential(images(23, 2, 2), iterations=3)
    last = output.decoded[:, :, -1].numpy()
    network = sequential.reconstruction
    expected, unclipped = (
        shape_of(vectors_of(views, network.image_encoder), network.volume)
        for views in (np.clip(last, 0, 1), last)
    )
    np.testing.assert_allclose(output.logits, expected, atol=2e-4)
    assert np.abs(unclipped - expected).max() > 0.01


def test_the_codes_of_the_sequential_model_are_those_of_its_codec_and_give_its_shape(sequential):
    given = images(24, 1, 3)
    output = sequential(given, iterations=2)
    rows = sequential.compression.codec(given[0], iterations=2)
    np.testing.assert_array_equal(output.codes[0], rows.codes)
    np.testing.assert_allclose(output.decoded[0], rows.decoded, atol=1e-6)
    np.testing.assert_array_equal(sequential.encode(given, 2), output.codes)
    np.testing.assert_allclose(sequential.decode(output.codes), output.decoded, atol=1e-6)
    np.testing.assert_allclose(sequential.occupancy(output.codes), output.logits, atol=2e-5)


def test_the_sequential_model_reconstructs_from_the_original_views_at_first():
    model = make(model="sequential", original_views_steps=2)
    randomise(model, 1.5)
    given = images(24, 1, 2)
    for step, original in ((0, True), (1, True), (2, False)):
        with tf.GradientTape() as tape:
            output = model(given, iterations=3, noise=noise(2, step))
            loss = tf.reduce_mean(tf.square(output.logits))
        seen = given if original else tf.clip_by_value(output.decoded[:, :, -1], 0, 1)
        expected = model.reconstruction(seen).logits
        np.testing.assert_allclose(output.logits, expected, atol=1e-5)
        gradients = tape.gradient(loss, model.compression.trainable_variables)
        assert any(g is not None and np.any(g) for g in gradients) != original
    np.testing.assert_array_equal(
        model(given, iterations=3).logits, model.occupancy(model.encode(given, 3))
    )


def test_the_separate_model_computes_what_the_sequential_one_does_at_inference(sequential):
    model = make(model="separate")
    model.compression.set_weights(sequential.compression.get_weights())
    model.reconstruction.set_weights(sequential.reconstruction.get_weights())
    given = images(25, 1, 2)
    for first, second in zip(model(given, iterations=3), sequential(given, iterations=3)):
        np.testing.assert_allclose(first, second, atol=1e-6)
    # Its codec is finished: it codes in training as it will be used.
    in_training = model(given, iterations=3, noise=noise(2))
    np.testing.assert_array_equal(in_training.codes, model.encode(given, 3))
    drawn = sequential(given, iterations=3, noise=noise(2)).codes
    assert np.any(drawn != in_training.codes)


def test_one_shot_images_stay_in_range_and_additive_ones_are_sums():
    one_shot, additive = make(gamma=0.0), make(gamma=1.0)
    for model in (one_shot, additive):
        randomise(model, 5.0)
    given = codes(2, 1, 1, 6, 2, 2, 16)
    updates = one_shot.decode(given).numpy() - 0.5
    assert np.abs(updates).max() <= 0.5
    # Given the codes, gamma alone makes the difference.
    np.testing.assert_allclose(additive.decode(given), 0.5 + np.cumsum(updates, axis=2), atol=1e-5)
    assert np.abs(additive.decode(given).numpy() - 0.5).max() > 0.5  # images are not clipped


# --- Who may know of whom -------------------------------------------------------------------------


def test_the_order_of_objects_changes_no_object(run):
    given = images(7, 4, 2)
    order = [2, 0, 3, 1]
    first, second = run(given, 3), run(given[order], 3)
    np.testing.assert_array_equal(second.codes, first.codes.numpy()[order])
    np.testing.assert_allclose(second.decoded, first.decoded.numpy()[order], atol=1e-6)
    np.testing.assert_allclose(second.logits, first.logits.numpy()[order], atol=1e-6)


def test_an_object_alone_is_what_it_is_in_company(run):
    given = images(8, 3, 2)
    together = run(given, 3)
    for index in range(3):
        alone = run(given[index : index + 1], 3)
        np.testing.assert_array_equal(alone.codes[0], together.codes[index])
        np.testing.assert_allclose(alone.logits[0], together.logits[index], atol=1e-5)


def test_a_call_leaves_no_state_behind(run):
    given, other = images(9, 2, 2), images(10, 2, 2)
    before = run(given, 3)
    run(other, 5)
    for first, second in zip(before, run(given, 3)):
        np.testing.assert_array_equal(first, second)


def test_views_are_compressed_apart_but_their_order_may_change_the_shape(run):
    given = images(11, 2, 3)
    first, second = run(given, 2), run(given[:, ::-1], 2)
    np.testing.assert_array_equal(second.codes, first.codes[:, ::-1])
    np.testing.assert_allclose(second.decoded, first.decoded[:, ::-1], atol=1e-6)
    assert np.abs(second.logits - first.logits).max() > 1e-3


def test_every_view_and_every_iteration_reaches_the_shape(direct):
    given = codes(3, 1, 2, 2, 2, 2, 16)
    logits = direct.occupancy(given)
    for view, iteration in np.ndindex(2, 2):
        changed = given.copy()
        changed[:, view, iteration] *= -1
        assert np.abs(direct.occupancy(changed) - logits).max() > 1e-4, (view, iteration)


def test_noise_changes_bits_with_the_step_only(direct):
    given = images(12, 1, 2)

    def train(step):
        return direct(given, iterations=2, noise=noise(2, step)).codes

    np.testing.assert_array_equal(train(5), train(5))
    assert np.any(train(5) != train(6))
    assert np.any(train(5) != direct.encode(given, 2))


def test_iterations_draw_their_own_noise():
    """With activations of zero, a bit is its noise and nothing else."""
    model = make()
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    bits = model(images(13, 1, 3), iterations=4, noise=noise(3)).codes.numpy()
    rows = bits.reshape(12, -1)
    assert len(np.unique(rows, axis=0)) == 12
    assert 0.4 < np.mean(rows > 0) < 0.6


# --- Gradients ------------------------------------------------------------------------------------


def joint_loss(model: Direct, given: np.ndarray, truth: np.ndarray) -> tf.Tensor:
    output = model(given, iterations=3, noise=noise(given.shape[0] * given.shape[1]))
    settings, _ = config.resolve(SMOKE)
    return loss_terms(settings, {"images": given, "voxels": truth}, output)["loss"]


def truth(seed: int, objects: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((objects, 32, 32, 32)) < 0.3).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "precision", "variables"),
    [
        *((name, "float32", 0) for name in models.MODELS if name != "direct"),
        ("direct", "float32", 29),
        ("direct", "mixed_bfloat16", 29),
    ],
)
def test_every_weight_gets_a_finite_gradient_that_is_not_zero(name, precision, variables):
    model = make(model=name, precision=precision)
    with tf.GradientTape() as tape:
        loss = joint_loss(model, images(14, 2, 2), truth(0, 2))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert len(gradients) == (variables or len(model.variables) - 15 * (name == "separate"))
    for variable, gradient in zip(model.trainable_variables, gradients):
        assert gradient is not None, variable.name
        assert gradient.dtype == tf.float32
        values = np.abs(gradient)
        assert np.all(np.isfinite(values)), variable.name
        assert np.mean(values > 0) > 0.5, variable.name


@pytest.mark.parametrize("name", ["sequential", "separate"])
def test_the_shape_loss_reaches_the_whole_codec_unless_it_is_frozen(name):
    model = make(model=name)
    codec = model.compression.codec
    weights = [layer.trainable_weights or layer.weights for layer in layers_of(codec)]
    with tf.GradientTape() as tape:
        tape.watch([v if isinstance(v, tf.Variable) else v.value for w in weights for v in w])
        logits = model(images(26, 1, 2), iterations=3, noise=noise(2)).logits
        loss = tf.reduce_mean(tf.square(logits))
    gradients = tape.gradient(loss, [v for w in weights for v in w])
    assert len(gradients) == 15
    reached = [gradient is not None and bool(np.any(gradient)) for gradient in gradients]
    assert reached == [name == "sequential"] * 15


def test_only_the_reconstruction_of_the_separate_model_is_trained():
    model = make(model="separate")
    network = model.reconstruction
    trained = [id(v) for v in model.trainable_variables]
    assert trained == [id(v) for v in network.trainable_variables]
    assert len(trained) == len(network.variables) > 0
    assert not model.compression.trainable_variables
    assert len(models.variables(model)) == len(trained) + 15


def test_the_image_loss_trains_the_codec_alone_and_the_shape_loss_the_encoder_too(direct):
    given, voxels = images(15, 1, 2), truth(1, 1)
    with tf.GradientTape(persistent=True) as tape:
        # In one iteration: the codes of later ones depend on the images decoded before.
        output = direct(given, iterations=1, noise=noise(2))
        shape_loss = tf.reduce_mean(
            tf.nn.sigmoid_cross_entropy_with_logits(labels=voxels, logits=output.logits)
        )
        image_loss = tf.reduce_mean(tf.abs(given[:, :, np.newaxis] - output.decoded))
    codec = direct.compression.codec
    reached = {
        name: [g is not None and bool(np.any(g)) for g in tape.gradient(loss, variables)]
        for name, loss, variables in (
            ("image, 3D", image_loss, direct.volume.grid.trainable_variables),
            ("image, codec", image_loss, direct.compression.trainable_variables),
            ("shape, encoder", shape_loss, codec.encoder_conv.trainable_variables),
            (
                "shape, image decoder",
                shape_loss,
                codec.output_conv.trainable_variables,
            ),
        )
    }
    assert not any(reached["image, 3D"])
    # The codes' own past: hidden kernels see zeros in the first iteration.
    assert sum(reached["image, codec"]) == 15 - 6
    assert all(reached["shape, encoder"])
    assert not any(reached["shape, image decoder"])


def finite_differences(loss, variables, step: float = 5e-3, tolerance: float = 5e-3) -> None:
    """Compare gradients with central differences: each variable's largest entry, and all at once.

    Outputs are float32 and leaky ReLUs turn at 0, so the loss is a sum of many, made in float64.
    """
    with tf.GradientTape() as tape:
        value = loss()
    gradients = [g.numpy().astype(np.float64) for g in tape.gradient(value, variables)]
    for variable, gradient in zip(variables, gradients):
        original = variable.numpy()
        place = np.unravel_index(np.argmax(np.abs(gradient)), gradient.shape)
        directions = [np.zeros_like(gradient), gradient / np.linalg.norm(gradient)]
        directions[0][place] = 1
        for direction in directions:
            values = []
            for sign in (1, -1):
                variable.assign((original + sign * step * direction).astype(np.float32))
                values.append(float(loss()))
            variable.assign(original)
            numeric, analytic = (values[0] - values[1]) / (2 * step), np.sum(gradient * direction)
            assert numeric == pytest.approx(analytic, rel=tolerance), variable.name


def test_the_gradient_of_grid_and_voxel_decoder_equals_finite_differences(direct):
    given = codes(4, 2, 2, 2, 2, 2, 16)
    upstream = tf.constant(np.random.default_rng(0).normal(1, 1, (2, 32, 32, 32)))
    weights = direct.volume.trainable_variables

    @tf.function
    def loss():
        return tf.reduce_mean(upstream * tf.cast(direct.occupancy(given), tf.float64)) * 1e3

    finite_differences(loss, weights)


def test_the_gradient_of_the_image_decoder_equals_finite_differences(direct):
    given = codes(5, 2, 1, 3, 2, 2, 16)
    upstream = tf.constant(np.random.default_rng(0).normal(1, 1, (2, 1, 3, SIZE, SIZE, 3)))
    codec = direct.compression.codec
    layers = [codec.decoder_conv, *codec.decoder_cells, codec.output_conv]

    @tf.function
    def loss():
        return tf.reduce_mean(upstream * tf.cast(direct.decode(given), tf.float64)) * 1e3

    finite_differences(loss, [w for layer in layers for w in layer.trainable_variables])


@pytest.mark.parametrize("variant", config.CODECS)
def test_the_gradient_of_a_codec_without_binarizer_equals_finite_differences(variant):
    """Through all iterations: what is left over, states and sums included."""
    codec = Codec(variant, **NARROW[variant], code_channels=4, binarizer=False)
    codec.build()
    randomise(codec, 2.5)
    given = images(27, 2)
    upstream = tf.constant(np.random.default_rng(0).normal(1, 1, (2, 3, SIZE, SIZE, 3)))

    @tf.function
    def loss():
        decoded = codec(given, iterations=3).decoded
        return tf.reduce_mean(upstream * tf.cast(decoded, tf.float64)) * 1e3

    finite_differences(loss, codec.trainable_variables)


def test_computing_iterations_again_changes_neither_outputs_nor_gradients():
    found = []
    for recompute in (False, True):
        model = make(model="compression", recompute=recompute)
        randomise(model, 1.5)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, SIZE, SIZE, 3]),
                tf.TensorSpec([], tf.int32),
            ]
        )
        def step(x, t, model=model):
            with tf.GradientTape() as tape:
                output = model(x, iterations=t, noise=noise(4))
                loss = tf.reduce_mean(tf.square(output.codes)) + tf.reduce_mean(output.decoded**2)
            return [*output[:2], *tape.gradient(loss, model.trainable_variables)]

        found.append(step(images(28, 2, 2), 3))
    for kept, again in zip(*found):
        scale = np.abs(kept).max()
        assert scale > 0
        np.testing.assert_allclose(again / scale, kept / scale, atol=1e-5)
    assert len(found[0]) == len(found[1]) == 2 + 15


def test_the_encoder_is_trained_through_the_bits_as_if_they_were_its_activation():
    """Straight-through: d loss / d weight = d loss / d bit . d activation / d weight."""
    model = make()
    randomise(model, 1.5)
    codec = model.compression.codec
    given = images(16, 2)
    with tf.GradientTape(persistent=True) as tape:
        x = codec.encoder_conv(given - 0.5)
        for cell in codec.encoder_cells:
            x = cell(x).hidden
        bits = tf.where(x >= 0, 1.0, -1.0)
        tape.watch(bits)
        loss = tf.reduce_sum(tf.square(codec.decode(bits[:, np.newaxis])))
        whole = tf.reduce_sum(tf.square(codec(given, iterations=1).decoded))
    weights = codec.encoder_conv.trainable_variables
    upstream = tape.gradient(loss, bits)
    expected = tape.gradient(x, weights, output_gradients=upstream)[0]
    found = tape.gradient(whole, weights)[0]
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


# --- Making, precision, saving --------------------------------------------------------------------


def test_an_equal_seed_gives_equal_weights_and_another_seed_others():
    first = make(seed=5).get_weights()
    tf.random.normal([3])  # whatever ran before plays no part
    second, other = make(seed=5).get_weights(), make(seed=6).get_weights()
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
    kernels = [(a, b) for a, b in zip(first, other) if a.ndim > 1 and np.ptp(a) > 0]
    assert len(kernels) == 15 + 2 + 5
    assert all(np.mean(a == b) < 0.01 for a, b in kernels)


def test_no_two_kernels_start_alike():
    weights = [w.ravel() for w in make().get_weights() if np.ptp(w) > 0]
    for index, a in enumerate(weights):
        for b in weights[:index]:
            n = min(len(a), len(b))
            assert abs(np.corrcoef(a[:n], b[:n])[0, 1]) < 0.9


def test_other_settings_than_widths_and_seed_do_not_change_the_weights():
    first = make().get_weights()
    settings = {"batch_size": 2, "learning_rate": 0.1, "precision": "mixed_bfloat16"}
    for a, b in zip(first, make(**settings).get_weights()):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_keeps_variables_and_outputs_in_float32_and_stays_near(direct):
    before = tf.keras.mixed_precision.global_policy().name
    model = make(precision="mixed_bfloat16")
    assert tf.keras.mixed_precision.global_policy().name == before == "float32"
    model.set_weights(direct.get_weights())
    assert {tf.as_dtype(v.dtype) for v in model.variables} == {tf.float32}
    output = model(images(17, 2, 2), iterations=2)
    assert output.decoded.dtype == output.logits.dtype == tf.float32
    assert set(np.unique(tf.cast(output.codes, tf.float32))) == {-1.0, 1.0}

    given = codes(6, 2, 2, 3, 2, 2, 16)
    for low, full in (
        (model.decode(given), direct.decode(given)),
        (model.occupancy(given), direct.occupancy(given)),
    ):
        difference = np.abs(low - full)
        assert 1e-5 < difference.max() < 0.05 * np.ptp(full)  # lower precision, but no other model
    same = np.mean(tf.cast(output.codes, tf.float32) == direct.encode(images(17, 2, 2), 2))
    assert same > 0.9


def test_bfloat16_computes_in_bfloat16():
    model = make(precision="mixed_bfloat16")
    traced = tf.function(lambda x: model(x, iterations=2)).get_concrete_function(
        tf.TensorSpec([2, 2, SIZE, SIZE, 3])
    )
    graphs = [traced.graph, *(f.graph for f in _functions(traced.graph))]
    operations = [op for graph in graphs for op in graph.get_operations()]
    convolutions = [op for op in operations if op.type.startswith("Conv")]
    assert len(convolutions) >= 20
    assert {op.outputs[0].dtype for op in convolutions} == {tf.bfloat16}


def _functions(graph):
    definitions = graph.as_graph_def().library.function
    return [graph._get_function(definition.signature.name) for definition in definitions]


def test_a_failed_creation_leaves_the_precision_as_it_was(monkeypatch):
    class Broken:
        def __init__(self, settings):
            raise RuntimeError("no memory")

    monkeypatch.setitem(models.MODELS, "direct", Broken)
    with pytest.raises(RuntimeError, match="no memory"):
        make(precision="mixed_bfloat16")
    assert tf.keras.mixed_precision.global_policy().name == "float32"


def test_weights_come_back_from_a_checkpoint(direct, tmp_path):
    path = tf.train.Checkpoint(model=direct).save(str(tmp_path / "checkpoint"))
    other = make(seed=9)
    given = codes(7, 1, 1, 2, 2, 2, 16)
    assert np.abs(other.occupancy(given) - direct.occupancy(given)).max() > 1e-3
    tf.train.Checkpoint(model=other).restore(path).assert_consumed()
    for a, b in zip(other.get_weights(), direct.get_weights()):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(other.occupancy(given), direct.occupancy(given))
    np.testing.assert_array_equal(other.decode(given), direct.decode(given))


def test_a_checkpoint_of_another_width_does_not_fit(direct, tmp_path):
    path = tf.train.Checkpoint(model=direct).save(str(tmp_path / "checkpoint"))
    with pytest.raises(ValueError, match=r"[Ss]hape"):
        tf.train.Checkpoint(model=make(grid_channels=4)).restore(path)


def test_widths_that_do_not_fit_are_refused_with_what_was_received():
    needs = "needs {} numbers in encoder_channels and {} in decoder_channels. Received: {} and {}"
    for variant, *numbers in (
        ("small_a", 3, 4, 2, 4),
        ("small_b", 3, 4, 4, 4),
        ("original", 4, 5, 3, 4),
        ("original", 4, 5, 4, 4),
    ):
        *_, encoder, decoder = numbers
        with pytest.raises(ValueError, match=needs.format(*numbers)):
            Codec(variant, (8,) * encoder, (8,) * decoder)
    with pytest.raises(ValueError, match=r"multiples of 4.*Received: \(8, 8, 8, 6\)"):
        Codec(decoder_channels=(8, 8, 8, 6))
    with pytest.raises(ValueError, match=r"4 numbers. Received: \(8, 8\)"):
        VoxelDecoder((8, 8))
    with pytest.raises(ValueError, match=r"at least 1. Received: \(8, 0\), 16"):
        ImageEncoder((8, 0), 16)
    with pytest.raises(ValueError, match=r"2 poolings do not divide.*Received: 32 x 30"):
        ImageEncoder((8, 8), 16).build((None, 32, 30, 3))


def test_the_voxel_decoder_upsamples_three_times_by_the_folded_convolution():
    decoder = VoxelDecoder((2, 2, 2, 2))
    assert [type(layer) for layer in decoder.upsampling] == [UpConv3D] * 3
    assert decoder(tf.zeros([1, 3, 3, 3, 2])).shape == (1, 24, 24, 24)
