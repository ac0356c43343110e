"""The study's command: what is missing is done, whatever happened to it before."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_up
import numpy as np
import pytest
import runs
import tiny
from absl import flags

from tfjoint import entry, gallery, plan, points, records, study
from tfjoint.errors import UserError

RATES = sorted({*plan.LOW_RATES, *plan.JPEG2000_RATES})


@pytest.fixture
def asked(tmp_path) -> plan.Study:
    """A study of two or three steps a run, where nothing is trained yet."""
    data = tmp_path / "records"
    data.mkdir()
    shards = [{"file": "x", "records": 8, "bytes": 1, "sha256": ""}]
    (data / "manifest.json").write_text(json.dumps({"image_size": 68, "splits": {"train": shards}}))
    settings = plan.read_settings(["smoke all: batch_size=4 epochs=1 halve_at_epochs=9"], "smoke")
    return plan.Study(
        "smoke", str(data), str(tmp_path / "runs"), str(tmp_path / "results" / "study"), settings
    )


# What stands for training and for evaluation: both leave what the real ones leave, at once.
TRAINED = """
import json, pathlib, sys
directory = pathlib.Path(sys.argv[2]) / "checkpoints"
directory.mkdir(parents=True, exist_ok=True)
(directory / "index.json").write_text(json.dumps({"steps": [1, 2]}))
print("trained")
"""
EVALUATED = """
import pathlib, sys
pathlib.Path(sys.argv[2], "results.json").write_text(pathlib.Path(sys.argv[3]).read_text())
"""
FAILED = "import sys; print('error: no luck today', file=sys.stderr); sys.exit(5)"
ENDLESS = TRAINED + "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def pretended(tmp_path_factory) -> Path:
    """Made-up results of the runs that are pretended; not to be changed."""
    models = ("direct", "implicit", "reconstruction", "separate")
    return made_up.make(
        tmp_path_factory.mktemp("pretended") / "study",
        lambda curve, rate: 0.4,
        only=lambda run: run.seed == 0 and run.model in (*models, "compression"),
    )


@pytest.fixture
def pretend(monkeypatch, pretended, tmp_path):
    """A function that has runs pretended: by name, what is done in place of their training."""

    def use(by_name: dict[str, str]) -> None:
        def train(of: plan.Study, run: plan.Run) -> list[str]:
            code = by_name.get(run.name, TRAINED)
            return ["-c", code, "tfjoint.train", plan.run_directory(of, run)]

        def evaluate(of: plan.Study, run: plan.Run) -> list[str]:
            results = json.loads((pretended / f"{run.name}.json").read_text())
            source = tmp_path / f"{run.name}.json"
            config = plan.run_config(of, run)
            for row in results["rows"]:
                row["config"], row["steps"] = config.to_json(), plan.total_steps(config, 8)
            source.write_text(json.dumps(results))
            return ["-c", EVALUATED, "tfjoint.evaluate", plan.run_directory(of, run), str(source)]

        monkeypatch.setattr(plan, "train_command", train)
        monkeypatch.setattr(plan, "evaluate_command", evaluate)

    return use


def some(asked: plan.Study, *names: str) -> list[plan.Run]:
    return plan.selected(plan.planned(asked), names, [0])


def states(asked: plan.Study, chosen: list[plan.Run]) -> dict[str, str]:
    objects = study.training_objects(asked)
    return {run.name.partition(".")[0]: study.status(asked, run, objects).state for run in chosen}


def test_what_is_missing_is_done_and_what_is_done_is_left_alone(asked, pretend, capsys):
    pretend({})
    chosen = some(asked, "direct", "implicit-384")
    assert set(states(asked, chosen).values()) == {"missing"}
    assert study.work(asked, chosen[:1], jobs=1) == 0
    name = chosen[0].name
    first = Path(asked.results, f"{name}.json").read_bytes()
    assert study.work(asked, chosen, jobs=2) == 0
    assert Path(asked.results, f"{name}.json").read_bytes() == first
    assert set(states(asked, chosen).values()) == {"done"}
    printed = capsys.readouterr().out
    assert printed.count(f"{name}: started") == 1
    assert f"{name}: done in 0 minutes, mIoU 0." in printed


def test_results_say_which_run_they_are_and_what_it_took(asked, pretend):
    pretend({})
    (run,) = some(asked, "implicit-96")
    study.work(asked, [run], jobs=2)
    found = json.loads(Path(asked.results, f"{run.name}.json").read_text())
    assert found["study"] == {
        **{"run": "implicit-96.seed0", "curve": "implicit", "views": "raw"},
        "threads": max(1, len(os.sched_getaffinity(0)) // 2),
        "train_seconds": found["study"]["train_seconds"],
    }
    assert 0 < found["study"]["train_seconds"] < 60
    log = (Path(asked.runs) / "logs" / f"{run.name}.txt").read_text()
    assert "tfjoint.train" in log and "trained\n" in log


@pytest.mark.parametrize(("kept", "least"), [(True, 1000), (False, 0)])
def test_the_time_counts_that_led_to_what_is_there(asked, pretend, kept, least):
    pretend({})
    (run,) = some(asked, "implicit-96")
    if kept:
        checkpoints = Path(plan.run_directory(asked, run), "checkpoints")
        checkpoints.mkdir(parents=True)
        (checkpoints / "index.json").write_text('{"steps": [1]}')
    study.Journal(asked, run).lock().close()
    study.Journal(asked, run).write(1000)
    study.work(asked, [run], jobs=2)
    found = json.loads(Path(asked.results, f"{run.name}.json").read_text())
    assert least < found["study"]["train_seconds"] < least + 60


def test_one_run_that_fails_does_not_lose_the_others(asked, pretend, capsys):
    chosen = some(asked, "reconstruction", "direct", "implicit-96")
    pretend({"direct.seed0": FAILED})
    assert study.work(asked, chosen, jobs=1) == study.FAILED
    found = states(asked, chosen)
    assert found.pop("direct") == "failed"
    assert set(found.values()) == {"done"}
    printed = capsys.readouterr().out
    assert "direct.seed0: failed (exit code 5: error: no luck today)" in printed
    assert "no luck today" in study.listing(asked, chosen)
    pretend({})  # the next call tries it again
    assert study.work(asked, chosen, jobs=1) == 0
    assert set(states(asked, chosen).values()) == {"done"}
    assert "no luck" not in study.listing(asked, chosen)


def test_a_run_whose_codec_failed_is_not_tried(asked, pretend, capsys):
    chosen = some(asked, "separate.seed0")
    assert [run.name for run in chosen] == ["compression-small-random.seed0", "separate.seed0"]
    pretend({"compression-small-random.seed0": FAILED})
    assert study.work(asked, chosen, jobs=2) == study.FAILED
    assert set(states(asked, chosen).values()) == {"failed"}
    assert not Path(plan.run_directory(asked, chosen[1])).exists()
    assert "whose codec it takes, failed" in capsys.readouterr().out


def test_a_codec_that_is_no_longer_there_is_trained_again_for_who_takes_it(asked, pretend, capsys):
    pretend({})
    chosen = some(asked, "separate.seed0")
    codec, separate = chosen
    assert study.work(asked, [codec], jobs=1) == 0
    shutil.rmtree(plan.run_directory(asked, codec))
    assert study.work(asked, [codec], jobs=1) == 0  # nobody takes it
    assert not Path(plan.run_directory(asked, codec)).exists()
    capsys.readouterr()
    assert study.work(asked, chosen, jobs=2) == 0
    lines = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"{codec.name}: started again, as its codec is no longer there"
    assert lines[1].startswith(f"{codec.name}: done")
    assert lines[2:3] == [f"{separate.name}: started"]
    assert states(asked, chosen) == {"compression-small-random": "done", "separate": "done"}


def test_an_evaluation_that_leaves_no_results_is_a_failure(asked, pretend, monkeypatch):
    pretend({})
    monkeypatch.setattr(plan, "evaluate_command", lambda *_: ["-c", "print('nothing')"])
    chosen = some(asked, "implicit-96")
    assert study.work(asked, chosen, jobs=1) == study.FAILED
    assert "results.json" in study.listing(asked, chosen)


def test_a_sitting_ends_in_time_and_leaves_no_process(asked, pretend):
    pretend({"direct.seed0": ENDLESS})
    chosen = some(asked, "direct", "direct-floats")[:1]
    start = time.monotonic()
    assert study.work(asked, chosen, jobs=1, max_hours=5 / 3600) == study.UNFINISHED
    assert time.monotonic() - start < 40
    found = study.status(asked, chosen[0], 8)
    assert (found.state, found.steps, found.total) == ("begun", 2, 2)
    assert found.seconds > 1
    handle = study.Journal(asked, chosen[0]).lock()
    assert handle is not None  # nobody has it any more
    handle.close()


def test_a_sitting_lets_an_evaluation_end(asked, pretend, monkeypatch):
    pretend({"direct.seed0": ENDLESS})
    evaluate = plan.evaluate_command

    def slowly(of: plan.Study, run: plan.Run) -> list[str]:
        option, code, *rest = evaluate(of, run)
        return [option, "import time; time.sleep(6)\n" + code, *rest]

    monkeypatch.setattr(plan, "evaluate_command", slowly)
    chosen = some(asked, "implicit-96", "direct.seed0", "implicit-192")
    names = ["direct", "implicit-96", "implicit-192"]  # the third is not begun
    assert [run.name.partition(".")[0] for run in chosen] == names
    assert study.work(asked, chosen, jobs=2, max_hours=3 / 3600) == study.UNFINISHED
    assert states(asked, chosen) == dict(zip(names, ("begun", "done", "missing")))


def test_a_run_that_another_process_has_is_left_to_it_and_what_takes_its_codec(
    asked, pretend, capsys
):
    pretend({})
    codec, separate = some(asked, "compression-small-random", "separate.seed0")
    handle = study.Journal(asked, codec).lock()
    try:
        assert states(asked, [codec]) == {"compression-small-random": "running"}
        assert study.work(asked, [codec, separate], jobs=1) == study.UNFINISHED
    finally:
        handle.close()
    said = capsys.readouterr().out
    assert "compression-small-random.seed0: another process is at it" in said
    assert "separate.seed0: left out, another process is at compression-small-random" in said
    assert states(asked, [codec, separate]) == dict.fromkeys(
        ("compression-small-random", "separate"), "missing"
    )


def test_the_child_keeps_the_lock_when_the_study_is_killed(asked, pretend):
    pretend({"implicit-96.seed0": ENDLESS})
    (run,) = some(asked, "implicit-96")
    lock = study.Journal(asked, run).lock()
    item = study.Work(asked, run, lock, threads=1)
    lock.close()  # as the end of the study's process does
    try:
        assert states(asked, [run]) == {"implicit-96": "running"}
    finally:
        item.stop()
    assert states(asked, [run])["implicit-96"] in ("begun", "missing")


def test_results_of_other_settings_are_told_from_those_that_are_wanted(asked, pretend):
    pretend({})
    chosen = some(asked, "implicit-96")
    study.work(asked, chosen, jobs=1)
    longer = dataclasses.replace(
        asked,
        settings=plan.read_settings(["smoke all: batch_size=2 epochs=1"], "smoke"),
    )
    found = study.status(longer, chosen[0], 8)
    assert found.state == "other settings"
    assert "batch_size: 4 -> 2" in found.remark and "steps: 2 -> 4" in found.remark


def test_the_list_counts_states_and_tells_the_time_that_is_left(asked, pretend):
    pretend({})
    chosen = some(asked, "implicit-96", "implicit-48", "direct")
    assert "hours left" not in study.listing(asked, chosen)  # nothing is measured yet
    study.work(asked, chosen[:1], jobs=1)
    lines = study.listing(asked, chosen, jobs=2).splitlines()
    assert len(lines) == 1 + len(chosen) + 1
    assert f"{len(chosen)} runs: 1 done, {len(chosen) - 1} missing; about " in lines[-1]
    assert "hours left at 2 at a time" in lines[-1]


def test_damaged_results_are_one_line(asked, pretend):
    (run,) = some(asked, "implicit-96")
    path = Path(asked.results) / f"{run.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match="remove it, and it is made again"):
        study.status(asked, run, 8)


def test_results_of_another_study_are_not_written_over(asked):
    runs_ = plan.planned(asked)
    study.claim_results(asked, runs_)
    study.claim_results(asked, runs_)  # its own
    other = dataclasses.replace(asked, data="data/other")
    with pytest.raises(UserError, match="holds the study with data="):
        study.claim_results(other, runs_)
    with pytest.raises(UserError, match="holds the study with profile="):
        study.require_same_study(dataclasses.replace(asked, profile="paper"))
    assert json.loads(points.plan_path(Path(asked.results)).read_text())["data"] == asked.data


@pytest.mark.parametrize("content", ["{", "[]", '{"profile": "smoke"}'])
def test_a_damaged_plan_is_one_line(asked, content):
    path = points.plan_path(Path(asked.results))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(UserError, match="remove it, and it is written again"):
        study.require_same_study(asked)


def test_views_that_are_too_small_are_refused_before_anything_is_made(asked):
    study.require_records(asked, plan.planned(asked))
    large = dataclasses.replace(asked, profile="paper")
    with pytest.raises(UserError, match=r"views of \d+ pixels, --profile=paper needs 128"):
        study.require_records(large, plan.planned(large))


def test_of_shapes_the_ones_of_all_views_are_kept_as_bits():
    rng = np.random.default_rng(0)
    percent = rng.integers(0, 101, (2, 3, 5, 8, 8, 8)).astype(np.uint8)
    images = rng.integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
    decoded = rng.integers(0, 256, (2, 3, 5, 16, 16, 3), np.uint8)
    whole = gallery.from_arrays(
        {"percent": percent, "images": images, "decoded": decoded, "views": range(1, 6)}
    )
    kept = study.compact(whole)
    np.testing.assert_array_equal(kept.occupancy, percent[:, :, 4:] >= 40)
    np.testing.assert_array_equal(kept.images, images[:, :2])
    np.testing.assert_array_equal(kept.decoded, decoded[:, :, :2])


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture
def run_command(monkeypatch):
    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["study", *arguments])
        study.main(entry.parse(sys.argv))

    before = set(flags.FLAGS)
    study.define_flags()
    yield run
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def test_the_committed_study_can_be_listed_without_data(run_command, capsys, tmp_path):
    run_command(
        f"--flagfile={runs.ROOT / 'configs' / 'study.cfg'}", "--list", "--data=nowhere",
        f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "39 runs: 39 missing" in printed
    assert not list(tmp_path.iterdir())  # listing writes nothing


def test_where_nothing_is_missing_no_records_are_needed(run_command, monkeypatch, capsys, tmp_path):
    committed = runs.ROOT / "results"
    shutil.copytree(committed / "study", tmp_path / "results" / "study")
    shutil.copy(committed / "study.json", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(f"--flagfile={runs.ROOT / 'configs' / 'study.cfg'}")
    assert ended.value.code == 0
    assert "39 runs: 39 done" in capsys.readouterr().out
    assert (tmp_path / "results" / "study.json").read_bytes() == (
        committed / "study.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data=nowhere"], "no records at nowhere: make them"),
        (["--data=nowhere", "--list"], "results/study holds the study with data=data/open-68"),
        (["--only=explicit"], "--only=explicit fits no run"),
        (["--seeds=one"], "--seeds=one must be whole numbers"),
        (["--set=mini all"], "write '<profile> <whom>"),
        (["--set=mini direct: batch_size=0"], "direct.seed0: batch_size must be"),
        (["--jobs=0"], "jobs"),
        (["--profile=huge"], "profile"),
        (["direct"], "every setting is a --flag"),
    ],
)
def test_a_mistake_is_one_line(run_command, arguments, words):
    with pytest.raises(UserError) as caught:
        run_command(*arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_bare_name_is_looked_for_below_data(run_command, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.make(tmp_path / "data" / "shapenet", 12, 2)
    run_command("--profile=paper", "--data=shapenet", "--list", "--only=direct.seed0",
                "--set=paper all: batch_size=6 epochs=20")  # fmt: skip
    assert "0/40" in capsys.readouterr().out  # 20 epochs of 12 objects


def study_command(directory: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tfjoint.study", "--profile=smoke", f"--data={directory}/tiny"),
        *(f"--runs={directory}/runs", f"--results={directory}/results/study"),
        "--set=smoke all: batch_size=4 steps=12 checkpoint_every=2 picture_every=1000",
        *arguments,
    ]


@pytest.mark.long
def test_a_study_that_was_killed_goes_on_to_the_same_results(tmp_path):
    """Two real runs: the one under way is killed together with the study, then all is repeated."""
    tiny.make(tmp_path / "tiny")
    command = study_command(tmp_path, "--only=implicit-384.seed0,jpeg2000-asked.seed0", "--jobs=2")
    coded = {"mode": "asked", "background": "black"}
    tiny.make_rates(tmp_path / "tiny-jpeg2000", RATES, **coded)
    run = tmp_path / "runs" / "implicit-384.seed0"
    process = subprocess.Popen(
        command, cwd=runs.ROOT, env=runs.environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "step-00000002").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert runs.steps(run)
    assert not list((tmp_path / "results").rglob("*.seed0.json"))

    finished = runs.finish(command)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "2 runs: 2 done" in finished.stdout
    reference = runs.train(
        tmp_path / "tiny", tmp_path / "whole", model="implicit", code_bits=64, steps=12,
        checkpoint_every=2, picture_every=1000,
    )  # fmt: skip
    assert runs.steps(run)[-1] == 12
    ours, whole = runs.state(run), runs.state(reference)
    # Threads may differ, so bits may; nothing else may.
    for name in whole:
        np.testing.assert_allclose(ours[name], whole[name], rtol=1e-3, atol=1e-4)

    results = points.read_results(tmp_path / "results" / "study")
    (implicit,) = results.on("implicit")
    assert implicit.rate == 384 and set(implicit.row["iou"]["by_views"]) == set("12345")
    asked = results.on("JPEG 2000, asked")
    assert [p.rate for p in asked] == sorted(plan.JPEG2000_RATES)
    assert all(p.row["l_comp"] > 0 and p.row["ms_ssim"] for p in asked)
    assert implicit.row["data_sha256"] == records.manifest_sha256(tmp_path / "tiny")
    shown = gallery.read_gallery(tmp_path / "results" / "study" / "implicit-384.seed0-examples.npz")
    assert shown.occupancy.dtype == bool and shown.occupancy.shape[:3] == (3, 1, 1)


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_ends_the_command_with_code_1(tmp_path):
    tiny.make(tmp_path / "tiny", test=0 + 1)
    # A run directory that is not one: the trainer refuses it.
    (tmp_path / "runs" / "implicit-384.seed0").mkdir(parents=True)
    (tmp_path / "runs" / "implicit-384.seed0" / "notes.txt").write_text("mine")
    finished = runs.finish(study_command(tmp_path, "--only=implicit-384.seed0"))
    assert finished.returncode == study.FAILED
    assert "is not a run of this program" in finished.stdout
    assert "1 runs: 1 failed" in finished.stdout
