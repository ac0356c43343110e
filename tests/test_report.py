"""The table that stands for a results file."""

from __future__ import annotations

import copy
import json
import re

import pytest

from tfjoint import report

ROW = {
    "system": "direct",
    "profile": "mini",
    "steps": 1200,
    "data": "open-demo",
    "split": "test",
    "views": 5,
    "iterations": 1,
    "bits_per_view": 256,
    "rate": {"nominal": 384.0},
    "iou": {"mean": 0.40149, "std": 0.2, "objects": 35, "class_mean": 0.375, "pooled_6": 0.333},
    "average_precision": 0.6125,
    "l_comp": 0.0987,
    "psnr_db": 18.256,
    "objects": [{}] * 35,
}
RESULTS = {
    "rows": [ROW, {**ROW, "iterations": 7, "bits_per_view": 1792, "rate": {"nominal": 384 / 7}}],
    "baselines": {
        "training_objects": 408,
        "mean_shape": {"mean": 0.21, "std": 0.11, "threshold": 0.3},
        "best_training_grid": {"mean": 0.53, "std": 0.1},
        "mean_colour": {"psnr_db": 14.1},
    },
}


NOTHING = dict.fromkeys(("iterations", "bits_per_view", "iou", "l_comp", "psnr_db"))
NOTHING = {**NOTHING, "average_precision": None, "rate": {"nominal": None}}
SHAPE = {name: ROW[name] for name in ("iou", "average_precision")}
IMAGES = {name: ROW[name] for name in ("iterations", "bits_per_view", "rate", "l_comp", "psnr_db")}
REAL = {"nominal": 48, "payload": 49.123, "file": 30.06}


def results(**rows_of: list[dict]) -> dict:
    (system,) = rows_of
    rows = [{**ROW, **NOTHING, "system": system, **row} for row in rows_of[system]]
    return {"rows": rows, "baselines": {"training_objects": 408}}


SYSTEMS = {
    "compression": [IMAGES, {**IMAGES, "iterations": 8, "rate": {"nominal": 48}}],
    "reconstruction": [SHAPE],
    "jpeg2000": [{**SHAPE, "rate": REAL}, {**SHAPE, "rate": {**REAL, "nominal": 96}}],
    "implicit": [{**SHAPE, "bits_per_view": 820, "rate": {"nominal": 393216 / 820}}],
}
IN_TABLE = {
    "compression": ["T", "rate", "bits/view", "L_comp", "PSNR"],
    "reconstruction": ["mIoU +- STD", "class mean", "pooled", "AP"],
    "jpeg2000": ["rate", "payload", "file", "mIoU +- STD", "class mean", "pooled", "AP"],
    "implicit": ["rate", "bits/view", "mIoU +- STD", "class mean", "pooled", "AP"],
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_columns_without_values_are_left_out(system):
    title, names, *lines = report.table(results(**{system: SYSTEMS[system]})).splitlines()
    assert title.startswith(f"{system}, mini profile")
    assert re.split(r"\s{2,}", names.strip()) == IN_TABLE[system]
    assert len(lines) == len(SYSTEMS[system])  # and no baseline that the file does not hold
    assert len({len(line) for line in lines}) == 1


def test_rates_have_four_figures_and_real_ones_stand_beside_the_nominal_ones():
    lines = report.table(results(jpeg2000=SYSTEMS["jpeg2000"])).splitlines()
    assert lines[2].split()[:3] == ["48:1", "49.12:1", "30.06:1"]
    assert lines[3].split()[:3] == ["96:1", "49.12:1", "30.06:1"]
    assert "479.5:1" in report.table(results(implicit=SYSTEMS["implicit"]))


def test_a_value_that_some_rows_lack_leaves_an_empty_cell():
    _, names, first, second = report.table(
        results(direct=[{**IMAGES, **SHAPE}, {**IMAGES, **SHAPE, "average_precision": None}])
    ).splitlines()
    end = names.index("AP") + 2
    assert first[end - 5 : end] == "0.613" and second[end - 5 : end] == "     "
    assert len(first) == len(second)


def test_a_value_of_zero_is_a_value():
    row = {**SHAPE, "average_precision": 0.0, "iou": {**ROW["iou"], "pooled_6": 0.0}}
    lines = report.table(results(reconstruction=[row])).splitlines()
    assert lines[2].split()[-2:] == ["0.000", "0.000"]


def test_a_comparison_shows_the_ends_of_every_file_under_its_name():
    files = {f"{name}-run": results(**{name: rows}) for name, rows in SYSTEMS.items()}
    files["direct"] = RESULTS
    rows = [RESULTS["rows"][0], {**ROW, "rate": {"nominal": 192}}, RESULTS["rows"][1]]
    files["between"] = {**RESULTS, "rows": rows}
    names, *lines = report.comparison(files).splitlines()
    assert names.split()[:4] == ["results", "T", "rate", "payload"]
    shown = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert shown == list(files)
    assert len(lines) == 2 + 1 + 2 + 1 + 2 + 2
    rates = [re.findall(r"([\d.]+):1", line)[:1] for line in lines]
    assert rates[:6] == [["384"], ["48"], [], ["96"], ["48"], ["479.5"]]
    assert rates[6:] == [["384"], ["54.86"]] * 2


def test_a_comparison_of_one_file_has_the_columns_of_its_table():
    given = results(reconstruction=SYSTEMS["reconstruction"])
    _, names, line = report.table(given).splitlines()
    head, row = report.comparison({"raw": given}).splitlines()
    assert head.split() == ["results", *names.split()]
    assert row.split() == ["raw", *line.split()]


def test_a_table_has_a_head_one_line_per_rate_and_the_baselines():
    lines = report.table(RESULTS).splitlines()
    assert len(lines) == 2 + 2 + 3
    assert lines[0] == (
        "direct, mini profile, 1200 steps; open-demo test: 35 objects, 5 views each"
    )
    assert lines[2].split() == [
        *("1", "384:1", "256", "0.401", "+-", "0.200", "0.375", "0.333", "0.613"),
        *("0.099", "18.26", "dB"),
    ]
    assert lines[3].split()[:3] == ["7", "54.86:1", "1792"]
    assert "408 training objects: mIoU 0.210 +- 0.110 (at threshold 0.3)" in lines[4]
    assert "mIoU 0.530" in lines[5]
    assert "14.10 dB" in lines[6]


def test_columns_stand_under_their_names():
    _, names, first, second, *_ = report.table(RESULTS).splitlines()
    values = {
        "T": "1",
        "rate": "384:1",
        "bits/view": "256",
        "class mean": "0.375",
        "pooled": "0.333",
        "AP": "0.613",
        "L_comp": "0.099",
    }
    for name, value in values.items():
        assert first.index(value) + len(value) == names.index(name) + len(name), name
    assert len(first) == len(second)


def test_a_table_shows_what_the_file_holds_and_changes_nothing():
    before = copy.deepcopy(RESULTS)
    first = report.table(RESULTS)
    assert before == RESULTS
    changed = copy.deepcopy(RESULTS)
    changed["rows"][1]["iou"]["mean"] = 0.987
    assert report.table(changed) != first and "0.987 +- " in report.table(changed)


# --- One file -------------------------------------------------------------------------------------


def test_a_row_is_named_after_what_sets_its_rate():
    names = {
        "T = 1, 384:1": {},
        "T = 7, 54.86:1": {"iterations": 7, "rate": {"nominal": 384 / 7}},
        "480:1": {"iterations": None, "rate": {**REAL, "nominal": 480.0}},
        "": {"iterations": None, "rate": {"nominal": None}},
    }
    for name, changes in names.items():
        assert report.rate_name({**ROW, **changes}) == name


def test_the_title_is_the_first_line_of_the_table():
    title = "direct, mini profile, 1200 steps; open-demo test: 35 objects, 5 views each"
    assert report.title(RESULTS) == title
    assert report.table(RESULTS).startswith(title + "\n")


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS))
    assert report.read_results(path) == RESULTS
    assert report.examples_path(path) == tmp_path / "results-examples.npz"
    path.write_bytes(b"\xff")
    with pytest.raises(report.ResultsError, match="is not a results file") as caught:
        report.read_results(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# --- Real bytes -----------------------------------------------------------------------------------

CODED = {"nominal": 384.0, "payload": 384.0, "file": 348.0, "table_payload": 500, "table_file": 440}


def test_a_table_shows_real_rates_where_they_were_measured():
    row = {**ROW, "rate": CODED}
    _, names, line, *_ = report.table({**RESULTS, "rows": [row]}).splitlines()
    titles = ["T", "rate", "payload", "file", "table payload", "table file", "bits/view"]
    assert re.split(r"\s{2,}", names.strip())[:7] == titles
    assert line.split()[:7] == ["1", "384:1", "384:1", "348:1", "500:1", "440:1", "256"]


def test_real_bytes_stand_beside_nominal_ones_for_every_rate():
    coded = {**ROW, "rate": CODED}
    raw = {**ROW, "iterations": 8, "bits_per_view": 2048, "rate": {"nominal": 48, "payload": 48,
           "file": 47.4}}  # fmt: skip
    jpeg = {**ROW, **NOTHING, "rate": REAL}
    given = {"direct": {**RESULTS, "rows": [coded, raw]}, "jpeg2000": {**RESULTS, "rows": [jpeg]}}
    names, *lines = report.sent_bytes({**given, "old": RESULTS}).splitlines()
    assert re.split(r"\s{2,}", names) == [
        *("results", "T", "rate", "nominal B", "payload B", "file B", "table payload B"),
        *("table file B", "saved", "real rate", "with tables"),
    ]
    # 5 views of 256 bits: 160 bytes at 384:1, 160 x 384 / 348 of the file, and so on.
    assert lines[0].split() == [
        *("direct", "1", "384:1", "160.0", "160.0", "176.6", "122.9", "139.6", "21%"),
        *("348:1", "440:1"),
    ]
    assert lines[1].split() == ["direct", "8", "48:1", "1280.0", "1280.0", "1296.2", "47.4:1"]
    assert lines[2].split() == ["jpeg2000", "48:1", "30.06:1"] and len(lines) == 3


def test_results_without_real_bytes_say_what_to_do():
    with pytest.raises(report.ResultsError, match="evaluate the exports again"):
        report.sent_bytes({"old": RESULTS})
