"""The command that shows several results files side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import runs

from tfjoint import compare, report
from tfjoint.errors import UserError

ROW = {
    "system": "direct",
    "profile": "mini",
    "steps": 10,
    "data": "tiny",
    "split": "test",
    "views": 5,
    "iterations": 1,
    "bits_per_view": 256,
    "rate": {"nominal": 384.0},
    "iou": {"mean": 0.4, "std": 0.2, "objects": 1, "class_mean": 0.3, "pooled_6": 0.3},
    "average_precision": 0.6,
    "l_comp": 0.1,
    "psnr_db": 18.2,
    "objects": [{}],
}


def write(directory: Path, name: str, **changes) -> dict:
    results = {"rows": [{**ROW, **changes}], "baselines": {"training_objects": 3}}
    (directory / name).write_text(json.dumps(results))
    return results


def test_all_results_of_a_directory_are_read_by_name_and_in_order(tmp_path):
    written = {name: write(tmp_path, f"{name}.json", steps=3) for name in ("b", "a_low", "a")}
    (tmp_path / "notes.txt").write_text("no results")
    found = compare.read_results(tmp_path)
    assert list(found) == ["a", "a_low", "b"]
    assert found == written


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"rows": [], "baselines": {}}', '{"rows": 3}']
)
def test_a_file_that_holds_no_results_is_one_line_with_its_name(tmp_path, text):
    write(tmp_path, "good.json")
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(UserError, match=r"wrong\.json is not a results file") as caught:
        compare.read_results(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_directory_without_results_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"no results files in .*: tfjoint.evaluate writes them"):
        compare.read_results(tmp_path / name)


def test_the_command_prints_the_comparison(tmp_path):
    results = {"one": write(tmp_path, "one.json"), "two": write(tmp_path, "two.json", l_comp=0.2)}
    command = [sys.executable, "-X", "importtime", "-m", "tfjoint.compare", f"--results={tmp_path}"]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == report.comparison(results) + "\n"
    assert " tensorflow" not in done.stderr  # which would take seconds to import


def test_results_of_runs_are_named_by_their_directories(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "results.json")
        (tmp_path / name / "config.json").write_text("{}")
    assert list(compare.read_results(tmp_path)) == ["a", "b"]


def test_the_command_prints_real_bytes(tmp_path):
    rate = {"nominal": 384.0, "payload": 384.0, "file": 347.0}
    results = {"one": write(tmp_path, "one.json", rate=rate)}
    command = [sys.executable, "-m", "tfjoint.compare", f"--results={tmp_path}", "--bytes"]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == report.sent_bytes(results) + "\n"
