"""Settings: every range, every type, which source wins, and what a resumed run may change."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tfjoint.config import PROFILES, Config, ConfigError, changes, describe, resolve
from tfjoint.errors import UserError

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
NUMBERS = [name for name, f in FIELDS.items() if type(f.default) in (int, float)]
TUPLES = [name for name, f in FIELDS.items() if isinstance(f.default, tuple)]
TEXTS = [name for name, f in FIELDS.items() if isinstance(f.default, str)]

# (name, outside below, least, most, outside above); None where there is no bound.
RANGES = [
    ("seed", -1, 0, 2**31 - 1, 2**31),
    ("epochs", 0, 1, None, None),
    ("steps", -1, 0, None, None),
    ("batch_size", 0, 1, None, None),
    ("views_min", 0, 1, 5, 6),
    ("views_max", 0, 1, None, None),
    ("iterations_min", 0, 1, 8, 9),
    ("iterations_max", 0, 1, 64, 65),
    ("loss_weight", -1e-9, 0.0, 1e9, float("inf")),
    ("learning_rate", 0.0, 1e-8, 1.0, 1.0001),
    ("image_size", 0, 16, 1024, None),
    ("code_channels", 0, 1, None, None),
    ("gamma", -0.1, 0.0, 1.0, 1.1),
    ("grid_size", 0, 1, None, None),
    ("grid_channels", 0, 1, None, None),
    ("log_every", 0, 1, None, None),
    ("checkpoint_every", 0, 1, None, None),
    ("picture_every", 0, 1, None, None),
]


def refusal(**settings) -> str:
    """The one line that a config of these settings ends in; both ways to make one agree."""
    messages = []
    for make in (lambda: Config(**settings), lambda: resolve(settings)):
        with pytest.raises(ConfigError) as caught:
            make()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert issubclass(ConfigError, UserError)
    assert "\n" not in messages[0]
    return messages[0]


# --- Ranges and types -----------------------------------------------------------------------------


def test_every_number_has_its_range_in_this_file():
    assert sorted(NUMBERS) == sorted(name for name, *_ in RANGES)


@pytest.mark.parametrize(("name", "below", "least", "most", "above"), RANGES)
def test_a_number_is_taken_inside_its_range_and_refused_outside(name, below, least, most, above):
    for value in (least, most):
        if value is not None:
            assert getattr(Config(**{name: value}), name) == value
    for value in (below, above):
        if value is not None:
            message = refusal(**{name: value})
            assert name in message and str(value) in message


@pytest.mark.parametrize("name", NUMBERS)
def test_not_a_number_and_infinity_are_refused(name):
    for value in (float("nan"), float("inf"), float("-inf")):
        assert name in refusal(**{name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_type_is_refused_with_what_was_received(name):
    default = FIELDS[name].default
    wrong = [None, [1, 2, 3, 4], {"a": 1}, b"1", object]
    if isinstance(default, bool):
        wrong += [0, 1, "true", 1.0]
    elif isinstance(default, int):
        wrong += [True, 1.0, "1"]
    elif isinstance(default, float):
        wrong += [True, "0.5"]
    elif isinstance(default, str):
        wrong += [True, 3]
    else:
        wrong += [3, "1,2,3,4", (1, 2, 3, "4"), (1.0, 2, 3, 4), (True, 2, 3, 4), ((4,), 4, 4, 4)]
    for value in wrong:
        message = refusal(**{name: value})
        assert message.startswith(f"{name} must be") and "Received: " in message, value


def test_an_integer_is_taken_for_a_float():
    assert Config(loss_weight=2, gamma=1, learning_rate=1).loss_weight == 2


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("model", {"direct"}),
        ("profile", set(PROFILES)),
        ("background", {"black", "white", "random"}),
        ("optimizer", {"adam", "adamw", "lamb"}),
        ("precision", {"float32", "mixed_bfloat16"}),
    ],
)
def test_a_choice_is_one_of_its_list(name, choices):
    for value in choices:
        assert getattr(resolve({name: value})[0], name) == value
    message = refusal(**{name: "purple"})
    assert "'purple'" in message and all(choice in message for choice in choices)


@pytest.mark.parametrize(
    ("name", "length"), [("encoder_channels", 3), ("decoder_channels", 4), ("voxel_channels", 4)]
)
def test_widths_have_one_number_per_layer(name, length):
    for count in (0, length - 1, length + 1):
        assert f"{name} needs {length} numbers" in refusal(**{name: (8,) * count})
    assert getattr(Config(**{name: (8,) * length}), name) == (8,) * length


@pytest.mark.parametrize("name", TUPLES)
def test_every_number_of_a_tuple_is_checked(name):
    for position in range(len(FIELDS[name].default)):
        value = list(FIELDS[name].default)
        value[position] = 0
        assert f"{name} must be at least" in refusal(**{name: tuple(value)})


def test_numbers_that_do_not_fit_together_are_refused():
    assert "views_min=6 is above views_max=5" in refusal(views_min=6)
    assert "iterations_min=3 is above iterations_max=2" in refusal(
        iterations_min=3, iterations_max=2
    )
    assert "multiple of 16. Received: 40" in refusal(image_size=40)
    assert "multiples of 4" in refusal(decoder_channels=(8, 8, 8, 6))
    Config(views_min=5, views_max=5, iterations_min=8, iterations_max=8)


@pytest.mark.parametrize("epochs", [(10, 3), (3, 3), (3, 10, 5)])
def test_epochs_at_which_the_rate_is_halved_ascend(epochs):
    assert "halve_at_epochs must ascend" in refusal(halve_at_epochs=epochs)
    for fine in ((), (7,), (1, 2)):
        assert Config(halve_at_epochs=fine).halve_at_epochs == fine


def test_a_config_cannot_be_changed():
    config = Config()
    for name in FIELDS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, FIELDS[name].default)
    with pytest.raises(ConfigError):
        dataclasses.replace(config, batch_size=0)  # a changed copy is checked like a new one


# --- Layers ---------------------------------------------------------------------------------------


def test_without_a_word_everything_is_a_default_of_the_paper():
    config, origins = resolve({})
    assert config == Config()
    assert set(origins) == set(FIELDS)
    for name in FIELDS:
        assert origins[name] == ("profile paper" if name in PROFILES["paper"] else "default")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_sets_its_widths_and_nothing_else(profile):
    config, origins = resolve({"profile": profile})
    for name in FIELDS:
        if name in PROFILES[profile]:
            assert getattr(config, name) == PROFILES[profile][name]
            assert origins[name] == f"profile {profile}"
        elif name != "profile":
            assert getattr(config, name) == FIELDS[name].default
            assert origins[name] == "default"
    assert origins["profile"] == "given"


def test_all_profiles_set_the_same_names_and_the_paper_profile_is_the_default():
    assert len({tuple(widths) for widths in PROFILES.values()}) == 1
    assert PROFILES["paper"] == {name: FIELDS[name].default for name in PROFILES["paper"]}


def test_what_is_given_wins_over_the_profile_and_keeps_its_origin():
    given = {"profile": "smoke", "grid_channels": 12, "epochs": 3}
    config, origins = resolve(given, {"profile": "a.cfg", "grid_channels": "command line"})
    assert (config.grid_channels, config.epochs, config.image_size) == (12, 3, 32)
    assert origins["profile"] == "a.cfg"
    assert origins["grid_channels"] == "command line"
    assert origins["epochs"] == "given"
    assert origins["image_size"] == "profile smoke"
    assert origins["seed"] == "default"


def test_unknown_names_are_refused_by_name():
    for make in (resolve, Config.from_json):
        with pytest.raises(ConfigError, match="unknown settings: bach_size, colour"):
            make({"colour": 1, "bach_size": 2, "seed": 3})


def test_an_unknown_profile_is_refused_before_its_widths_are_looked_up():
    with pytest.raises(ConfigError, match="profile must be one of paper, mini, smoke"):
        resolve({"profile": "huge"})


def test_a_description_has_one_line_per_setting_with_its_origin():
    config, origins = resolve({"profile": "mini", "loss_weight": 0.5}, {"loss_weight": "here"})
    lines = describe(config, origins).splitlines()
    assert len(lines) == len(FIELDS)
    words = {line.split()[0]: line.split() for line in lines}
    assert words["loss_weight"] == ["loss_weight", "0.5", "here"]
    assert words["encoder_channels"] == ["encoder_channels", "16,48,96", "profile", "mini"]
    assert words["run_dir"] == ["run_dir", "default"]


def test_derived_values_follow_their_settings():
    assert Config().voxel_size == 32
    assert Config(grid_size=2).voxel_size == 16
    assert Config().run_directory == "runs/direct"
    assert Config(run_dir="here").run_directory == "here"


# --- JSON and resuming ----------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_config_comes_back_from_json(profile):
    config, _ = resolve({"profile": profile, "learning_rate": 1e-4, "loss_weight": 2, "seed": 9})
    text = json.dumps(config.to_json(), allow_nan=False)
    assert Config.from_json(json.loads(text)) == config
    assert set(config.to_json()) == set(FIELDS)


def test_values_out_of_range_are_refused_from_json_too():
    with pytest.raises(ConfigError, match="batch_size"):
        Config.from_json({**Config().to_json(), "batch_size": 0})
    with pytest.raises(ConfigError, match="encoder_channels"):
        Config.from_json({**Config().to_json(), "encoder_channels": [1, 2]})


FREE = {"data", "run_dir", "epochs", "steps", "log_every", "checkpoint_every", "picture_every"}


@pytest.mark.parametrize("name", FIELDS)
def test_a_change_is_shown_unless_it_leaves_the_trained_weights_alone(name):
    old = Config().to_json()
    value = [8, 16] if isinstance(old[name], list) else "another"
    shown = changes(old, {**old, name: value})
    if name in FREE:
        assert shown == []
    else:
        text = "8,16" if isinstance(value, list) else "another"
        before = ",".join(map(str, old[name])) if isinstance(old[name], list) else old[name]
        assert shown == [f"{name}: {before} -> {text}"]


def test_settings_of_another_version_are_changes_too():
    old, new = {"seed": 0, "gone": 1, "same": 2}, {"seed": 0, "came": 3, "same": 2}
    assert changes(old, new) == ["gone: 1 -> None", "came: None -> 3"]
    assert changes(old, old) == []


def test_an_integer_for_a_float_is_no_change():
    assert changes(Config(loss_weight=1).to_json(), Config(loss_weight=1.0).to_json()) == []
