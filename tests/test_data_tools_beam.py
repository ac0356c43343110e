"""The work as an Apache Beam pipeline: the results and the bytes of the processes, and its ends."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import furniture
import pytest

from data_tools import beam, jpeg2000_records, layout, open_set, pool, sweethome3d
from tfjoint.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam is not installed: make test-beam installs it",
)
TWO_PROCESSES = "--direct_running_mode=multi_processing --direct_num_workers=2"


def power(exponent: int, number: int) -> int:
    return number**exponent


def refuse_odd(number: int) -> int:
    if number % 2:
        raise UserError(f"{number} is odd: give an even one")
    return number


def divide_by(number: int) -> float:
    return 1 / number


def work_slowly(directory: Path, number: int) -> int:
    time.sleep(0.02)
    (directory / str(number)).touch()
    return number


class Picky(Exception):
    """An exception that cannot be made again from what it keeps."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} {why}")


def be_picky(number: int) -> None:
    raise Picky("too", "large")


def run(work, jobs, storage, options=()):
    return list(beam.run(work, jobs, 1, options, storage))


# --- What a worker does, without a pipeline -------------------------------------------------------


def exchange(directory: Path, work, *jobs) -> Path:
    for name in ("jobs", "results", "errors"):
        (directory / name).mkdir()
    (directory / "work.pickle").write_bytes(pickle.dumps(work))
    for index, job in enumerate(jobs):
        (directory / "jobs" / f"{index:08d}.pickle").write_bytes(pickle.dumps(job))
    return directory


def results(directory: Path) -> dict[str, object]:
    found = sorted((directory / "results").iterdir())
    return {path.stem: pickle.loads(path.read_bytes()) for path in found}


def test_a_job_is_done_from_its_file_into_a_file(tmp_path):
    root = exchange(tmp_path, functools.partial(power, 3), 5, 6)
    beam.do_job(str(root), 1)
    assert results(root) == {"00000001": 216}


def test_a_job_that_a_runner_repeats_is_not_done_again(tmp_path):
    root = exchange(tmp_path, divide_by, 4)
    beam.do_job(str(root), 0)
    (root / "jobs" / "00000000.pickle").unlink()
    beam.do_job(str(root), 0)
    assert results(root) == {"00000000": 0.25}


def test_after_a_users_mistake_no_other_job_is_begun(tmp_path):
    root = exchange(tmp_path, refuse_odd, 1, 2)
    beam.do_job(str(root), 0)
    beam.do_job(str(root), 1)
    assert results(root) == {}


def test_after_another_error_the_job_can_be_tried_again_and_the_others_go_on(tmp_path):
    root = exchange(tmp_path, divide_by, 0, 2)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            beam.do_job(str(root), 0)
    beam.do_job(str(root), 1)
    (root / "jobs" / "00000000.pickle").write_bytes(pickle.dumps(8))
    beam.do_job(str(root), 0)
    assert results(root) == {"00000000": 0.125, "00000001": 0.5}


def test_a_pipeline_that_outlives_its_run_does_no_job_of_the_next(tmp_path):
    with pytest.raises(FileNotFoundError):
        beam.do_job(str(tmp_path / "gone"), 0)
    assert not list(tmp_path.iterdir())


# --- The choice of the runner ---------------------------------------------------------------------


def test_processes_are_the_runner_that_they_were(tmp_path):
    assert beam.runner("processes", tmp_path) is pool.run


@pytest.mark.parametrize("text", ["", "threads", "processes --x=1"])
def test_another_runner_is_one_clear_error(text, tmp_path):
    with pytest.raises(UserError, match=f"must be processes, or beam .* Received: '{text}'"):
        beam.runner(text, tmp_path)


def test_a_pipeline_without_beam_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"needs Apache Beam .*: install tfjoint with its extra"):
        beam.runner("beam", tmp_path)


@needs_beam
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("'", "No closing quotation"),
        ("--runner=Nonsense", "Unexpected pipeline runner: Nonsense"),
        ("--direct_num_workers=many", "invalid int value: 'many'"),
    ],
)
def test_a_wrong_option_is_told_before_the_work(options, reason, tmp_path, capsys):
    with pytest.raises(UserError, match=reason) as caught:
        beam.runner(f"beam {options}", tmp_path)
    assert "\n" not in str(caught.value) and capsys.readouterr().err == ""


@needs_beam
@pytest.mark.parametrize("options", [[], ["--runner=DirectRunner"]])
def test_the_direct_runner_is_the_one_that_downloads_nothing(options):
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    assert isinstance(beam._new_pipeline(options).runner, FnApiRunner)


# --- Pipelines ------------------------------------------------------------------------------------


@needs_beam
def test_results_come_in_the_order_of_the_jobs_and_nothing_stays_behind(tmp_path):
    work = functools.partial(power, 2)
    jobs = [7, 3, 9, 0, 4, 4, 1]
    assert run(work, iter(jobs), tmp_path) == list(pool.run(work, jobs, 1))
    assert run(work, [], tmp_path) == []
    assert not list(tmp_path.iterdir())


@needs_beam
def test_results_come_while_the_pipeline_is_on_its_way_and_it_stops_when_they_are_not_wanted(
    tmp_path,
):
    (tmp_path / "done").mkdir()
    results = beam.run(
        functools.partial(work_slowly, tmp_path / "done"), range(100), 1, [], tmp_path
    )
    assert next(results) == 0
    results.close()
    assert len(list((tmp_path / "done").iterdir())) < 50
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


@needs_beam
def test_large_jobs_travel_by_files(tmp_path):
    jobs = [bytes([index]) * 3_000_000 for index in range(3)]
    assert run(bytes.upper, jobs, tmp_path) == jobs


@needs_beam
@pytest.mark.parametrize(
    ("work", "error", "reason"),
    [
        (refuse_odd, UserError, "[13] is odd: give an even one"),
        (divide_by, ZeroDivisionError, "division by zero"),
        (be_picky, RuntimeError, "Picky: too large"),
    ],
)
def test_what_the_work_raises_is_raised_here(work, error, reason, tmp_path, caplog):
    with pytest.raises(error, match=reason):
        run(work, [0, 1, 2, 3], tmp_path)
    assert not list(tmp_path.iterdir())


@needs_beam
def test_a_pipeline_that_fails_by_itself_is_one_clear_error(tmp_path, monkeypatch):
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    def fail(*_):
        raise ConnectionError("first line\nno cluster at host:8081\n")

    monkeypatch.setattr(FnApiRunner, "run_pipeline", fail)
    with pytest.raises(beam.PipelineError, match=r"failed \(ConnectionError: no cluster at host"):
        run(divide_by, [1], tmp_path)
    assert not list(tmp_path.iterdir())


@needs_beam
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".beam.tmp" / "killed" / "results").mkdir(parents=True)
    assert run(divide_by, [2], tmp_path) == [0.5]
    assert not list(tmp_path.iterdir())


@needs_beam
def test_two_runs_in_one_directory_are_refused(tmp_path):
    first = beam.run(divide_by, [1, 2], 1, [], tmp_path)
    assert next(first) == 1
    with pytest.raises(UserError, match="another process writes to"):
        run(divide_by, [4], tmp_path)
    assert list(first) == [0.5]


# --- The open mesh set ----------------------------------------------------------------------------

FLAGS = {"views": 4, "copies": 2, "voxel_size": 8, "records_per_shard": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "furniture.deb"
    furniture.write_package(path, {"Free.sh3f": furniture.library_bytes()})
    return sweethome3d.Source(path, path.name, sweethome3d.source_sha256(path))


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """What the processes make: records and, in `records-work`, the layout."""
    return build(source, tmp_path_factory.mktemp("built"))


def build(source, directory: Path, **arguments) -> Path:
    work = directory / "records-work"
    open_set.build(
        open_set.OpenSetConfig(**FLAGS, image_size=40, smaller_sizes=()),
        source,
        work,
        directory / "records",
        **arguments,
    )
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in paths
        # Notes of which shards are whole hold times.
        if not {"download", "layout-records"} & set(path.parts)
    }


def command(source, directory: Path, options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "data_tools.build_open", f"--output={directory / 'records'}"),
        *(f"--source={source.path}", f"--source_sha256={source.sha256}", "--split_list=new"),
        *(f"--{name}={value}" for name, value in FLAGS.items()),
        "--image_sizes=40",
        f"--runner=beam {options}",
    ]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


@needs_beam
def test_a_pipeline_in_this_process_makes_the_same_bytes(built, source, tmp_path):
    runner = beam.runner("beam", tmp_path / "records-work")
    build(source, tmp_path, run=runner)
    assert contents(tmp_path) == contents(built)


@needs_beam
def test_a_pipeline_codes_views_to_the_same_bytes(built, tmp_path):
    config = jpeg2000_records.Jpeg2000Config((24.0, 48.0))
    jpeg2000_records.build(built / "records", tmp_path / "processes", config)
    # What a run that was killed has left is no obstacle.
    (tmp_path / "beam" / ".beam.tmp" / ".killed.tmp" / "results").mkdir(parents=True)
    run = beam.runner("beam", tmp_path / "beam")
    jpeg2000_records.build(built / "records", tmp_path / "beam", config, run=run)
    assert contents(tmp_path / "beam") == contents(tmp_path / "processes")


@needs_beam
@pytest.mark.slow
def test_the_command_with_a_pipeline_of_processes_makes_the_same_bytes(built, source, tmp_path):
    done = subprocess.run(
        command(source, tmp_path, TWO_PROCESSES), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(built)


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize("options", ["", TWO_PROCESSES], ids=["in_memory", "processes"])
def test_a_killed_pipeline_leaves_no_bad_file_and_the_next_run_ends_in_the_same_bytes(
    options, built, source, tmp_path
):
    arguments = command(source, tmp_path, options)
    process = subprocess.Popen(
        arguments, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        renderings = tmp_path / "records-work" / "layout" / layout.RENDERINGS
        end = time.monotonic() + 120
        while not any(renderings.glob("*/*/rendering")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    expected = contents(built)
    left = contents(tmp_path)
    whole = {name: data for name, data in left.items() if ".tmp" not in name}
    assert 0 < len(whole) < len(expected)
    assert all(expected[name] == data for name, data in whole.items())

    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ended = contents(tmp_path)
    assert {name: data for name, data in ended.items() if ".tmp" not in name} == expected
    assert not (tmp_path / "records-work" / ".beam.tmp").exists()


@needs_beam
@pytest.mark.slow
def test_a_pool_of_workers_in_processes_of_its_own_makes_the_same_bytes(built, source, tmp_path):
    """As on a cluster: Beam's portable runner here, the README's worker pool over there."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # The pool starts its workers as `python`.
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    pool_command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
    portable = "--runner=PortableRunner --job_endpoint=embed --environment_type=EXTERNAL"
    with subprocess.Popen(
        [*pool_command, f"--service_port={port}"],
        env={**ENVIRONMENT, **paths},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as workers:
        try:
            options = f"{portable} --environment_config=localhost:{port}"
            done = subprocess.run(
                command(source, tmp_path, options), env=ENVIRONMENT, capture_output=True, text=True
            )
        finally:
            os.killpg(workers.pid, signal.SIGKILL)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(built)
