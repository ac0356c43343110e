"""The table that stands for a results file."""

from __future__ import annotations

import copy

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
        "T": "   1",
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
