"""What the study consists of: every system and rate, the order, the commands."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from tfjoint import claims, config, plan
from tfjoint.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def study(profile: str = "mini", *lines: str, data: str = "data/open-68") -> plan.Study:
    settings = plan.read_settings(lines, profile)
    return plan.Study(profile, data, "runs/study", "results/study", settings)


def committed(name: str = "study") -> list[str]:
    """The lines of a committed flagfile that are for --set."""
    text = (ROOT / "configs" / f"{name}.cfg").read_text(encoding="utf-8")
    return re.findall(r"^--set=(.*)", text, re.MULTILINE)


def test_every_system_and_rate_of_the_paper_is_in_it():
    runs = {run.name: run for run in plan.planned(study())}
    assert len(runs) == len(plan.planned(study()))  # no name twice
    seeds = Counter(name.rpartition(".seed")[0] for name in runs)
    main = {"reconstruction", "implicit-384", "direct", "sequential"}
    main |= {"jpeg2000-asked", "jpeg2000-payload"}
    assert {name for name, count in seeds.items() if count == len(plan.SEEDS)} == main
    assert set(seeds) - main == {
        *(f"implicit-{rate}" for rate in (4096, 1024, 480, 192, 96, 48)),
        *("separate", "separate-floats", "direct-floats", "sequential-floats", "jpeg2000-low"),
        *("implicit-floats-12", "implicit-floats-6", "compression-floats"),
        *("reconstruction-long", "reconstruction-wide", "reconstruction-half"),
        *("direct-first", "sequential-first", "sequential-light", "implicit-long-384"),
        *("compression-small-random", "compression-small-constant"),
        *("compression-original-random", "compression-original-constant"),
        "compression-small-additive",
    }
    assert {run.model for run in runs.values()} == set(config.USES)


@pytest.mark.parametrize(
    ("profile", "codes"),
    [
        ("mini", {4096: 24, 1024: 96, 480: 204, 384: 256, 192: 512, 96: 1024, 48: 2048}),
        ("paper", {4096: 96, 1024: 384, 480: 820, 384: 1024, 192: 2048, 96: 4096, 48: 8192}),
    ],
)
def test_codes_of_the_implicit_model_have_the_rate_they_are_named_by(profile, codes):
    asked = study(profile)
    found = {}
    for run in plan.planned(asked):
        resolved = plan.run_config(asked, run)
        if run.model == "implicit":
            rate = int(run.name.partition(".")[0].rpartition("-")[2])
            assert resolved.rate() == pytest.approx(rate, rel=0.01)
            if resolved.binarizer:
                found[rate] = resolved.code_bits
    assert found == codes


def test_low_rates_are_those_of_floats_at_one_and_two_iterations():
    asked = study()
    for run in plan.planned(asked):
        if "floats" in run.name and run.model != "implicit":
            resolved = plan.run_config(asked, run)
            assert not resolved.binarizer and resolved.iterations_max == 2
            assert [resolved.rate(t) for t in (1, 2)] == [12, 6]


def test_the_first_iteration_alone_has_the_highest_rate():
    asked = study()
    first = [run for run in plan.planned(asked) if run.curve in plan.FIRST.values()]
    assert [run.model for run in first] == list(plan.FIRST)
    for run in first:
        assert plan.run_config(asked, run).iterations_max == 1
        assert plan.run_config(asked, run).rate() == claims.RATES[0]


def test_what_is_trained_as_implicit_is_so_where_implicit_is_trained_otherwise():
    name = "reconstruction-as-implicit.seed0"
    assert name not in {run.name for run in plan.planned(study())}
    asked = study("mini", *committed())
    runs = {run.name: plan.run_config(asked, run) for run in plan.planned(asked)}
    assert runs[name].learning_rate == runs["implicit-384.seed0"].learning_rate
    changed = config.changes(runs["reconstruction.seed0"].to_json(), runs[name].to_json())
    assert len(changed) == 1 and changed[0].startswith("learning_rate: ")


def test_the_small_codec_is_also_trained_as_the_original_is():
    asked = study("mini", *committed())
    runs = {run.name: plan.run_config(asked, run).to_json() for run in plan.planned(asked)}
    changed = config.changes(
        runs["compression-small-random.seed0"], runs["compression-small-additive.seed0"]
    )
    assert len(changed) == 1 and changed[0].startswith("gamma: ")


def test_a_study_that_stops_early_has_the_main_points_first():
    names = [run.name for run in plan.planned(study())]
    assert names[0] == "reconstruction.seed0"
    main = ["implicit-384", "direct", "sequential", "jpeg2000-asked", "jpeg2000-payload"]
    assert names[1:6] == [f"{name}.seed0" for name in main]
    seeds = [int(name.rpartition("seed")[2]) for name in names[:-1]]
    assert seeds == sorted(seeds)
    for run in plan.planned(study()):
        if run.after:
            assert names.index(run.after) < names.index(run.name)


@pytest.mark.parametrize("profile", list(config.PROFILES))
def test_all_runs_but_the_long_ones_have_the_same_budget(profile):
    asked = study(profile, *committed())
    budgets = {
        run.name: plan.total_steps(plan.run_config(asked, run), 3030)
        * plan.run_config(asked, run).batch_size
        / (2 if run.views == plan.HALF else 1)  # of the objects
        for run in plan.planned(asked)
    }
    for name in ("reconstruction-long.seed0", "implicit-long-384.seed0"):
        long = budgets.pop(name)
        assert long == pytest.approx(plan.LONG * budgets["direct.seed0"], rel=0.001)
    assert len(set(budgets.values())) == 1


def test_the_papers_study_has_the_papers_settings():
    asked = study("paper", *committed(), data="data/shapenet")
    for run in plan.planned(asked):
        resolved = plan.run_config(asked, run)
        times = {"reconstruction-long": 3, "implicit-long-384": 3, "reconstruction-half": 2}
        budget = times.get(run.name.partition(".")[0], 1)
        assert resolved.epochs == 20 * budget
        assert resolved.batch_size == 6 and (resolved.views_min, resolved.views_max) == (1, 5)
        assert resolved.halve_at_epochs == tuple(budget * epoch for epoch in (3, 10, 20, 50))
        default = config.MODELS[run.model].get("learning_rate", 5e-4)
        assert resolved.learning_rate == default


def test_the_command_of_a_run_gives_the_trainer_the_settings_of_the_plan():
    asked = study("mini", *committed(), "mini direct: loss_weight=2.5 halve_at_epochs=1,2")
    for run in plan.planned(asked):
        module, *flags = plan.train_command(asked, run)[1:]
        assert module == "tfjoint.train"
        given = {}
        for flag in flags:
            name, equals, text = flag[2:].partition("=")
            if not equals:
                name, text = (name[2:], "False") if name.startswith("no") else (name, "True")
            default = getattr(config.Config(), name)
            if isinstance(default, tuple):
                item = float if name == "rates" else int
                given[name] = tuple(item(part) for part in text.split(","))
            else:
                given[name] = {bool: lambda t: t == "True"}.get(type(default), type(default))(text)
        assert config.resolve(given)[0] == plan.run_config(asked, run)


def test_jpeg_2000_runs_train_on_the_views_of_their_mode_and_name_the_originals():
    asked = study()
    runs = {run.name: run for run in plan.planned(asked)}
    for mode, directory in (("asked", "data/open-68-jpeg2000"),
                            ("payload", "data/open-68-jpeg2000-payload")):  # fmt: skip
        run = runs[f"jpeg2000-{mode}.seed0"]
        assert f"--data={directory}" in plan.train_command(asked, run)
        assert "--originals=data/open-68" in plan.evaluate_command(asked, run)
        assert f"--mode={mode}" in plan.records_command(asked, mode)
        assert f"--output={directory}" in plan.records_command(asked, mode)
    rates = set(map(float, plan.records_command(asked, "asked")[-1].partition("=")[2].split(",")))
    assert rates == set(plan.run_config(asked, runs["jpeg2000-asked.seed0"]).rates) | {6, 12}
    assert plan.records_of(study(data="demo"), "asked") == "data/demo-jpeg2000"


def test_half_of_the_meshes_is_trained_on_and_the_same_objects_are_tested():
    asked = study()
    (run,) = [run for run in plan.planned(asked) if run.views == plan.HALF]
    assert "--data=data/open-68-half" in plan.train_command(asked, run)
    assert "--data=data/open-68" in plan.evaluate_command(asked, run)
    made = plan.records_command(asked, run.views)
    assert made == [
        *("-m", "data_tools.hold_out", "--records=data/open-68"),
        *("--output=data/open-68-half", "--fraction=0.5"),
    ]


@pytest.mark.parametrize(
    "settings, before",
    [([], "reconstruction.seed0"),
     (["mini implicit: learning_rate=3e-4"], "reconstruction-as-implicit.seed0")],
)  # fmt: skip
def test_the_wide_network_has_every_width_of_what_it_is_compared_with_twice(settings, before):
    asked = study("mini", *settings)
    runs = {run.name: plan.run_config(asked, run) for run in plan.planned(asked)}
    plain, wide = (runs[name] for name in (before, "reconstruction-wide.seed0"))
    changed = {name for name, value in plain.to_json().items() if wide.to_json()[name] != value}
    widths = {"feature_channels", "features", "grid_channels", "voxel_channels"}
    assert changed == {*widths, "run_dir"}
    assert wide.voxel_channels == tuple(2 * width for width in plain.voxel_channels)


def test_commands_are_shown_as_they_are_typed():
    asked = study(data="data/a b")
    shown = plan.shown(plan.train_command(asked, plan.planned(asked)[0]))
    assert shlex.split(shown) == [
        ".venv/bin/python",
        *plan.train_command(asked, plan.planned(asked)[0]),
    ]


# --- Settings -------------------------------------------------------------------------------------


def test_the_nearer_a_setting_is_to_a_run_the_more_it_counts():
    lines = [
        "mini all: batch_size=8 loss_weight=2",
        "mini implicit: batch_size=7",
        "mini implicit-384: batch_size=6",
        "mini implicit-384.seed1: batch_size=5",
        "paper all: batch_size=99",
    ]
    asked = study("mini", *lines)
    plan.check(asked, plan.planned(asked))
    sizes = {run.name: plan.run_config(asked, run).batch_size for run in plan.planned(asked)}
    assert sizes["direct.seed0"] == 8 and sizes["implicit-96.seed0"] == 7
    assert [sizes[f"implicit-384.seed{seed}"] for seed in plan.SEEDS] == [6, 5]
    # The codec alone has one loss: a setting for all is for all that use it.
    runs = {run.name: run for run in plan.planned(asked)}
    assert "loss_weight" not in plan.given_settings(asked, runs["compression-floats.seed0"])
    assert plan.run_config(asked, runs["direct.seed0"]).loss_weight == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mini all batch_size=8", "write '<profile> <whom>: <setting>=<value> ...'"),
        ("all: batch_size=8", "write '<profile> <whom>"),
        ("mini all: widths=8", "'widths' is no setting"),
        ("mini all: seed=8", "'seed' is no setting"),
        ("mini all: batch_size=many", "'batch_size=many' must be int"),
        ("mini all: binarizer=maybe", "'binarizer=maybe' must be bool"),
        ("paper all: batch_size=many", "'batch_size=many' must be int"),
    ],
)
def test_a_line_of_settings_that_is_wrong_is_refused(line, words):
    with pytest.raises(plan.PlanError) as caught:
        study("mini", line)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mini explicit: batch_size=8", "no run, model or 'all' is called 'explicit'"),
        ("mini implicit: codec=original", "implicit-384.seed0: codec=original"),
        ("mini direct: batch_size=0", "direct.seed0: batch_size must be"),
    ],
)
def test_settings_that_do_not_fit_a_run_are_refused_before_anything_is_trained(line, words):
    asked = study("mini", line)
    with pytest.raises(UserError) as caught:
        plan.check(asked, plan.planned(asked))
    assert words in str(caught.value)


# --- Which runs -----------------------------------------------------------------------------------


def names(only: str, *seeds: int) -> list[str]:
    runs = plan.planned(study())
    return [run.name for run in plan.selected(runs, only.split(",") if only else [], seeds)]


def test_runs_are_selected_by_name_model_pattern_and_seed():
    everything = [run.name for run in plan.planned(study())]
    assert names("") == everything
    assert names("direct.seed1") == ["direct.seed1"]
    of_model = (".seed0", "-floats.seed0", "-first.seed0", ".seed1")
    assert names("direct") == [f"direct{rest}" for rest in of_model]
    assert names("implicit-384") == ["implicit-384.seed0", "implicit-384.seed1"]
    assert names("implicit-floats-*") == ["implicit-floats-12.seed0", "implicit-floats-6.seed0"]
    assert {name[-1] for name in names("", 1)} == {"1"}
    assert names("sequential,direct", 1) == ["direct.seed1", "sequential.seed1"]


def test_the_codec_comes_with_the_run_that_takes_it():
    assert names("separate-floats") == ["compression-floats.seed0", "separate-floats.seed0"]


@pytest.mark.parametrize(
    ("only", "seeds", "words"),
    [
        ("explicit", (), "--only=explicit fits no run"),
        ("", (7,), "--seeds=7 is not in the study"),
        ("separate", (1,), "no run has both"),
    ],
)
def test_a_selection_of_nothing_is_refused(only, seeds, words):
    with pytest.raises(plan.PlanError) as caught:
        names(only, *seeds)
    assert words in str(caught.value)


# --- Candidates -----------------------------------------------------------------------------------


def test_candidates_are_runs_of_the_study_with_other_settings():
    asked = study("mini", "mini all: learning_rate=5e-4")
    (fast, heavy) = plan.candidates(
        asked, ["fast implicit-384: learning_rate=1e-3", "heavy direct: loss_weight=5"]
    )
    assert (fast.name, heavy.name) == ("fast.seed0", "heavy.seed0")
    assert plan.run_config(asked, fast).learning_rate == 1e-3
    assert plan.run_config(asked, fast).code_bits == 256
    assert plan.run_config(asked, heavy).loss_weight == 5
    assert plan.run_config(asked, heavy).learning_rate == 5e-4


def test_the_committed_candidates_fit_and_share_their_profile_with_the_study():
    text = (ROOT / "configs" / "tuning.cfg").read_text(encoding="utf-8")
    lines = re.findall(r"^--candidate=(.*)", text, re.MULTILINE)
    asked = study("mini", *committed("tuning"), data="data/open-68-held-out")
    runs = plan.candidates(asked, lines)
    assert len(runs) == len(lines) >= 4
    plan.check(asked, runs)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["fast explicit: batch_size=8"], "no run is called 'explicit'"),
        (["fast"], "write '<name> <run>: <setting>=<value> ...'"),
        (["a direct: batch_size=8", "a direct: batch_size=9"], "two have the same name"),
    ],
)
def test_candidates_that_are_wrong_are_refused(lines, words):
    with pytest.raises(plan.PlanError) as caught:
        plan.candidates(study(), lines)
    assert words in str(caught.value)
