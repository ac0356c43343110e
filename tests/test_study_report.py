"""The report of a study: from its results alone, the same bytes, and no number of its own."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import sys
from pathlib import Path

import made_up
import numpy as np
import pytest
import runs
import test_claims
from absl import flags

from tfjoint import claims, entry, figures, points, study_report
from tfjoint.errors import UserError

pytest.importorskip("matplotlib", reason="the extra `study`, which draws figures, is not installed")

EVERYTHING = ("report.md", "report.html", "claims.json", "figures")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Made-up results in which all claims are true; not to be changed."""
    directory = tmp_path_factory.mktemp("made-up") / "results" / "study"
    made_up.make(directory, test_claims.as_the_paper, test_claims.codecs_as_the_paper)
    shown = ("reconstruction", "implicit-384", "sequential", "compression-small-random")
    made_up.add_shapes(directory, [f"{name}.seed0" for name in shown])
    return directory


def report(results: Path, output: Path, bench: Path | None = None) -> list[dict]:
    missing = output / "none.json"
    read = points.read_results(results)
    return study_report.write(read, results, bench or missing, output, output / "claims.json")


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(results, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("report")
    bench = output.parent / "bench.json"
    bench.write_text(json.dumps(test_claims.BENCH))
    report(results, output, bench)
    return output


def test_the_same_results_give_the_same_bytes_in_another_process(results, written, tmp_path):
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(test_claims.BENCH))
    finished = runs.finish(
        [
            *(sys.executable, "-m", "tfjoint.study_report", f"--results={results}"),
            *(f"--output={tmp_path / 'again'}", f"--claims={tmp_path / 'again' / 'claims.json'}"),
            f"--bench={bench}",
        ],
        PYTHONHASHSEED="1",
    )
    assert finished.returncode == 0, finished.stderr
    again = content(tmp_path / "again")
    assert again == content(written)
    assert {name.partition("/")[0] for name in again} == set(EVERYTHING)
    assert "holds           1. implicit" in finished.stdout


def test_the_committed_report_is_what_the_committed_results_give(tmp_path):
    root = Path(__file__).resolve().parents[1]
    committed = content(root / "results" / "study") | {
        "claims.json": (root / "results" / "claims.json").read_bytes()
    }
    report(root / "results" / "study", tmp_path, root / "bench" / "results.json")
    written = content(tmp_path)
    assert {"report.md", "claims.json", "figures/figure-8.svg"} <= written.keys()
    for name in written.keys() - {"report.html"}:  # a megabyte that one command makes
        assert committed.get(name) == written[name], f"{name}: run tfjoint.study_report again"


def test_nothing_but_the_results_decides_about_the_report(results, written, tmp_path):
    moved = tmp_path / "elsewhere" / "study"
    shutil.copytree(results, moved)
    shutil.copy(points.plan_path(results), points.plan_path(moved))
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(test_claims.BENCH))
    report(moved, tmp_path / "again", bench)
    assert content(tmp_path / "again") == content(written)


def test_another_result_gives_another_report(results, written, tmp_path):
    changed = tmp_path / "study"
    shutil.copytree(results, changed)
    shutil.copy(points.plan_path(results), points.plan_path(changed))
    path = changed / "implicit-96.seed0.json"
    found = json.loads(path.read_text())
    for entry_ in found["rows"][0]["objects"]:
        entry_["iou"] = 0.123
    found["rows"][0]["iou"]["mean"] = 0.123
    path.write_text(json.dumps(found))
    report(changed, tmp_path / "again")
    before, after = content(written), content(tmp_path / "again")
    assert before["figures/figure-8.svg"] != after["figures/figure-8.svg"]
    assert b"| implicit | 96:1 |  |  |  |  | 0.123 |" in after["report.md"]


def test_a_figure_of_results_that_are_gone_goes_too(results, tmp_path):
    fewer = tmp_path / "study"
    fewer.mkdir()
    shutil.copy(points.plan_path(results), points.plan_path(fewer))
    for path in results.glob("sequential.seed0*"):
        shutil.copy(path, fewer)
    report(fewer, tmp_path / "again")
    assert (tmp_path / "again" / "figures" / "table-4.png").exists()
    assert (tmp_path / "again" / "figures" / "figure-10.svg").exists()
    for name in ("figure-9.svg", "figure-11.svg"):  # empty axes would look like a result
        assert not (tmp_path / "again" / "figures" / name).exists()
    (fewer / "sequential.seed0-examples.npz").unlink()
    report(fewer, tmp_path / "again")
    assert not (tmp_path / "again" / "figures" / "table-4.png").exists()


def test_tables_hold_what_the_results_hold(results, written):
    text = (written / "report.md").read_text()
    for name, rate in (("implicit-192", "192:1"), ("direct-floats", "12:1")):
        row = json.loads((results / f"{name}.seed0.json").read_text())["rows"][0]
        curve = "direct, floats" if "floats" in name else "implicit"
        line = (
            f"| {curve} | {rate} |  |  |  |  | {row['iou']['mean']:.3f} | {row['iou']['std']:.3f} |"
        )
        assert line in text
    seeds = [
        json.loads((results / f"direct.seed{seed}.json").read_text())["rows"][0]["iou"]
        for seed in range(2)
    ]
    both = " / ".join(f"{iou['mean']:.3f}" for iou in seeds)
    assert f"| {seeds[0]['mean']:.3f} | {seeds[0]['std']:.3f} | {both} |" in text
    for title in ("Table I:", "Figure 8:", "Figure 9:", "Figure 10:", "Figure 11:", "Table II:",
                  "Table III:", "Table IV:", "Table V:"):  # fmt: skip
        assert f"## {title}" in text
    assert text.count("none is comparable") >= 3  # beside everything that was published
    assert "| sequential | 0.8500 | 1.7000 | 45 / 33 |" in text


def test_every_difference_that_explains_a_level_is_of_the_same_objects(results, written):
    read = points.read_results(results)
    text = next(text for text in section_texts(written) if text.startswith("What the results"))
    shown = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", text, re.MULTILINE))
    (long,), whole = read.on("reconstruction, long"), read.on("reconstruction", seed=0)
    values = [point.values("iou") for point in (long, *whole)]
    row = shown["uncompressed: three times the steps"].split(" | ")
    assert row[:3] == ["mIoU", *(f"{v.mean():.3f}" for v in values)]
    found = claims.sign_flip(values[0] - values[1])
    assert row[3] == f"{found.mean:+.3f}"
    assert float(row[4]) == pytest.approx(2 * min(found.p_for, found.p_against), abs=1e-4)
    assert row[5] == "0"
    row = shown["JPEG 2000 at 384:1: without what all its headers have in common"].split(" | ")
    assert row[5] == "0, 1"
    row = shown["sequential at 384:1: L_3D weighted 0.1"].split(" | ")  # the later one
    assert row[0] == "mIoU" and "L_comp" in text
    missing = [line for line, row in shown.items() if "not measured" in row]
    assert missing == ["uncompressed: trained as implicit is"]  # as implicit is not, here
    pooled = whole[0].row["iou"]["pooled_6"]
    (line,) = [line for line in shown if "IoU pooled" in line]
    assert shown[line].startswith(f"mIoU | {pooled:.3f} | ")


def test_the_summary_has_every_system_and_rate_of_the_seed_that_all_have(results):
    read = points.read_results(results)
    head, *rows, last = study_report.summary(read).splitlines()
    cells = {row[:18].strip(): row[18:] for row in rows}
    assert list(cells) == [
        "implicit", "direct", "sequential", "separate", "JPEG 2000, asked", "JPEG 2000, payload",
    ]  # fmt: skip
    assert head.split() == [
        "6:1", "12:1", "48:1", "96:1", "192:1", "384:1", "480:1", "1024:1", "4096:1",
    ]  # fmt: skip
    seeds = [p.row["iou"]["mean"] for p in read.on("direct", 384.0)]
    assert len(seeds) == 2 and f"{seeds[0]:.3f}" != f"{np.mean(seeds):.3f}"
    low = [p.row["iou"]["mean"] for p in read.on("direct, floats", 6.0)]
    direct = cells["direct"].split()
    assert direct[0] == f"{low[0]:.3f}" and direct[5] == f"{seeds[0]:.3f}"
    assert len(direct) == 6  # none at 480:1 and beyond
    (whole,) = [p.row["iou"]["mean"] for p in read.on("reconstruction", seed=0)]
    assert last.startswith(f"uncompressed {whole:.3f}; mean shape ")


def test_means_are_of_the_seeds_that_all_have(results):
    read = points.read_results(results)
    assert read.shared_seeds == {0}
    direct = read.on("direct", 384.0)
    assert [point.seed for point in direct] == [0, 1]
    assert read.comparable(direct) == direct[:1]
    alone = read._replace(points=tuple(direct))
    assert alone.shared_seeds == {0, 1} and alone.comparable(direct) == direct
    drawn = figures.curve(direct, lambda point: point.row["iou"]["mean"])
    low, high = sorted(point.row["iou"]["mean"] for point in direct)
    assert drawn.means == pytest.approx([(low + high) / 2])
    assert [*drawn.below, *drawn.above] == pytest.approx([(high - low) / 2] * 2)
    apart = read._replace(points=(direct[0], read.on("sequential", 384.0, seed=1)[0]))
    assert apart.shared_seeds == {0, 1}  # nothing compares; all are shown
    assert read._replace(points=()).shared_seeds == set()


def test_every_bin_of_difficulty_has_its_differences(results, written):
    read = points.read_results(results)
    text = next(text for text in section_texts(written) if text.startswith("Figure 9"))
    rows = re.findall(r"^\| (\d+) \| (\d+) \| [\d.]+ to [\d.]+ \| (.+) \|$", text, re.MULTILINE)
    bins = claims.difficulty_bins(read)
    assert [(int(number), int(count)) for number, count, _ in rows] == [
        (number, len(chosen)) for number, chosen in enumerate(bins, 1)
    ]
    assert list(claims.middle_bin(read)) == list(bins[len(bins) // 2])
    pair = points.paired(read, ("implicit", 384.0), ("sequential", 384.0))
    differences = (pair.first - pair.second)[:, bins[0]].mean(axis=0)
    found = claims.sign_flip(differences)
    p_value = min(1.0, 2 * min(found.p_for, found.p_against))
    assert rows[0][2].split(" | ")[0] == f"{differences.mean():+.3f} ({p_value:.4f})"


def test_every_curve_that_has_shapes_turns_them_in_the_html_report(written):
    page = (written / "report.html").read_text()
    frames = re.findall(r'<iframe title="(.+?)" loading="lazy" srcdoc="([^"]+)"></iframe>', page)
    shaped = ["reconstruction.seed0", "implicit-384.seed0", "sequential.seed0"]
    assert [run for run, _ in frames] == shaped
    for _, inner in frames:
        assert html.unescape(inner).lower().startswith("<!doctype html>")


def test_every_figure_has_the_commands_of_all_its_points(results):
    read = points.read_results(results)
    drawn = study_report.drawings(read, results)
    shown = {p.figure: p.curves for p in study_report.sections(read, [], None, {}) if p.figure}
    assert shown.keys() == drawn.keys()
    for name, curves in shown.items():
        kept = {run["name"] for run in read.plan["runs"] if run["curve"] in curves}
        alone = read._replace(
            runs={run: found for run, found in read.runs.items() if run in kept},
            points=tuple(point for point in read.points if point.curve in curves),
        )
        assert study_report.drawings(alone, results)[name]() == drawn[name](), name


def test_commands_are_those_of_the_plan_after_what_they_need(written, results):
    planned = made_up.plan_of(results)
    parts = {part.splitlines()[0]: part for part in section_texts(written)}
    figure = next(part for title, part in parts.items() if title.startswith("Figure 8: "))
    found = [figure.index(planned["records"][name]) for name in ("raw", "asked", "payload")]
    codec = next(run for run in planned["runs"] if run["name"] == "compression-small-random.seed0")
    separate = next(run for run in planned["runs"] if run["name"] == "separate.seed0")
    found += [figure.index(run["train"]) for run in (codec, separate)]
    assert found == sorted(found)
    assert separate["evaluate"] in figure
    assert all(run["train"] in parts["Every run"] for run in planned["runs"])
    assert "```bash\nmake bench\n```" in parts["Table III: run times"]


def test_commands_of_a_run_have_its_number_of_threads_once_it_is_done(results):
    read = points.read_results(results)
    missing = "separate.seed0"
    read = read._replace(runs={name: row for name, row in read.runs.items() if name != missing})
    for run in read.plan["runs"]:
        prefix = "" if run["name"] == missing else "TF_NUM_INTRAOP_THREADS=1 "
        found = study_report.commands(read, [run["curve"]])
        assert {prefix + run["train"], prefix + run["evaluate"]} <= {*found}


def section_texts(written: Path) -> list[str]:
    return (written / "report.md").read_text().split("\n## ")


class _Loads(html.parser.HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.found += [v for n, v in attributes if n in ("src", "href", "srcset", "data") and v]


def test_the_page_is_one_file(written):
    page = (written / "report.html").read_text()
    loads = _Loads()
    loads.feed(page)
    kinds = [source.partition(";")[0] for source in loads.found]
    assert len(kinds) == 17 and set(kinds) == {"data:image/svg+xml", "data:image/png"}
    assert "url(" not in page and "@import" not in page and "<script" not in page


def test_figures_say_no_date_and_no_machine(written):
    for path in (written / "figures").glob("*.svg"):
        text = path.read_text()
        assert "<dc:date>" not in text
        assert not re.search(r"20\d\d-\d\d-\d\d", text)


def test_claims_are_a_list_of_seven_with_what_they_rest_on(written, results):
    found = json.loads((written / "claims.json").read_text())
    assert len(found) == 7
    for claim in found:
        assert set(claim) == {"claim", "verdict", "evidence", "p_value", "files"}
        assert all((results / name).exists() for name in claim["files"] if "/" not in name)
        assert f"| {claim['claim']} | {claim['verdict']} |" in (written / "report.md").read_text()


def test_a_study_that_has_only_begun_has_a_report(tmp_path):
    directory = made_up.make(
        tmp_path / "study",
        test_claims.as_the_paper,
        only=lambda run: run.name in ("reconstruction.seed0", "compression-small-random.seed0"),
    )
    report(directory, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "2 of 38 runs" in text and re.search(r"\| implicit-384.seed0 .* \| missing \|", text)
    assert "bench/results.json does not hold them yet" in text
    assert "Not there yet: no run that it shows is done." in text


def test_a_study_without_any_run_has_a_report(tmp_path):
    directory = made_up.make(tmp_path / "study", test_claims.as_the_paper, only=lambda run: False)
    report(directory, tmp_path / "report")
    assert "0 of 38 runs" in (tmp_path / "report" / "report.md").read_text()


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture
def run_command(monkeypatch):
    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["study_report", *arguments])
        study_report.main(entry.parse(sys.argv))

    before = set(flags.FLAGS)
    study_report.define_flags()
    yield run
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def test_the_report_lies_with_the_results_and_the_claims_beside_them(
    run_command, results, tmp_path, capsys
):
    directory = tmp_path / "results" / "study"
    shutil.copytree(results, directory)
    shutil.copy(points.plan_path(results), points.plan_path(directory))
    run_command(f"--results={directory}", f"--bench={tmp_path / 'none'}")
    assert (directory / "report.md").exists() and (directory / "figures").is_dir()
    assert len(json.loads((tmp_path / "results" / "claims.json").read_text())) == 7
    assert "undecided       4. " in capsys.readouterr().out


def test_results_that_are_not_there_or_damaged_are_one_line(run_command, results, tmp_path):
    with pytest.raises(UserError, match="is no plan of a study"):
        run_command(f"--results={tmp_path / 'none'}")
    bench = tmp_path / "bench.json"
    bench.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        run_command(f"--results={results}", f"--bench={bench}")


def test_without_matplotlib_the_command_says_what_to_install(monkeypatch, results, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install"):
        report(results, tmp_path)
