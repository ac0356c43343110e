"""The training loop: what it computes, what it writes, how it stops and goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import runs
import tensorflow as tf
import tiny

from tfjoint import dataset, files, models, optimizers, records, trainer, voxels
from tfjoint.config import ConfigError
from tfjoint.errors import UserError
from tfjoint.records import RecordSet
from tfjoint.trainer import NonFiniteError

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

ENDLESS = 1000


def refusal(kind: type[UserError], *arguments, **given) -> str:
    """The one line with which training is refused."""
    with pytest.raises(kind) as caught:
        runs.train(*arguments, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(directory: Path) -> dict[Path, str]:
    """Digest of every file below a directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# --- Steps and learning rate ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "objects", "expected"),
    [
        ({"steps": 7}, 12, 7),
        ({"steps": 0, "epochs": 3, "batch_size": 4}, 12, 9),
        ({"steps": 0, "epochs": 3, "batch_size": 5}, 12, 8),  # 36 objects: 7 minibatches and 1/5
        ({"steps": 0, "epochs": 1, "batch_size": 6}, 2, 1),
    ],
)
def test_steps_are_given_or_are_whole_epochs(tmp_path, given, objects, expected):
    assert trainer.total_steps(runs.settings(tmp_path, tmp_path, **given), objects) == expected


def test_the_learning_rate_is_halved_from_the_first_step_of_an_epoch_on(tmp_path):
    config = runs.settings(
        tmp_path, tmp_path, batch_size=4, learning_rate=0.08, halve_at_epochs=(1, 3)
    )
    schedule = optimizers.learning_rate_schedule(config, objects=10)
    for step in range(20):
        epochs = step * 4 / 10  # seen before this step
        expected = 0.08 / 2 ** sum(epochs >= epoch for epoch in (1, 3))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-6), step


def test_without_epochs_of_halving_the_learning_rate_stays(tmp_path):
    config = runs.settings(tmp_path, tmp_path, learning_rate=0.08, halve_at_epochs=())
    schedule = optimizers.learning_rate_schedule(config, objects=10)
    assert [float(schedule(step)) for step in (0, 1, 1000)] == [pytest.approx(0.08)] * 3


def test_the_learning_rate_of_the_schedule_is_what_the_optimizer_takes(tmp_path):
    """Adam's first step moves every weight with a gradient by the learning rate."""
    config = runs.settings(tmp_path, tmp_path, learning_rate=0.25)
    optimizer = optimizers.make_optimizer(config, optimizers.learning_rate_schedule(config, 10))
    weight = tf.Variable([1.0, -1.0])
    optimizers.build_optimizer(optimizer, [weight])
    optimizer.apply_gradients([(tf.constant([3.0, -0.5]), weight)])
    np.testing.assert_allclose(weight, [0.75, -0.75], atol=1e-5)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_the_fused_update_is_that_of_keras(name):
    """Weights and moments after five steps of a falling rate.

    Keras rounds 1 - .999 from double precision, the operation subtracts in float32: 1.3e-5 apart.
    """
    random = np.random.default_rng(0)
    start = [random.normal(size=shape) for shape in ((3, 5), (7,), (1,))]
    scales = (1e-3, 0.1, 1, 10, 100)
    steps = [[scale * random.normal(size=w.shape) for w in start] for scale in scales]
    rate = tf.keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.1, 0.01])

    def trained(kind):
        weights = [tf.Variable(value, dtype=tf.float32) for value in start]
        optimizer = kind(learning_rate=rate)
        optimizers.build_optimizer(optimizer, weights)
        for gradients in steps:
            optimizer.apply_gradients(
                (tf.constant(g, tf.float32), w) for g, w in zip(gradients, weights)
            )
        return [v.numpy() for v in (*weights, *optimizer.variables)]

    ours = trained(getattr(optimizers, name))
    theirs = trained(getattr(tf.keras.optimizers, name))
    assert len(ours) == len(theirs) >= 9
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


# --- What a run computes --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(data, tmp_path_factory):
    """A run of another seed, and how often its step was traced."""
    traced = []

    def counted(config, batch, output):
        traced.append(batch["images"].shape)
        return loss_terms(config, batch, output)

    loss_terms = trainer.loss_terms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "loss_terms", counted)
        run = runs.train(data, tmp_path_factory.mktemp("other") / "run", seed=1)
    return run, traced


def test_one_trace_serves_every_number_of_views_and_iterations(data, other):
    run, traced = other
    assert len(traced) == 1
    config = runs.settings(data, run, seed=1)
    drawn = [
        dataset.draw_minibatch(config, 12, tiny.VIEWS, tiny.SIZE, step)
        for step in range(runs.STEPS)
    ]
    assert len({minibatch.views.shape[1] for minibatch in drawn}) >= 3
    assert len({minibatch.iterations for minibatch in drawn}) >= 3


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A function of a system's name: a short run of it, and how often its step was traced."""
    directory = tmp_path_factory.mktemp("trained")
    made: dict[str, tuple[Path, int]] = {}

    def make(name: str) -> tuple[Path, int]:
        if name not in made:
            given = {"model": name, "steps": SHORT}
            if name == "separate":
                given["codec_run"] = str(make("compression")[0])
            records = tiny.make_rates(directory / "rates", (48, 96)) if name == "jpeg2000" else data
            traced = []

            def counted(*arguments):
                traced.append(name)
                return loss_terms(*arguments)

            loss_terms = trainer.loss_terms
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trainer, "loss_terms", counted)
                made[name] = runs.train(records, directory / name, **given), len(traced)
        return made[name]

    return make


SHORT = 3
"""Steps of those runs; V and T differ between them, and so do rates."""
PARTS = {
    "compression": {"L_comp"},
    "reconstruction": {"L_3D"},
    "jpeg2000": {"L_3D"},
    "separate": {"L_comp", "L_3D"},
    "sequential": {"L_comp", "L_3D"},
    "implicit": {"L_3D"},
}


@pytest.mark.parametrize("name", PARTS)
def test_every_system_trains_in_one_trace_and_logs_what_it_has(data, trained, name):
    run, traces = trained(name)
    assert traces == 1
    assert runs.steps(run) == [SHORT]
    draws = [
        dataset.draw_minibatch(
            runs.settings(data, run, model=name), 12, tiny.VIEWS, tiny.SIZE, step, rates=2
        )
        for step in range(SHORT)
    ]
    assert len({drawn.views.shape[1] for drawn in draws}) > 1
    assert len({drawn.iterations for drawn in draws}) > 1
    assert len({drawn.rate_index for drawn in draws}) > 1
    events = runs.events(run)
    assert {tag for _, tag, _, _ in events if tag.startswith("L_")} == PARTS[name]
    plugins = {plugin for _, _, plugin, _ in events}
    assert ("images" in plugins) == ("L_comp" in PARTS[name])
    assert ("mesh" in plugins) == ("L_3D" in PARTS[name])
    assert all(np.all(np.isfinite(value)) for value in runs.state(run).values())
    loss, terms = runs.curve(run, "loss"), [runs.curve(run, part) for part in PARTS[name]]
    for step in loss:
        assert loss[step] == pytest.approx(sum(term[step] for term in terms), rel=1e-6)


@pytest.mark.slow
def test_both_losses_go_down(data, tmp_path):
    given = {"steps": 60, "batch_size": 12, "iterations_max": 2, "views_min": 2, "views_max": 2}
    given = {**given, "learning_rate": 1e-2, "log_every": 1, "picture_every": ENDLESS}
    run = runs.train(data, tmp_path / "run", **given, halve_at_epochs=())
    for name in ("L_comp", "L_3D"):
        values = list(runs.curve(run, name).values())
        assert len(values) == 60
        assert np.mean(values[-6:]) < 0.85 * np.mean(values[:6]), name


@pytest.fixture(scope="module")
def talkative(data, tmp_path_factory) -> Path:
    """A run that writes often."""
    given = {"loss_weight": 3, "log_every": 2, "picture_every": 3}
    return runs.train(data, tmp_path_factory.mktemp("talkative") / "run", steps=5, **given)


def test_the_loss_is_the_weighted_sum_of_its_parts(talkative):
    for step in (1, 2, 4, 5):
        parts = [runs.curve(talkative, name)[step] for name in ("L_comp", "L_3D")]
        loss = runs.curve(talkative, "loss")[step]
        assert loss == pytest.approx(parts[0] + 3 * parts[1], rel=1e-6)


@pytest.fixture(scope="module")
def mixed(data, tmp_path_factory) -> Path:
    """A run in mixed precision: where there are no instructions for it, a step takes seconds."""
    given = {"batch_size": 1, "views_max": 1, "iterations_max": 2, "picture_every": ENDLESS}
    path = tmp_path_factory.mktemp("mixed") / "run"
    return runs.train(data, path, steps=1, precision="mixed_bfloat16", **given)


def test_weights_are_float32_and_the_policy_is_the_callers_in_mixed_precision(data, mixed):
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    values = [value for value in runs.state(mixed).values() if np.ndim(value)]
    assert {value.dtype for value in values} == {np.dtype("float32")}
    assert all(np.all(np.isfinite(value)) for value in values)
    model = models.create(runs.settings(data, mixed, precision="mixed_bfloat16"))
    cells = model.compression.codec.encoder_cells
    assert {layer.compute_dtype for layer in cells} == {"bfloat16"}


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb"])
def test_every_optimizer_has_its_variables_before_the_first_step(tmp_path, name):
    config = runs.settings(tmp_path, tmp_path, optimizer=name)
    optimizer = optimizers.make_optimizer(config, optimizers.learning_rate_schedule(config, 10))
    assert type(optimizer).__name__.lower() == name
    weight = tf.Variable([1.0, -1.0])
    optimizers.build_optimizer(optimizer, [weight])
    variables = optimizer.variables
    before = len(variables() if callable(variables) else variables)
    assert before >= 3
    optimizer.apply_gradients([(tf.constant([3.0, -0.5]), weight)])
    assert len(variables() if callable(variables) else optimizer.variables) == before
    assert np.all(weight.numpy() != [1, -1])


@pytest.mark.long
def test_lamb_trains_and_resumes(data, tmp_path):
    """In TensorFlow 2.14 the one optimizer of Keras' older generation."""
    run = runs.train(data, tmp_path / "run", steps=2, optimizer="lamb")
    before = runs.state(run)
    runs.train(data, run, steps=3, optimizer="lamb")
    after = runs.state(run)
    assert before.keys() == after.keys()
    assert all(np.all(np.isfinite(value)) for value in after.values())
    # Every weight and its two moments move.
    moved = [n for n in before if np.ndim(before[n]) and np.all(before[n] != after[n])]
    weights = models.create(runs.settings(data, run)).trainable_variables
    assert len(moved) > 2 * len(weights)


def test_lamb_is_that_of_keras_or_where_it_has_none_of_tensorflow_addons(tmp_path):
    config = runs.settings(tmp_path, tmp_path, optimizer="lamb")
    made = optimizers.make_optimizer(config, optimizers.learning_rate_schedule(config, 10))
    package = type(made).__module__.partition(".")[0]
    assert package == ("keras" if hasattr(tf.keras.optimizers, "Lamb") else "tensorflow_addons")


def test_lamb_without_both_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delattr(tf.keras.optimizers, "Lamb", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_addons.optimizers", None)
    config = runs.settings(tmp_path, tmp_path, optimizer="lamb")
    with pytest.raises(ConfigError, match="install the extra tf214, or use adam"):
        optimizers.make_optimizer(config, optimizers.learning_rate_schedule(config, 10))


# --- The frozen codec -----------------------------------------------------------------------------


def weights_of(data: Path, run: Path, **given) -> tf.keras.Model:
    """The model of a run's newest checkpoint."""
    model = models.create(runs.settings(data, run, **given))
    state = tf.train.Checkpoint(weights=models.variables(model))
    assert trainer.Checkpoints(run / "checkpoints", state).restore(partial=True) == SHORT
    return model


def test_the_codec_of_the_separate_model_is_that_of_its_run_bit_by_bit(data, trained):
    codec, run = trained("compression")[0], trained("separate")[0]
    given = {"model": "separate", "codec_run": str(codec)}
    ours, fresh = weights_of(data, run, **given), models.create(runs.settings(data, run, **given))
    theirs = weights_of(data, codec, model="compression").get_weights()
    assert len(theirs) == 15
    for mine, trained_one, initial in zip(
        ours.compression.get_weights(), theirs, fresh.compression.get_weights()
    ):
        np.testing.assert_array_equal(mine, trained_one)
        assert np.any(mine != initial)  # or nothing was restored
    for mine, initial in zip(ours.reconstruction.get_weights(), fresh.reconstruction.get_weights()):
        assert np.any(mine != initial)


def test_the_optimizer_of_the_separate_model_knows_the_reconstruction_alone(trained):
    shapes = [np.shape(value) for value in runs.state(trained("separate")[0]).values()]
    alone = [np.shape(value) for value in runs.state(trained("reconstruction")[0]).values()]
    codec = models.create(runs.settings(Path(), Path(), model="compression"))
    extra = sorted(shapes)
    for shape in alone:
        extra.remove(shape)
    assert extra == sorted(w.shape for w in codec.get_weights())


def test_a_resumed_separate_run_needs_its_codec_no_more(data, trained, tmp_path, capsys):
    codec = shutil.copytree(trained("compression")[0], tmp_path / "codec")
    given = {"model": "separate", "codec_run": str(codec)}
    run = runs.train(data, tmp_path / "run", steps=1, **given)
    assert f"codec: step {SHORT} of {codec}" in capsys.readouterr().out
    shutil.rmtree(codec)
    runs.train(data, run, steps=SHORT, **given)
    assert "codec: " not in capsys.readouterr().out
    runs.assert_same_state(run, trained("separate")[0])


def _no_codec(tmp_path: Path, trained) -> tuple[dict, str]:
    given = {"codec_run": str(tmp_path / "missing")}
    return given, "no codec at .*missing: train one with --model=compression, and name its run"


def _a_run_of_another_model(tmp_path: Path, trained) -> tuple[dict, str]:
    return {"codec_run": str(trained("implicit")[0])}, "is of model implicit: train one with"


def _a_codec_with_other_settings(tmp_path: Path, trained) -> tuple[dict, str]:
    given = {"codec_run": str(trained("compression")[0]), "gamma": 0.5, "codec": "small_b"}
    return given, r"has other settings \(codec: small_a -> small_b; gamma: 1.0 -> 0.5\): repeat its"


def _a_codec_of_another_width(tmp_path: Path, trained) -> tuple[dict, str]:
    given = {"codec_run": str(trained("compression")[0]), "encoder_channels": (8, 16, 8)}
    return given, r"\(encoder_channels: 8,16,16 -> 8,16,8\)"


def _a_codec_without_checkpoint(tmp_path: Path, trained) -> tuple[dict, str]:
    copy = shutil.copytree(trained("compression")[0], tmp_path / "codec")
    shutil.rmtree(copy / "checkpoints")
    return {"codec_run": str(copy)}, "codec has no checkpoint: train one"


def _a_damaged_codec(tmp_path: Path, trained) -> tuple[dict, str]:
    copy = shutil.copytree(trained("compression")[0], tmp_path / "codec")
    (copy / "checkpoints" / f"step-{SHORT:08d}" / "state.index").unlink()
    return {"codec_run": str(copy)}, "is damaged"


def _a_codec_that_says_nothing_of_itself(tmp_path: Path, trained) -> tuple[dict, str]:
    (tmp_path / "config.json").write_text("{")
    return {"codec_run": str(tmp_path)}, "config.json is missing or damaged"


@pytest.mark.parametrize(
    "make",
    [
        _no_codec,
        _a_run_of_another_model,
        _a_codec_with_other_settings,
        _a_codec_of_another_width,
        _a_codec_without_checkpoint,
        _a_damaged_codec,
        _a_codec_that_says_nothing_of_itself,
    ],
    ids=lambda make: make.__name__.strip("_"),
)
def test_a_run_that_is_no_codec_of_the_model_is_refused(data, trained, tmp_path, make):
    given, words = make(tmp_path, trained)
    line = refusal(UserError, data, tmp_path / "run", model="separate", **given)
    assert re.search(words, line), line
    assert not (tmp_path / "run").exists()


def test_a_codec_trained_with_other_settings_of_training_is_a_codec(data, trained, capsys):
    """What is compared is the network."""
    codec = trained("compression")[0]
    given = {"codec_run": str(codec), "views_max": 2, "seed": 5, "precision": "mixed_bfloat16"}
    config = runs.settings(data, codec, model="separate", **given)
    model = models.create(config)
    trainer.restore_codec(config, model)
    assert capsys.readouterr().out == f"codec: step {SHORT} of {codec}\n"
    expected = weights_of(data, codec, model="compression").get_weights()
    for found, wanted in zip(model.compression.get_weights(), expected):
        np.testing.assert_array_equal(found, wanted)


# --- Resuming -------------------------------------------------------------------------------------


def test_every_weight_is_in_the_checkpoint(data, finished):
    saved = {np.array(value).tobytes() for value in runs.state(finished).values()}
    model = models.create(runs.settings(data, finished, seed=1))
    fresh = {weight.tobytes() for weight in model.get_weights()}
    state = tf.train.Checkpoint(weights=models.variables(model))
    trainer.Checkpoints(finished / "checkpoints", state).restore(partial=True)
    weights = [weight.tobytes() for weight in model.get_weights()]
    assert set(weights) <= saved
    assert not set(weights) & fresh


def test_a_finished_run_is_left_as_it_is(data, finished, capsys):
    before = contents(finished)
    runs.train(data, finished, checkpoint_every=2)
    assert contents(finished) == before
    assert f"already trained: {runs.STEPS} steps in" in capsys.readouterr().out


def test_a_finished_run_with_more_steps_ends_as_the_longer_run(data, tmp_path, finished, capsys):
    run = runs.train(data, tmp_path / "run", steps=3)
    runs.train(data, run, steps=runs.STEPS)
    assert f"resuming at step 3 of {runs.STEPS}" in capsys.readouterr().out
    runs.assert_same_state(run, finished)


def test_a_run_may_go_on_computing_iterations_again(data, trained, tmp_path):
    run = shutil.copytree(trained("compression")[0], tmp_path / "run")
    before = runs.state(run)
    given = {"model": "compression", "steps": SHORT + 1, "recompute": True}
    runs.train(data, run, **given)
    assert trainer.read_run(run)["config"]["recompute"] is True
    after = runs.state(run)
    assert after.keys() == before.keys()
    assert all(np.any(after[n] != before[n]) for n in after if np.ndim(after[n]) > 1)


def test_two_processes_do_not_train_in_one_directory(data, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    other = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process writes to"):
            runs.train(data, run, steps=runs.STEPS + 1)
    finally:
        os.close(other)
    runs.train(data, run, steps=runs.STEPS + 1)


def test_another_seed_gives_other_weights(other, finished):
    """What the comparisons of weights compare with: they can fail."""
    ours, theirs = runs.state(other[0]), runs.state(finished)
    assert not any(np.array_equal(ours[n], theirs[n]) for n in ours if np.ndim(ours[n]))


@pytest.mark.long
@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(data, tmp_path):
    """SIGKILL while it starts, between checkpoints, and while one is being written."""
    chance = random.Random(2003)
    given = {"steps": 24, "checkpoint_every": 1, "picture_every": ENDLESS}
    run = tmp_path / "run"
    kills = {"starting": 0, "training": 0, "saving": 0}
    for moment in ("starting", "saving", "training"):
        process = _start(data, run, **given)
        try:
            if moment == "starting":
                time.sleep(chance.uniform(1, 4))
            else:
                wanted = _last_step(run) + chance.randint(1, 6)
                _wait(lambda: _last_step(run) >= wanted, process)  # noqa: B023
            if moment == "saving":
                _wait(lambda: any((run / "checkpoints").glob(".step-*.tmp")), process)
            elif moment == "training":
                time.sleep(chance.uniform(0, 0.02))
            if process.poll() is None:
                kills[moment] += 1
        finally:
            process.kill()
            process.wait()
        if moment != "starting":
            assert _last_step(run) > 0
    assert min(kills.values()) >= 1, kills
    assert _last_step(run) < 24

    result = runs.finish(runs.command(data, run, **given))
    assert result.returncode == 0, result.stderr
    assert "resuming at step" in result.stdout
    undisturbed = runs.train(data, tmp_path / "undisturbed", steps=24, picture_every=ENDLESS)
    runs.assert_same_state(run, undisturbed)


def _start(data: Path, run: Path, **given) -> subprocess.Popen:
    return subprocess.Popen(
        runs.command(data, run, **given),
        cwd=runs.ROOT,
        env=runs.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _last_step(run: Path) -> int:
    try:
        return max(runs.steps(run), default=0)
    except FileNotFoundError:
        return 0


def _wait(condition, process: subprocess.Popen, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the run did not come so far"


# --- What is not a number -------------------------------------------------------------------------


def _nan_from(step: tf.Tensor, first: int) -> tf.Tensor:
    return tf.where(step >= first, math.nan, 0.0)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_term(
    data, tmp_path, finished, monkeypatch
):
    def poisoned(config, batch, output):
        terms = loss_terms(config, batch, output)
        nan = _nan_from(batch["step"], 4)  # the fifth step
        return {**terms, "L_3D": terms["L_3D"] + nan, "loss": terms["loss"] + nan}

    loss_terms = trainer.loss_terms
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "loss_terms", poisoned)
        line = refusal(NonFiniteError, data, tmp_path / "run", checkpoint_every=2)
    assert line.startswith("step 5: L_3D is nan, loss is nan")
    assert "L_comp" not in line
    assert "--learning_rate" in line
    # What is kept is good: without the poison the run ends as if nothing had happened.
    assert runs.steps(tmp_path / "run") == [2, 4]
    runs.assert_same_state(runs.train(data, tmp_path / "run", checkpoint_every=2), finished)


def test_a_gradient_that_is_not_a_number_stops_the_run_though_the_loss_is_one(
    data, tmp_path, monkeypatch
):
    def poisoned(config, batch, output):
        @tf.custom_gradient
        def same(value):
            return value, lambda upstream: upstream + _nan_from(batch["step"], 1)

        terms = loss_terms(config, batch, output)
        return {**terms, "loss": same(terms["loss"])}

    loss_terms = trainer.loss_terms
    monkeypatch.setattr(trainer, "loss_terms", poisoned)
    line = refusal(NonFiniteError, data, tmp_path / "run", checkpoint_every=1)
    assert line.startswith("step 2: gradient_norm is nan. ")
    assert runs.steps(tmp_path / "run") == [1]


# --- TensorBoard ----------------------------------------------------------------------------------


def test_the_log_holds_every_curve(finished):
    for name in ("L_comp", "L_3D", "loss", "gradient_norm", "objects_per_second"):
        points = runs.curve(finished, name)
        assert list(points) == [1, runs.STEPS]  # the first and the last, however rare the lines
        assert all(value > 0 for value in points.values())
    assert runs.curve(finished, "learning_rate") == {1: pytest.approx(5e-4), 6: pytest.approx(5e-4)}


def test_the_log_holds_strips_of_the_original_and_each_iteration(data, finished):
    found = {tag: (s, v) for s, tag, plugin, v in runs.events(finished) if plugin == "images"}
    config = runs.settings(data, finished)
    test = dataset.open_split(config, "test")
    examples = list(dataset.evaluation_examples(config, test, config.views_max, config.seed))
    assert len(found) == trainer.PICTURED_OBJECTS == 3
    for example in examples[::2]:  # spread over the five
        name = f"{example.category} {example.object_id}/original, then each iteration"
        step, (width, height, png) = found[name]
        assert step == runs.STEPS
        assert (int(width), int(height)) == (32 * (1 + config.iterations_max), 32)
        strip = tf.io.decode_png(png).numpy()
        np.testing.assert_allclose(strip[:, :32] / 255, example.images[0], atol=1 / 255)
        assert strip.shape == (32, 32 * 5, 3)
        assert np.ptp(strip[:, 32:].astype(int)) > 0


def test_the_log_holds_meshes_of_reconstruction_and_truth(data, finished):
    found = {tag: v for _, tag, plugin, v in runs.events(finished) if plugin == "mesh"}
    assert len({tag.rpartition("_")[0] for tag in found}) == 2 * trainer.PICTURED_OBJECTS
    for index in (0, 2, 4):
        record = RecordSet(data, "test").record(index)
        name = f"{record.category} {record.object_id}"
        vertices, faces = voxels.surface(record.voxels)
        np.testing.assert_array_equal(found[f"{name}/truth_VERTEX"], vertices[None])
        np.testing.assert_array_equal(found[f"{name}/truth_FACE"], faces[None])
        assert found[f"{name}/reconstruction_VERTEX"].shape[-1] == 3
        assert found[f"{name}/reconstruction_COLOR"].dtype == np.uint8


def test_curves_and_pictures_come_as_often_as_asked(talkative):
    assert list(runs.curve(talkative, "loss")) == [1, 2, 4, 5]
    assert {s for s, _, plugin, _ in runs.events(talkative) if plugin == "images"} == {3, 5}


def test_a_progress_line_says_step_speed_parts_and_time_left():
    terms = {"L_comp": 0.25, "L_3D": 0.5, "loss": 0.75}
    line = trainer.progress_line(20, 1000, 12.34, terms, 185.2)
    assert line == "step   20/1000   12.3 objects/s  L_comp 0.2500  L_3D 0.5000  ETA 3:05"


# --- The run directory ----------------------------------------------------------------------------


def test_a_run_says_what_made_it(data, finished):
    description = json.loads((finished / "config.json").read_text())
    config = runs.settings(data, finished, checkpoint_every=2)
    assert description["config"] == config.to_json()
    assert description["data_sha256"] == records.manifest_sha256(data)
    assert description["versions"]["tensorflow"] == tf.__version__
    assert description["code_revision"]
    assert trainer.read_run(finished) == description


def test_a_changed_config_is_refused_and_the_difference_shown(data, finished):
    line = refusal(ConfigError, data, finished, seed=7, learning_rate=0.01)
    assert "seed: 0 -> 7" in line and "learning_rate: 0.0005 -> 0.01" in line
    assert "--run_dir" in line
    assert "steps" not in line


def test_changed_data_are_refused(tmp_path, finished):
    other = tiny.make(tmp_path / "other", train=13)
    line = refusal(ConfigError, other, finished)
    assert "data_sha256: " in line
    assert records.manifest_sha256(other) in line


def test_the_same_data_elsewhere_are_the_same(data, tmp_path, finished, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    copy = shutil.copytree(data, tmp_path / "copy")
    runs.train(copy, run)
    assert "already trained" in capsys.readouterr().out


def test_a_resumed_run_goes_on_with_the_settings_of_the_newest_command(data, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    moved = shutil.copytree(data, tmp_path / "moved")
    before = trainer.read_run(run)
    runs.train(moved, run, checkpoint_every=2, log_every=3)
    after = trainer.read_run(run)
    assert after["config"] == {
        **before["config"],
        "data": str(moved),
        "run_dir": str(run),
        "log_every": 3,
    }
    kept = ("code_revision", "versions", "data_sha256")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_other_versions_are_told(data, tmp_path, finished, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    description = json.loads((run / "config.json").read_text())
    description["versions"]["tensorflow"] = "1.0"
    files.write_json(run / "config.json", description)
    runs.train(data, run)
    assert "note: " in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}}', '{"config": {"seeed": 1}}'])
def test_a_damaged_config_is_refused(data, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "config.json is missing or damaged" in refusal(ConfigError, data, tmp_path)


def test_a_damaged_checkpoint_is_refused(data, tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "checkpoints" / f"step-{runs.STEPS:08d}" / "state.index").unlink()
    assert "is damaged" in refusal(UserError, data, run)


def test_a_directory_that_is_no_run_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is not empty and has no config.json" in refusal(ConfigError, data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert "is not a directory" in refusal(ConfigError, data, tmp_path / "thesis.tex")
    assert "cannot be written" in refusal(ConfigError, data, tmp_path / "thesis.tex" / "run")


def test_what_a_run_killed_at_its_very_start_left_is_no_obstacle(data, tmp_path):
    (tmp_path / ".config.json.99.tmp").write_text("{")
    config = runs.settings(data, tmp_path)
    trainer.claim_run_directory(tmp_path, config, "0" * 64, {}, write=True)
    assert trainer.read_run(tmp_path)["config"] == config.to_json()


def test_only_who_shall_write_claims_a_directory(data, tmp_path):
    config = runs.settings(data, tmp_path / "run")
    trainer.claim_run_directory(tmp_path / "run", config, "0" * 64, {}, write=False)
    assert not (tmp_path / "run").exists()


def _without_data(data: Path) -> str:
    shutil.rmtree(data)
    return "no record directory"


def _without_manifest(data: Path) -> str:
    (data / "manifest.json").unlink()
    return "manifest.json"


def _with_a_flipped_byte(data: Path, split: str = "train") -> str:
    path = sorted(data.glob(f"{split}-*"))[-1]
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    return f"{path.name} is damaged"


def _with_a_flipped_byte_in_the_test_split(data: Path) -> str:
    return _with_a_flipped_byte(data, "test")


def _without_a_shard(data: Path) -> str:
    path = sorted(data.glob("train-*"))[-1]
    path.unlink()
    return f"{path.name} is missing"


def _with_an_empty_split(data: Path, split: str = "train") -> str:
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"][split] = []
    files.write_json(data / "manifest.json", manifest)
    return f"split '{split}'"


def _with_an_empty_test_split(data: Path) -> str:
    return _with_an_empty_split(data, "test")


def _with_another_count(data: Path) -> str:
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["train"][0]["records"] += 1
    files.write_json(data / "manifest.json", manifest)
    return "the manifest says"


def _of_another_schema(data: Path) -> str:
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["schema"] = 99
    files.write_json(data / "manifest.json", manifest)
    return "schema 99"


@pytest.mark.parametrize(
    "damage",
    [
        _without_data,
        _without_manifest,
        _with_a_flipped_byte,
        _with_a_flipped_byte_in_the_test_split,
        _without_a_shard,
        _with_an_empty_split,
        _with_an_empty_test_split,
        _with_another_count,
        _of_another_schema,
    ],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_records_are_refused_before_anything_is_written(data, tmp_path, damage):
    copy = shutil.copytree(data, tmp_path / "data")
    words = damage(copy)
    assert words in refusal(UserError, copy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image_size": 48}, "image_size=48"),
        ({"views_max": 7}, "views_max=7"),
        ({"grid_size": 2}, "grid_size=4"),
    ],
)
def test_a_config_that_does_not_fit_the_records_is_refused(data, tmp_path, given, words):
    assert words in refusal(ConfigError, data, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_minibatch_that_cannot_be_shared_is_refused_before_anything_is_written(
    data, tmp_path, two_cpus
):
    strategy = tf.distribute.MirroredStrategy(two_cpus)
    line = refusal(ConfigError, data, tmp_path / "run", strategy, batch_size=5)
    assert "batch_size=5 cannot be shared by 2 replicas: use a multiple of 2" in line
    assert not (tmp_path / "run").exists()
