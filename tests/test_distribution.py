"""Several devices and several processes compute what one device does; who writes, who is missed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import runs
import tensorflow as tf

from tfjoint import trainer, workers
from tfjoint.config import ConfigError
from tfjoint.workers import WorkerError

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

STEPS = 6
"""Later, rounding shows: Adam divides small gradients by their own size."""
TERMS = ("L_comp", "L_3D", "loss")
PATIENCE = 240
"""Seconds for a start of two processes, on a machine that has other work."""


def assert_same_losses(run: Path, other: Path) -> None:
    for name in TERMS:
        ours, theirs = runs.curve(run, name), runs.curve(other, name)
        assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-6)


def assert_close_weights(run: Path, other: Path) -> None:
    ours, theirs = runs.state(run), runs.state(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def one(data, tmp_path_factory) -> Path:
    """The run that all others are compared with: one device, every step in the log."""
    return runs.train(data, tmp_path_factory.mktemp("one") / "run", steps=STEPS, log_every=1)


# --- Two devices ----------------------------------------------------------------------------------


@pytest.mark.long
def test_two_devices_have_the_losses_and_weights_of_one(data, tmp_path, one, two_cpus):
    strategy = tf.distribute.MirroredStrategy(two_cpus)
    run = runs.train(data, tmp_path / "run", strategy, steps=STEPS, log_every=1)
    assert_same_losses(run, one)
    assert_close_weights(run, one)


def test_a_run_begun_on_one_device_goes_on_with_two(data, tmp_path, finished, two_cpus):
    run = shutil.copytree(finished, tmp_path / "run")
    strategy = tf.distribute.MirroredStrategy(two_cpus)
    runs.train(data, run, strategy, steps=runs.STEPS + 1)
    assert runs.steps(run)[-1] == runs.STEPS + 1
    state = runs.state(run)
    assert state.keys() == runs.state(finished).keys()


# --- Several processes ----------------------------------------------------------------------------


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _tf_config(ports: list[int], index: int) -> str:
    addresses = [f"localhost:{port}" for port in ports]
    return json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    )


class Worker:
    """A process of `python -m tfjoint.train`, with its output in a file."""

    def __init__(self, command: list[str], ports: list[int], index: int, log: Path) -> None:
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=runs.ROOT,
                env=runs.environment(TF_CONFIG=_tf_config(ports, index)),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    def error(self) -> str:
        """The one line with which the process says what is wrong."""
        text = self.log.read_text()
        assert "Traceback" not in text
        (line,) = re.findall(r"^error: .*$", text, re.MULTILINE)
        return line


@contextlib.contextmanager
def two_workers(data: Path, directories: list[Path], log: Path, **given) -> Iterator[list[Worker]]:
    """Two processes that train together; none outlives the block."""
    ports = _ports(2)
    log.mkdir(parents=True, exist_ok=True)
    started = [
        Worker(runs.command(data, run, steps=STEPS, **given), ports, index, log / f"{index}.log")
        for index, run in enumerate(directories)
    ]
    try:
        yield started
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.wait()


@pytest.fixture(scope="module")
def two(data, tmp_path_factory) -> Path:
    """An undisturbed run of two processes; the second is given a directory of its own."""
    directory = tmp_path_factory.mktemp("two")
    directories = [directory / "run", directory / "second"]
    with two_workers(data, directories, directory / "log", log_every=1) as both:
        assert [worker.end() for worker in both] == [0, 0], both[0].log.read_text()
        assert "exported: " in both[0].log.read_text()
        assert "exported: " not in both[1].log.read_text()
    return directory / "run"


@pytest.mark.slow
def test_two_processes_have_the_losses_and_weights_of_one(two, one):
    assert_same_losses(two, one)
    assert_close_weights(two, one)


@pytest.mark.slow
def test_only_the_chief_writes(two):
    assert {path.name for path in two.iterdir()} == {
        *("config.json", "checkpoints", "logs", "export")
    }
    assert len(list((two / "logs").iterdir())) == 1
    assert not two.with_name("second").exists()


@pytest.mark.slow
def test_workers_that_do_not_share_the_run_directory_are_refused(data, tmp_path, two):
    run = shutil.copytree(two, tmp_path / "run")
    directories = [run, tmp_path / "second"]
    with two_workers(data, directories, tmp_path / "log", log_every=1) as both:
        assert [worker.end() for worker in both] == [2, 2]
        for worker in both:
            assert f"checkpoints of different steps ({STEPS}, 0)" in worker.error()


@pytest.mark.slow
@pytest.mark.long
def test_when_a_worker_is_killed_the_other_ends_and_both_resume(data, tmp_path, two):
    run = tmp_path / "run"
    # Pictures at every step leave time to kill between the first step and the last.
    given = {"checkpoint_every": 1, "picture_every": 1}
    with two_workers(data, [run, run], tmp_path / "log", **given) as both:
        end = time.monotonic() + PATIENCE
        while not (run / "checkpoints" / "index.json").exists() or max(runs.steps(run) or [0]) < 3:
            assert time.monotonic() < end, both[0].log.read_text()
            assert both[0].process.poll() is None, both[0].log.read_text()
            time.sleep(0.01)
        both[1].process.kill()
        killed = time.monotonic()
        assert both[0].end() == 2
        seconds = time.monotonic() - killed
        line = both[0].error()
    assert "a worker was lost" in line
    assert (
        "start all workers again" in line and f"resume from the newest checkpoint in {run}" in line
    )
    assert seconds < 60  # about 10 where it is noticed by missing heartbeats alone
    last = runs.steps(run)[-1]
    assert 3 <= last < STEPS

    with two_workers(data, [run, run], tmp_path / "again", **given) as both:
        assert [worker.end() for worker in both] == [0, 0], both[0].log.read_text()
        for worker in both:
            assert f"resuming at step {last} of {STEPS}" in worker.log.read_text()
    runs.assert_same_state(run, two)


# --- Choosing a strategy --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tf_config",
    [
        "worker:1234",
        "[]",
        "3",
        '{"cluster": []}',
        '{"cluster": {"worker": 3}}',
        '{"cluster": {"worker": [1, 2]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a", "b"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": -1}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": "0"}}',
    ],
)
def test_a_tf_config_that_describes_no_cluster_is_one_line(tf_config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config)
    with pytest.raises(ConfigError, match="it looks like") as caught:
        workers.select_strategy()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tf_config", [None, "", "{}", '{"cluster": {"worker": ["a:1"]}}'])
def test_a_process_alone_is_the_chief_of_one_device(tf_config, monkeypatch):
    if tf_config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", tf_config)
    strategy = workers.select_strategy()
    assert strategy.num_replicas_in_sync == 1
    assert workers.is_chief(strategy)


def test_a_wrong_tf_config_ends_the_command_with_code_2(data, tmp_path):
    command = runs.command(data, tmp_path / "run")
    line = runs.refusal(command, TF_CONFIG="worker:1234")
    assert "TF_CONFIG" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_port_in_use_ends_the_command_with_code_2(data, tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ports = [taken.getsockname()[1], *_ports(1)]
        line = runs.refusal(runs.command(data, tmp_path), TF_CONFIG=_tf_config(ports, 0))
    assert "cannot be joined" in line


class _Cluster:
    """As much of a strategy as tells who is chief."""

    def __init__(self, task_type: str, task_id: int, jobs: dict[str, list[str]]) -> None:
        self.cluster_resolver = self
        self.task_type, self.task_id = task_type, task_id
        self.cluster_spec = lambda: tf.train.ClusterSpec(jobs)


@pytest.mark.parametrize(
    ("task", "index", "jobs", "expected"),
    [
        ("worker", 0, {"worker": ["a:1", "b:1"]}, True),
        ("worker", 1, {"worker": ["a:1", "b:1"]}, False),
        ("worker", 0, {"chief": ["c:1"], "worker": ["a:1"]}, False),
        ("chief", 0, {"chief": ["c:1"], "worker": ["a:1"]}, True),
        ("", None, {}, True),
    ],
)
def test_the_chief_is_the_first_worker_unless_there_is_a_chief(task, index, jobs, expected):
    assert workers.is_chief(_Cluster(task, index, jobs)) is expected


# --- What workers must agree on -------------------------------------------------------------------


@pytest.fixture
def agree(tmp_path, monkeypatch):
    """A function: what worker 0 and worker 1 pass to `require_agreement`, as (settings, step)."""
    monkeypatch.setattr(workers, "_several", lambda strategy: True)

    def check(*passed: tuple[dict, int]) -> None:
        rows = []
        monkeypatch.setattr(
            workers, "_gather", lambda _, values: rows.append(values) or _rows(rows)
        )
        for given, step in passed:
            given = dict(given)
            digest = given.pop("data_sha256", "0" * 64)
            directory = tmp_path / given.pop("directory", "")
            config = runs.settings(directory / "data", directory / "run", **given)
            workers.require_agreement(tf.distribute.get_strategy(), config, digest, step)

    return check


def _rows(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, np.int64)


def test_workers_with_the_same_settings_agree(agree):
    agree(({"directory": "here"}, 3), ({"directory": "there"}, 3))


@pytest.mark.parametrize("other", [{"seed": 1}, {"steps": 7}, {"data_sha256": "1" * 64}])
def test_workers_with_other_settings_or_data_do_not_agree(agree, other):
    with pytest.raises(WorkerError, match="different settings or data"):
        agree(({}, 3), (other, 3))


def test_workers_at_other_steps_do_not_agree(agree):
    with pytest.raises(WorkerError, match=r"different steps \(3, 0\)"):
        agree(({}, 3), ({}, 0))


def test_an_error_on_one_device_is_not_taken_for_a_lost_worker(tmp_path):
    error = tf.errors.InternalError(None, None, "broken")
    with (
        pytest.raises(tf.errors.InternalError),
        workers.all_needed(tf.distribute.get_strategy(), tmp_path),
    ):
        raise error


def test_a_lost_worker_is_told_by_tensorflows_own_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_several", lambda strategy: True)
    text = (
        "Graph execution error:\n\nDetected at\n\nCollective ops is aborted by: gone.\n\t [[{{x}}]]"
    )
    with pytest.raises(WorkerError, match=r"\(Collective ops is aborted by: gone.\)"):
        with workers.all_needed(tf.distribute.get_strategy(), tmp_path):
            raise tf.errors.UnavailableError(None, None, text)


def test_a_finished_run_of_one_process_is_found_finished(data, finished, capsys):
    config = runs.settings(data, finished, checkpoint_every=2)
    trainer.train(config, workers.select_strategy())
    assert "already trained" in capsys.readouterr().out
