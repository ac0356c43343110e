"""The same work on many things, as `pool.run`, on whatever machines an Apache Beam pipeline runs.

    here       work, jobs -> one file each
    a worker   number of a job -> its file -> work(job) -> one file
    here       files -> results, in the order of the jobs

What travels through the pipeline is a number alone: jobs and results may be large, and no runner
keeps an order. The files lie in `.beam.tmp` of a directory that is there for every worker by the
same path, and are gone at the end. Workers have tfjoint installed, of the same version.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import secrets
import shlex
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools import pool
from data_tools.pool import Job, Result
from tfjoint import files
from tfjoint.errors import UserError

RUNNER_HELP = (
    "What does the work: processes, or beam, an Apache Beam pipeline in this process; its options "
    "may follow, as in 'beam --runner=FlinkRunner --flink_master=host:8081'."
)

_FILES = ".beam.tmp"
_SHORTEST_WAIT, _LONGEST_WAIT = 0.01, 1.0  # seconds between two looks for a result
_LONGEST_END, _LONGEST_STOP = 60.0, 10.0  # seconds for a pipeline that is done, or is to stop
_WORK, _STOPPED, _JOBS, _RESULTS, _ERRORS = "work.pickle", "stopped", "jobs", "results", "errors"


class PipelineError(UserError):
    """A pipeline that cannot be started or did not come to its end."""


def runner(text: str, storage: Path) -> pool.Runner:
    """Return what does the work: `pool.run` for "processes", `run` for "beam" and its options.

    Raises `UserError` for anything else, wrong options, and where there is no Beam.
    """
    try:
        name, *options = shlex.split(text) or [""]
    except ValueError as error:
        raise UserError(f"--runner={text!r}: {error}") from error
    if name == "processes" and not options:
        return pool.run
    if name != "beam":
        raise UserError(f"--runner must be processes, or beam with its options. Received: {text!r}")
    _require_beam()
    _new_pipeline(options)  # a wrong option is told before the long work

    def run_pipeline(
        work: Callable[[Job], Result], jobs: Iterable[Job], processes: int
    ) -> Generator[Result, None, None]:
        return run(work, jobs, processes, options, storage)

    return run_pipeline


def run(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    processes: int,
    options: Sequence[str],
    storage: Path,
) -> Generator[Result, None, None]:
    """Yield `work(job)` of every job, in the order of the jobs, as they are done.

    Args:
        work: a function that can be pickled by its name.
        jobs: what can be pickled; all of them are drawn before the first is done.
        processes: without a meaning here; how many workers there are, the options say.
        options: of the pipeline; by default it runs in this process.
        storage: directory that is there for every worker by the same absolute path.

    Raises whatever `work` raises, and `PipelineError` when the pipeline fails by itself.
    """
    with _exchange(storage) as directory:
        (directory / _WORK).write_bytes(pickle.dumps(work))
        count = 0
        for count, job in enumerate(jobs, 1):
            _file(directory, _JOBS, count - 1).write_bytes(pickle.dumps(job))
        if not count:
            return
        pipeline, left = _Pipeline(directory, count, options), count
        pipeline.start()
        try:
            for index in range(count):
                result = _result(directory, index, pipeline)
                left -= 1
                yield result
        finally:  # also where nobody wants the other results any more
            (directory / _STOPPED).touch()
            pipeline.end(wait=_LONGEST_END if left == 0 else 0)


def _result(directory: Path, index: int, pipeline: _Pipeline) -> Any:
    path = _file(directory, _RESULTS, index)
    wait = _SHORTEST_WAIT
    while not path.exists():
        if not pipeline.is_alive() and not path.exists():
            raise _error(directory, index, pipeline)
        pipeline.join(wait)
        wait = min(2 * wait, _LONGEST_WAIT)
    result = pickle.loads(path.read_bytes())
    # Results may be large and wait for no one any more, but that they were there has to stay.
    for used in (path, _file(directory, _JOBS, index)):
        os.truncate(used, 0)
    return result


def _error(directory: Path, index: int, pipeline: _Pipeline) -> Exception:
    """Return why job `index` has no result although the pipeline has ended."""
    for path in sorted((directory / _ERRORS).glob("*.pickle")):
        if not (directory / _RESULTS / path.name).exists():  # which a second try may have left
            error = pickle.loads(path.read_bytes())
            error.__cause__ = pipeline.failure
            return error
    return pipeline.failure or _failed(f"it left no result of job {index}")


def do_job(directory: str, index: int) -> None:
    """Do one job, on a worker, unless it is done already or its result is not wanted any more."""
    root = Path(directory)
    work = pickle.loads((root / _WORK).read_bytes())
    result = _file(root, _RESULTS, index)
    if result.exists() or (root / _STOPPED).exists():
        return
    job = pickle.loads(_file(root, _JOBS, index).read_bytes())
    try:
        _put(result, work(job))
    except Exception as error:
        _put(_file(root, _ERRORS, index), _portable(error))
        if not isinstance(error, UserError):
            raise  # the runner may try again; a user's mistake would stay one
        (root / _STOPPED).touch()


@contextlib.contextmanager
def _exchange(storage: Path) -> Iterator[Path]:
    """Yield a new directory for jobs and results, without those of runs that were killed."""
    shared = storage.absolute() / _FILES
    shared.mkdir(parents=True, exist_ok=True)
    with files.only_writer(shared):
        for left in shared.iterdir():
            shutil.rmtree(left)
        # A pipeline may outlive the run that began it; it is not to find the next one's files, and
        # what it still writes is removed by the next.
        directory = shared / f".{secrets.token_hex(8)}.tmp"
        for name in (_JOBS, _RESULTS, _ERRORS):
            (directory / name).mkdir(parents=True)
        try:
            yield directory
        finally:
            shutil.rmtree(shared, ignore_errors=True)


class _Pipeline(threading.Thread):
    """A pipeline on its way; some runners return when it ends, some at once."""

    def __init__(self, directory: Path, count: int, options: Sequence[str]) -> None:
        super().__init__(daemon=True)
        import apache_beam

        self.failure: PipelineError | None = None
        self._pipeline = _new_pipeline(options)
        self._running: Any = None
        # Without the reshuffle a runner may do all jobs where it made their numbers.
        _ = (
            self._pipeline
            | "numbers" >> apache_beam.Create(range(count))
            | "spread" >> apache_beam.Reshuffle()
            | "work" >> apache_beam.Map(functools.partial(do_job, str(directory)))
        )

    def run(self) -> None:
        try:
            self._running = self._pipeline.run()
            state = self._running.wait_until_finish()
        except Exception as error:
            reason = ": ".join(filter(None, (type(error).__name__, _last_line(str(error)))))
            self.failure = _failed(reason)
        else:
            self.failure = None if state == "DONE" else _failed(str(state))

    def end(self, wait: float) -> None:
        """Let it end by itself for so many seconds, then cancel it."""
        self.join(wait)
        if self.is_alive():
            with contextlib.suppress(Exception):
                self._running.cancel()
            self.join(_LONGEST_STOP)


def _new_pipeline(options: Sequence[str]) -> Any:
    import apache_beam
    from apache_beam.options import pipeline_options

    usage = io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            parsed = pipeline_options.PipelineOptions(list(options))
            parsed.get_all_options()  # which parses all of them
            standard = parsed.view_as(pipeline_options.StandardOptions)
            # Beam's DirectRunner downloads another one first, and without it ends here.
            if standard.runner in (None, "DirectRunner"):
                standard.runner = "FnApiRunner"
            return apache_beam.Pipeline(options=parsed)
    except (Exception, SystemExit) as error:
        # argparse prints the usage, then what is wrong, and exits.
        reason = _last_line(usage.getvalue() if isinstance(error, SystemExit) else str(error))
        raise PipelineError(f"beam's options {shlex.join(options)!r}: {reason}") from error


def _failed(reason: str) -> PipelineError:
    return PipelineError(
        f"the Beam pipeline failed ({reason}): the same command goes on from what is finished"
    )


def _last_line(text: str) -> str:
    return ([""] + [line.strip() for line in text.splitlines() if line.strip()])[-1][:300]


def _file(directory: Path, what: str, index: int) -> Path:
    return directory / what / f"{index:08d}.pickle"


def _put(path: Path, value: object) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(pickle.dumps(value))


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # its class asks for other arguments than it keeps
        return RuntimeError(f"{type(error).__name__}: {error}")


def _require_beam() -> None:
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--runner=beam needs Apache Beam ({error}): install tfjoint with its extra beam"
        ) from error
