"""What the README and its pages promise: commands and snippets run, numbers come from a file."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools import data_card, splits
from tfjoint import compare, points, report, study_report

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/ends.md", "docs/serving.md")
}
README = PAGES["README.md"]
PYTHON = ".venv/bin/python"
RESULTS = compare.read_results(ROOT / "results" / "demo")


def blocks(language: str) -> list[str]:
    fenced = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [block for text in PAGES.values() for block in fenced.findall(text)]


def commands() -> list[str]:
    """All commands, one that stands on two pages once."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return list(dict.fromkeys(line for line in lines if line.strip()))


def command(containing: str) -> str:
    (found,) = [line for line in commands() if containing in line]
    return found


def run(line: str, cwd: Path) -> str:
    """Run a command of the pages with this Python in `cwd`; return what it prints."""
    words = [sys.executable if word == PYTHON else word for word in shlex.split(line)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_command_is_run_by_a_test_of_this_file_or_named_here():
    elsewhere = {
        "TF_CONFIG=": "test_distribution",
        "make bench": "test_makefile",
        "make data": "test_makefile",
        "data_tools.build_open": "test_data_tools_build",
        "data_tools.build_meshes": "test_data_tools_mesh_folder",
        "data_tools.build_shapenet": "test_data_tools_shapenet",
        "worker_pool_main": "test_data_tools_beam",
        "data_tools.build_jpeg2000": "test_data_tools_jpeg2000",
        "examples/triton_server.py": "test_serving_triton",
        "bench.serving": "test_serving_triton",
        "make study": "test_study",
        "data_tools.hold_out": "test_data_tools_hold_out",
        "tfjoint.study ": "test_study",
        "tfjoint.study_report": "test_study_report",
    }
    here = (
        "make demo",
        "make test",
        "tensorboard",
        "-m tfjoint ",
        "tfjoint.train",
        "tfjoint.evaluate",
        "tfjoint.compare",
        "tfjoint.view",
        "tfjoint.split",
        "tfjoint.camera",
        "tfjoint.arrivals",
        "examples/link.py",
        "data_tools.verify",
    )
    for line in commands():
        assert any(part in line for part in (*here, *elsewhere)), line
    for name in elsewhere.values():
        assert list((ROOT / "tests").glob(f"{name}*.py")), name


def test_no_command_writes_into_the_work_tree():
    outputs = re.compile(r"(?:-o |--(?:output|page|run_dir|packets)=)(\S+)")
    written = [path for line in commands() for path in outputs.findall(line)]
    assert len(written) > 10
    for path in written:
        assert path.lstrip("/").startswith(("runs/", "data/")), path


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_to_is_there(name):
    links = [
        link for link in re.findall(r"\[[^]\"]+\]\(([^)#]+)", PAGES[name]) if "://" not in link
    ]
    assert links
    for link in links:
        assert (ROOT / name).parent.joinpath(link).is_file(), link


@pytest.mark.parametrize("target", ["demo", "test"])
def test_both_set_up_commands_are_targets_and_demo_runs_the_documented_command(target):
    result = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert command(f"make {target}") == f"make {target}"
    if target == "demo":
        trained = "python -m tfjoint.train --model=direct --flagfile=configs/direct.cfg"
        assert re.search(rf"{re.escape(trained)}\s*$", result.stdout, re.MULTILINE)
        assert "-m tfjoint.evaluate --export=runs/direct/export\n" in result.stdout


def use_the_shell(cwd: Path) -> None:
    """Make the photos of the section about it, and give its commands."""
    (snippet,) = [snippet for snippet in blocks("python") if "write_bytes" in snippet]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", snippet], cwd=cwd, env=environment, check=True)
    lines = [line for line in commands() if line.startswith(f"{PYTHON} -m tfjoint ")]
    assert len(lines) == 6
    printed = [run(line, cwd) for line in lines]
    assert "3 views, T = 4, 96:1 nominal" in printed[1]
    assert sorted(path.name for path in (cwd / "runs" / "views").iterdir()) == [
        f"view-{number}.png" for number in (1, 2, 3)
    ]
    assert (cwd / "runs" / "cabinet.obj").read_text().startswith("v ")
    assert "<canvas" in (cwd / "runs" / "cabinet.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A directory in which the demo's model was trained for two steps, exported and evaluated."""
    path = tmp_path_factory.mktemp("readme")
    (path / "configs").symlink_to(ROOT / "configs")
    (path / "examples").symlink_to(ROOT / "examples")
    trains = [line for line in commands() if line.startswith(f"{PYTHON} -m tfjoint.train")]
    trains = [line for line in trains if "--model=direct" in line]
    short, long = sorted(trains, key=lambda line: "--steps" not in line)
    assert short.startswith(f"{long} --steps=40 --run_dir=")
    printed = run(f"{long} --steps=2", path)
    assert "exported: runs/direct/export/1" in printed

    evaluate = command("tfjoint.evaluate --export=runs/direct")
    printed = run(evaluate, path)
    results = path / re.search(r"--output=(\S+)", evaluate)[1]
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    assert {row["views"] for row in rows} == {3} and len(rows) == 8
    assert report.table(json.loads(results.read_text(encoding="utf-8"))) in printed
    (path / "runs/direct/results.json").write_bytes(results.read_bytes())
    return path


@pytest.mark.slow
def test_a_run_is_looked_at_as_written(trained):
    printed = run(command("tfjoint.view"), trained)
    shown = re.search(r"--output=(\S+)\.json", command("tfjoint.evaluate --export=runs/direct"))[1]
    assert f"page: {shown}.html" in printed
    assert (trained / f"{shown}.html").stat().st_size > 2**20

    logdir = re.search(r"--logdir=(\S+)", command("tensorboard"))[1]
    inspect = f"{PYTHON} -m tensorboard.main --inspect --logdir={logdir}"
    assert "scalars" in run(inspect, trained)

    assert "test: 35 objects" in run(command("data_tools.verify"), ROOT)


@pytest.mark.slow
def test_the_shell_works_as_written(trained):
    use_the_shell(trained)
    assert "real rate" in run(command("--bytes"), trained)


@pytest.mark.slow
def test_both_ends_work_as_written(trained):
    divided = run(command("tfjoint.split"), trained)
    assert re.findall(r"runs/direct/(\S+)", divided) == [
        "export/1", "ends/camera/1", "ends/ground/1", "ends/lite/1"
    ]  # fmt: skip
    snippets = [snippet for snippet in blocks("python") if "runs/direct" in snippet]
    assert len(snippets) == 3
    for snippet in snippets:
        result = subprocess.run(
            [sys.executable, "-c", snippet], cwd=trained, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        promised = re.findall(r"#\s*(\([\d, ]+\))", snippet)
        assert promised and result.stdout.splitlines() == promised


@pytest.mark.long
def test_what_cameras_and_lost_views_cost_is_measured_as_written(trained):
    if not (trained / "runs/direct/ends").is_dir():
        run(command("tfjoint.split"), trained)
    fewer = "--views=1"
    assert "camera.json" in run(f"{command('tfjoint.camera')} {fewer}", trained)
    assert "arrivals.json" in run(f"{command('tfjoint.arrivals')} {fewer}", trained)
    faster = "--objects=2 --bytes_per_second=60000"
    assert "10 packets sent" in run(f"{command('examples/link.py')} {faster}", trained)
    assert "<canvas" in (trained / "runs" / "link.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_another_system_is_trained_and_evaluated_as_written(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run(f"{command('--model=implicit')} --steps=2", tmp_path)
    assert "384:1" in run(command("--export=runs/implicit"), tmp_path)
    shown = run(command("tfjoint.compare --results"), tmp_path).splitlines()
    assert len(shown) == 2 and shown[1].split()[:2] == ["implicit", "384:1"]


def test_the_example_of_tf_config_is_json_for_two_workers():
    words = shlex.split(command("TF_CONFIG="))
    description = json.loads(words[0].partition("=")[2])
    assert len(description["cluster"]["worker"]) == 2
    assert words[1:] == shlex.split(
        f"{PYTHON} -m tfjoint.train --model=direct --flagfile=configs/direct.cfg"
    )


def test_the_tables_are_what_the_committed_results_give():
    assert report.table(RESULTS["direct"]) in README
    assert report.comparison(RESULTS) in README
    assert study_report.summary(points.read_results(ROOT / "results" / "study")) in README


def test_every_config_on_the_demo_set_expects_what_its_results_file_gives():
    for path in sorted((ROOT / "configs").glob("*.cfg")):
        expected = re.search(r"^# EXPECT (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)[1]
        if path.stem in ("study", "tuning"):  # on the open set
            assert expected.strip().startswith(f"results/{path.stem}/")
            continue
        if path.stem == "paper":
            assert "not run here" in path.read_text(encoding="utf-8")
            continue
        assert expected.endswith(f"; results/demo/{path.stem}.json")
        rows = RESULTS[path.stem]["rows"]
        for row in (rows[0], rows[-1]):
            value = (
                f"{row['psnr_db']:.2f} dB" if row["iou"] is None else f"{row['iou']['mean']:.3f}"
            )
            rate = row["rate"]["nominal"]
            shown = f"{value} at {rate:.4g}:1" if rate else f"mIoU {value} "
            assert shown in expected, (path.stem, shown)


def test_results_are_of_the_committed_configs():
    """Whoever changes a config has to train again, or take the numbers away."""
    for name, results in RESULTS.items():
        words = shlex.split((ROOT / "configs" / f"{name}.cfg").read_text(), comments=True)
        given = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
        trained = results["rows"][0]["config"]
        assert trained["model"] == name.partition("_")[0]
        assert trained["binarizer"] == ("--nobinarizer" not in words)
        for setting, value in given.items():
            found = trained[setting]
            shown = ",".join(map(str, found)) if isinstance(found, list) else str(found)
            same = float(value) == found if isinstance(found, float) else value == shown
            assert same or setting == "run_dir", (name, setting)


def test_the_demo_beats_the_baselines_that_it_prints():
    shape = RESULTS["direct"]["baselines"]["mean_shape"]["mean"]
    colour = RESULTS["direct"]["baselines"]["mean_colour"]["psnr_db"]
    by_iterations = {row["iterations"]: row for row in RESULTS["direct"]["rows"]}
    for iterations in (1, 8):
        assert by_iterations[iterations]["iou"]["mean"] > shape
        assert by_iterations[iterations]["psnr_db"] > colour


def test_the_open_set_holds_what_its_data_card_says():
    card = json.loads((ROOT / "docs" / "open-card.json").read_text(encoding="utf-8"))
    train, test = card["splits"]["train"], card["splits"]["test"]
    originals = train["objects"] - train["copies"]
    assert train["copies"] == 4 * originals
    flat = " ".join(README.split())
    assert (
        f"{originals} training objects, each with four copies, and {test['objects']} test" in flat
    )
    assert "\n".join(data_card.as_text(card)) + "\n" == (ROOT / "docs" / "open-card.md").read_text()
    listed = splits.split_sha256(ROOT / "data_tools" / "open.json")
    assert card["split_list"] == {"name": "open", "sha256": listed}
