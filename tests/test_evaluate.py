"""Results of an export, against an evaluation written a second time."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tensorflow as tf
import tiny
from absl import flags
from PIL import Image

from tfjoint import (
    coding,
    entry,
    evaluate,
    export,
    files,
    gallery,
    models,
    provenance,
    records,
    report,
)
from tfjoint.config import Config, resolve
from tfjoint.errors import UserError
from tfjoint.evaluate import Protocol
from tfjoint.view import ViewError, page_of

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

VIEWS, ITERATIONS, SEED = 2, 3, 5
TEST_OBJECTS = 5
SIDE = 32


@pytest.fixture(scope="module")
def config(exported) -> Config:
    return Config.from_json(export.read_description(exported)["config"])


@pytest.fixture(scope="module")
def results(exported, config) -> dict:
    """What the command writes, after its way through JSON."""
    description = export.read_description(exported)
    protocol = Protocol(views=VIEWS, iterations=ITERATIONS, seed=SEED)
    return json.loads(json.dumps(evaluate.evaluate(exported, config, description, protocol)))


@pytest.fixture(scope="module")
def rows(results) -> list[dict]:
    return results["rows"]


# --- The second evaluation ------------------------------------------------------------------------


def split(data: Path, name: str) -> list[records.ObjectRecord]:
    opened = records.RecordSet(data, name)
    return [opened.record(index) for index in range(len(opened))]


def view(png: bytes) -> np.ndarray:
    """[32, 32, 3] in [0, 1]: the middle of a stored view over black."""
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float64) / 255
    margin = (tiny.SIZE - SIDE) // 2
    middle = rgba[margin : margin + SIDE, margin : margin + SIDE]
    return (middle[..., :3] * middle[..., 3:]).astype(np.float32)


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    both, either = int((found & truth).sum()), int((found | truth).sum())
    return both / either if either else 1.0


@pytest.fixture(scope="module")
def again(data, exported, rows) -> list[list[dict]]:
    """Per number of iterations and object: what the signatures make of it, one object at a time.

    Every number of iterations is encoded anew, where the command takes a part of the longest code.
    """
    signatures = tf.saved_model.load(str(exported)).signatures
    table = []
    for iterations in range(1, ITERATIONS + 1):
        measured = []
        for record, entry_ in zip(split(data, "test"), rows[0]["objects"]):
            images = np.stack([view(record.views[index]) for index in entry_["views"]])
            codes = signatures["encode"](
                images=tf.constant(images[None]), iterations=tf.constant(iterations)
            )["codes"]
            measured.append(
                {
                    "record": record,
                    "images": images,
                    "codes": codes.numpy()[0],
                    "occupancy": signatures["reconstruct"](codes=codes)["occupancy"].numpy()[0],
                    "decoded": signatures["decode"](codes=codes)["images"].numpy()[0],
                }
            )
        table.append(measured)
    return table


def test_a_code_is_the_beginning_of_a_longer_one(again):
    """Why one encoding with the most iterations is enough for all rates."""
    for fewer, more in zip(again, again[1:]):
        for short, long in zip(fewer, more):
            iterations = short["codes"].shape[1]
            np.testing.assert_array_equal(short["codes"], long["codes"][:, :iterations])
            np.testing.assert_allclose(short["decoded"], long["decoded"][:, :iterations], atol=1e-6)


def test_iou_per_object_mean_and_std(rows, again):
    for row, measured in zip(rows, again):
        ious = [overlap(m["occupancy"] >= 0.4, m["record"].voxels) for m in measured]
        assert [o["iou"] for o in row["objects"]] == pytest.approx(ious, abs=2e-4)
        mean = sum(ious) / len(ious)
        assert row["iou"]["mean"] == pytest.approx(mean, abs=2e-4)
        std = math.sqrt(sum((iou - mean) ** 2 for iou in ious) / len(ious))
        assert row["iou"]["std"] == pytest.approx(std, abs=2e-4)
        assert row["threshold"] == 0.4


def test_iou_per_class_and_mean_of_classes(rows):
    for row in rows:
        classes: dict[str, list[float]] = {}
        for entry_ in row["objects"]:
            classes.setdefault(entry_["category"], []).append(entry_["iou"])
        assert sorted(classes) == ["box", "slab"]
        means = {name: sum(ious) / len(ious) for name, ious in classes.items()}
        assert row["iou"]["per_class"] == pytest.approx(means)
        assert row["iou"]["class_mean"] == pytest.approx(sum(means.values()) / 2)


def test_iou_by_threshold_and_pooled(rows, again):
    for row, measured in zip(rows, again):
        assert list(row["iou"]["by_threshold"]) == [
            *("0.2", "0.25", "0.3", "0.35", "0.4", "0.45", "0.5")
        ]
        for threshold, found in row["iou"]["by_threshold"].items():
            ious = [
                overlap(m["occupancy"] >= float(threshold), m["record"].voxels) for m in measured
            ]
            assert found == pytest.approx(sum(ious) / len(ious), abs=2e-4)
        # Five objects are one minibatch of up to six.
        both = sum(int(((m["occupancy"] >= 0.4) & m["record"].voxels).sum()) for m in measured)
        union = sum(int(((m["occupancy"] >= 0.4) | m["record"].voxels).sum()) for m in measured)
        assert row["iou"]["pooled_6"] == pytest.approx(both / union, abs=2e-4)


def test_cross_entropy_and_average_precision(rows, again):
    for row, measured in zip(rows, again):
        entropies, precisions = [], []
        for m in measured:
            truth, p = m["record"].voxels, m["occupancy"].astype(np.float64)
            entropies.append(-np.mean(np.where(truth, np.log(p), np.log1p(-p))))
            ranked = truth.ravel()[np.argsort(-p.ravel(), kind="stable")]
            hits = np.flatnonzero(ranked) + 1
            precisions.append(np.mean(np.arange(1, len(hits) + 1) / hits))
        assert row["l_3d"] == pytest.approx(np.mean(entropies), rel=1e-5)
        # Equal probabilities in another order move it a little.
        assert row["average_precision"] == pytest.approx(np.mean(precisions), abs=2e-3)


def test_l_comp_counts_every_iteration_and_psnr_the_last(rows, again):
    for row, measured in zip(rows, again):
        differences, ratios = [], []
        for m in measured:
            for image, decoded in zip(m["images"].astype(np.float64), m["decoded"]):
                differences += [np.mean(np.abs(image - step)) for step in decoded]
                ratios.append(-10 * math.log10(np.mean((image - decoded[-1]) ** 2)))
        assert row["l_comp"] == pytest.approx(np.mean(differences), rel=1e-5)
        assert row["psnr_db"] == pytest.approx(np.mean(ratios), rel=1e-5)


def similarity(image: np.ndarray, other: np.ndarray) -> float:
    """MS-SSIM after Wang et al. 2003: an 11-pixel Gaussian window of sigma 1.5, here two scales.

    Of 32 pixels the window fits 32 and 16; the first two weights of the five, scaled to sum 1.
    """
    weights = np.array([0.0448, 0.2856]) / (0.0448 + 0.2856)
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def windowed(values: np.ndarray) -> np.ndarray:
        patches = np.lib.stride_tricks.sliding_window_view(values, (11, 11), axis=(0, 1))
        return np.einsum("ijcxy,xy->ijc", patches, window)

    found = np.ones(3)
    for scale, weight in enumerate(weights):
        mean, mean_other = windowed(image), windowed(other)
        both = windowed(image * other) - mean * mean_other
        variances = windowed(image**2 + other**2) - mean**2 - mean_other**2
        contrast = (2 * both + 0.03**2) / (variances + 0.03**2)
        light = (2 * mean * mean_other + 0.01**2) / (mean**2 + mean_other**2 + 0.01**2)
        values = contrast if scale == 0 else light * contrast
        found *= np.maximum(values.mean(axis=(0, 1)), 0) ** weight
        image, other = (
            x.reshape(len(x) // 2, 2, len(x) // 2, 2, 3).mean(axis=(1, 3)) for x in (image, other)
        )
    return float(found.mean())


def test_ms_ssim_is_that_of_the_scales_that_the_window_fits(rows, again):
    for row, measured in zip(rows, again):
        found = [
            similarity(image.astype(np.float64), decoded[-1].astype(np.float64))
            for m in measured
            for image, decoded in zip(m["images"], m["decoded"])
        ]
        assert row["ms_ssim"] == pytest.approx(np.mean(found), rel=1e-3)


# --- What a row says ------------------------------------------------------------------------------


def test_there_is_a_row_for_every_number_of_iterations_with_its_rate(rows, again):
    assert [row["iterations"] for row in rows] == [1, 2, 3]
    for row, measured in zip(rows, again):
        bits = measured[0]["codes"][0].size  # of one view, a bit per value
        assert row["bits_per_view"] == bits
        assert row["rate"]["nominal"] == SIDE * SIDE * 24 / bits
    assert rows[0]["rate"]["nominal"] == 384


def test_every_test_object_counts_with_the_views_it_was_shown(data, rows):
    test = split(data, "test")
    assert len(test) == TEST_OBJECTS
    for row in rows:
        assert row["iou"]["objects"] == TEST_OBJECTS
        shown = [(o["id"], o["category"]) for o in row["objects"]]
        assert shown == [(record.object_id, record.category) for record in test]
        for entry_ in row["objects"]:
            assert len(set(entry_["views"])) == VIEWS == row["views"]
            assert set(entry_["views"]) <= set(range(tiny.VIEWS))
        assert [o["views"] for o in row["objects"]] == [o["views"] for o in rows[0]["objects"]]
    assert len({tuple(o["views"]) for o in rows[0]["objects"]}) > 1


def test_every_row_says_what_made_it(data, rows, exported, config):
    description = export.read_description(exported)
    expected = {
        "system": "direct",
        "profile": "smoke",
        "split": "test",
        "data": "tiny",
        "split_list": "tiny",
        "data_sha256": records.manifest_sha256(data),
        "trained_on_sha256": records.manifest_sha256(data),
        "config": config.to_json(),
        "seed": config.seed,
        "view_seed": SEED,
        "steps": runs.STEPS,
        "weights_sha256": description["weights_sha256"],
        "trained_by": description["code_revision"],
        "code_revision": provenance.code_revision(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
    measured = {"iterations", "bits_per_view", "rate", "threshold", "iou", "l_3d", "l_comp"}
    measured |= {"average_precision", "psnr_db", "ms_ssim", "objects", "views", "wall_seconds"}
    for row in rows:
        assert {name: row[name] for name in expected} == expected
        assert set(row) == set(expected) | measured
        assert row["wall_seconds"] > 0
        assert set(row["machine"]) == {"architecture", "cores", "system"}
        assert {"python", "tensorflow", "keras", "numpy", "tfjoint"} == set(row["versions"])


# --- Real bytes -----------------------------------------------------------------------------------


def test_real_rates_are_raw_bytes_over_those_of_a_file_of_all_views(rows, again):
    for row, measured in zip(rows, again):
        raw_bytes = VIEWS * SIDE * SIDE * 3
        payload = -(-measured[0]["codes"].size // 8)
        assert row["rate"]["payload"] == pytest.approx(raw_bytes / payload)
        assert row["rate"]["file"] == pytest.approx(raw_bytes / (payload + 17))


def test_rates_with_tables_are_of_the_information_in_the_codes(rows, again, exported):
    try:
        coding.range_coder()
    except coding.CodingError as error:
        pytest.skip(str(error))
    ones = np.array(json.loads((exported / export.TABLES).read_text())["ones"]) / 65536
    for row, measured in zip(rows, again):
        sizes = []
        for m in measured:
            likely = np.where(
                m["codes"] > 0, ones[: row["iterations"]], 1 - ones[: row["iterations"]]
            )
            sizes.append(min(-np.log2(likely).sum() / 8, m["codes"].size // 8))
        for name, beyond in (("table_payload", 0), ("table_file", 17)):
            found = VIEWS * SIDE * SIDE * 3 / row["rate"][name]
            assert found == pytest.approx(np.mean(sizes) + beyond, abs=1.5)
        assert row["rate"]["table_file"] >= row["rate"]["file"]


def test_without_the_range_coder_raw_bytes_are_left(exported, config, monkeypatch, capsys):
    for name in ("tensorflow_compression_ops", "tensorflow_compression"):
        monkeypatch.setitem(sys.modules, name, None)
    coding.range_coder.cache_clear()
    try:
        sizes = evaluate.Sizes.of_export(exported, config, export.read_description(exported))
    finally:
        coding.range_coder.cache_clear()
    codes = np.ones((2, 3, 2, 2, 16), np.int8)
    assert sizes.of_codes(codes) == {"payload": 48, "file": 65}
    assert "real bytes of raw codes alone: coding with tables needs" in capsys.readouterr().out


def test_iterations_that_the_tables_do_not_know_have_raw_bytes_alone(exported, config):
    tables = coding.read(exported / export.TABLES)
    sizes = evaluate.Sizes(tables.source, tables)
    assert set(sizes.of_codes(np.ones((1, 5, 2, 2, 16), np.int8))) == {"payload", "file"}


# --- Baselines ------------------------------------------------------------------------------------


def test_the_mean_shape_is_the_best_cut_through_the_mean_training_grid(data, results):
    train, test = split(data, "train"), split(data, "test")
    mean = sum(record.voxels.astype(int) for record in train) / len(train)
    scores = {
        t: np.mean([overlap(mean >= t, record.voxels) for record in train])
        for t in (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    }
    best = max(scores, key=scores.get)
    found = results["baselines"]["mean_shape"]
    assert found["threshold"] == best
    ious = [overlap(mean >= best, record.voxels) for record in test]
    assert found["mean"] == pytest.approx(np.mean(ious))
    assert found["std"] == pytest.approx(np.std(ious))
    assert found["objects"] == TEST_OBJECTS
    assert results["baselines"]["training_objects"] == len(train) == 12


def test_the_best_training_grid_is_found_for_every_test_grid(data, results):
    train, test = split(data, "train"), split(data, "test")
    ious = [max(overlap(t.voxels, record.voxels) for t in train) for record in test]
    found = results["baselines"]["best_training_grid"]
    assert found["mean"] == pytest.approx(np.mean(ious))
    assert found["std"] == pytest.approx(np.std(ious))


def test_the_mean_colour_is_that_of_the_training_views(data, results):
    """The command draws the training views with seed 0, as many per object as it evaluates."""
    from tfjoint.dataset import evaluation_views

    colours = []
    for record in split(data, "train"):
        ids = evaluation_views(0, record.object_id, tiny.VIEWS, VIEWS)
        colours += [view(record.views[index]).mean(axis=(0, 1)) for index in ids]
    colour = np.mean(colours, axis=0)
    found = results["baselines"]["mean_colour"]
    assert found["rgb"] == pytest.approx(colour.tolist(), abs=1e-5)
    ratios = []
    for record, entry_ in zip(split(data, "test"), results["rows"][0]["objects"]):
        for index in entry_["views"]:
            error = np.mean((view(record.views[index]) - colour) ** 2)
            ratios.append(-10 * math.log10(error))
    assert found["psnr_db"] == pytest.approx(np.mean(ratios), rel=1e-4)


# --- Every system ---------------------------------------------------------------------------------

RATES = (48, 96, 120)
KINDS = {
    "compression": {"model": "compression", "codec": "small_b"},
    "reconstruction": {"model": "reconstruction"},
    "jpeg2000": {"model": "jpeg2000"},
    "separate": {"model": "separate"},
    "sequential": {"model": "sequential"},
    "direct floats": {"model": "direct", "binarizer": False},
    "implicit": {"model": "implicit"},
    "implicit floats": {"model": "implicit", "binarizer": False},
}
IMAGE_FIGURES, SHAPE_FIGURES = (
    {"l_comp", "psnr_db", "ms_ssim"},
    {"iou", "l_3d", "average_precision"},
)


@pytest.fixture(scope="module")
def coded(tmp_path_factory) -> Path:
    """The tiny objects as JPEG 2000 views at several rates."""
    return tiny.make_rates(tmp_path_factory.mktemp("jpeg2000"), RATES)


@pytest.fixture(scope="module")
def evaluated(data, coded, tmp_path_factory):
    """A function of a name in `KINDS`: the export of its untrained model, and the results of it."""
    made: dict[str, tuple[Path, dict]] = {}

    def make(name: str) -> tuple[Path, dict]:
        if name not in made:
            given = {"profile": "smoke", "data": str(coded if name == "jpeg2000" else data)}
            config, _ = resolve({**given, **KINDS[name]})
            path = tmp_path_factory.mktemp("exports") / "export" / "1"
            model = models.create(config)
            _spread(model)
            export.Signatures(model, config).save(path)
            description = {
                **{"config": config.to_json(), "step": 0, "data_sha256": "", "versions": {}},
                **{"weights_sha256": export.weights_sha256(model), "code_revision": ""},
            }
            (path / "assets.extra").mkdir()
            files.write_json(path / "assets.extra" / "tfjoint.json", description)
            protocol = Protocol(views=VIEWS, iterations=2, seed=SEED)
            results = evaluate.evaluate(path, config, description, protocol)
            made[name] = path, json.loads(json.dumps(results))
        return made[name]

    return make


def _spread(model: tf.keras.Model) -> None:
    """Make the probabilities of an untrained model differ from voxel to voxel, about 1/2."""
    rng = np.random.default_rng(0)
    scales = [2 / np.sqrt(np.prod(w.shape[:-1])) * (w.ndim > 1) for w in model.get_weights()]
    model.set_weights([rng.normal(0, s, w.shape) for s, w in zip(scales, model.get_weights())])


@pytest.mark.parametrize(
    ("name", "rows", "missing"),
    [
        # (iterations, bits per view, nominal rate); then the figures that the system has not.
        ("compression", [(1, 64, 384), (2, 128, 192)], SHAPE_FIGURES),
        ("reconstruction", [(None, None, None)], IMAGE_FIGURES),
        ("jpeg2000", [(None, None, rate) for rate in RATES], IMAGE_FIGURES),
        ("separate", [(1, 64, 384), (2, 128, 192)], set()),
        ("sequential", [(1, 64, 384), (2, 128, 192)], set()),
        ("direct floats", [(1, 2048, 12), (2, 4096, 6)], set()),
        ("implicit", [(None, 64, 384)], IMAGE_FIGURES),
        ("implicit floats", [(None, 2048, 12)], IMAGE_FIGURES),
    ],
)
def test_a_system_has_its_rows_and_the_figures_of_what_it_makes(evaluated, name, rows, missing):
    _, results = evaluated(name)
    found = [(r["iterations"], r["bits_per_view"], r["rate"]["nominal"]) for r in results["rows"]]
    assert found == rows
    for row in results["rows"]:
        assert {n for n in IMAGE_FIGURES | SHAPE_FIGURES if row[n] is None} == missing
        assert row["system"] == KINDS[name]["model"]
        assert len(row["objects"]) == TEST_OBJECTS
        for entry_ in row["objects"]:
            assert (entry_["iou"] is None) == ("iou" in missing)
            assert (entry_["psnr_db"] is None) == ("psnr_db" in missing)
        real = set() if name == "reconstruction" else {"payload", "file"}
        assert set(row["rate"]) == {"nominal", *real}
    wanted = {"training_objects"}
    wanted |= set() if "iou" in missing else {"mean_shape", "best_training_grid"}
    wanted |= set() if "psnr_db" in missing else {"mean_colour"}
    assert set(results["baselines"]) == wanted
    assert len(report.table(results).splitlines()) == 1 + 1 + len(rows) + len(wanted) - 1


@pytest.mark.parametrize("name", KINDS)
def test_the_figures_of_every_system_are_those_of_its_signatures(evaluated, data, coded, name):
    path, results = evaluated(name)
    signatures = tf.saved_model.load(str(path)).signatures
    for index, row in enumerate(results["rows"]):
        test = split(coded / f"{RATES[index]}" if name == "jpeg2000" else data, "test")
        ious, differences, ratios = [], [], []
        for record, entry_ in zip(test, row["objects"]):
            images = np.stack([view(record.views[number]) for number in entry_["views"]])
            given = {"images": tf.constant(images[None])}
            if "encode" in signatures:
                times = {"iterations": tf.constant(row["iterations"])} if row["iterations"] else {}
                given = signatures["encode"](**given, **times)
            if "reconstruct" in signatures:
                found = signatures["reconstruct"](**given)["occupancy"].numpy()[0]
                ious.append(overlap(found >= 0.4, record.voxels))
            if "decode" in signatures:
                decoded = signatures["decode"](**given)["images"].numpy()[0].astype(np.float64)
                differences.append(np.mean(np.abs(images[:, None] - decoded)))
                errors = np.mean((images - decoded[:, -1]) ** 2, axis=(1, 2, 3))
                ratios.append(np.mean(-10 * np.log10(errors)))
        if ious:
            assert len(set(ious)) > 1
            assert [o["iou"] for o in row["objects"]] == pytest.approx(ious, abs=2e-4)
            assert row["iou"]["mean"] == pytest.approx(np.mean(ious), abs=2e-4)
        if ratios:
            assert row["l_comp"] == pytest.approx(np.mean(differences), rel=1e-5)
            assert [o["psnr_db"] for o in row["objects"]] == pytest.approx(ratios, rel=1e-5)
            assert row["psnr_db"] == pytest.approx(np.mean(ratios), rel=1e-5)
        assert ious or ratios


def test_real_rates_of_jpeg_2000_are_raw_bytes_over_those_of_the_shown_views(evaluated):
    _, results = evaluated("jpeg2000")
    for rate, row in zip(RATES, results["rows"]):
        raw = payload = file = 0
        for index, entry_ in zip(range(12, 17), row["objects"]):
            for number in entry_["views"]:
                _, file_bytes, payload_bytes = tiny.coded_record(rate, index).code_bytes[number]
                raw += tiny.SIZE * tiny.SIZE * 3  # what was coded is the stored view, not its crop
                file, payload = file + int(file_bytes), payload + int(payload_bytes)
        assert row["rate"]["payload"] == pytest.approx(raw / payload)
        assert row["rate"]["file"] == pytest.approx(raw / file)
        assert row["rate"]["file"] < row["rate"]["nominal"] < row["rate"]["payload"]


def test_all_rates_are_measured_on_the_same_views_and_say_the_same_data(evaluated, coded):
    rows = evaluated("jpeg2000")[1]["rows"]
    assert len({json.dumps([o["views"] for o in row["objects"]]) for row in rows}) == 1
    assert len({row["iou"]["mean"] for row in rows}) == 3
    digests = "\n".join(records.manifest_sha256(coded / str(rate)) for rate in RATES)
    assert {row["data_sha256"] for row in rows} == {hashlib.sha256(digests.encode()).hexdigest()}


def test_a_codec_alone_is_evaluated_on_records_with_any_grid(evaluated, run_command, tmp_path):
    def coarse(index: int) -> records.ObjectRecord:
        record = tiny.record(index)
        return dataclasses.replace(record, voxels=record.voxels[::2, ::2, ::2])

    path, _ = evaluated("compression")
    other = tiny.write(tmp_path / "other", coarse, 2, 1)
    output = tmp_path / "results.json"
    run_command(f"--export={path}", f"--data={other}", "--iterations=1", f"--output={output}")
    (row,) = json.loads(output.read_text())["rows"]
    assert row["iou"] is None and row["l_comp"] > 0


@pytest.mark.parametrize("name", ["implicit", "reconstruction", "jpeg2000"])
def test_iterations_of_a_system_that_has_none_are_refused(evaluated, run_command, name):
    path, _ = evaluated(name)
    with pytest.raises(UserError) as caught:
        run_command(f"--export={path}", "--iterations=2")
    assert str(caught.value) == f"iterations=2 has no effect on model {name}"


def test_the_command_evaluates_every_rate_or_those_of_the_config(
    evaluated, run_command, tmp_path, capsys
):
    path, results = evaluated("jpeg2000")
    output = tmp_path / "results.json"
    run_command(f"--export={path}", f"--views={VIEWS}", f"--seed={SEED}", f"--output={output}")
    written = json.loads(output.read_text())
    for row in (*written["rows"], *results["rows"]):
        row.pop("wall_seconds", None)
    assert written == results
    assert report.table(results) in capsys.readouterr().out
    raw = tiny.make(tmp_path / "raw", 2, 1)
    with pytest.raises(UserError, match="holds no JPEG 2000 views"):
        run_command(f"--export={path}", f"--data={raw}", f"--output={output}")


@pytest.mark.parametrize("name", ["separate", "implicit", "jpeg2000"])
def test_the_iou_after_some_of_the_views_is_that_of_the_first_ones_alone(evaluated, name):
    path, results = evaluated(name)
    config = Config.from_json(export.read_description(path)["config"])
    description = export.read_description(path)
    one, two = (
        evaluate.evaluate(path, config, description, Protocol("test", views, 2, SEED, counted))
        for views, counted in ((1, False), (2, True))
    )
    for few, many, plain in zip(one["rows"], two["rows"], results["rows"]):
        # The views of an object are drawn in one order, so that the first of two is the only one.
        assert [o["views"][:1] for o in many["objects"]] == [o["views"] for o in few["objects"]]
        by_views = many["iou"].pop("by_views")
        assert by_views == pytest.approx(
            {"1": few["iou"]["mean"], "2": plain["iou"]["mean"]}, abs=2e-4
        )
        assert plain["iou"]["by_views"] == {}
        assert many["objects"] == plain["objects"]


def test_jpeg_2000_views_are_compared_with_the_originals_that_are_named(
    evaluated, data, coded, run_command, tmp_path
):
    path, results = evaluated("jpeg2000")
    output = tmp_path / "results.json"
    given = [f"--export={path}", f"--views={VIEWS}", f"--seed={SEED}", f"--output={output}"]
    run_command(*given, f"--originals={data}")
    written = json.loads(output.read_text())["rows"]
    for rate, row, before in zip(RATES, written, results["rows"]):
        differences, ratios = [], []
        raw, lossy = split(data, "test"), split(coded / str(rate), "test")
        for original, decoded, entry_ in zip(raw, lossy, row["objects"]):
            for number in entry_["views"]:
                image, other = view(original.views[number]), view(decoded.views[number])
                differences.append(np.mean(np.abs(image - other)))
                ratios.append(-10 * math.log10(np.mean((image - other) ** 2)))
        assert row["l_comp"] == pytest.approx(np.mean(differences), rel=1e-5)
        assert row["psnr_db"] == pytest.approx(np.mean(ratios), rel=1e-5)
        assert 0 < row["ms_ssim"] < 1
        assert row["iou"] == before["iou"]
    other = tiny.make(tmp_path / "other", train=3, test=2)
    with pytest.raises(UserError, match="does not hold the objects and views of"):
        run_command(*given, f"--originals={other}")


@pytest.mark.parametrize(
    ("name", "flag", "words"),
    [
        ("implicit", "--originals=x", "originals=x has no effect on model implicit"),
        ("compression", "--view_counts", "view_counts has no effect on model compression"),
    ],
)
def test_what_a_system_cannot_be_measured_by_is_refused(evaluated, run_command, name, flag, words):
    path, _ = evaluated(name)
    with pytest.raises(UserError) as caught:
        run_command(f"--export={path}", flag)
    assert str(caught.value) == words


# --- Shapes to look at ----------------------------------------------------------------------------


def looked_at(path: Path, results: dict, count: int) -> gallery.Gallery:
    config = Config.from_json(export.read_description(path)["config"])
    protocol = Protocol(views=VIEWS, iterations=2, seed=SEED)
    return evaluate.examples(path, config, protocol, results["rows"], count)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "compression"])
def test_shapes_to_look_at_are_those_whose_iou_is_in_the_results(evaluated, data, name):
    path, results = evaluated(name)
    shown = looked_at(path, results, 3)
    rows, test = results["rows"], split(data, "test")[:3]
    assert shown.percent().shape == (3, len(rows), VIEWS, 32, 32, 32)
    assert shown.names == tuple(record.object_id for record in test)
    assert shown.categories == tuple(record.category for record in test)
    assert shown.rates == tuple(map(report.rate_name, rows)) and shown.views == (1, 2)
    assert shown.weights_sha256 == rows[0]["weights_sha256"]
    assert shown.title == report.title(results)
    for number, record in enumerate(test):
        np.testing.assert_array_equal(shown.truth[number], record.voxels)
        for rate, row in enumerate(rows):
            found = overlap(shown.percent()[number, rate, -1] >= 40, record.voxels)
            assert found == pytest.approx(row["objects"][number]["iou"], abs=2e-4)


@pytest.mark.parametrize("name", ["separate", "implicit", "reconstruction"])
def test_shapes_of_fewer_views_are_made_of_the_first_ones_alone(evaluated, data, name):
    path, results = evaluated(name)
    shown = looked_at(path, results, 2)
    signatures = tf.saved_model.load(str(path)).signatures
    for number, record in enumerate(split(data, "test")[:2]):
        first = results["rows"][0]["objects"][number]["views"][0]
        given = {"images": tf.constant(view(record.views[first])[None, None])}
        if "encode" in signatures:
            times = {"iterations": tf.constant(1)} if name == "separate" else {}
            given = signatures["encode"](**given, **times)
        expected = signatures["reconstruct"](**given)["occupancy"].numpy()[0]
        found = shown.percent()[number, 0, 0].astype(int)
        assert np.abs(found - np.floor(100 * expected)).max() <= 1
        assert np.mean(found == np.floor(100 * expected)) > 0.99
        assert (found != shown.percent()[number, 0, 1]).any()


def test_pictures_to_look_at_are_the_views_before_and_after(evaluated, data, coded):
    path, results = evaluated("separate")
    shown = looked_at(path, results, 1)
    ids = results["rows"][0]["objects"][0]["views"]
    images = np.stack([view(split(data, "test")[0].views[index]) for index in ids])
    np.testing.assert_array_equal(shown.images[0], np.round(images * 255))
    assert shown.decoded.shape == (1, 2, VIEWS, SIDE, SIDE, 3)
    for rate, row in enumerate(results["rows"]):
        errors = np.mean((images - shown.decoded[0, rate] / 255) ** 2, axis=(1, 2, 3))
        assert np.mean(-10 * np.log10(errors)) == pytest.approx(
            row["objects"][0]["psnr_db"], abs=0.05
        )
    assert looked_at(*evaluated("implicit"), 1).decoded is None

    path, results = evaluated("jpeg2000")
    shown = looked_at(path, results, 1)
    assert shown.images is None and shown.decoded.shape == (1, 3, VIEWS, SIDE, SIDE, 3)
    for rate, decoded in zip(RATES, shown.decoded[0]):
        views = split(coded / str(rate), "test")[0].views
        expected = np.stack([view(views[index]) for index in ids])
        np.testing.assert_array_equal(decoded, np.round(expected * 255))
        assert decoded[..., 2].max() == rate


def test_the_command_writes_shapes_beside_the_results_when_asked(
    run_command, evaluated, tmp_path, capsys
):
    path, results = evaluated("implicit")
    given = [f"--export={path}", f"--views={VIEWS}", f"--seed={SEED}"]
    run_command(*given, f"--output={tmp_path / 'a.json'}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    run_command(*given, f"--output={tmp_path / 'a.json'}", "--examples=99")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-examples.npz", "a.json"]
    shown = gallery.read_gallery(tmp_path / "a-examples.npz")
    assert len(shown.names) == TEST_OBJECTS
    np.testing.assert_array_equal(shown.percent()[:1], looked_at(path, results, 1).percent())
    assert f"shapes: {tmp_path / 'a-examples.npz'}" in capsys.readouterr().out


def test_examples_can_be_taken_from_the_whole_split(run_command, evaluated, tmp_path):
    path, results = evaluated("implicit")
    output = tmp_path / "a.json"
    given = [f"--export={path}", f"--views={VIEWS}", f"--seed={SEED}", f"--output={output}"]
    run_command(*given, "--examples=2", "--spread_examples")
    shown = gallery.read_gallery(tmp_path / "a-examples.npz")
    ids = [o["id"] for o in results["rows"][0]["objects"]]
    assert shown.names == (ids[1], ids[3])  # the middle of each half of five


def test_examples_of_a_codec_alone_are_its_views(run_command, evaluated, tmp_path, capsys):
    path, results = evaluated("compression")
    output = tmp_path / "a.json"
    given = [f"--export={path}", f"--views={VIEWS}", f"--seed={SEED}", f"--output={output}"]
    run_command(*given, "--examples=2")
    assert f"decoded views: {tmp_path / 'a-examples.npz'}" in capsys.readouterr().out
    shown = gallery.read_gallery(tmp_path / "a-examples.npz")
    assert shown.occupancy is None and shown.truth is None and shown.views is None
    assert shown.names == tuple(o["id"] for o in results["rows"][0]["objects"][:2])
    assert shown.decoded.shape == (2, len(shown.rates), VIEWS, SIDE, SIDE, 3)
    assert shown.images.shape == (2, VIEWS, SIDE, SIDE, 3)
    page = page_of(output)
    assert "holds decoded views of a codec alone" in page
    with pytest.raises(ViewError, match="decoded views of a codec alone"):
        page_of(tmp_path / "a-examples.npz")


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture
def run_command(monkeypatch):
    """A function of command-line arguments that runs the command in this process."""

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
        evaluate.main(entry.parse(sys.argv))

    before = set(flags.FLAGS)
    evaluate.define_flags()
    yield run
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def test_the_command_writes_the_results_and_prints_their_table(
    run_command, results, exported, tmp_path, capsys
):
    output = tmp_path / "deep" / "results.json"
    run_command(
        f"--export={exported.parent}",
        *(f"--views={VIEWS}", f"--iterations={ITERATIONS}", f"--seed={SEED}"),
        f"--output={output}",
    )
    written = json.loads(output.read_text())
    for row in (*written["rows"], *results["rows"]):
        row.pop("wall_seconds", None)
    assert written == results
    printed = capsys.readouterr().out
    assert f"results: {output}" in printed
    assert "mean shape of the 12 training objects" in printed


def test_the_newest_version_is_taken_and_the_results_lie_beside_the_exports(
    run_command, exported, finished, tmp_path
):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(run / "export" / "1", run / "export" / "10")
    shutil.rmtree(run / "export" / "1" / "variables")
    run_command(f"--export={run / 'export'}", "--iterations=1", "--views=1")
    (row,) = json.loads((run / "results.json").read_text())["rows"]
    assert row["views"] == 1


def test_more_iterations_than_in_training_are_measured_with_a_line_that_says_so(
    run_command, exported, tmp_path, capsys
):
    output = tmp_path / "results.json"
    run_command(f"--export={exported}", f"--output={output}", "--iterations=5", "--views=1")
    assert [row["iterations"] for row in json.loads(output.read_text())["rows"]] == [1, 2, 3, 4, 5]
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("T = 5 is more than the model was trained for, 1 to 4: ")


def test_other_records_and_another_split_can_be_evaluated(run_command, exported, data, tmp_path):
    other = tiny.make(tmp_path / "other", train=3, test=2)
    output = tmp_path / "results.json"
    given = [f"--export={exported}", f"--output={output}", "--iterations=1", "--views=1"]
    run_command(*given, f"--data={other}", "--split=train")
    (row,) = json.loads(output.read_text())["rows"]
    assert len(row["objects"]) == 3
    assert row["split"] == "train"
    assert row["data_sha256"] == records.manifest_sha256(other)
    assert row["trained_on_sha256"] == records.manifest_sha256(data)


def _export_of_nothing(exported: Path, tmp_path: Path) -> list[str]:
    return [f"--export={tmp_path}"]


def _no_export(exported: Path, tmp_path: Path) -> list[str]:
    return [f"--export={tmp_path / 'missing'}"]


def _export_that_says_nothing(exported: Path, tmp_path: Path) -> list[str]:
    copy = shutil.copytree(exported, tmp_path / "1")
    shutil.rmtree(copy / "assets.extra")
    return [f"--export={copy}"]


def _damaged_graph(exported: Path, tmp_path: Path) -> list[str]:
    copy = shutil.copytree(exported, tmp_path / "1")
    (copy / "saved_model.pb").write_bytes(b"\xff" * 1000)
    return [f"--export={copy}"]


def _damaged_weights(exported: Path, tmp_path: Path) -> list[str]:
    copy = shutil.copytree(exported, tmp_path / "1")
    for path in (copy / "variables").glob("variables.data-*"):
        path.write_bytes(path.read_bytes()[:1000])
    return [f"--export={copy}"]


def _output_below_a_file(exported: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "file").touch()
    given = [f"--export={exported}", f"--output={tmp_path / 'file' / 'results.json'}"]
    return [*given, "--iterations=1", "--views=1"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda *_: [], "--export is missing"),
        (_no_export, "no export at"),
        (_export_of_nothing, "no export at"),
        (_export_that_says_nothing, "is not an export of tfjoint"),
        (_damaged_graph, "is damaged"),
        (_damaged_weights, "is damaged"),
        (_output_below_a_file, "cannot be written"),
        (lambda e, _: [f"--export={e}", "--views=7"], "views=7, but the records hold 6"),
        (lambda e, _: [f"--export={e}", "--views=0"], "views must be at least 1"),
        (lambda e, _: [f"--export={e}", "--iterations=-1"], "Received: 5, -1, 0"),
        (lambda e, _: [f"--export={e}", "--seed=-1"], "seed at least 0"),
        (lambda e, _: [f"--export={e}", "--examples=-1"], "Received: 5, 0, -1, 0"),
        (lambda e, _: [f"--export={e}", "--split=validation"], "no split 'validation'"),
        (lambda e, t: [f"--export={e}", f"--data={t / 'none'}"], "no record directory"),
        (lambda e, _: [f"--export={e}", "--seeed=1"], "seeed"),
        (lambda e, _: [str(e)], "every setting is a --flag"),
    ],
)
def test_a_mistake_is_one_line(run_command, exported, tmp_path, make, words):
    with pytest.raises(UserError) as caught:
        run_command(*make(exported, tmp_path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_the_command_with_code_2(tmp_path):
    command = [sys.executable, "-m", "tfjoint.evaluate", f"--export={tmp_path}"]
    assert "no export at" in runs.refusal(command)


def test_without_an_export_the_command_ends_before_tensorflow_is_loaded():
    command = [sys.executable, "-X", "importtime", "-m", "tfjoint.evaluate", "--views=x"]
    result = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "error: " in result.stderr.splitlines()[-1]
    assert " absl.flags" in result.stderr and " tensorflow" not in result.stderr
