"""An export at work, against the model that it was made of."""

from __future__ import annotations

import json
import shutil

import exports
import numpy as np
import pytest
import tensorflow as tf

from tfjoint import bitstream, coding, export
from tfjoint.bitstream import BitstreamError, Codes, Source
from tfjoint.codec import Codec, CodecError
from tfjoint.coding import CodingError
from tfjoint.errors import UserError
from tfjoint.exported import ExportError, find_export

pytest_plugins = ("trained",)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """A function of a name in `exports.KINDS`: its export, made once."""
    found: dict[str, exports.Export] = {}

    def make(name: str) -> exports.Export:
        if name not in found:
            found[name] = exports.make(name, data, tmp_path_factory.mktemp("exports"))
        return found[name]

    return make


@pytest.fixture(scope="module")
def loaded(made):
    """A function of a name: its export, loaded once."""
    found: dict[str, Codec] = {}

    def load(name: str) -> Codec:
        if name not in found:
            found[name] = Codec(made(name).path)
        return found[name]

    return load


@pytest.fixture
def coder():
    try:
        return coding.range_coder()
    except CodingError as error:
        pytest.skip(str(error))


def images(views: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((views, height, width, 3), np.float32)


# --- What it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["direct", "compression", "implicit", "direct floats"])
def test_codes_views_and_shapes_are_those_of_the_model(made, loaded, name):
    _, config, model = made(name)
    iterations = 2 if config.uses("iterations_max") else None
    codes = loaded(name).encode(images(), iterations)
    output = model(images()[np.newaxis], iterations=2)
    np.testing.assert_allclose(codes.values, output.codes[0], atol=1e-6)
    assert codes.values.dtype == (np.int8 if config.binarizer else np.float32)
    assert codes.source.digest == export.weights_sha256(model)[:8]
    if output.logits is not None:
        occupancy = loaded(name).reconstruct(codes)
        np.testing.assert_allclose(occupancy, tf.sigmoid(output.logits)[0], atol=1e-5)
    if output.decoded is not None:
        views = loaded(name).decode(codes)
        np.testing.assert_allclose(views, np.clip(output.decoded[0], 0, 1), atol=1e-5)


def test_shapes_of_images_are_those_of_the_model(made, loaded):
    found = loaded("reconstruction").reconstruct_images(images())
    expected = tf.sigmoid(made("reconstruction").model(images()[np.newaxis]).logits)
    np.testing.assert_allclose(found, expected[0], atol=1e-5)
    assert loaded("reconstruction").takes_images and not loaded("direct").takes_images


def test_without_a_number_there_are_as_many_iterations_as_in_training(loaded):
    assert loaded("direct").encode(images(1)).iterations == 4
    assert loaded("implicit").encode(images(1)).iterations is None


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80)])
def test_the_codec_alone_takes_any_multiple_of_16(loaded, height, width):
    codes = loaded("compression").encode(images(2, height, width), 3)
    assert codes.source.shape == (height // 16, width // 16, 16)
    assert loaded("compression").decode(codes).shape == (2, 3, height, width, 3)
    assert loaded("compression").side is None and loaded("direct").side == 32


def test_the_first_views_and_iterations_decode_alike(loaded):
    codes = loaded("direct").encode(images(4), 4)
    whole = loaded("direct").decode(codes)
    part = loaded("direct").decode(codes.first(views=2, iterations=3))
    np.testing.assert_allclose(part, whole[:2, :3], atol=1e-5)


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["direct", "compression", "implicit", "direct floats"])
def test_files_come_back(loaded, name):
    codes = loaded(name).encode(images(2))
    assert loaded(name).read(bitstream.encode(codes)) == codes


@pytest.mark.parametrize("name", ["direct", "compression", "implicit"])
def test_files_coded_with_the_tables_come_back(loaded, name, coder):
    codes = loaded(name).encode(images(2))
    tables = loaded(name).coder("table")
    # Noise is no training object: what its code saves is little, and the file may stay raw.
    likely = np.where(tables.ones >= 2**15, 1, -1).astype(np.int8)
    for values in (codes.values, np.stack([likely] * 3)):
        given = Codes(codes.source, values)
        assert loaded(name).read(bitstream.encode(given, tables)) == given
    assert bitstream.inspect(bitstream.encode(given, tables)).coding == "table"


def test_codes_of_another_model_are_refused(loaded):
    codes = loaded("direct").encode(images(1), 1)
    for other in ("compression", "implicit"):
        with pytest.raises(CodecError, match=f"of another model.*{codes.source.digest}"):
            loaded(other).read(bitstream.encode(codes))
    foreign = Codes(Source("00000000", 32, 32, 16), codes.values)
    for use in (loaded("direct").decode, loaded("direct").reconstruct):
        with pytest.raises(CodecError, match="use the export that made them"):
            use(foreign)


def test_damage_is_refused_before_anything_else(loaded):
    data = bytearray(bitstream.encode(loaded("direct").encode(images(1), 1)))
    data[20] ^= 1
    with pytest.raises(BitstreamError, match="damaged"):
        loaded("direct").read(data)


# --- Rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "iterations"),
    [(384, 1), (192, 2), (128, 3), (96, 4), (383, 1), (193, 1), (191, 2), (127.6, 3), (96.4, 4)],
)
def test_a_rate_becomes_the_most_iterations_that_need_no_more_bits(loaded, rate, iterations):
    assert loaded("direct").iterations_of(rate) == iterations
    assert loaded("compression").iterations_of(rate) == iterations


@pytest.mark.parametrize("rate", [390, 95, 1, 1e9])
def test_a_rate_out_of_range_is_refused_with_the_range(loaded, rate):
    with pytest.raises(CodecError, match=r"from 96 \(T = 4\) to 384 \(T = 1\)\. Received"):
        loaded("direct").iterations_of(rate)


def test_the_rate_of_the_implicit_model_is_its_own(loaded):
    assert loaded("implicit").iterations_of(384) is None
    with pytest.raises(CodecError, match=r"is 384\. Received: 48"):
        loaded("implicit").iterations_of(48)


def test_floats_have_their_rates(loaded):
    assert [loaded("direct floats").iterations_of(rate) for rate in (12, 6)] == [1, 2]


def test_most_bytes_are_the_most_iterations_that_fit(loaded):
    views, bits = 3, 64
    for iterations in (1, 2, 3, 4):
        size = 17 + views * iterations * bits // 8
        for most in (size, size + 23):
            codes, data = loaded("direct").encode_within(images(views), most, None)
            assert codes.iterations == iterations and len(data) == size
            assert (
                loaded("direct").read(data)
                == codes
                == loaded("direct").encode(images(views), iterations)
            )
    assert loaded("direct").encode_within(images(views), 10**6, None)[0].iterations == 4


@pytest.mark.parametrize(("name", "least"), [("direct", 41), ("implicit", 41)])
def test_too_few_bytes_are_refused_with_the_least(loaded, name, least):
    with pytest.raises(CodecError, match=f"at least {least} bytes. Received: {least - 1}"):
        loaded(name).encode_within(images(3), least - 1, None)
    assert len(loaded(name).encode_within(images(3), least, None)[1]) == least


def test_with_tables_more_fits(loaded, coder):
    """Views like those of training, black but for a box."""
    codec_, tables = loaded("direct"), loaded("direct").coder("table")
    views = np.zeros((3, 32, 32, 3), np.float32)
    views[:, 8:24, 8:24] = 0.6
    raw, _ = codec_.encode_within(views, 60, None)
    coded, data = codec_.encode_within(views, 60, tables)
    assert len(data) <= 60 and coded.iterations >= raw.iterations
    assert codec_.read(data) == coded


# --- What it has not ------------------------------------------------------------------------------


def test_one_side_of_a_link_is_loaded_alone_and_says_what_it_cannot(made, loaded, tmp_path):
    camera = Codec(exports.part(made("direct"), tmp_path / "camera", "encode"))
    ground = Codec(exports.part(made("direct"), tmp_path / "ground", "reconstruct", "decode"))
    assert camera.signatures == ("encode",)
    codes = camera.encode(images(2), 2)
    assert codes == loaded("direct").encode(images(2), 2)
    received = ground.read(bitstream.encode(codes))
    np.testing.assert_allclose(
        ground.reconstruct(received), loaded("direct").reconstruct(codes), atol=1e-6
    )
    with pytest.raises(CodecError, match=r"camera cannot reconstruct: .* has encode; use another"):
        camera.reconstruct(codes)
    with pytest.raises(CodecError, match="camera cannot decode"):
        camera.decode(codes)
    with pytest.raises(CodecError, match="ground cannot encode"):
        ground.encode(images(1))
    assert camera.tables.digest == ground.tables.digest == loaded("direct").tables.digest


def test_what_a_system_cannot_do_is_said(loaded):
    codes = loaded("implicit").encode(images(1))
    with pytest.raises(CodecError, match="cannot decode: model implicit"):
        loaded("implicit").decode(codes)
    with pytest.raises(CodecError, match=r"has no iterations\. Received: 2"):
        loaded("implicit").encode(images(1), 2)
    with pytest.raises(BitstreamError, match="no code to send"):
        loaded("reconstruction").encode(images(1))
    with pytest.raises(CodecError, match="encode the images"):
        loaded("direct").reconstruct_images(images(1))


@pytest.mark.parametrize("name", ["direct", "implicit", "reconstruction"])
def test_images_of_another_size_or_range_are_one_line(loaded, name):
    use = loaded(name).reconstruct_images if name == "reconstruction" else loaded(name).encode
    for wrong in (images(1, 48, 48), images(1) + 0.5, images(0), images(1) * np.float32("nan")):
        with pytest.raises(UserError) as caught:
            use(wrong)
        assert "\n" not in str(caught.value)


def test_without_tables_raw_is_left(made, tmp_path, coder):
    bare = shutil.copytree(made("direct").path, tmp_path / "1")
    (bare / export.TABLES).unlink()
    old = Codec(bare)
    assert old.coder("raw") is None
    with pytest.raises(CodingError, match="does not hold tables"):
        old.coder("table")
    with pytest.raises(CodecError, match="floats, which have no tables: use raw"):
        Codec(made("direct floats").path).coder("table")


def test_tables_of_other_weights_are_refused(made, loaded, tmp_path, coder):
    """The tables name their model: those of another are not used in silence."""
    copy = shutil.copytree(made("direct").path, tmp_path / "1")
    shutil.copy(made("compression").path / export.TABLES, copy / export.TABLES)
    mixed = Codec(copy)
    codes = mixed.encode(images(1), 1)
    with pytest.raises(BitstreamError, match="the tables are for"):
        bitstream.encode(codes, mixed.coder("table"))


# --- What is no export ----------------------------------------------------------------------------


def test_the_newest_version_is_taken_or_the_one_that_is_named(made, tmp_path):
    path = made("implicit").path
    root = tmp_path / "export"
    for version in ("1", "2", "10"):
        shutil.copytree(path, root / version)
    assert find_export(root) == root / "10" == Codec(root).path
    assert find_export(root / "2") == root / "2"
    for wrong in (tmp_path / "missing", tmp_path):
        with pytest.raises(ExportError, match="no export at"):
            Codec(wrong)


def test_a_damaged_export_is_one_line(made, tmp_path):
    copy = shutil.copytree(made("implicit").path, tmp_path / "1")
    graph = (copy / "saved_model.pb").read_bytes()
    (copy / "saved_model.pb").write_bytes(graph[: len(graph) // 2])
    with pytest.raises(ExportError, match="is damaged") as caught:
        Codec(copy)
    assert "\n" not in str(caught.value)
    (copy / export.DESCRIPTION).write_text(json.dumps({}))
    with pytest.raises(ExportError, match="is not an export of tfjoint"):
        Codec(copy)
