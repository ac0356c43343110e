"""Settings: every range, every type, which source wins, and what a resumed run may change."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tfjoint.config import (
    CODEC_WIDTHS,
    CODECS,
    PROFILES,
    USES,
    Config,
    ConfigError,
    changes,
    describe,
    resolve,
)
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
    ("original_views_steps", -1, 0, None, None),
    ("learning_rate", 0.0, 1e-8, 1.0, 1.0001),
    ("image_size", 0, 16, 1024, None),
    ("code_channels", 0, 1, None, None),
    ("gamma", -0.1, 0.0, 1.0, 1.1),
    ("features", 0, 1, None, None),
    ("code_bits", 3, 4, None, None),
    ("grid_size", 0, 1, None, None),
    ("grid_channels", 0, 1, None, None),
    ("log_every", 0, 1, None, None),
    ("checkpoint_every", 0, 1, None, None),
    ("picture_every", 0, 1, None, None),
]

# Which systems a setting has an effect on; all others have one on every system.
WITH_CODEC = {"compression", "separate", "sequential", "direct"}
WITH_RECONSTRUCTION = {"reconstruction", "jpeg2000", "separate", "sequential"}
WITH_GRID = {*WITH_RECONSTRUCTION, "direct", "implicit"}
SYSTEMS = WITH_CODEC | WITH_GRID
EFFECTS = {
    **dict.fromkeys(("codec", "gamma", "iterations_min", "iterations_max"), WITH_CODEC),
    **dict.fromkeys(("code_channels", "encoder_channels", "decoder_channels"), WITH_CODEC),
    **dict.fromkeys(("grid_size", "grid_channels", "voxel_channels"), WITH_GRID),
    **dict.fromkeys(("shared_bias", "output_gate", "unpooling"), WITH_GRID),
    "loss_weight": {"sequential", "direct"},
    "original_views_steps": {"sequential"},
    "recompute": WITH_CODEC - {"separate"},
    "feature_channels": {*WITH_RECONSTRUCTION, "implicit"},
    "pool_padding": {*WITH_RECONSTRUCTION, "implicit"},
    "features": WITH_RECONSTRUCTION,
    "binarizer": {*WITH_CODEC, "implicit"},
    "code_bits": {"implicit"},
    "codec_run": {"separate"},
    "rates": {"jpeg2000"},
}


def widths(profile: str, codec: str = "small_a") -> dict:
    """What a profile sets with one of the codecs."""
    return {**PROFILES[profile], **CODEC_WIDTHS[codec, profile]}


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
    elif name == "rates":
        wrong += [48.0, "48", (48.0, "96"), (48.0, True), ((48.0,),), (None,)]
    else:
        wrong += [3, "1,2,3,4", (1, 2, 3, "4"), (1.0, 2, 3, 4), (True, 2, 3, 4), ((4,), 4, 4, 4)]
    for value in wrong:
        message = refusal(**{name: value})
        assert message.startswith(f"{name} must be") and "Received: " in message, value


def test_an_integer_is_taken_for_a_float():
    assert Config(loss_weight=2, gamma=1, learning_rate=1).loss_weight == 2
    assert Config(rates=(48, 479.5)).rates == (48, 479.5)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("model", SYSTEMS),
        ("profile", {"paper", "mini", "smoke"}),
        ("codec", {"small_a", "small_b", "original"}),
        ("unpooling", {"nearest", "zeros"}),
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
    ("codec", "name", "length"),
    [
        ("small_a", "encoder_channels", 3),
        ("small_a", "decoder_channels", 4),
        ("small_b", "encoder_channels", 3),
        ("small_b", "decoder_channels", 4),
        ("original", "encoder_channels", 4),
        ("original", "decoder_channels", 5),
        ("small_a", "voxel_channels", 4),
    ],
)
def test_widths_have_one_number_per_layer(codec, name, length):
    for count in (0, length - 1, length + 1):
        given = {**CODEC_WIDTHS[codec, "paper"], name: (8,) * count}
        assert f"{name} needs {length} numbers" in refusal(codec=codec, **given)
    assert getattr(resolve({"codec": codec, name: (8,) * length})[0], name) == (8,) * length


@pytest.mark.parametrize("name", TUPLES)
def test_every_number_of_a_tuple_is_checked(name):
    for position in range(len(FIELDS[name].default)):
        value = list(FIELDS[name].default)
        value[position] = 0
        assert f"{name} must be at least" in refusal(**{name: tuple(value)})


def test_every_rate_is_checked():
    for wrong in (0.5, 0.0, -48.0, float("nan"), float("inf")):
        assert "rates must be" in refusal(rates=(48.0, wrong))
    config, _ = resolve({"model": "jpeg2000", "rates": (48, 479.5, 1.0)})
    assert config.rates == (48, 479.5, 1)
    assert resolve({"model": "jpeg2000"})[0].rates == ()


def test_numbers_that_do_not_fit_together_are_refused():
    assert "views_min=6 is above views_max=5" in refusal(views_min=6)
    assert "iterations_min=3 is above iterations_max=2" in refusal(
        iterations_min=3, iterations_max=2
    )
    assert "multiple of 16. Received: 40" in refusal(image_size=40)
    assert "multiples of 4" in refusal(decoder_channels=(8, 8, 8, 6))
    assert "code_bits must be a multiple of 4. Received: 819" in refusal(
        model="implicit", code_bits=819
    )
    Config(views_min=5, views_max=5, iterations_min=8, iterations_max=8)


@pytest.mark.parametrize(
    ("given", "size", "multiple"),
    [
        # Of 16 for the codec, of 2 to the number of poolings for the image encoder.
        ({"model": "direct"}, 48, 16),
        ({"model": "compression"}, 80, 16),
        ({"model": "reconstruction"}, 192, 64),
        ({"model": "jpeg2000"}, 192, 64),
        ({"model": "implicit", "profile": "mini"}, 96, 32),
        ({"model": "sequential"}, 192, 64),
        ({"model": "separate", "feature_channels": (8, 8)}, 48, 16),
        ({"model": "reconstruction", "feature_channels": (8, 8)}, 20, 4),
        ({"model": "sequential", "pool_padding": True}, 48, 16),
    ],
)
def test_the_size_of_images_is_what_the_networks_can_halve(given, size, multiple):
    assert resolve({**given, "image_size": size})[0].image_size == size
    wrong = size + multiple // 2
    with pytest.raises(ConfigError) as caught:
        resolve({**given, "image_size": wrong})
    line = str(caught.value)
    assert f"image_size must be a multiple of {multiple}" in line
    assert f"Received: {wrong}" in line and "\n" not in line
    if multiple not in (4, 16):
        assert f"{multiple.bit_length() - 1} poolings" in line and "pool_padding" in line


@pytest.mark.parametrize("model", ["reconstruction", "jpeg2000", "implicit"])
def test_padded_poolings_take_any_size_of_images(model):
    for size in (16, 100, 127):
        given = {"model": model, "image_size": size, "pool_padding": True}
        assert resolve(given)[0].image_size == size


def test_the_image_encoder_has_a_convolution():
    for model in ("reconstruction", "implicit"):
        line = refusal(model=model, feature_channels=())
        assert "feature_channels needs at least 1 number" in line


def test_what_a_system_does_not_use_need_not_fit_the_rest():
    Config(model="reconstruction", codec="original", encoder_channels=(8,), code_bits=819)
    Config(model="compression", image_size=48, voxel_channels=(8,))
    Config(model="direct", image_size=48, code_bits=819)


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
        assert origins[name] == ("profile paper" if name in widths("paper") else "default")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_sets_its_widths_and_nothing_else(profile, codec):
    config, origins = resolve({"profile": profile, "codec": codec})
    for name in FIELDS:
        if name in widths(profile, codec):
            assert getattr(config, name) == widths(profile, codec)[name]
            assert origins[name] == f"profile {profile}"
        elif name not in ("profile", "codec"):
            assert getattr(config, name) == FIELDS[name].default
            assert origins[name] == "default"
    assert origins["profile"] == origins["codec"] == "given"


def test_all_profiles_set_the_same_names_and_the_paper_profile_is_the_default():
    assert {tuple(widths(p, c)) for p in PROFILES for c in CODECS} == {tuple(widths("mini"))}
    assert widths("paper") == {name: FIELDS[name].default for name in widths("paper")}


@pytest.mark.parametrize(
    ("codec", "code_channels", "encoder", "decoder"),
    [
        ("small_a", 16, (64, 256, 512), (256, 256, 128, 64)),
        ("small_b", 16, (64, 256, 512), (256, 256, 256, 128)),
        ("original", 32, (64, 256, 512, 512), (512, 512, 512, 256, 128)),
    ],
)
def test_a_codec_has_the_widths_of_its_table(codec, code_channels, encoder, decoder):
    config, _ = resolve({"codec": codec})
    found = config.code_channels, config.encoder_channels, config.decoder_channels
    assert found == (code_channels, encoder, decoder)


# --- What a system uses ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted(SYSTEMS))
def test_a_system_uses_its_settings_and_those_of_all(model):
    config = Config(model=model)
    assert {name for name in FIELDS if not config.uses(name)} == {
        name for name, systems in EFFECTS.items() if model not in systems
    }


def test_what_is_said_to_be_used_is_a_setting():
    assert set().union(*USES.values()) == set(EFFECTS) <= set(FIELDS)


@pytest.mark.parametrize("model", sorted(SYSTEMS))
def test_a_setting_that_has_no_effect_is_refused_by_name(model):
    for name, systems in EFFECTS.items():
        given = {"model": model, name: getattr(Config(), name)}
        if model in systems:
            assert resolve(given)[1][name] == "given"
        else:
            with pytest.raises(ConfigError) as caught:
                resolve(given, {name: "a.cfg"})
            line = str(caught.value)
            assert line.startswith(f"{name}=")
            assert f"(a.cfg) has no effect on model {model}: leave it out" in line


def test_the_value_without_effect_is_shown_as_it_would_be_written():
    given = {"model": "compression", "voxel_channels": (8, 8, 8, 8)}
    with pytest.raises(ConfigError, match=r"^voxel_channels=8,8,8,8 \(given\) has no effect on"):
        resolve(given)


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("compression", 5e-4),
        ("sequential", 5e-4),
        ("direct", 5e-4),
        ("reconstruction", 1e-4),
        ("jpeg2000", 1e-4),
        ("separate", 1e-4),
        ("implicit", 1e-4),
    ],
)
def test_a_system_has_its_learning_rate_unless_one_is_given(model, rate):
    config, origins = resolve({"model": model})
    assert config.learning_rate == rate
    assert origins["learning_rate"] == ("default" if rate == 5e-4 else f"model {model}")
    assert set(origins.values()) == {"given", "default", "profile paper", origins["learning_rate"]}
    config, origins = resolve({"model": model, "learning_rate": 0.5}, {"learning_rate": "a.cfg"})
    assert (config.learning_rate, origins["learning_rate"]) == (0.5, "a.cfg")


# --- Rates ----------------------------------------------------------------------------------------


def test_the_small_codec_spends_1024_bits_an_iteration_at_paper_width():
    config = Config()
    assert config.code_size == config.bits_per_view() == 1024
    rates = [round(config.rate(t), 1) for t in range(1, 9)]
    assert rates == [384, 192, 128, 96, 76.8, 64, 54.9, 48]
    assert [config.bits_per_view(t) for t in (1, 3, 8)] == [1024, 3072, 8192]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({"model": "direct"}, 384),
        ({"model": "compression", "codec": "small_b"}, 384),
        ({"model": "sequential", "codec": "original"}, 192),
        ({"model": "implicit"}, 384),
        ({"model": "direct", "binarizer": False}, 12),
        ({"model": "implicit", "binarizer": False}, 12),
    ],
)
def test_a_profile_changes_widths_but_not_the_rate(profile, given, rate):
    config, _ = resolve({**given, "profile": profile})
    assert config.rate() == rate
    assert 3 * 8 * config.image_size**2 / config.bits_per_view() == rate
    assert config.bits_per_view() == config.code_size * (1 if config.binarizer else 32)


@pytest.mark.parametrize(
    ("bits", "rate"),
    [(820, 479.5), (1024, 384), (2048, 192), (3072, 128), (4096, 96), (8192, 48)],
)
def test_the_implicit_model_has_one_rate_of_k_bits(bits, rate):
    config, _ = resolve({"model": "implicit", "code_bits": bits})
    assert config.code_size == config.bits_per_view() == bits
    assert round(config.rate(), 1) == rate


def test_floats_count_32_bits():
    """The low rates of Sec. IV-C: 12:1 and 6:1, by iterations or by K."""
    iterated, _ = resolve({"model": "direct", "binarizer": False})
    assert [iterated.rate(t) for t in (1, 2)] == [12, 6]
    wide, _ = resolve({"model": "implicit", "binarizer": False, "code_bits": 2048})
    assert (wide.rate(), wide.bits_per_view()) == (6, 65536)


@pytest.mark.parametrize("model", ["reconstruction", "jpeg2000"])
def test_a_system_without_codes_has_none(model):
    config, _ = resolve({"model": model})
    assert config.code_size == config.bits_per_view() == 0


# --- Sources --------------------------------------------------------------------------------------


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
    words = {line.split()[0]: line.split() for line in lines}
    assert words["loss_weight"] == ["loss_weight", "0.5", "here"]
    assert words["encoder_channels"] == ["encoder_channels", "16,48,96", "profile", "mini"]
    assert words["run_dir"] == ["run_dir", "default"]
    assert len(lines) == len(words)


@pytest.mark.parametrize("model", sorted(SYSTEMS))
def test_a_description_leaves_out_what_has_no_effect(model):
    config, origins = resolve({"model": model})
    shown = [line.split()[0] for line in describe(config, origins).splitlines()]
    without = {name for name, systems in EFFECTS.items() if model not in systems}
    assert without and shown == [name for name in FIELDS if name not in without]


def test_derived_values_follow_their_settings():
    assert Config().voxel_size == 32
    assert Config(grid_size=2).voxel_size == 16
    assert Config().run_directory == "runs/direct"
    assert Config(run_dir="here").run_directory == "here"


# --- JSON and resuming ----------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_config_comes_back_from_json(profile):
    for given in (
        {"learning_rate": 1e-4, "loss_weight": 2, "seed": 9},
        {"model": "jpeg2000", "rates": (48, 479.5), "pool_padding": True},
        {"model": "compression", "codec": "original", "binarizer": False},
    ):
        config, _ = resolve({"profile": profile, **given})
        text = json.dumps(config.to_json(), allow_nan=False)
        assert Config.from_json(json.loads(text)) == config
        assert set(config.to_json()) == set(FIELDS)


def test_values_out_of_range_are_refused_from_json_too():
    with pytest.raises(ConfigError, match="batch_size"):
        Config.from_json({**Config().to_json(), "batch_size": 0})
    with pytest.raises(ConfigError, match="encoder_channels"):
        Config.from_json({**Config().to_json(), "encoder_channels": [1, 2]})


FREE = {
    *("data", "run_dir", "epochs", "steps", "log_every", "checkpoint_every", "picture_every"),
    "recompute",
}


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


def test_a_setting_of_a_later_version_had_its_default():
    old = Config().to_json()
    del old["original_views_steps"]
    assert changes(old, Config().to_json()) == []
    new = Config(model="sequential", original_views_steps=3).to_json()
    assert "original_views_steps: 0 -> 3" in changes(old, new)


def test_an_integer_for_a_float_is_no_change():
    assert changes(Config(loss_weight=1).to_json(), Config(loss_weight=1.0).to_json()) == []


def test_epochs_beside_steps_are_refused():
    given, origins = {"epochs": 3, "steps": 10}, {"epochs": "command line", "steps": "x.cfg"}
    with pytest.raises(ConfigError, match=r"epochs=3 \(command line\) .* steps=10 \(x\.cfg\)"):
        resolve(given, origins)
    assert resolve({"epochs": 3, "steps": 0})[0].epochs == 3


def test_photos_and_a_background_that_is_given_contradict_each_other():
    given = {"model": "direct", "background": "random", "photos": "p"}
    origins = {"background": "a.cfg", "photos": "command line"}
    with pytest.raises(ConfigError) as caught:
        resolve(given, origins)
    assert str(caught.value) == (
        "background=random (a.cfg) has no effect beside photos=p (command line): give one of them"
    )
    for alone in ({"photos": "p"}, {"background": "black"}, {"background": "white", "photos": ""}):
        resolve({"model": "direct", **alone})
