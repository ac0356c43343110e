"""The command line of `tfjoint.train`: where each value is from, and mistakes in one line."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest
import runs
import tiny
from absl import flags

from tfjoint import entry, export, train, trainer
from tfjoint.config import Config
from tfjoint.errors import UserError


@pytest.fixture
def resolved(monkeypatch):
    """A function of command-line arguments: the config and origins that training starts with.

    Where they name no model, it is `direct`.
    """
    calls = []
    monkeypatch.setattr(
        trainer, "train", lambda config, _, origins: calls.append((config, origins))
    )
    monkeypatch.setattr(export, "export_run", lambda run: None)

    def parse(*arguments: str) -> tuple[Config, dict[str, str]]:
        named = any(argument.startswith("--model") for argument in arguments)
        model = () if named else ("--model=direct",)
        monkeypatch.setattr(sys, "argv", ["train", *model, *arguments])
        train.main(entry.parse(sys.argv))
        return calls.pop()

    before = set(flags.FLAGS)
    train.define_flags()
    yield parse
    assert not calls
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.fixture
def flagfile(tmp_path):
    """A function that writes a flagfile of the given lines and returns the flag that reads it."""

    def write(*lines: str, name: str = "given.cfg") -> str:
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return f"--flagfile={tmp_path / name}"

    return write


def line_of(call) -> str:
    """The message of the mistake in `call`, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Values and origins ---------------------------------------------------------------------------


def test_every_setting_is_a_flag_with_its_default(resolved):
    config, origins = resolved()
    assert config == Config()
    assert set(origins) == {field.name for field in dataclasses.fields(Config)}
    assert origins.pop("model") == "command line"
    assert set(origins.values()) == {"default", "profile paper"}
    for field in dataclasses.fields(Config):
        assert field.metadata["help"] in flags.FLAGS[field.name].help


def test_a_profile_sets_the_widths_and_a_flag_overrides_it(resolved):
    config, origins = resolved("--grid_channels=12", "--profile=smoke")
    assert (config.grid_channels, origins["grid_channels"]) == (12, "command line")
    assert (config.image_size, origins["image_size"]) == (32, "profile smoke")


def test_a_flag_after_the_flagfile_overrides_it(resolved, flagfile):
    config, origins = resolved(flagfile("--seed=1", "--steps=9"), "--seed=2")
    assert (config.seed, origins["seed"]) == (2, "command line")
    assert (config.steps, origins["steps"]) == (9, flagfile("").partition("=")[2])


def test_a_flag_before_the_flagfile_that_says_otherwise_is_refused(resolved, flagfile):
    line = line_of(lambda: resolved("--seed=2", flagfile("--seed=1")))
    assert "--seed is given twice: 2 (command line), then 1 (" in line
    assert "given.cfg" in line
    assert "put it after --flagfile" in line


def test_absl_alone_would_let_the_file_win_without_a_word(resolved, flagfile):
    """Why the refusal exists; where absl changes this, the refusal may go."""
    entry.parse(["train", "--seed=2", flagfile("--seed=1")])
    assert flags.FLAGS.seed == 1


@pytest.mark.parametrize("first", ["--steps=5", "--deterministic", "--halve_at_epochs=1,2"])
def test_an_equal_value_may_be_given_twice(resolved, flagfile, first):
    config, _ = resolved(first, flagfile(first), first)
    name = first.strip("-").partition("=")[0]
    assert getattr(config, name) == {"steps": 5, "deterministic": True}.get(name, (1, 2))


def test_unequal_values_on_the_command_line_are_refused(resolved):
    line = line_of(lambda: resolved("--seed=2", "--seed=1"))
    assert "2 (command line), then 1 (command line)" in line


def test_unequal_values_in_two_flagfiles_are_refused(resolved, flagfile):
    files = flagfile("--seed=1", name="one.cfg"), flagfile("--seed=2", name="two.cfg")
    line = line_of(lambda: resolved(*files))
    assert "one.cfg" in line and "two.cfg" in line


def test_a_second_flagfile_does_not_undo_an_override(resolved, flagfile):
    file = flagfile("--seed=1")
    assert "given twice" in line_of(lambda: resolved(file, "--seed=2", file))
    assert "given twice" in line_of(lambda: resolved(file, "--seed=2", "--seed=3"))


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_a_value_may_follow_its_flag_as_a_token_of_its_own(resolved, flagfile, dashes):
    file = flagfile("--batch_size=4").partition("=")[2]
    config, origins = resolved(f"{dashes}seed", "3", f"{dashes}flagfile", file, "--steps", "7")
    assert (config.seed, config.batch_size, config.steps) == (3, 4, 7)
    assert origins["seed"] == origins["steps"] == "command line"
    assert origins["batch_size"] == file


def test_a_value_that_looks_like_a_flag_is_a_value(resolved):
    config, origins = resolved("--run_dir", "--seed=4")
    assert (config.run_dir, config.seed, origins["seed"]) == ("--seed=4", 0, "default")


def test_the_two_token_form_conflicts_like_the_other(resolved, flagfile):
    assert "given twice" in line_of(lambda: resolved("--seed", "2", flagfile("--seed=1")))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--deterministic", True),
        ("--nodeterministic", False),
        ("--deterministic=false", False),
        ("--deterministic=true", True),
    ],
)
def test_a_boolean_has_a_no_form(resolved, argument, value):
    config, origins = resolved(argument)
    assert (config.deterministic, origins["deterministic"]) == (value, "command line")


def test_the_no_form_conflicts_and_overrides_like_any_value(resolved, flagfile):
    assert "given twice: false" in line_of(
        lambda: resolved("--nodeterministic", flagfile("--deterministic"))
    )
    config, origins = resolved(flagfile("--deterministic"), "--nodeterministic")
    assert (config.deterministic, origins["deterministic"]) == (False, "command line")


def test_a_flagfile_may_read_another(resolved, flagfile):
    inner = flagfile("# of the paper", "--seed=5", "--steps=8", name="inner.cfg")
    outer = flagfile(inner, "", "--batch_size=2", name="outer.cfg")
    config, origins = resolved(outer, "--steps=9")
    assert (config.seed, config.batch_size, config.steps) == (5, 2, 9)
    assert origins["batch_size"].endswith("outer.cfg")
    assert origins["seed"].endswith(".cfg")
    assert origins["steps"] == "command line"


def test_a_conflict_inside_nested_flagfiles_is_refused(resolved, flagfile):
    inner = flagfile("--seed=5", name="inner.cfg")
    assert "given twice" in line_of(lambda: resolved(flagfile("--seed=6", inner)))


def test_a_list_is_integers_with_commas_between(resolved):
    assert resolved("--halve_at_epochs=4,5")[0].halve_at_epochs == (4, 5)
    assert resolved("--halve_at_epochs=")[0].halve_at_epochs == ()
    line = line_of(lambda: resolved("--voxel_channels=8,8,eight,8"))
    assert "voxel_channels must be integers" in line and "8,8,eight,8" in line


def test_a_list_of_numbers_may_have_fractions(resolved):
    config, origins = resolved("--model=jpeg2000", "--rates=48,479.5,1e2")
    assert config.rates == (48.0, 479.5, 100.0)
    assert {type(rate) for rate in config.rates} == {float}
    assert origins["rates"] == "command line"
    assert resolved("--model=jpeg2000", "--rates=")[0].rates == ()
    line = line_of(lambda: resolved("--model=jpeg2000", "--rates=48,all"))
    assert line == "rates must be numbers with commas between. Received: 48,all"
    assert "rates must be at least 1.0" in line_of(
        lambda: resolved("--model=jpeg2000", "--rates=48,0.5")
    )


@pytest.mark.parametrize("model", ["compression", "separate", "implicit"])
def test_a_system_is_chosen_by_its_flag_and_brings_its_defaults(resolved, flagfile, model):
    config, origins = resolved(f"--model={model}", flagfile("--profile=smoke"))
    assert (config.model, origins["model"]) == (model, "command line")
    expected = (5e-4, "default") if model == "compression" else (1e-4, f"model {model}")
    assert (config.learning_rate, origins["learning_rate"]) == expected


def test_the_codec_is_chosen_by_its_flag_and_has_its_widths(resolved):
    config, origins = resolved("--codec=original", "--profile=mini", "--nobinarizer")
    assert config.encoder_channels == (16, 48, 96, 96) and config.code_channels == 32
    assert origins["encoder_channels"] == "profile mini"
    assert (config.binarizer, origins["binarizer"]) == (False, "command line")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=compression", "--rates=48,96"], "rates=48.0,96.0 (command line) has no effect"),
        (["--nobinarizer", "--model=reconstruction"], "binarizer=False (command line) has no"),
        (["--codec_run=runs/x"], "codec_run=runs/x (command line) has no effect on model direct"),
    ],
)
def test_a_setting_that_has_no_effect_is_refused(resolved, arguments, words):
    line = line_of(lambda: resolved(*arguments))
    assert words in line and "leave it out" in line


def test_a_setting_of_a_flagfile_that_has_no_effect_is_refused_with_its_origin(resolved, flagfile):
    line = line_of(lambda: resolved("--model=implicit", flagfile("--iterations_max=2")))
    assert "iterations_max=2 (" in line and "given.cfg) has no effect on model implicit" in line


def test_the_table_shows_value_and_origin_of_every_setting_that_has_an_effect(
    resolved, flagfile, capsys
):
    file = flagfile("--seed=7")
    resolved("--profile=smoke", file, "--halve_at_epochs=4,5", "--nodeterministic")
    table = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    rows = {row[0]: row[1:] for row in table}
    without = {"rates", "codec_run", "feature_channels", "features", "code_bits", "pool_padding"}
    without.add("original_views_steps")
    assert set(rows) == {field.name for field in dataclasses.fields(Config)} - without
    assert rows["seed"] == ["7", file.partition("=")[2]]
    assert rows["halve_at_epochs"] == ["4,5", "command line"]
    assert rows["deterministic"][1] == rows["profile"][1] == "command line"
    assert rows["encoder_channels"] == ["8,16,16", "profile smoke"]
    assert rows["learning_rate"] == ["0.0005", "default"]


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeed=1"], ("seeed", "--help")),
        (["--seed=one"], ("seed", "one")),
        (["--seed"], ("seed",)),
        (["--seed=-1"], ("seed", "-1", "[0, ")),
        (["--learning_rate=nan"], ("learning_rate", "nan")),
        (["--deterministic=maybe"], ("deterministic", "maybe")),
        (["--model=jpeg2000", "--rates=\n48"], ("rates", "--help")),
        (["--profile=huge"], ("profile", "huge", "paper, mini, smoke")),
        (["--model=indirect"], ("model", "indirect", "direct")),
        (["--views_min=4", "--views_max=2"], ("views_min=4", "views_max=2")),
        (["train"], ("train", "every setting is a --flag")),
        (["--steps", "3", "4"], ("4", "every setting is a --flag")),
        (["--", "--seed=1"], ("--seed=1", "every setting is a --flag")),
        (["--flagfile=missing.cfg"], ("missing.cfg",)),
        (["--flagfile"], ("flagfile",)),
        (["--flagfile="], ("flagfile",)),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(resolved, arguments, words):
    line = line_of(lambda: resolved(*arguments))
    for word in words:
        assert word in line


def test_a_missing_model_is_one_line(resolved, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])
    line = line_of(lambda: train.main(entry.parse(sys.argv)))
    assert "--model" in line and "reconstruction" in line and "direct" in line


def test_a_mistake_in_a_flagfile_is_one_line(resolved, flagfile):
    assert "seeed" in line_of(lambda: resolved(flagfile("--seeed=1")))
    assert "missing.cfg" in line_of(lambda: resolved(flagfile("--flagfile=missing.cfg")))
    assert "steps" in line_of(lambda: resolved(flagfile("--steps=many")))


def test_a_flagfile_that_is_no_text_is_one_line(resolved, flagfile, tmp_path):
    assert "flagfile" in line_of(lambda: resolved(f"--flagfile={tmp_path}"))
    (tmp_path / "binary.cfg").write_bytes(b"--seed=1\xff\xfe\x00\n")
    assert "binary.cfg" in line_of(lambda: resolved(f"--flagfile={tmp_path / 'binary.cfg'}"))


def test_a_flagfile_that_reads_itself_ends(resolved, flagfile, tmp_path):
    file = flagfile("--seed=1", f"--flagfile={tmp_path / 'given.cfg'}")
    assert resolved(file)[0].seed == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed=2", "--seed=1"],
        ["--seeed=1"],
        ["--flagfile=missing.cfg"],
        ["stray"],
        ["--steps=-1"],
    ],
)
def test_a_mistake_ends_the_command_with_code_2_and_one_line(arguments):
    command = [sys.executable, "-m", "tfjoint.train", *arguments]
    result = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_help_lists_every_setting_and_ends_well():
    command = [sys.executable, "-m", "tfjoint.train", "--help"]
    result = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    for field in dataclasses.fields(Config):
        assert re.search(rf"--(\[no\])?{field.name}:", result.stdout)


def test_a_mistake_in_the_data_ends_the_command_with_code_2_and_one_line(tmp_path):
    """What needs TensorFlow to be found; the kinds of damage are in the trainer's tests."""
    data = tiny.make(tmp_path / "data", train=4, test=2)
    (shard,) = data.glob("train-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    line = runs.refusal(runs.command(data, tmp_path / "run"))
    assert shard.name in line and "damaged" in line
    assert not (tmp_path / "run").exists()
