"""The two ends of an export: what they compute, what they hold, and that nothing is left half."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tensorflow as tf

from tfjoint import export, files, lite, models, split
from tfjoint.config import Config, resolve
from tfjoint.exported import ExportError, read_description
from tfjoint.lite import LiteCamera, LiteError
from tfjoint.split import SplitError

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

CAMERA = ["encode", "encode_files"]
GROUND = ["decode", "reconstruct", "reconstruct_packed", "refine"]
LONG = pytest.mark.long
HAS_LITE = getattr(getattr(tf, "lite", None), "TFLiteConverter", None) is not None
needs_lite = pytest.mark.skipif(
    not HAS_LITE, reason="this TensorFlow has no tf.lite to convert with"
)


def views(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((count, 32, 32, 3), np.float32)


def untrained(system: str, path: Path, **settings) -> Path:
    """An export of a system whose weights are the initial ones."""
    config, _ = resolve({"model": system, "profile": "smoke", **settings})
    model = models.create(config)
    signatures = export.Signatures(model, config)
    signatures.save(path)
    description = {
        "config": config.to_json(),
        "step": 0,
        "data_sha256": "0" * 64,
        "weights_sha256": export.weights_sha256(model),
        "code_revision": "",
        "versions": {},
        "signatures": sorted(signatures.by_name),
    }
    (path / "assets.extra").mkdir()
    files.write_json(path / export.DESCRIPTION, description)
    return path


@pytest.fixture(scope="module")
def ends(exported, tmp_path_factory) -> Path:
    """The ends of the trained export; not to be changed."""
    output = tmp_path_factory.mktemp("ends")
    split.split(exported, output)
    return output


@pytest.fixture(scope="module")
def implicit(tmp_path_factory) -> Path:
    return untrained("implicit", tmp_path_factory.mktemp("implicit") / "export" / "3")


# --- What they compute ----------------------------------------------------------------------------


@pytest.mark.slow
def test_without_tfjoint_both_ends_give_what_the_whole_export_gives_bit_by_bit(exported, ends):
    code = (
        "import sys; sys.modules['tfjoint'] = None; import numpy as np, tensorflow as tf;"
        "whole, camera, ground = (tf.saved_model.load(p) for p in sys.argv[1:]);"
        "whole, camera, ground = whole.signatures, camera.signatures, ground.signatures;"
        "print(sorted(camera), sorted(ground));"
        "x = dict(images=tf.random.stateless_uniform([2, 3, 32, 32, 3], [1, 2]),"
        " iterations=tf.constant(3));"
        "codes = dict(codes=whole['encode'](**x)['codes']);"
        "state = {n: tf.zeros([2, 4, 4, 4, 8]) for n in ('hidden', 'cell')};"
        "given = dict(encode=x, reconstruct=codes, decode=codes, refine={**codes, **state});"
        "sides = {**camera, **ground};"
        "made = {n: (whole[n](**given[n]), sides[n](**given[n])) for n in given};"
        "print(all(np.array_equal(v, b[k]) for a, b in made.values() for k, v in a.items()))"
    )
    paths = [str(exported), *(str(ends / end / exported.name) for end in ("camera", "ground"))]
    command = [sys.executable, "-I", "-c", code, *paths]
    result = subprocess.run(command, capture_output=True, text=True, env=runs.environment())
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{CAMERA} {GROUND}", "True"]


def test_each_end_holds_the_variables_that_it_computes_with_and_no_other(exported, ends, finished):
    config = Config.from_json(json.loads((finished / "config.json").read_text())["config"])
    model = models.create(config)
    codec = len(models.variables(model.compression.codec))
    encoder = len(model.compression.codec.encoder_cells) * 2 + 1
    wanted = {"camera": codec, "ground": len(model.variables) - encoder}
    for end, count in wanted.items():
        reader = tf.train.load_checkpoint(str(ends / end / "1" / "variables" / "variables"))
        names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")]
        assert len(names) == count
    parts = [(ends / end / "1" / "variables").rglob("*") for end in wanted]
    camera, ground = (sum(f.stat().st_size for f in files_) for files_ in parts)
    whole = sum(f.stat().st_size for f in (exported / "variables").rglob("*"))
    assert camera < whole / 3 and ground < whole


def test_the_camera_of_a_system_without_iterations_needs_no_decoder(implicit, tmp_path):
    camera, ground = split.split(implicit, tmp_path)
    assert camera == tmp_path / "camera" / "3"
    config = Config.from_json(read_description(camera)["config"])
    encoder = len(models.create(config).image_encoder.variables)
    reader = tf.train.load_checkpoint(str(camera / "variables" / "variables"))
    names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")]
    assert len(names) == encoder
    assert sorted(tf.saved_model.load(str(ground)).signatures) == [
        name for name in GROUND if name != "decode"
    ]


def test_the_ends_say_what_they_are_of(exported, ends):
    whole = read_description(exported)
    for end, names in (("camera", CAMERA), ("ground", GROUND)):
        found = read_description(ends / end / "1")
        assert found == {**whole, "end": end, "signatures": names}
        tables = Path("assets.extra") / "tables.json"
        assert (ends / end / "1" / tables).read_bytes() == (exported / tables).read_bytes()


# --- Whole or not at all --------------------------------------------------------------------------


def _content(directory: Path) -> dict[str, tuple[int, int]]:
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {str(p.relative_to(directory)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def test_what_is_there_stays_as_it_is_and_what_is_missing_is_added(exported, ends, tmp_path):
    output = Path(shutil.copytree(ends, tmp_path / "ends"))
    before = _content(output)
    assert len(split.split(exported, output)) == 2
    assert _content(output) == before
    shutil.rmtree(output / "ground" / "1")
    split.split(exported, output)
    after = _content(output)
    assert {n: s for n, s in after.items() if n.startswith("camera")} == {
        n: s for n, s in before.items() if n.startswith("camera")
    }
    assert set(after) == set(before)


def test_nothing_is_left_of_a_division_that_fails(exported, tmp_path, monkeypatch):
    def fail(export_, end, description):
        if description["end"] == "ground":
            raise OSError("full")

    monkeypatch.setattr(split, "_describe", fail)
    with pytest.raises(OSError, match="full"):
        split.split(exported, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert not list(tmp_path.glob("*/*"))


def test_ends_of_another_model_are_not_replaced(exported, implicit, ends, tmp_path):
    output = Path(shutil.copytree(ends, tmp_path / "ends"))
    other = shutil.copytree(implicit, tmp_path / "export" / "1")
    with pytest.raises(SplitError, match=r"is of another model .* choose another --output"):
        split.split(other, output)
    (tmp_path / "mine" / "camera" / "1").mkdir(parents=True)
    (tmp_path / "mine" / "camera" / "1" / "notes.txt").write_text("mine")
    with pytest.raises(SplitError, match="is in the way: remove it, or choose another --output"):
        split.split(exported, tmp_path / "mine")


@pytest.mark.parametrize("end", ["camera", "ground"])
def test_an_end_cannot_be_divided(ends, tmp_path, end):
    with pytest.raises(SplitError, match=f"is the {end} end of an export: give the whole one"):
        split.split(ends / end / "1", tmp_path)


def test_an_export_without_codes_has_no_ends(tmp_path):
    whole = untrained("reconstruction", tmp_path / "export" / "1")
    with pytest.raises(SplitError, match="serving_default alone: there is nothing between"):
        split.split(whole, tmp_path / "ends")
    assert not (tmp_path / "ends").exists()


def test_the_ends_are_found_again(ends, exported, implicit, tmp_path):
    found, description = split.find_ends(ends, ("camera", "ground"))
    assert found == {end: ends / end / "1" for end in ("camera", "ground")}
    assert description["weights_sha256"] == read_description(exported)["weights_sha256"]
    with pytest.raises(SplitError, match=r"no lite end in .* tfjoint.split --lite writes it"):
        split.find_ends(ends, ("camera", "lite"))
    mixed = Path(shutil.copytree(ends, tmp_path / "ends"))
    shutil.rmtree(mixed / "ground")
    split.split(implicit, tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "ground", mixed / "ground")
    with pytest.raises(SplitError, match="are of different models: split the export again"):
        split.find_ends(mixed, ("camera", "ground"))


@pytest.mark.slow
def test_the_command_says_where_the_ends_are_and_refuses_in_one_line(exported, tmp_path):
    whole = shutil.copytree(exported, tmp_path / "run" / "export" / "1")
    command = [sys.executable, "-m", "tfjoint.split"]
    result = runs.finish([*command, f"--export={whole.parent}"])
    assert result.returncode == 0, result.stderr
    said = [line.split("MB  ") for line in result.stdout.splitlines()]
    ends = tmp_path / "run" / "ends"
    assert [Path(path) for _, path in said] == [whole, ends / "camera/1", ends / "ground/1"]
    assert float(said[1][0]) < float(said[0][0])
    assert "--export is missing" in runs.refusal(command)
    assert "no export at" in runs.refusal([*command, f"--export={tmp_path}"])
    evaluate = [sys.executable, "-m", "tfjoint.evaluate", f"--export={ends / 'ground'}"]
    assert "is the ground end of an export" in runs.refusal(evaluate)


# --- TensorFlow Lite ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def direct_lite(exported, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("lite")
    return split.split(exported, output, lite=True)[-1]


def _encode(path: Path, iterations: int | None) -> np.ndarray:
    given = {} if iterations is None else {"iterations": tf.constant(iterations)}
    loaded = tf.saved_model.load(str(path))
    return loaded.signatures["encode"](images=views()[np.newaxis], **given)["codes"].numpy()[0]


@needs_lite
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99), ("int8", 0.7)])
def test_a_lite_camera_sends_nearly_the_bits_of_the_saved_model(
    exported, direct_lite, precision, least
):
    camera = LiteCamera(direct_lite / f"camera-{precision}.tflite")
    for iterations in (4, 1):
        expected = _encode(exported, iterations)
        codes = np.stack([camera.encode(view, iterations) for view in views()])
        assert codes.shape == expected.shape and codes.dtype == np.int8
        assert set(np.unique(codes)) == {-1, 1}
        assert (codes == expected).mean() >= least
        assert 0.3 < (expected == expected[:1]).mean() < 1  # views differ, so that this can fail
    many = camera.encode(views()[0], 9)
    np.testing.assert_array_equal(many, camera.encode(views()[0], 4))  # no more than in training
    sizes = [(direct_lite / f"camera-{p}.tflite").stat().st_size for p in lite.PRECISIONS]
    assert sizes[1] < sizes[0]
    assert read_description(direct_lite, Path("tfjoint.json"))["end"] == "lite"


@needs_lite
@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "settings"),
    [
        ("implicit", {}),
        ("sequential", {"iterations_max": 2}),
        pytest.param("implicit", {"binarizer": False}, marks=LONG),
        pytest.param("compression", {"codec": "original"}, marks=LONG),
        pytest.param("compression", {"codec": "small_b", "iterations_max": 2}, marks=LONG),
    ],
)
def test_every_system_with_codes_has_a_lite_camera(tmp_path, system, settings):
    whole = untrained(system, tmp_path / "1", **settings)
    iterations = None if system == "implicit" else 2
    expected = _encode(whole, iterations)
    for precision, content in lite.convert(whole).items():
        path = tmp_path / f"{precision}.tflite"
        path.write_bytes(content)
        camera = LiteCamera(path)
        codes = np.stack([camera.encode(view, iterations or 1) for view in views()])
        assert codes.shape == expected.shape and codes.dtype == expected.dtype
        if codes.dtype == np.int8:
            assert (codes == expected).mean() > {"float32": 0.99, "int8": 0.7}[precision]
        else:
            tolerance = {"float32": 1e-5, "int8": 0.1}[precision]
            np.testing.assert_allclose(codes, expected, atol=tolerance)


@needs_lite
@pytest.mark.slow
def test_the_converter_writes_nothing_to_the_screen(tmp_path, capfd):
    whole = untrained("implicit", tmp_path / "1")
    capfd.readouterr()
    lite.convert(whole)
    assert capfd.readouterr() == ("", "")


def test_errors_of_the_converter_are_shown_and_its_notes_are_not(capfd):
    notes = (
        b"WARNING: All log messages before absl::\nW0000 00:00 a.cc:3] b\nI0000 00:00 a.cc:3] b\n"
    )
    with pytest.raises(ValueError, match="c"), lite._without_notes():
        os.write(2, notes + b"E0000 00:00 a.cc:3] wrong\nhere\n")
        raise ValueError("c")
    assert capfd.readouterr().err == "E0000 00:00 a.cc:3] wrong\nhere\n"
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_without_a_converter_a_line_says_what_to_use(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(tf, "lite", None, raising=False)
    with pytest.raises(LiteError, match=r"has no tf\.lite to convert with: use the default"):
        split.split(exported, tmp_path, lite=True)
    assert not list(tmp_path.glob("*/*"))


@needs_lite
def test_other_weights_than_the_description_names_are_not_converted(exported, tmp_path):
    copy = Path(shutil.copytree(exported, tmp_path / "1"))
    description = read_description(copy)
    files.write_json(copy / export.DESCRIPTION, {**description, "weights_sha256": "0" * 64})
    with pytest.raises(LiteError, match="is damaged or not a whole export"):
        lite.convert(copy)
    (copy / export.DESCRIPTION).unlink()
    with pytest.raises(ExportError, match="is not an export of tfjoint"):
        lite.convert(copy)


@needs_lite
def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "x.tflite").write_bytes(b"no model" * 10)
    with pytest.raises(LiteError, match="is no TensorFlow Lite model"):
        LiteCamera(tmp_path / "x.tflite")
