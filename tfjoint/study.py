"""Train, export and evaluate everything that the paper's figures need, whatever is missing of it.

    python -m tfjoint.study --flagfile=configs/study.cfg
    python -m tfjoint.study --flagfile=configs/study.cfg --list

    results/study.json                    the runs, and the commands that make each
    results/study/<run>.json              what tfjoint.evaluate found; tfjoint.study_report reads it
    results/study/<run>-examples.npz      shapes and views of a few test objects
    runs/study/<run>/                     checkpoints, export
    runs/study/logs/<run>.txt             what its commands printed

The same command goes on from where it was stopped, at any moment. A run that fails is noted, the
others go on, and the next call tries it again. Exit code: 0 all runs are done, 1 some failed, 2 a
mistake in the command, 3 time was over before the last one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from absl import flags

from tfjoint import config as configuration
from tfjoint import entry, files, gallery, plan, points
from tfjoint.errors import UserError
from tfjoint.plan import Run, Study

FAILED, UNFINISHED = 1, 3
DONE, RUNNING, BROKEN, BEGUN, OTHER, MISSING = (
    *("done", "running", "failed", "begun", "other settings", "missing"),
)
_STATES = (DONE, RUNNING, BEGUN, BROKEN, OTHER, MISSING)
_STARTING = {BEGUN: "resumed", DONE: "started again, as its codec is no longer there"}
_POLL_SECONDS = 0.2
_KEPT_VIEWS = 2


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_enum("profile", "mini", list(configuration.PROFILES), "set of network widths")
    flags.DEFINE_string("data", "data/open-68", "directory of the records, also without data/")
    flags.DEFINE_multi_string(
        "set", [], "'<profile> <whom>: <setting>=<value> ...' of the training"
    )
    flags.DEFINE_multi_string(
        "candidate", [], "'<name> <run>: <setting>=<value> ...': try these instead of the study"
    )
    flags.DEFINE_string(
        "runs", "", 'directory of the runs; "" is runs/study, or runs/study-<profile>'
    )
    flags.DEFINE_string("results", "", 'directory of the results; "" is results/study, likewise')
    flags.DEFINE_list("only", [], "names, models or patterns of runs; none is all")
    flags.DEFINE_list("seeds", [], "seeds of the runs; none is all")
    flags.DEFINE_bool("list", False, "only list the runs and what has become of each")
    flags.DEFINE_integer(
        "jobs", 1, "runs at a time; the cores are shared among them", lower_bound=1
    )
    flags.DEFINE_float(
        "max_hours",
        0.0,
        "stop after so many hours, and after the evaluations that are under way; 0 is never",
        lower_bound=0.0,
    )


# --- What has become of a run ---------------------------------------------------------------------


class Status(NamedTuple):
    """What has become of a run, and how far it is."""

    state: str
    steps: int
    """Of the newest checkpoint."""
    total: int
    """0 where the number of training objects is not known."""
    seconds: float
    """Spent on it so far."""
    remark: str = ""


class Journal:
    """What the study notes of a run beside its directory, and the lock on it."""

    def __init__(self, study: Study, run: Run) -> None:
        logs = Path(study.runs) / "logs"
        self.log, self._note, self._lock = (
            logs / f"{run.name}{suffix}" for suffix in (".txt", ".json", ".lock")
        )

    def read(self) -> dict[str, Any]:
        """Return what is noted: "seconds" spent in training, "failure" where it failed."""
        try:
            return json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write(self, seconds: float, failure: str = "") -> None:
        """Note what has become of it."""
        files.write_json(self._note, {"seconds": round(seconds, 1), "failure": failure})

    def lock(self) -> IO[str] | None:
        """Return the open, locked file; None where another process has it.

        A child process that inherits it keeps the lock when the study itself is killed.
        """
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        handle = self._lock.open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return None
        return handle

    def is_locked(self) -> bool:
        """Return whether a process is at the run; nothing is written to find out."""
        if not self._lock.exists():
            return False
        handle = self.lock()
        if handle:
            handle.close()
        return handle is None


def status(study: Study, run: Run, objects: int) -> Status:
    """Return what has become of a run on so many training objects (0: not known)."""
    config = plan.run_config(study, run)
    total = plan.total_steps(config, objects) if objects or config.steps else 0
    journal = Journal(study, run)
    noted = journal.read()
    steps = _newest_step(Path(plan.run_directory(study, run)))
    about = {"steps": steps, "total": total, "seconds": noted.get("seconds", 0.0)}
    result = Path(study.results) / f"{run.name}.json"
    if result.exists():
        row, seconds = _read_result(result)
        about |= {"steps": row.get("steps", 0), "seconds": seconds}
        if wrong := _differences(row, config.to_json(), total):
            return Status(OTHER, **about, remark="; ".join(wrong))
        return Status(DONE, **about)
    if journal.is_locked():
        return Status(RUNNING, **about)
    if noted.get("failure"):
        return Status(BROKEN, **about, remark=noted["failure"])
    return Status(BEGUN if steps else MISSING, **about)


def _read_result(path: Path) -> tuple[dict[str, Any], float]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return results["rows"][0], results["study"]["train_seconds"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or tfjoint.study did not write it ({error!r}): remove it, and it "
            "is made again"
        ) from error


def _differences(row: Mapping[str, Any], wanted: Mapping[str, Any], total: int) -> list[str]:
    found = configuration.changes(row["config"], wanted)
    if total and row["steps"] != total:
        found.append(f"steps: {row['steps']} -> {total}")
    return found


def _newest_step(run: Path) -> int:
    try:
        index = (run / "checkpoints" / "index.json").read_text(encoding="utf-8")
        return max(json.loads(index)["steps"], default=0)
    except (OSError, ValueError, KeyError):
        return 0


def training_objects(study: Study, views: str = "raw") -> int:
    """Return the number of training objects; 0 where the records are not there."""
    # JPEG 2000 views are of the objects that they were made of.
    manifest = _manifest(plan.records_of(study, views if views == plan.HALF else "raw"))
    try:
        return sum(shard["records"] for shard in manifest["splits"]["train"])
    except (KeyError, TypeError):
        return 0


def _manifest(data: str) -> dict[str, Any]:
    root = Path(__file__).parent / "demo" if data == "demo" else Path(data)
    try:
        return json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# --- The list -------------------------------------------------------------------------------------


def listing(study: Study, runs: Sequence[Run], jobs: int = 1) -> str:
    """Return a line per run; below, how many there are of each state and the time that is left."""
    found = [(run, status(study, run, training_objects(study, run.views))) for run in runs]
    width = max(len(run.name) for run in runs)
    lines = [f"{'run':<{width}}  {'state':<14}  {'steps':>11}  minutes"]
    for run, now in found:
        steps = f"{now.steps}/{now.total or '?'}"
        minutes = f"{now.seconds / 60:.0f}" if now.seconds else ""
        line = f"{run.name:<{width}}  {now.state:<14}  {steps:>11}  {minutes:>7}  {now.remark}"
        lines.append(line.rstrip())
    counts = {state: sum(now.state == state for _, now in found) for state in _STATES}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([*lines, f"{len(runs)} runs: {said}{_time_left(found, jobs)}"])


def _time_left(found: Sequence[tuple[Run, Status]], jobs: int) -> str:
    # A run takes as long a step as it did so far, or as others of its model, or as any other.
    measured = [(run.model, now.seconds / now.steps) for run, now in found if _is_timed(now)]
    left = [(run, now) for run, now in found if now.state != DONE]
    totals = [now.total for _, now in found if now.total]
    if not measured or not left or not totals:
        return ""
    seconds = 0.0
    for run, now in left:
        like = [pace for model, pace in measured if model == run.model]
        pace = float(np.mean(like or [pace for _, pace in measured]))
        # Of records that are not made yet, the others' number.
        seconds += max((now.total or float(np.median(totals))) - now.steps, 0) * (
            now.seconds / now.steps if _is_timed(now) else pace
        )
    return f"; about {seconds / 3600 / jobs:.1f} hours left at {jobs} at a time"


def _is_timed(now: Status) -> bool:
    return now.seconds > 0 and now.steps > 0


# --- A sitting ------------------------------------------------------------------------------------


class Work:
    """A run under way: its commands, one after another, under its lock."""

    def __init__(self, study: Study, run: Run, lock: IO[str], threads: int) -> None:
        self.run = run
        self.study = study
        self.threads = threads
        self._journal = Journal(study, run)
        self._lock = lock
        # What was trained and lost, with the run's directory, does not count.
        begun = _newest_step(Path(plan.run_directory(study, run))) > 0
        self._seconds = self._journal.read().get("seconds", 0.0) if begun else 0.0
        self._commands = [plan.train_command(study, run), plan.evaluate_command(study, run)]
        self._journal.write(self._seconds)
        self._log = self._journal.log.open("a", encoding="utf-8")
        self._start()

    def _start(self) -> None:
        command = [sys.executable, *self._commands[0]]
        print(f"$ {plan.shown(self._commands[0])}", file=self._log, flush=True)
        self.trains = "tfjoint.train" in command  # or it evaluates
        self._since = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=_environment(self.threads),
            pass_fds=[self._lock.fileno()],
        )

    def poll(self) -> str | None:
        """Return None while it goes on, DONE, or BROKEN."""
        code = self._process.poll()
        if code is None:
            return None
        self._count()
        if code:
            return self._fail(f"exit code {code}: {_last_line(self._journal.log)}")
        del self._commands[0]
        if self._commands:
            self._journal.write(self._seconds)
            self._start()
            return None
        try:
            collect(self.study, self.run, self._seconds, self.threads)
        except (UserError, OSError) as error:
            return self._fail(str(error))
        self._end("")
        return DONE

    def stop(self) -> None:
        """End its process; its newest checkpoint is where it goes on."""
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._count()
        self._end("")

    def _count(self) -> None:
        if self.trains:
            self._seconds += time.monotonic() - self._since

    def _fail(self, failure: str) -> str:
        self._end(failure)
        return BROKEN

    def _end(self, failure: str) -> None:
        self._journal.write(self._seconds, failure)
        self._log.close()
        self._lock.close()


def work(study: Study, runs: Sequence[Run], jobs: int, max_hours: float = 0.0) -> int:
    """Do what is missing of `runs`, so many at a time; return the exit code of the command."""
    end = time.monotonic() + 3600 * max_hours if max_hours else float("inf")
    objects = {run.name: training_objects(study, run.views) for run in runs}
    states = {run.name: status(study, run, objects[run.name]).state for run in runs}
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    waiting = _to_do(study, runs, states, objects)
    active: list[Work] = []
    failed: dict[str, str] = {}
    elsewhere: set[str] = set()
    try:
        while waiting or active:
            if time.monotonic() > end:
                # A training goes on from its checkpoint; of an evaluation, which takes minutes,
                # all would be lost.
                waiting.clear()
                for item in [item for item in active if item.trains]:
                    item.stop()
                    active.remove(item)
            for run in _startable(waiting, active, jobs, failed):
                waiting.remove(run)
                if run.after in elsewhere:
                    _say(f"{run.name}: left out, another process is at {run.after}, its codec")
                elif reason := _refusal(run, failed):
                    failed[run.name] = reason
                    Journal(study, run).write(
                        Journal(study, run).read().get("seconds", 0.0), reason
                    )
                    _say(f"{run.name}: failed ({reason})")
                elif lock := Journal(study, run).lock():
                    _say(f"{run.name}: {_STARTING.get(states[run.name], 'started')}")
                    active.append(Work(study, run, lock, threads))
                else:
                    elsewhere.add(run.name)
                    _say(f"{run.name}: another process is at it")
            time.sleep(_POLL_SECONDS)
            for item in list(active):
                if (state := item.poll()) is not None:
                    active.remove(item)
                    _say(_ended(study, item.run, state))
                    if state == BROKEN:
                        failed[item.run.name] = Journal(study, item.run).read()["failure"]
    finally:
        for item in active:
            item.stop()
    if failed:
        return FAILED
    finished = all(status(study, run, objects[run.name]).state == DONE for run in runs)
    return 0 if finished else UNFINISHED


def _to_do(
    study: Study, runs: Sequence[Run], states: Mapping[str, str], objects: Mapping[str, int]
) -> list[Run]:
    """Return the runs that are not done, and those whose codec is to be taken and was lost.

    Results are kept for long, directories of runs are not; one that is trained again is evaluated
    again, so that both runs' results are of the same codec.
    """
    missing = [run for run in runs if states[run.name] != DONE]
    taken = {run.after for run in missing}

    def is_lost(run: Run) -> bool:
        total = plan.total_steps(plan.run_config(study, run), objects[run.name])
        return _newest_step(Path(plan.run_directory(study, run))) < total

    return [run for run in runs if run in missing or (run.name in taken and is_lost(run))]


def _startable(
    waiting: Sequence[Run], active: Sequence[Work], jobs: int, failed: Mapping[str, str]
) -> list[Run]:
    """Return the runs that are next; one that needs another's codec comes after that."""
    unfinished = {run.name for run in waiting} | {item.run.name for item in active}
    ready = [run for run in waiting if run.after not in unfinished]
    return ready[: max(0, jobs - len(active))]


def _refusal(run: Run, failed: Mapping[str, str]) -> str:
    return f"{run.after}, whose codec it takes, failed" if run.after in failed else ""


def _ended(study: Study, run: Run, state: str) -> str:
    noted = Journal(study, run).read()
    if state == BROKEN:
        return f"{run.name}: failed ({noted['failure']}); {Journal(study, run).log} has the rest"
    results = json.loads((Path(study.results) / f"{run.name}.json").read_text(encoding="utf-8"))
    shown = [
        f"{row['iou']['mean']:.3f}" if row["iou"] else f"{row['psnr_db']:.2f} dB"
        for row in results["rows"]
    ]
    what = "mIoU " if results["rows"][0]["iou"] else "PSNR "
    return f"{run.name}: done in {noted['seconds'] / 60:.0f} minutes, {what}{', '.join(shown)}"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def _environment(threads: int) -> dict[str, str]:
    # As many threads as the run has cores: two runs of one core each do more than one of two.
    count = {f"TF_NUM_{kind}OP_THREADS": str(threads) for kind in ("INTRA", "INTER")}
    return {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **count}


def _last_line(path: Path) -> str:
    lines = [
        line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line
    ]
    said = [line for line in lines[-20:] if line.startswith("error: ")]
    return (said or lines or ["nothing was printed"])[-1][:300]


def collect(study: Study, run: Run, seconds: float, threads: int) -> None:
    """Write the results of a run that is evaluated, and the shapes of a few test objects.

    The results file is what tfjoint.evaluate wrote, with "study": the run, and what it took.
    """
    directory = Path(plan.run_directory(study, run))
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    results["study"] = {
        "run": run.name,
        "curve": run.curve,
        "views": run.views,
        "train_seconds": round(seconds, 1),
        "threads": threads,
    }
    target = Path(study.results) / f"{run.name}.json"
    shapes = directory / "results-examples.npz"
    if shapes.exists():
        kept = compact(gallery.read_gallery(shapes))
        gallery.write_gallery(target.with_name(f"{run.name}-examples.npz"), kept)
    files.write_json(target, results)


def compact(shapes: gallery.Gallery) -> gallery.Gallery:
    """Return shapes of all views, as bits at the threshold, and the first views alone."""
    views = slice(_KEPT_VIEWS)
    occupied = None
    if shapes.occupancy is not None:
        occupied = shapes.percent()[:, :, -1:] >= round(100 * shapes.threshold)
    images, decoded = shapes.images, shapes.decoded
    return shapes._replace(
        occupancy=occupied,
        images=None if images is None else images[:, views],
        decoded=None if decoded is None else decoded[:, :, views],
        views=None,
    )


# --- The command ----------------------------------------------------------------------------------


def make_records(study: Study, runs: Sequence[Run]) -> None:
    """Make the records, beside the raw ones, that runs need and that are not there."""
    for views in sorted({run.views for run in runs} - {"raw"}):
        root = Path(plan.records_of(study, views))
        rates = {*plan.LOW_RATES, *plan.JPEG2000_RATES}
        sets = [root] if views == plan.HALF else [root / str(rate) for rate in rates]
        if all((path / "manifest.json").exists() for path in sets):
            continue
        _say(f"{root}: records are made")
        if subprocess.run([sys.executable, *plan.records_command(study, views)]).returncode:
            # The runs that need them will fail, each with its own line; the others go on.
            _say(f"{root} could not be built; what that command printed says why")


def require_records(study: Study, runs: Sequence[Run]) -> None:
    """Raise `UserError` if there are no raw records, or none large enough for all of `runs`."""
    if not training_objects(study):
        raise UserError(
            f"no records at {study.data}: make them, for instance with `make data`, or give --data"
        )
    stored = _manifest(study.data).get("image_size", 0)
    needed = max(plan.run_config(study, run).image_size for run in runs)
    if stored < needed:
        raise UserError(
            f"{study.data} holds views of {stored} pixels, --profile={study.profile} needs "
            f"{needed}: give --data with larger ones, or another --profile"
        )


def require_same_study(study: Study) -> None:
    """Raise `UserError` if the results that are there are of other records or widths."""
    path = points.plan_path(Path(study.results))
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        old = {name: found[name] for name in ("profile", "data")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}): remove it, and it is written again"
        ) from error
    for name, value in old.items():
        if value != (asked := getattr(study, name)):
            raise UserError(
                f"{study.results} holds the study with {name}={value}, asked for is {asked}: "
                "give other directories with --results and --runs"
            )


def claim_results(study: Study, runs: Sequence[Run]) -> None:
    """Write the plan beside the results. Raises `UserError` if they are of another study."""
    require_same_study(study)
    path = points.plan_path(Path(study.results))
    description = {
        "profile": study.profile,
        "data": study.data,
        "settings": study.settings,
        "records": {
            "raw": plan.raw_records_command(study),
            **{
                views: plan.shown(plan.records_command(study, views))
                for views in ("asked", "payload", plan.HALF)
            },
        },
        "runs": [
            {
                **dataclasses.asdict(run),
                "train": plan.shown(plan.train_command(study, run)),
                "evaluate": plan.shown(plan.evaluate_command(study, run)),
            }
            for run in runs
        ],
    }
    files.write_json(path, description)


def read_study() -> Study:
    """Return the study of the flags. Raises `UserError`."""
    values = flags.FLAGS
    name = "study" if values.profile == "mini" else f"study-{values.profile}"
    data = values.data
    if data != "demo" and not Path(data).is_dir() and (Path("data") / data).is_dir():
        data = str(Path("data") / data)
    return Study(
        profile=values.profile,
        data=data,
        runs=values.runs or f"runs/{name}",
        results=values.results or f"results/{name}",
        settings=plan.read_settings(values.set, values.profile),
    )


def main(argv: Sequence[str]) -> None:
    """List the runs, or do what is missing."""
    values = flags.FLAGS
    study = read_study()
    runs = plan.candidates(study, values.candidate) or plan.planned(study)
    plan.check(study, runs)
    chosen = plan.selected(runs, values.only, _seeds(values.seeds))
    if values.list:
        require_same_study(study)
        print(listing(study, chosen, values.jobs))
        return
    missing = [
        run
        for run in chosen
        if status(study, run, training_objects(study, run.views)).state != DONE
    ]
    if missing:
        require_records(study, missing)
    claim_results(study, runs)
    with _stopping_on_sigterm():
        make_records(study, missing)
        code = work(study, chosen, values.jobs, values.max_hours)
    print(listing(study, chosen, values.jobs))
    sys.exit(code)


def _seeds(texts: Sequence[str]) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError as error:
        raise UserError(f"--seeds={','.join(texts)} must be whole numbers") from error


@contextlib.contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    # As Ctrl-C: the runs under way are ended, too, and not left behind.
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    define_flags()
    entry.run(main)
