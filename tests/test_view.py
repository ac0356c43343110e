"""The command that writes a page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from pages import PERCENT, ROW, data_of

from tfjoint import gallery, page, report, view
from tfjoint.errors import UserError

COMMAND = [sys.executable, "-m", "tfjoint.view"]
FIRST = {
    "system": "direct",
    "profile": "mini",
    "steps": 10,
    "data": "tiny",
    "split": "test",
    "views": 2,
    "bits_per_view": 256,
    "average_precision": 0.6,
    "l_comp": 0.1,
    "psnr_db": 18.2,
    "weights_sha256": "00ff",
    **ROW,
    "iou": {"mean": 0.5, "std": 0.2, "objects": 2, "class_mean": 0.3, "pooled_6": 0.3},
}
RESULTS = {"rows": [FIRST], "baselines": {"training_objects": 3}}


@pytest.fixture
def shapes(tmp_path) -> Path:
    path = tmp_path / "shape.npz"
    gallery.write_gallery(path, gallery.from_arrays({"percent": PERCENT, "names": ("a", "b")}))
    return path


@pytest.fixture
def results(tmp_path) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS))
    return path


def write_examples(results: Path, **changes) -> None:
    made = {"title": report.title(RESULTS), "weights_sha256": "00ff", **changes}
    shown = gallery.from_arrays({"percent": PERCENT, "names": ("a", "b"), **made})
    gallery.write_gallery(report.examples_path(results), shown)


def shown(path: Path) -> dict:
    return data_of(path.read_text(encoding="utf-8"))


# --- What becomes a page --------------------------------------------------------------------------


def test_a_file_of_shapes_becomes_a_page_of_them(shapes, tmp_path):
    view.view(shapes, tmp_path / "deep" / "page.html")
    found = shown(tmp_path / "deep" / "page.html")
    assert found["title"] == "shape.npz" and found["table"] is None and found["notes"] == []
    assert [entry["name"] for entry in found["gallery"]["objects"]] == ["a", "b"]
    gallery.write_gallery(shapes, gallery.read_gallery(shapes)._replace(title="direct"))
    view.view(shapes, tmp_path / "page.htm")
    assert shown(tmp_path / "page.htm")["title"] == "direct"


def test_results_become_a_table_and_the_shapes_beside_them_are_shown(results, tmp_path):
    output = tmp_path / "page.html"
    view.view(results, output)
    found = shown(output)
    assert found["title"] == report.title(RESULTS) and found["gallery"] is None
    assert [row["name"] for row in found["table"]["rows"]] == ["b", "a"]
    assert found["notes"] == ["To see shapes, evaluate with --examples=10."]
    write_examples(results)
    view.view(results, output)
    found = shown(output)
    assert len(found["gallery"]["objects"]) == 2 and found["notes"] == []


@pytest.mark.parametrize("changes", [{"weights_sha256": "11ff"}, {"title": "direct, long ago"}])
def test_shapes_of_other_results_are_not_shown_and_the_page_says_so(results, tmp_path, changes):
    write_examples(results, **changes)
    view.view(results, tmp_path / "page.html")
    found = shown(tmp_path / "page.html")
    assert found["gallery"] is None
    assert found["notes"] == [
        "results-examples.npz is of other results: evaluate with --examples=10 again."
    ]


@pytest.mark.parametrize("name", ["direct", "compression", "jpeg2000", "reconstruction"])
def test_the_results_in_the_repository_become_tables(tmp_path, name):
    path = runs.ROOT / "results" / "demo" / f"{name}.json"
    view.view(path, tmp_path / "page.html")
    table, rows = shown(tmp_path / "page.html")["table"], json.loads(path.read_text())["rows"]
    assert len(table["rows"]) == 35 and len(table["columns"]) == len(rows)
    for mean, row in zip(table["means"], rows):
        assert mean == pytest.approx(row["iou"]["mean"] if row["iou"] else row["psnr_db"])


# --- Mistakes -------------------------------------------------------------------------------------


def refusal(given: Path, output: Path) -> str:
    before = output.read_bytes() if output.is_file() else None
    with pytest.raises(UserError) as caught:
        view.view(given, output)
    assert "\n" not in str(caught.value)
    assert before == (output.read_bytes() if output.is_file() else None)
    return str(caught.value)


def test_an_input_of_another_kind_is_refused(tmp_path):
    message = refusal(tmp_path / "model.stl", tmp_path / "page.html")
    assert message.startswith("a page shows an .npz file of shapes or a .json file of results")
    assert "model.stl" in message


def test_the_input_is_never_overwritten(shapes):
    assert "a page is an .html file" in refusal(shapes, shapes)


@pytest.mark.parametrize("name", ["absent.npz", "absent.json"])
def test_a_missing_input_is_named(tmp_path, name):
    assert str(tmp_path / name) in refusal(tmp_path / name, tmp_path / "page.html")


def _without(name: str) -> dict:
    entry = {key: value for key, value in ROW["objects"][0].items() if key != name}
    return {"rows": [{**FIRST, "objects": [entry]}], "baselines": RESULTS["baselines"]}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '"text"',
        "{}",
        '{"rows": [], "baselines": {}}',
        json.dumps(_without("id")),
        json.dumps(_without("iou")),
        json.dumps({**RESULTS, "rows": [{**FIRST, "objects": 3}]}),
        json.dumps({**RESULTS, "rows": [{**FIRST, "objects": [3]}]}),
        json.dumps({**RESULTS, "rows": [FIRST, {**FIRST, "objects": []}]}),
        json.dumps(RESULTS).replace("0.25", '"high"'),
        json.dumps(RESULTS).replace("0.25", "NaN"),
        json.dumps(RESULTS).replace("0.25", "null"),
        json.dumps(RESULTS).replace("0.25", "[1, 2]"),
        "[" * 100_000,
    ],
)
def test_a_file_that_holds_no_results_is_one_line_with_its_name(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    (tmp_path / "page.html").write_text("before")
    message = refusal(path, tmp_path / "page.html")
    assert message.startswith(f"{path} is not a results file: ")
    assert message.endswith("One holds rows and baselines; give a file that tfjoint.evaluate wrote")
    assert not re.search("[A-Z][a-z]+Error", message)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("no JSON", "it is no JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[]", "it holds a list"),
        ("{}", "it holds nothing"),
        ('{"cameras": 1, "views": 5}', "it holds cameras, views"),
        (json.dumps(dict.fromkeys("ihgfedcba")), "it holds a, b, c, d, e, f, g, h, ..."),
        (json.dumps(_without("iou")), "something in it has no iou"),
    ],
)
def test_a_file_that_holds_no_results_is_refused_by_what_it_holds(tmp_path, content, found):
    path = tmp_path / "results.json"
    path.write_text(content)
    message = refusal(path, tmp_path / "page.html")
    assert message.startswith(f"{path} is not a results file: {found}. One holds")


def test_damaged_shapes_beside_results_are_named(results, tmp_path):
    report.examples_path(results).write_bytes(b"PK")
    assert str(report.examples_path(results)) in refusal(results, tmp_path / "page.html")


def test_grids_that_are_too_large_for_a_page_are_not_blamed_on_the_results(
    results, tmp_path, monkeypatch
):
    write_examples(results)
    monkeypatch.setattr(page, "LARGEST_SIDE", 3)
    assert refusal(results, tmp_path / "page.html").startswith("grids have 4 cells a side")


# --- The command ----------------------------------------------------------------------------------


def test_the_command_writes_a_page_beside_the_input_or_where_it_is_told(shapes, tmp_path):
    done = runs.finish([*COMMAND, str(shapes)])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"page: {tmp_path / 'shape.html'}, 0.0 MB\n"
    given = [f"--output={tmp_path / 'other.html'}", str(shapes)]
    assert runs.finish([*COMMAND, *given]).returncode == 0
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "shape.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one file"),
        (["a.npz", "b.npz"], "unexpected argument 'b.npz'"),
        (["a.npz", "--outptu=x"], "outptu"),
        (["absent.npz"], "no file at absent.npz"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, words):
    assert words in runs.refusal([*COMMAND, *arguments])


def test_the_command_does_without_tensorflow(shapes):
    given = [sys.executable, "-X", "importtime", "-m", "tfjoint.view", str(shapes)]
    done = subprocess.run(given, cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " tfjoint.page" in done.stderr and " tensorflow" not in done.stderr
