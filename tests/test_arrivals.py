"""What is measured of the two ends: shapes by what arrives, and cameras beside the SavedModel."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tensorflow as tf

from tfjoint import arrivals, camera, dataset, metrics, split
from tfjoint.config import ConfigError

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

HAS_LITE = getattr(getattr(tf, "lite", None), "TFLiteConverter", None) is not None


@pytest.fixture(scope="module")
def ends(exported, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("ends")
    split.split(exported, output, lite=HAS_LITE)
    return output


def test_every_order_has_every_view_once():
    found = arrivals.orders(20, 5, seed=0)
    for order in found.values():
        assert order.shape == (20, 5)
        np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(5), (20, 1)))
    np.testing.assert_array_equal(found["reversed"], found["in_order"][:, ::-1])
    assert len({tuple(row) for row in found["shuffled"]}) > 10


def test_what_is_lost_stays_lost_when_more_is():
    found = arrivals.losses(4000, 5, seed=0)
    least, more, most = (found[probability] for probability in arrivals.LOSSES)
    assert not np.any(least & ~more) and not np.any(more & ~most)
    for probability, lost in found.items():
        assert abs(lost.mean() - probability) < 0.02


def test_shapes_by_what_arrives_are_those_of_the_export(ends, exported, data, finished):
    results = arrivals.measure(ends, "", 3, (), seed=0)
    assert [row["iterations"] for row in results["rows"]] == [1, runs.SETTINGS["iterations_max"]]
    loaded = tf.saved_model.load(str(exported)).signatures
    config = runs.settings(data, finished, checkpoint_every=2)
    test = dataset.open_split(config, "test", 3)
    examples = list(dataset.evaluation_examples(config, test, 3, seed=0))
    lost = arrivals.losses(len(examples), 3, seed=0)
    for row in results["rows"]:
        expected, some = np.zeros((len(examples), 3)), []
        for index, example in enumerate(examples):
            codes = loaded["encode"](
                images=example.images[np.newaxis], iterations=tf.constant(row["iterations"])
            )["codes"]

            def iou(codes, voxels=example.voxels) -> float:
                return metrics.iou(loaded["reconstruct"](codes=codes)["occupancy"][0], voxels)

            expected[index] = [iou(codes[:, :count]) for count in (1, 2, 3)]
            arrived = ~lost[0.5][index]
            some += [iou(tf.boolean_mask(codes, arrived, axis=1))] if arrived.any() else []
        found = row["iou_by_views"]
        np.testing.assert_allclose(found["in_order"], expected.mean(axis=0), atol=1e-3)
        assert row["iou_at_once"] == pytest.approx(found["in_order"][-1], abs=1e-3)
        assert row["packet_bytes"] == 9 + row["iterations"] * 8
        assert row["lost"]["0.5"]["objects_without_a_view"] == len(examples) - len(some)
        assert row["lost"]["0.5"]["iou"] == pytest.approx(sum(some) / len(examples), abs=1e-3)
    table = arrivals.table(results)
    assert len(table.splitlines()) == 1 + 2 * (3 + 3)


def test_iterations_that_a_system_has_not_are_refused(tmp_path, ends, monkeypatch):
    path = ends / "camera" / "1" / "assets.extra" / "tfjoint.json"
    description = json.loads(path.read_text())
    described = {**description, "config": {**description["config"], "model": "implicit"}}
    with pytest.raises(ConfigError, match="iterations have no effect on model implicit"):
        monkeypatch.setattr(
            arrivals,
            "find_ends",
            lambda *_: (split.find_ends(ends, ("camera", "ground"))[0], described),
        )
        arrivals.measure(ends, "", 3, (2,), seed=0)


@pytest.mark.slow
def test_the_command_writes_what_it_prints(ends, tmp_path):
    output = tmp_path / "arrivals.json"
    command = [sys.executable, "-m", "tfjoint.arrivals"]
    given = [f"--ends={ends}", "--views=2", "--iterations=2"]
    result = runs.finish([*command, *given, f"--output={output}"])
    assert result.returncode == 0, result.stderr
    found = json.loads(output.read_text())
    assert result.stdout == f"{arrivals.table(found)}\nresults: {output}\n"
    assert {"weights_sha256", "code_revision", "machine", "versions"} <= set(found)
    assert "--ends is missing" in runs.refusal(command)
    assert "iterations are numbers" in runs.refusal([*command, *given, "--iterations=x"])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LITE, reason="this TensorFlow has no tf.lite to convert with")
def test_cameras_are_compared_by_a_command(ends, tmp_path):
    output = tmp_path / "camera.json"
    command = [sys.executable, "-m", "tfjoint.camera", f"--ends={ends}", "--views=2"]
    result = runs.finish([*command, f"--output={output}"])
    assert result.returncode == 0, result.stderr
    found = json.loads(output.read_text())
    assert result.stdout == f"{camera.table(found)}\nresults: {output}\n"
    cameras = found["cameras"]
    assert list(cameras) == ["float32", "int8", "saved_model"]
    for precision in ("float32", "int8"):
        path = ends / "lite" / "1" / f"camera-{precision}.tflite"
        assert cameras[precision]["bytes"] == path.stat().st_size
        rows = cameras[precision]["rows"]
        assert [row["iterations"] for row in rows] == [1, 2, 3, 4]
        for row in rows:
            assert 0 <= row["views_equal"] <= row["values_equal"] <= 1
            lost = row["iou_saved_model"] - row["iou"]
            assert row["iou_lost"] == pytest.approx(lost, abs=1e-12)
    assert cameras["float32"]["rows"][0]["values_equal"] > 0.99
    assert set(cameras["saved_model"]["milliseconds_per_view"]) == {"1", "4"}


def test_agreement_counts_values_and_whole_views():
    codes = np.ones((2, 2, 3, 4), np.int8)
    other = codes.copy()
    other[0, 1, 2, 3] = -1
    assert camera._agreement(other, codes) == {"values_equal": 47 / 48, "views_equal": 3 / 4}


@pytest.mark.parametrize("module", [arrivals, camera])
def test_the_page_shows_what_was_measured(module):
    name = module.__name__.rpartition(".")[2]
    page = (runs.ROOT / "docs" / "ends.md").read_text(encoding="utf-8")
    paths = sorted((runs.ROOT / "results" / name).glob("*.json"))
    assert paths
    for path in paths:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert f"```text\n{module.table(results)}\n```" in page, path
