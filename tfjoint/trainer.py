"""The training loop: the same on one device, on all GPUs of a machine, on several machines.

Order of initialisation:
  1. strategy, before anything else touches a device
  2. determinism of the operations
  3. records, verified
  4. model, optimizer (inside the strategy's scope)
  5. the frozen codec of another run, where the system has one
  6. run directory: its config must be this config; nothing is written before
  7. newest checkpoint; all workers must have found the same
  8. minibatches from the checkpoint's step on
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfjoint import config as configuration
from tfjoint import files, models, provenance, workers
from tfjoint.checkpoint import Checkpoints
from tfjoint.config import Config, ConfigError
from tfjoint.dataset import (
    Replicas,
    Split,
    crop_note,
    evaluation_examples,
    open_split,
    rows_per_replica,
    training_dataset,
)
from tfjoint.errors import UserError
from tfjoint.layers import BinarizerNoise
from tfjoint.losses import loss_terms
from tfjoint.optimizers import build_optimizer, learning_rate_schedule, make_optimizer
from tfjoint.summaries import Summaries

CONFIG_FILE = "config.json"
PICTURED_OBJECTS = 3


class NonFiniteError(UserError):
    """A loss term or the gradient is no longer a number."""


def train(
    config: Config, strategy: tf.distribute.Strategy, origins: Mapping[str, str] | None = None
) -> Path:
    """Train `config.model` to its last step, from the newest checkpoint if there is one.

    Returns the run directory, which holds config.json, checkpoints/ and logs/.

    Raises:
      UserError: records, run directory or checkpoint are damaged or do not fit the config, or the
        loss stopped being a number; one line says what to do.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    records, test = open_split(config, "train"), open_split(config, "test")
    rows_per_replica(config, strategy.num_replicas_in_sync)
    steps = total_steps(config, len(records))
    schedule = learning_rate_schedule(config, len(records))
    run = Path(config.run_directory)
    with workers.all_needed(strategy, run), contextlib.ExitStack() as alone:
        with strategy.scope():
            model = models.create(config)
            optimizer = make_optimizer(config, schedule)
            build_optimizer(optimizer, model.trainable_variables)
        state = tf.train.Checkpoint(weights=models.variables(model), optimizer=optimizer)
        checkpoints = Checkpoints(run / "checkpoints", state)
        if config.uses("codec_run") and not checkpoints.newest():
            restore_codec(config, model)
        claim_run_directory(
            run, config, records.data_sha256, origins or {}, workers.is_chief(strategy)
        )
        if workers.is_chief(strategy):
            alone.enter_context(files.only_writer(run))
        start = checkpoints.restore()
        workers.require_agreement(strategy, config, records.data_sha256, start)
        if start >= steps:
            print(f"already trained: {start} steps in {run}, asked for {steps}")
            return run
        if workers.is_chief(strategy) and (note := crop_note(config, records.manifest)):
            print(note)
        print(f"{'resuming at' if start else 'starting at'} step {start} of {steps} in {run}")

        results = _steps(config, strategy, model, optimizer, records, start, steps)
        observer = _Observer(config, run, model, test) if workers.is_chief(strategy) else None
        for step, terms in enumerate(results, start + 1):
            _require_finite(terms, step, checkpoints)
            if observer:
                observer.observe(step, steps, terms, float(schedule(step - 1)))
                if step % config.checkpoint_every == 0 or step == steps:
                    checkpoints.save(step)
    return run


def total_steps(config: Config, objects: int) -> int:
    """Return the number of minibatches that the config asks for."""
    return config.steps or math.ceil(config.epochs * objects / config.batch_size)


def claim_run_directory(
    run: Path, config: Config, data_sha256: str, origins: Mapping[str, str], write: bool
) -> None:
    """Check that `run` is new or belongs to this config and data; then write its config.json.

    A resumed run keeps the code revision and the versions it was started with; its free settings
    become those of the newest command. Raises `ConfigError` that shows what differs.
    """
    path = run / CONFIG_FILE
    description = {
        "config": config.to_json(),
        "origins": dict(origins),
        "data_sha256": data_sha256,
        "code_revision": provenance.code_revision(),
        "versions": provenance.versions(),
    }
    new = {**config.to_json(), "data_sha256": data_sha256}
    if path.exists():
        old = read_run(run)
        if differences := configuration.changes(
            {**old["config"], "data_sha256": old["data_sha256"]}, new
        ):
            raise ConfigError(
                f"{run} was trained with another config ({'; '.join(differences)}): "
                "repeat the old values, or use another --run_dir"
            )
        if old["versions"] != provenance.versions():
            print(f"note: {run} was started with {old['versions']}; results may differ in rounding")
        if old["config"] == description["config"]:
            return
        description |= {name: old[name] for name in ("code_revision", "versions")}
    elif run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is not a directory: use another --run_dir")
    # A config.json may be under way, in another worker or when this run was killed.
    elif run.exists() and not all(map(files.is_temporary, run.iterdir())):
        raise ConfigError(
            f"{run} is not empty and has no {CONFIG_FILE}, so it is not a run of this program: "
            "use another --run_dir"
        )
    if write:
        try:
            files.write_json(path, description)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error}): use another --run_dir"
            ) from error


def restore_codec(config: Config, model: models.Separate) -> None:
    """Give the model the trained codec of `config.codec_run`.

    Raises `ConfigError` where that is not a trained compression run with the config's codec.
    """
    run = Path(config.codec_run)
    advice = "train one with --model=compression, and name its run directory with --codec_run"
    if not (run / CONFIG_FILE).exists():
        raise ConfigError(f"no codec at {run}: {advice}")
    trained = read_run(run)["config"]
    if trained["model"] != "compression":
        raise ConfigError(f"{run} is of model {trained['model']}: {advice}")
    names = ("codec", "encoder_channels", "decoder_channels", "code_channels", "gamma", "binarizer")
    own = config.to_json()
    if differences := configuration.changes(*({n: of[n] for n in names} for of in (trained, own))):
        raise ConfigError(
            f"the codec of {run} has other settings ({'; '.join(differences)}): repeat its values, "
            f"or {advice}"
        )
    codec = tf.train.Checkpoint(weights=models.variables(model.compression))
    step = Checkpoints(run / "checkpoints", codec).restore(partial=True)
    if not step:
        raise ConfigError(f"{run} has no checkpoint: {advice}")
    print(f"codec: step {step} of {run}")


def read_run(run: Path) -> dict[str, Any]:
    """Return what `config.json` of a run says. Raises `ConfigError`."""
    path = run / CONFIG_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        Config.from_json(description["config"])
        if missing := {"data_sha256", "versions", "code_revision"} - set(description):
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is missing or damaged ({error}): restore it, or use another --run_dir"
        ) from error
    return description


def training_step(
    config: Config,
    model: tf.keras.Model,
    optimizer: tf.keras.optimizers.Optimizer,
    replicas: int = 1,
) -> Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """Return a function of a batch, as `training_dataset` yields it, that applies one step.

    It returns the loss terms of one of so many replicas, and the norm of its gradient.
    """

    def step(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        images = batch["images"]
        views = tf.shape(images)[1]
        noise = BinarizerNoise(
            seed=tf.stack([config.seed, batch["step"]]),
            first_row=batch["first_object"] * views,
            total_rows=config.batch_size * views,
        )
        with tf.GradientTape() as tape:
            output = model(images, iterations=batch["iterations"], noise=noise)
            terms = loss_terms(config, batch, output)
            # Gradients are summed over replicas; the mean is wanted.
            loss = terms["loss"] / replicas
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        # The norm of this replica's own gradient; its mean over replicas is reported.
        return {**terms, "gradient_norm": replicas * tf.linalg.global_norm(gradients)}

    return step


def _steps(
    config: Config,
    strategy: tf.distribute.Strategy,
    model: tf.keras.Model,
    optimizer: tf.keras.optimizers.Optimizer,
    records: Split,
    start: int,
    stop: int,
) -> Iterator[dict[str, float]]:
    """Yield the loss terms of each step, after it was applied."""
    total = strategy.num_replicas_in_sync

    def minibatches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = total // context.num_input_pipelines
        replicas = Replicas(context.input_pipeline_id * local, local, total)
        return training_dataset(config, records, start, stop, replicas)

    replica_step = training_step(config, model, optimizer, total)

    @tf.function
    def step(iterator):
        # `next` inside the graph keeps V unknown: one trace serves every number of views.
        terms = strategy.run(replica_step, args=(next(iterator),))
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.MEAN, term, axis=None)
            for name, term in terms.items()
        }

    iterator = iter(strategy.distribute_datasets_from_function(minibatches))
    for _ in range(start, stop):
        yield {name: float(term) for name, term in step(iterator).items()}
    assert step.experimental_get_tracing_count() == 1, "the training step was traced again"


def _require_finite(terms: Mapping[str, float], step: int, checkpoints: Checkpoints) -> None:
    if wrong := [f"{name} is {value}" for name, value in terms.items() if not np.isfinite(value)]:
        raise NonFiniteError(
            f"step {step}: {', '.join(wrong)}. The checkpoints in {checkpoints.directory} are from "
            "before and stay; try a lower --learning_rate in another --run_dir"
        )


class _Observer:
    """Progress lines and TensorBoard; changes nothing in the run."""

    def __init__(self, config: Config, run: Path, model: tf.keras.Model, test: Split) -> None:
        self._config = config
        # Spread over the split, because neighbours are of one category.
        pictured = np.unique(np.linspace(0, len(test) - 1, PICTURED_OBJECTS, dtype=int))
        examples = evaluation_examples(config, test, config.views_max, config.seed, pictured)
        self._examples = list(examples)
        self._images = tf.stack([example.images for example in self._examples])
        self._summaries = Summaries(run / "logs", self._examples)
        self._run_model = tf.function(model)
        self._since, self._first = time.monotonic(), True
        self._terms_since: list[Mapping[str, float]] = []  # since the last progress line

    def observe(self, step: int, steps: int, terms: Mapping[str, float], rate: float) -> None:
        self._terms_since.append(terms)
        if step % self._config.log_every == 0 or step == steps or self._first:
            seconds, count = time.monotonic() - self._since, len(self._terms_since)
            speed = self._config.batch_size * count / seconds
            left = (steps - step) * seconds / count
            # Minibatches differ in views, iterations and objects: only a mean shows a trend.
            means = {n: float(np.mean([t[n] for t in self._terms_since])) for n in terms}
            print(progress_line(step, steps, speed, means, left), flush=True)
            values = {**means, "learning_rate": rate, "objects_per_second": speed}
            self._summaries.scalars(step, values)
            self._since, self._terms_since, self._first = time.monotonic(), [], False
        if step % self._config.picture_every == 0 or step == steps:
            iterations = tf.constant(self._config.iterations_max)
            self._summaries.pictures(step, self._run_model(self._images, iterations=iterations))


def progress_line(
    step: int, steps: int, speed: float, terms: Mapping[str, float], seconds_left: float
) -> str:
    """Return "step 20/1000  12.3 objects/s  L_comp 0.1210  ...  ETA 3:05", or h:mm:ss."""
    hours, seconds = divmod(round(seconds_left), 3600)
    left = (
        f"{hours}:{seconds // 60:02d}:{seconds % 60:02d}"
        if hours
        else (f"{seconds // 60}:{seconds % 60:02d}")
    )
    shown = "  ".join(f"{name} {value:.4f}" for name, value in terms.items() if name != "loss")
    return f"step {step:>{len(str(steps))}}/{steps}  {speed:5.1f} objects/s  {shown}  ETA {left}"
