"""What clients of a model server send: files and packed codes, and the requests that warm it up."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorflow.core.framework import tensor_pb2

from tfjoint import bitstream, dataset, export, models, serving
from tfjoint.config import Config, resolve
from tfjoint.export import Signatures

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

SIDE = 32
ITERATIONS = 3
ONES = np.ones((SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def serve() -> Callable[[str], tuple[Config, Signatures]]:
    """A function of a system, "floats" behind it for no binarizer, to its config and signatures."""
    made = {}

    def make(name: str) -> tuple[Config, Signatures]:
        if name not in made:
            model, _, special = name.partition(" ")
            given = {"binarizer": False} if special else {}
            config, _ = resolve({"model": model, "profile": "smoke", **given})
            made[name] = config, Signatures(models.create(config), config)
        return made[name]

    return make


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def files_of(pixels: np.ndarray) -> tf.Tensor:
    """PNG files [B, V] of pixels [B, V, H, W, C]."""
    return tf.constant([[encoded(view) for view in views] for views in pixels])


def refusal(signature, *values) -> str:
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        signature(*values)
    return str(caught.value)


def times(config: Config, iterations: int = ITERATIONS) -> list[tf.Tensor]:
    return [tf.constant(iterations)] * config.uses("iterations_max")


# --- Which there are ------------------------------------------------------------------------------

FILES = ("images_bytes", tf.string, [None, None])
TIMES = ("iterations", tf.int32, [])
PACKED = ("codes_bytes", tf.string, [None, None])
JOINT = {
    "serving_default": [FILES],
    "encode_files": [FILES, TIMES],
    "reconstruct_files": [FILES, TIMES],
    "reconstruct_packed": [PACKED],
}
WITHOUT_ITERATIONS = {
    "serving_default": [FILES],
    "encode_files": [FILES],
    "reconstruct_packed": [PACKED],
}
OFFERED = {
    "direct": JOINT,
    "direct floats": JOINT,
    "sequential": JOINT,
    "separate": JOINT,
    "implicit": WITHOUT_ITERATIONS,
    "implicit floats": WITHOUT_ITERATIONS,
    "compression": {"serving_default": [FILES], "encode_files": [FILES, TIMES]},
    "reconstruction": {"serving_default": [FILES]},
    "jpeg2000": {"serving_default": [FILES]},
}


@pytest.mark.parametrize("name", OFFERED)
def test_a_system_offers_its_clients_what_it_can_serve(serve, name):
    found = {
        key: [(spec.name, spec.dtype, spec.shape.as_list()) for spec in signature.input_signature]
        for key, signature in serve(name)[1].by_name.items()
        if key not in (*export.ORDER, "refine")
    }
    assert found == OFFERED[name]


def test_a_code_shorter_than_a_byte_is_not_offered_packed():
    config, _ = resolve(
        {"model": "direct", "profile": "smoke", "image_size": 16, "code_channels": 4}
    )
    assert config.code_size == 4
    assert "reconstruct_packed" not in Signatures(models.create(config), config).by_name


# --- What they compute ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["direct", "direct floats", "implicit", "implicit floats"])
def test_files_and_packed_codes_lead_to_the_shape_that_tensors_lead_to(serve, name):
    config, signatures = serve(name)
    by_name = signatures.by_name
    pixels = noise(2, 3, SIDE, SIDE, 3)
    images = tf.constant(pixels.astype(np.float32) / 255)
    codes = by_name["encode"](images, *times(config))["codes"]
    expected = by_name["reconstruct"](codes)["occupancy"]

    packed = by_name["encode_files"](files_of(pixels), *times(config))["codes_bytes"]
    for row, payloads in zip(codes.numpy(), packed.numpy()):
        for view, payload in zip(row, payloads):
            bits = np.packbits(view.ravel() > 0).tobytes()
            assert payload == (bits if config.binarizer else view.astype("<f4").tobytes())
    np.testing.assert_array_equal(by_name["reconstruct_packed"](packed)["occupancy"], expected)
    if "reconstruct_files" in by_name:
        found = by_name["reconstruct_files"](files_of(pixels), *times(config))["occupancy"]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["direct", "implicit", "reconstruction"])
def test_the_default_takes_files_to_a_shape_at_the_most_iterations(serve, name):
    config, signatures = serve(name)
    pixels = noise(1, 2, SIDE, SIDE, 3)
    made = tf.constant(pixels.astype(np.float32) / 255)
    if "encode" in signatures.by_name:
        most = times(config, config.iterations_max)
        made = signatures.by_name["encode"](made, *most)["codes"]
    expected = signatures.by_name["reconstruct"](made)["occupancy"]
    found = signatures.by_name["serving_default"](files_of(pixels))
    assert set(found) == {"occupancy"}
    np.testing.assert_array_equal(found["occupancy"], expected)


def test_the_default_of_the_codec_alone_is_what_arrives(serve):
    config, signatures = serve("compression")
    pixels = noise(1, 2, 48, 16, 3)
    images = tf.constant(pixels.astype(np.float32) / 255)
    codes = signatures.by_name["encode"](images, *times(config, config.iterations_max))["codes"]
    expected = signatures.by_name["decode"](codes)["images"].numpy()[:, :, -1]
    found = signatures.by_name["serving_default"](files_of(pixels))["images"]
    assert found.shape == (1, 2, 48, 16, 3)
    np.testing.assert_array_equal(found, expected)


def test_packed_codes_are_the_payload_of_a_packet(serve):
    config, signatures = serve("direct")
    images = tf.constant(noise(1, 2, SIDE, SIDE, 3).astype(np.float32) / 255)
    codes = signatures.by_name["encode"](images, *times(config))["codes"]
    source = bitstream.Source("0" * 8, SIDE, SIDE, config.code_channels)
    packets = bitstream.Codes(source, codes.numpy()[0]).packets(7)
    # Flags, object number, view and T before it, a CRC-32 behind it.
    payloads = [bitstream.encode_packet(packet)[5:-4] for packet in packets]
    assert serving.pack(codes).numpy()[0].tolist() == payloads
    expected = signatures.by_name["reconstruct"](codes)["occupancy"]
    found = signatures.by_name["reconstruct_packed"](tf.constant([payloads]))["occupancy"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("background", "value"), [("black", 0), ("white", 1), ("random", dataset.TEST_GREY)]
)
def test_alpha_is_composed_as_in_the_training(background, value):
    config, _ = resolve({"model": "direct", "profile": "smoke", "background": background})
    files = tf.constant([[encoded(noise(SIDE, SIDE, 4, seed=seed)) for seed in (0, 1)]])
    backgrounds = np.full((1, 2, 1, 1, 3), value, np.float32)
    expected = dataset.decode_views(files, np.zeros((1, 2, 2), np.int32), backgrounds, SIDE)
    found = tf.function(lambda given: serving.read_images(given, config))(files)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["grey", "palette", "16 bits", "JPEG"])
def test_other_kinds_of_png_and_jpeg_are_read_too(kind, serve):
    config, _ = serve("direct")
    grey = noise(SIDE, SIDE)
    smooth = np.repeat(np.arange(SIDE, dtype=np.uint8)[:, None, None] * 7, SIDE, 1).repeat(3, 2)
    file, expected, tolerance = {
        "grey": (encoded(grey), np.stack([grey] * 3, -1), 0),
        "palette": (_palette(smooth), smooth, 0),
        "16 bits": (encoded(grey.astype(np.uint16) * 257), np.stack([grey] * 3, -1), 0),
        "JPEG": (encoded(smooth, "JPEG", quality=95), smooth, 3),
    }[kind]
    found = serving.read_images(tf.constant([[file]]), config).numpy()[0, 0] * 255
    np.testing.assert_allclose(found, expected, atol=tolerance + 1e-4)


def _palette(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(
        stream, "PNG"
    )
    return stream.getvalue()


# --- What they refuse -----------------------------------------------------------------------------

SMALL, CUT = encoded(ONES[:16, :16]), encoded(noise(SIDE, SIDE, 3))[:-200]
CLAIMS = bytearray(encoded(ONES))
CLAIMS[16:24] = b"\x00\x00\xff\xff" * 2  # 65,535 x 65,535 pixels: 13 GB


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([[b""]], "must be PNG or JPEG files. Received, of so many bytes:"),
        ([[encoded(ONES), b"x" * 30]], "must be PNG or JPEG files"),
        ([[encoded(ONES, "GIF")]], "must be PNG or JPEG files"),
        ([[encoded(ONES, "BMP")]], "must be PNG or JPEG files"),
        ([[encoded(ONES)[:20]]], "must be PNG or JPEG files"),
        ([[SMALL]], "must be files of 32 x 32 pixels. Received:"),
        ([[encoded(ONES), SMALL]], "must be files of 32 x 32 pixels"),
        ([[encoded(ONES[:16, :16], "JPEG")]], "must be files of 32 x 32 pixels"),
        ([[bytes(CLAIMS)]], "must be files of 32 x 32 pixels"),
        (np.zeros((0, 1), object), "images_bytes must not be empty"),
        (np.zeros((1, 0), object), "images_bytes must not be empty"),
        ([[encoded(ONES)] * 256], "hold at most 255 views of an object"),
        ([[b""]] * 4097, "must hold at most 4096 views in all. Received:"),
    ],
)
def test_files_that_are_not_what_was_asked_for_are_refused(serve, files, words):
    _, signatures = serve("direct")
    value = tf.constant(files, tf.string)
    for name in ("serving_default", "encode_files", "reconstruct_files"):
        more = [] if name == "serving_default" else [tf.constant(1)]
        assert words in refusal(signatures.by_name[name], value, *more)


@pytest.mark.parametrize("file", [CUT, b"\xff\xd8\xff" + bytes(40)])
def test_damaged_files_are_refused(serve, file):
    refusal(serve("direct")[1].by_name["serving_default"], tf.constant([[file]]))


@pytest.mark.parametrize("sizes", [[(16, 24)], [(16, 32), (32, 16)], [(16, 16), (16, 32)]])
def test_the_codec_alone_refuses_files_of_other_sizes(serve, sizes):
    files = tf.constant([[encoded(noise(*size, 3)) for size in sizes]])
    found = refusal(serve("compression")[1].by_name["serving_default"], files)
    assert "must be files of one size, a multiple of 16 up to 4080" in found


@pytest.mark.parametrize(
    ("name", "payloads", "words"),
    [
        ("direct", [[b""]], "must hold 1 to 255 iterations of 64 bits. Received, in bytes:"),
        ("direct", [[bytes(7)]], "must hold 1 to 255 iterations of 64 bits"),
        ("direct", [[bytes(9)]], "must hold 1 to 255 iterations of 64 bits"),
        ("direct", [[bytes(8 * 256)]], "must hold 1 to 255 iterations of 64 bits"),
        ("direct", [[bytes(8), bytes(16)]], "must all have one length in bytes. Received:"),
        ("direct", np.zeros((1, 0), object), "codes_bytes must not be empty"),
        ("direct", np.zeros((0, 1), object), "codes_bytes must not be empty"),
        ("direct", [[bytes(8)] * 256], "hold at most 255 views"),
        ("implicit", [[bytes(16)]], "must hold 64 bits. Received, in bytes:"),
        ("direct floats", [[bytes(8)]], "must hold 1 to 255 iterations of 2048 bits"),
        ("direct floats", [[np.full(64, np.nan, "<f4").tobytes()]], "codes must be in [-1, 1]"),
        ("implicit floats", [[np.full(64, 1.5, "<f4").tobytes()]], "codes must be in [-1, 1]"),
    ],
)
def test_payloads_that_are_no_codes_are_refused(serve, name, payloads, words):
    signature = serve(name)[1].by_name["reconstruct_packed"]
    assert words in refusal(signature, tf.constant(payloads, tf.string))


def test_bits_behind_the_last_one_must_be_0():
    config, _ = resolve({"model": "implicit", "profile": "smoke", "code_bits": 12})
    signatures = Signatures(models.create(config), config)
    codes = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (1, 2, 12))
    packed = serving.pack(tf.constant(codes)).numpy()
    assert packed[0, 0] == np.packbits(codes[0, 0] > 0).tobytes()
    signature = signatures.by_name["reconstruct_packed"]
    expected = signatures.by_name["reconstruct"](tf.constant(codes))["occupancy"]
    np.testing.assert_array_equal(signature(tf.constant(packed))["occupancy"], expected)
    packed[0, 1] = packed[0, 1][:1] + bytes([packed[0, 1][1] | 1])
    assert "the bits behind the last one must be 0" in refusal(signature, tf.constant(packed))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("direct", np.zeros((1, 1, 1, 2, 2, 16), np.int8), "codes must be -1 or +1"),
        ("direct", np.full((1, 1, 1, 2, 2, 16), -128, np.int8), "codes must be -1 or +1"),
        ("implicit floats", np.full((1, 1, 64), np.nan, np.float32), "codes must be in [-1, 1]"),
        ("direct", np.ones((1, 256, 1, 2, 2, 16), np.int8), "hold at most 255 views"),
    ],
)
def test_tensors_that_are_no_codes_are_refused(serve, name, values, words):
    assert words in refusal(serve(name)[1].by_name["reconstruct"], tf.constant(values))


@pytest.mark.parametrize("iterations", [0, -1, 256, 2**31 - 1])
def test_a_server_is_not_kept_busy_with_iterations_that_no_code_has(serve, iterations):
    by_name = serve("direct")[1].by_name
    words = "iterations must be in [1, 255]"
    for name in ("encode_files", "reconstruct_files"):
        found = refusal(by_name[name], tf.constant([[encoded(ONES)]]), tf.constant(iterations))
        assert words in found
    blank = tf.zeros([1, 1, SIDE, SIDE, 3])
    assert words in refusal(by_name["encode"], blank, tf.constant(iterations))


# --- Warm-up --------------------------------------------------------------------------------------


def prediction_log() -> type:
    """The part of tensorflow.serving.PredictionLog that a Predict request is in, built here.

    Tensors are left as their bytes: on the wire, a message is one.
    """
    file = descriptor_pb2.FileDescriptorProto(name="log.proto", package="p", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, str]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind in fields:
            many = kind == "InputsEntry"
            made.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL,
                type={"string": kinds.TYPE_STRING, "bytes": kinds.TYPE_BYTES}.get(
                    kind, kinds.TYPE_MESSAGE
                ),
                type_name=None if kind in ("string", "bytes") else f".p.{kind}",
            )

    message("ModelSpec", ("name", 1, "string"), ("signature_name", 3, "string"))
    message("InputsEntry", ("key", 1, "string"), ("value", 2, "bytes"))
    message("PredictRequest", ("model_spec", 1, "ModelSpec"), ("inputs", 2, "InputsEntry"))
    message("PredictLog", ("request", 1, "PredictRequest"))
    message("PredictionLog", ("predict_log", 6, "PredictLog"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.PredictionLog"))


def test_warm_up_requests_are_small_and_every_signature_answers_its_own(exported):
    loaded = tf.saved_model.load(str(exported))
    path = exported / "assets.extra" / "tf_serving_warmup_requests"
    assert path.stat().st_size < 2**16
    names = []
    for record in tf.data.TFRecordDataset(str(path)):
        request = prediction_log().FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "direct"
        name = request.model_spec.signature_name
        values = {
            entry.key: tf.make_ndarray(tensor_pb2.TensorProto.FromString(entry.value))
            for entry in request.inputs
        }
        wanted = loaded.signatures[name].structured_input_signature[1]
        assert set(values) == set(wanted)
        made = loaded.signatures[name](
            **{key: tf.constant(value, wanted[key].dtype) for key, value in values.items()}
        )
        assert all(value.shape[0] == 1 for value in made.values())
        names.append(name)
    assert names == sorted(loaded.signatures) and len(names) == 8


@pytest.mark.parametrize("name", ["implicit", "reconstruction", "compression"])
def test_every_system_has_its_warm_up(serve, tmp_path, name):
    config, signatures = serve(name)
    serving.write_warmup(tmp_path, signatures.by_name, config)
    requests = [
        prediction_log().FromString(record.numpy()).predict_log.request
        for record in tf.data.TFRecordDataset(str(tmp_path / serving.WARMUP))
    ]
    assert [r.model_spec.signature_name for r in requests] == sorted(signatures.by_name)
    for request in requests:
        specs = signatures.by_name[request.model_spec.signature_name].input_signature
        assert {entry.key for entry in request.inputs} == {spec.name for spec in specs}
