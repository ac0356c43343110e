"""The SavedModel of a run: what it computes, what it needs, what it says of itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tensorflow as tf
import tiny

from tfjoint import bitstream, coding, dataset, export, models, provenance, records
from tfjoint.config import Config, resolve
from tfjoint.errors import UserError
from tfjoint.export import ExportError, Signatures

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

SIDE, BITS = 2, 16  # of a code of 32 x 32 pixels: height and width, M


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported))


@pytest.fixture(scope="module")
def model(finished) -> tf.keras.Model:
    """The trained model itself, restored without the export's code."""
    config = Config.from_json(json.loads((finished / "config.json").read_text())["config"])
    made = models.create(config)
    path = finished / "checkpoints" / f"step-{runs.STEPS:08d}" / "state"
    status = tf.train.Checkpoint(weights=models.variables(made)).read(str(path))
    status.assert_existing_objects_matched().expect_partial()
    return made


def images(objects: int = 2, views: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((objects, views, 32, 32, 3), np.float32)


def encode(loaded, batch: np.ndarray, iterations: int) -> tf.Tensor:
    signature = loaded.signatures["encode"]
    return signature(images=tf.constant(batch), iterations=tf.constant(iterations))["codes"]


def reconstruct(loaded, codes) -> np.ndarray:
    return loaded.signatures["reconstruct"](codes=tf.constant(codes))["occupancy"].numpy()


def decode(loaded, codes) -> np.ndarray:
    return loaded.signatures["decode"](codes=tf.constant(codes))["images"].numpy()


# --- What it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objects", "views", "iterations"), [(1, 1, 1), (2, 3, 4), (1, 5, 2), (3, 1, 9)]
)
def test_any_number_of_objects_views_and_iterations(loaded, model, objects, views, iterations):
    batch = images(objects, views)
    codes = encode(loaded, batch, iterations)
    assert codes.dtype == tf.int8
    assert codes.shape == (objects, views, iterations, SIDE, SIDE, BITS)
    assert set(np.unique(codes)) <= {-1, 1}
    output = model(tf.constant(batch), iterations=iterations)
    np.testing.assert_array_equal(codes, output.codes)

    occupancy = reconstruct(loaded, codes)
    assert occupancy.shape == (objects, 32, 32, 32) and occupancy.dtype == np.float32
    logits = output.logits.numpy().astype(np.float64)
    np.testing.assert_allclose(occupancy, 1 / (1 + np.exp(-logits)), atol=1e-6)

    decoded = decode(loaded, codes)
    assert decoded.shape == (objects, views, iterations, 32, 32, 3) and decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, np.clip(output.decoded, 0, 1), atol=1e-6)


def test_decoded_images_are_clipped(loaded):
    many = np.ones((1, 1, 60, SIDE, SIDE, BITS), np.int8)
    decoded = decode(loaded, many)
    assert decoded.min() >= 0 and decoded.max() <= 1


@pytest.mark.parametrize(
    ("pixel", "iterations", "words"),
    [
        (1.01, 1, "images must be in"),
        (-0.01, 1, "images must be in"),
        (np.nan, 1, "images must be in"),
        (np.inf, 1, "images must be in"),
        (0.5, 0, "iterations must be in"),
        (0.5, -1, "iterations must be in"),
    ],
)
def test_encode_refuses_what_is_out_of_range(loaded, pixel, iterations, words):
    batch = images()
    batch[1, 2, 31, 31, 2] = pixel
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        encode(loaded, batch, iterations)


@pytest.mark.parametrize("name", ["reconstruct", "decode"])
@pytest.mark.parametrize("views_iterations", [(0, 1), (1, 0)])
def test_codes_without_views_or_iterations_are_refused(loaded, name, views_iterations):
    codes = tf.zeros((1, *views_iterations, SIDE, SIDE, BITS), tf.int8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="codes must not be empty"):
        loaded.signatures[name](codes=codes)


def test_images_of_another_size_are_refused(loaded):
    with pytest.raises((ValueError, TypeError, tf.errors.InvalidArgumentError)):
        encode(loaded, np.zeros((1, 1, 64, 64, 3), np.float32), 1)


# --- Every system ---------------------------------------------------------------------------------

IMAGES = ("images", tf.float32, [None, None, 32, 32, 3])
ANY_IMAGES = ("images", tf.float32, [None, None, None, None, 3])
TIMES = ("iterations", tf.int32, [])


def codes_of(*shape: int | None, dtype: tf.DType = tf.int8) -> tuple:
    return ("codes", dtype, [None, None, *shape])


STATE = [(name, tf.float32, [None, 4, 4, 4, 8]) for name in ("hidden", "cell")]
JOINT = {
    "encode": ([IMAGES, TIMES], tf.int8),
    "reconstruct": ([codes_of(None, SIDE, SIDE, BITS)], tf.float32),
    "refine": ([codes_of(None, SIDE, SIDE, BITS), *STATE], tf.float32),
    "decode": ([codes_of(None, SIDE, SIDE, BITS)], tf.float32),
}
FLOATS = codes_of(None, SIDE, SIDE, BITS, dtype=tf.float32)
SERVED = {
    "direct": JOINT,
    "sequential": JOINT,
    "separate": JOINT,
    "compression": {
        "encode": ([ANY_IMAGES, TIMES], tf.int8),
        "decode": ([codes_of(None, None, None, BITS)], tf.float32),
    },
    "compression original": {
        "encode": ([ANY_IMAGES, TIMES], tf.int8),
        "decode": ([codes_of(None, None, None, 32)], tf.float32),
    },
    "reconstruction": {"reconstruct": ([IMAGES], tf.float32)},
    "jpeg2000": {"reconstruct": ([IMAGES], tf.float32)},
    "implicit": {
        "encode": ([IMAGES], tf.int8),
        "reconstruct": ([codes_of(64)], tf.float32),
        "refine": ([codes_of(64), *STATE], tf.float32),
    },
    "implicit floats": {
        "encode": ([IMAGES], tf.float32),
        "reconstruct": ([codes_of(64, dtype=tf.float32)], tf.float32),
        "refine": ([codes_of(64, dtype=tf.float32), *STATE], tf.float32),
    },
    "direct floats": {
        "encode": ([IMAGES, TIMES], tf.float32),
        "reconstruct": ([FLOATS], tf.float32),
        "refine": ([FLOATS, *STATE], tf.float32),
        "decode": ([FLOATS], tf.float32),
    },
}
"""By system and what is special about it: its signatures, their inputs and the type they return."""


@pytest.fixture(scope="module")
def serve():
    """A function of a name in `SERVED` that returns its config, its model and its signatures."""
    made = {}

    def make(name: str) -> tuple[Config, tf.keras.Model, Signatures]:
        if name not in made:
            system, _, special = name.partition(" ")
            given = {"": {}, "original": {"codec": "original"}, "floats": {"binarizer": False}}
            config, _ = resolve({"model": system, "profile": "smoke", **given[special]})
            model = models.create(config)
            made[name] = config, model, Signatures(model, config)
        return made[name]

    return make


@pytest.mark.parametrize("name", SERVED)
def test_a_system_has_the_signatures_that_it_can_serve(serve, name):
    config, model, signatures = serve(name)
    by_name = signatures.by_name
    inputs = {
        key: [(spec.name, spec.dtype, spec.shape.as_list()) for spec in f.input_signature]
        for key, f in by_name.items()
        if key in (*export.ORDER, "refine")  # test_serving has those for files
    }
    assert inputs == {key: wanted for key, (wanted, _) in SERVED[name].items()}
    values = {"images": tf.constant(images(2, 3)), "iterations": tf.constant(2)}
    expected = model(values["images"], iterations=2)
    for key in ("encode", "reconstruct", "decode"):
        if key in by_name:
            results = by_name[key](*(values[spec.name] for spec in by_name[key].input_signature))
            ((_, value),) = results.items()
            assert value.dtype == SERVED[name][key][1]
            values |= results
    if expected.codes is not None:
        np.testing.assert_allclose(values["codes"], expected.codes, atol=1e-5)
        assert (len(np.unique(values["codes"])) > 2) == (not config.binarizer)
    if expected.logits is not None:
        np.testing.assert_allclose(values["occupancy"], tf.sigmoid(expected.logits), atol=1e-6)
    if expected.decoded is not None:
        decoded = np.clip(expected.decoded, 0, 1)
        np.testing.assert_allclose(values["images"], decoded, atol=1e-6)


@pytest.mark.parametrize("name", ["direct", "implicit", "sequential", "separate", "direct floats"])
@pytest.mark.parametrize("parts", [(1, 1, 1, 1), (3, 1), (1, 3)])
def test_views_that_come_in_parts_end_in_the_shape_of_all_at_once(serve, name, parts):
    config, _, signatures = serve(name)
    by_name = signatures.by_name
    given = [tf.constant(images(2, 4))]
    codes = by_name["encode"](*given, *([tf.constant(2)] if "implicit" not in name else []))
    whole = by_name["reconstruct"](codes["codes"])["occupancy"]
    shape = (2, *[config.grid_size] * 3, config.grid_channels)
    state = {"hidden": tf.zeros(shape), "cell": tf.zeros(shape)}
    for part in tf.split(codes["codes"], parts, axis=1):
        state = dict(by_name["refine"](codes=part, **state))
        occupancy = state.pop("occupancy")
    np.testing.assert_allclose(occupancy, whole, rtol=0, atol=1e-6)
    first = by_name["reconstruct"](codes["codes"][:, :1])["occupancy"]
    assert np.max(np.abs(whole - first)) > 1e-4  # so that forgotten views would be seen


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": (1, 0)}, "must be of equally many objects"),
        ({"cell": (3, 0)}, "must be of equally many objects"),
        ({"hidden": (2, 1.5)}, "hidden must be in"),
        ({"hidden": (2, np.nan)}, "hidden must be in"),
        ({"cell": (2, np.inf)}, "cell must be finite"),
        ({"codes": 0}, "codes must not be empty"),
    ],
)
def test_refine_refuses_a_state_that_is_none(serve, changes, words):
    values = {
        name: tf.fill([objects, 4, 4, 4, 8], tf.constant(value, tf.float32))
        for name, (objects, value) in {
            "hidden": (2, 0), "cell": (2, 0), **{n: c for n, c in changes.items() if n != "codes"}
        }.items()
    }  # fmt: skip
    codes = tf.ones([2, changes.get("codes", 1), 64], tf.int8)
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        serve("implicit")[2].by_name["refine"](codes=codes, **values)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (64, 32)])
def test_the_codec_alone_takes_images_of_any_multiple_of_16(serve, height, width):
    _, model, signatures = serve("compression")
    batch = np.random.default_rng(1).random((2, 1, height, width, 3), np.float32)
    codes = signatures.by_name["encode"](tf.constant(batch), tf.constant(3))["codes"]
    assert codes.shape == (2, 1, 3, height // 16, width // 16, BITS)
    expected = model.codec(batch[:, 0], iterations=3)
    np.testing.assert_array_equal(codes[:, 0], expected.codes)
    decoded = signatures.by_name["decode"](codes)["images"]
    np.testing.assert_allclose(decoded[:, 0], np.clip(expected.decoded, 0, 1), atol=1e-6)


def test_one_trace_serves_every_size(serve):
    encode = serve("compression")[2].by_name["encode"]
    for sides in ((16, 32), (32, 16), (48, 48)):
        encode(tf.zeros([1, 1, *sides, 3]), tf.constant(1))
    assert encode.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(("height", "width"), [(40, 32), (32, 40), (15, 16), (8, 8)])
def test_the_codec_alone_refuses_other_sizes(serve, height, width):
    encode = serve("compression")[2].by_name["encode"]
    message = "height and width must be multiples of 16"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        encode(tf.zeros([1, 1, height, width, 3]), tf.constant(1))


@pytest.mark.parametrize("pixel", [1.01, -0.01, np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "key", "others"),
    [
        ("implicit", "encode", []),
        ("reconstruction", "reconstruct", []),
        ("compression", "encode", [1]),
    ],
)
def test_every_system_refuses_images_out_of_range(serve, name, key, others, pixel):
    batch = images()
    batch[1, 2, 31, 31, 2] = pixel
    with pytest.raises(tf.errors.InvalidArgumentError, match="images must be in"):
        serve(name)[2].by_name[key](tf.constant(batch), *map(tf.constant, others))


@pytest.mark.parametrize("shape", [(0, 1), (1, 0)])
def test_nothing_cannot_be_reconstructed(serve, shape):
    reconstruct = serve("reconstruction")[2].by_name["reconstruct"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="images must not be empty"):
        reconstruct(tf.zeros([*shape, 32, 32, 3]))
    reconstruct = serve("implicit")[2].by_name["reconstruct"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="codes must not be empty"):
        reconstruct(tf.zeros([*shape, 64], tf.int8))


def test_a_model_that_computes_iterations_again_is_saved_like_another(tmp_path):
    """Its gradient is its own, and TensorFlow cannot save it."""
    config, _ = resolve({"model": "compression", "profile": "smoke", "recompute": True})
    model = models.create(config)
    Signatures(model, config).save(tmp_path / "1")
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    batch = images(1, 2)
    codes = encode(loaded, batch, 3)
    output = model(batch, iterations=3)
    np.testing.assert_array_equal(codes, output.codes)
    np.testing.assert_allclose(decode(loaded, codes), np.clip(output.decoded, 0, 1), atol=1e-6)


# --- What it needs --------------------------------------------------------------------------------


def test_it_holds_only_operations_of_tensorflow_itself(exported):
    """Compared with what TensorFlow registers in a process that imports nothing else."""
    code = (
        "import json, tensorflow as tf; from tensorflow.python.framework import op_def_registry;"
        "from tensorflow.core.protobuf import saved_model_pb2 as s; import sys;"
        "graph = s.SavedModel.FromString(open(sys.argv[1], 'rb').read()).meta_graphs[0].graph_def;"
        "functions = graph.library.function;"
        "ops = {n.op for n in graph.node} | {n.op for f in functions for n in f.node_def};"
        "own = {f.signature.name for f in functions};"
        "print(json.dumps([sorted(ops - own),"
        " sorted(o for o in ops - own if op_def_registry.get(o) is None)]))"
    )
    command = [sys.executable, "-I", "-c", code, str(exported / "saved_model.pb")]
    result = subprocess.run(command, capture_output=True, text=True, env=runs.environment())
    assert result.returncode == 0, result.stderr
    ops, unknown = json.loads(result.stdout)
    assert {"Conv2D", "Conv3D", "MatMul"} <= set(ops)
    assert not unknown
    assert not {"PyFunc", "EagerPyFunc", "PyFuncStateless"} & set(ops)


def test_its_layout_is_that_of_tensorflow_serving(exported, finished):
    assert exported == finished / "export" / "1"
    assert [path.name for path in exported.parent.iterdir()] == ["1"]
    assert (exported / "saved_model.pb").is_file()
    signatures = tf.saved_model.load(str(exported)).signatures
    described = {
        name: (
            {n: (s.dtype, s.shape.as_list()) for n, s in f.structured_input_signature[1].items()},
            {n: s.dtype for n, s in f.structured_outputs.items()},
        )
        for name, f in signatures.items()
        if name in (*export.ORDER, "refine")  # test_serving has those for files
    }
    codes = {"codes": (tf.int8, [None, None, None, SIDE, SIDE, BITS])}
    state = dict.fromkeys(("hidden", "cell"), (tf.float32, [None, 4, 4, 4, 8]))
    assert described == {
        "encode": (
            {
                "images": (tf.float32, [None, None, 32, 32, 3]),
                "iterations": (tf.int32, []),
            },
            {"codes": tf.int8},
        ),
        "reconstruct": (codes, {"occupancy": tf.float32}),
        "refine": (
            {**codes, **state},
            {"occupancy": tf.float32, **dict.fromkeys(state, tf.float32)},
        ),
        "decode": (codes, {"images": tf.float32}),
    }


def test_it_holds_each_weight_once(exported, model):
    reader = tf.train.load_checkpoint(str(exported / "variables" / "variables"))
    names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")]
    assert len(names) == len(model.variables)


# --- What it says of itself -----------------------------------------------------------------------


def test_it_says_what_it_is_of(data, exported, finished, model):
    description = json.loads((exported / "assets.extra" / "tfjoint.json").read_text())
    assert description == export.read_description(exported)
    assert description["config"] == runs.settings(data, finished, checkpoint_every=2).to_json()
    assert description["step"] == runs.STEPS
    assert description["data_sha256"] == records.manifest_sha256(data)
    assert description["code_revision"] == provenance.code_revision()
    assert description["versions"]["tensorflow"] == tf.__version__
    assert description["weights_sha256"] == export.weights_sha256(model)


def test_the_digest_of_weights_depends_on_every_weight_and_their_order(model):
    class Weights:
        def __init__(self, *values: np.ndarray) -> None:
            self.get_weights = lambda: list(values)

    first, second = np.zeros(3, np.float32), np.ones(3, np.float32)
    nearly = second.copy()
    nearly[2] = np.nextafter(np.float32(1), np.float32(2))
    digests = [
        export.weights_sha256(Weights(*values))
        for values in ((first, second), (second, first), (first, nearly), (first,))
    ]
    assert len(set(digests)) == 4
    assert export.weights_sha256(Weights(first, second.copy())) == digests[0]


# --- Its tables -----------------------------------------------------------------------------------


def test_its_tables_are_counted_on_the_training_objects(data, exported, finished, loaded):
    config = runs.settings(data, finished)
    train = dataset.open_split(config, "train", 3)
    ones = views = 0
    for example in dataset.evaluation_examples(config, train, 3, config.seed):
        codes = encode(loaded, example.images[np.newaxis], config.iterations_max).numpy()[0]
        ones, views = ones + (codes > 0).sum(axis=0), views + len(codes)
    assert views == 12 * 3
    tables = coding.read(exported / "assets.extra" / "tables.json")
    assert tables.source == bitstream.Source.of_export(export.read_description(exported))
    assert tables.iterations == config.iterations_max == 4
    np.testing.assert_array_equal(tables.ones, (ones + 1) * 65536 // (views + 2))


def test_tables_need_no_range_coder_and_are_the_same_when_counted_again(
    data, exported, finished, model, monkeypatch
):
    monkeypatch.setattr(coding, "range_coder", None)
    config = runs.settings(data, finished)
    description = export.read_description(exported)
    tables = export.count_tables(Signatures(model, config), config, description)
    assert tables.digest == coding.read(exported / export.TABLES).digest


def test_of_many_objects_some_are_counted_evenly_over_the_split(
    data, exported, finished, model, monkeypatch
):
    seen = []

    def examples(config, records, views, seed, indices):
        seen.append((views, list(indices)))
        return dataset.evaluation_examples(config, records, views, seed, indices)

    monkeypatch.setattr(export, "evaluation_examples", examples)
    monkeypatch.setattr(export, "COUNTED_OBJECTS", 5)
    monkeypatch.setattr(export, "COUNTED_VIEWS", 2)
    config = runs.settings(data, finished)
    export.count_tables(Signatures(model, config), config, export.read_description(exported))
    assert seen == [(2, [0, 2, 4, 7, 9])]  # of 12


@pytest.mark.parametrize("name", ["reconstruction", "implicit floats", "direct floats"])
def test_without_codes_of_bits_there_are_no_tables(serve, name):
    config, _, signatures = serve(name)
    assert export.count_tables(signatures, config, {}) is None


def test_a_code_that_no_bitstream_holds_is_exported_without_tables(serve, capsys):
    config, _, signatures = serve("direct")
    wide = dataclasses.replace(config, code_channels=300)
    description = {"config": wide.to_json(), "weights_sha256": "0" * 64}
    assert export.count_tables(signatures, wide, description) is None
    assert "without tables: channels must be in [1, 255]" in capsys.readouterr().out


# --- Versions -------------------------------------------------------------------------------------


def test_the_newest_version_is_the_highest_number(tmp_path):
    assert export.latest_version(tmp_path / "missing") is None
    for name in ("2", "10", "9", "latest", ".11.99.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").touch()
    assert export.latest_version(tmp_path) == tmp_path / "10"


def test_one_checkpoint_is_exported_once_and_the_next_gets_the_next_number(
    data, tmp_path, exported, finished, capsys
):
    run = shutil.copytree(finished, tmp_path / "run")
    first = run / "export" / "1"
    assert export.export_run(run) == first
    assert "already exported" in capsys.readouterr().out
    assert not (run / "export" / "2").exists()
    runs.train(data, run, steps=runs.STEPS + 1)
    second = export.export_run(run)
    assert second == run / "export" / "2"
    assert [path.name for path in sorted((run / "export").iterdir())] == ["1", "2"]
    descriptions = [export.read_description(path) for path in (first, second)]
    assert [description["step"] for description in descriptions] == [runs.STEPS, runs.STEPS + 1]
    assert descriptions[0]["weights_sha256"] != descriptions[1]["weights_sha256"]


@pytest.mark.long
def test_a_run_whose_export_lacks_a_signature_is_exported_again(tmp_path, finished):
    """An export that an earlier version of this project has made."""
    run = shutil.copytree(finished, tmp_path / "run")
    path = export.export_run(run) / export.DESCRIPTION
    description = json.loads(path.read_text())
    assert description.pop("signatures") == sorted(
        tf.saved_model.load(str(path.parents[1])).signatures
    )
    path.write_text(json.dumps(description))
    assert export.export_run(run) == run / "export" / "2"


def test_a_run_without_a_checkpoint_cannot_be_exported(tmp_path, finished):
    (tmp_path / "config.json").write_text((finished / "config.json").read_text())
    with pytest.raises(ExportError, match="has no checkpoint to export: train it first"):
        export.export_run(tmp_path)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        export.export_run(tmp_path / "missing")


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"config": {}, "step": 1}'])
def test_a_directory_that_says_nothing_of_itself_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "assets.extra").mkdir()
        (tmp_path / "assets.extra" / "tfjoint.json").write_text(text)
    with pytest.raises(ExportError, match="is not an export of tfjoint") as caught:
        export.read_description(tmp_path)
    assert "\n" not in str(caught.value)


# --- The check before it counts -------------------------------------------------------------------


@pytest.fixture(scope="module")
def signatures(finished, model) -> Signatures:
    config = Config.from_json(json.loads((finished / "config.json").read_text())["config"])
    return Signatures(model, config)


@pytest.mark.slow
def test_the_check_passes_for_the_model_itself(exported, signatures):
    export.check_export(exported, signatures, images())


@pytest.mark.slow
def test_the_check_refuses_the_export_of_another_model(data, exported, finished):
    config = runs.settings(data, finished, seed=1)
    other = Signatures(models.create(config), config)
    with pytest.raises(ExportError, match=r"differs from the model in codes: by 2.*nothing was"):
        export.check_export(exported, other, images())


@pytest.mark.slow
def test_the_check_sees_a_small_change_of_one_weight(exported, signatures):
    """Of the last bias, so that the probabilities alone differ, and hardly."""
    bias = signatures.weights[-1]
    trained = bias.numpy()
    assert trained.shape == (2,)
    try:
        bias.assign(trained + np.array([0, 1e-4], np.float32))
        with pytest.raises(ExportError, match=r"differs from the model in occupancy: by .*e-0[56]"):
            export.check_export(exported, signatures, images())
    finally:
        bias.assign(trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reconstruction", r"differs from the model in occupancy: by .*e-0[56], allowed 1e-06"),
        ("implicit floats", r"differs from the model in codes: by .*, allowed 1e-06"),
    ],
)
def test_the_check_sees_a_small_change_where_there_are_no_bits(tmp_path, serve, name, words):
    _, model, signatures = serve(name)
    signatures.save(tmp_path / "1")
    encodes = "encode" in signatures.by_name
    bias = models.variables(model.image_encoder)[-1] if encodes else signatures.weights[-1]
    before = bias.numpy()
    try:
        bias.assign(before + np.linspace(0, 1e-4, len(before), dtype=np.float32))
        with pytest.raises(ExportError, match=words):
            export.check_export(tmp_path / "1", signatures, images())
    finally:
        bias.assign(before)


@pytest.mark.slow
def test_the_check_sees_a_refinement_that_forgets(tmp_path, serve):
    _, _, signatures = serve("implicit")
    refine = signatures.by_name["refine"]

    @tf.function(input_signature=refine.input_signature)
    def forgetful(codes, hidden, cell):
        return refine(codes, 0 * hidden, cell)

    signatures.by_name["refine"] = forgetful
    try:
        signatures.save(tmp_path / "1")
        with pytest.raises(ExportError, match="differs from the model in refined: by"):
            export.check_export(tmp_path / "1", signatures, images())
    finally:
        signatures.by_name["refine"] = refine


@pytest.mark.slow
def test_the_check_refuses_tampered_weights(tmp_path, exported, signatures):
    copy = shutil.copytree(exported, tmp_path / "export")
    (path,) = (copy / "variables").glob("variables.data-*")
    bias = signatures.weights[-1].numpy()
    content = path.read_bytes()
    assert content.count(bias.tobytes()) == 1
    path.write_bytes(content.replace(bias.tobytes(), (bias + 1).tobytes()))
    # TensorFlow's own checksum may notice before the outputs are compared.
    with pytest.raises(ExportError, match=r"differs from the model|does not load"):
        export.check_export(copy, signatures, images())


@pytest.mark.slow
def test_the_check_refuses_an_export_that_does_not_load(tmp_path, exported, signatures):
    copy = shutil.copytree(exported, tmp_path / "export")
    (copy / "saved_model.pb").write_bytes((copy / "saved_model.pb").read_bytes()[:1000])
    with pytest.raises(ExportError, match="does not load without tfjoint"):
        export.check_export(copy, signatures, images())


def test_what_fails_the_check_gets_no_version(tmp_path, finished, monkeypatch):
    def refuse(path: Path, *_) -> None:
        assert (path / "saved_model.pb").is_file()
        raise ExportError("differs")

    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    monkeypatch.setattr(export, "check_export", refuse)
    with pytest.raises(ExportError, match="differs"):
        export.export_run(run)
    assert list((run / "export").iterdir()) == []


def test_the_check_looks_at_real_images_of_the_test_split(data, finished):
    config = runs.settings(data, finished)
    batch = export._real_images(config)
    assert batch.shape == (2, 3, 32, 32, 3)
    test = dataset.open_split(config, "test")
    examples = dataset.evaluation_examples(config, test, 3, 0)
    np.testing.assert_array_equal(batch[0], next(examples).images)
    assert tiny.VIEWS >= 3


def test_the_check_looks_at_views_of_one_rate_where_there_are_several(tmp_path):
    tiny.make_rates(tmp_path, (48, 96), 2, 2)
    config = runs.settings(tmp_path, tmp_path / "run", model="jpeg2000")
    batch = export._real_images(config)
    assert batch.shape == (2, 3, 32, 32, 3)
    np.testing.assert_allclose(batch[..., 2] * 255, 48, atol=1e-3)


# --- Mixed precision ------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_a_run_in_mixed_precision_is_exported_too(data, tmp_path):
    # Where there are no instructions for bfloat16, a training step of any size takes seconds.
    small = {"batch_size": 1, "views_max": 1, "iterations_max": 2, "picture_every": 1000}
    run = runs.train(data, tmp_path / "run", steps=1, precision="mixed_bfloat16", **small)
    path = export.export_run(run)
    loaded = tf.saved_model.load(str(path))
    codes = encode(loaded, images(), 2)
    occupancy, decoded = reconstruct(loaded, codes), decode(loaded, codes)
    assert occupancy.dtype == decoded.dtype == np.float32
    assert 0 < occupancy.min() and occupancy.max() < 1
    assert export.read_description(path)["config"]["precision"] == "mixed_bfloat16"
