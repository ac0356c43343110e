"""Work over several processes: the order of the jobs, few at a time, and every way to end."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools import pool
from tfjoint.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def square_of(number: int) -> tuple[int, int]:
    time.sleep(0.05 if number % 3 == 0 else 0.0)
    return number * number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise UserError("three is damaged")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(processes):
    results = list(pool.run(square_of, range(20), processes))
    assert [square for square, _ in results] == [number**2 for number in range(20)]
    assert (os.getpid() in {process for _, process in results}) == (processes == 1)


def test_jobs_are_drawn_as_they_are_needed():
    drawn = []
    results = pool.run(square_of, (drawn.append(n) or n for n in range(1000)), 2)
    for _ in range(3):
        next(results)
    results.close()
    assert 3 <= len(drawn) <= 20


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_work_raises_arrives(processes):
    results = pool.run(fail_at_three, range(100), processes)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"^three is damaged$"):
        next(results)


def test_a_process_that_is_killed_is_one_clear_line():
    with pytest.raises(UserError, match=r"was killed.*fewer --processes") as caught:
        list(pool.run(die_at_three, range(100), 2))
    assert "\n" not in str(caught.value)


def test_progress_names_what_is_done_and_left(capsys):
    assert list(pool.report_progress(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "letters: 3/3, 0 s left\n"


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into Linux's /proc")
def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import itertools, os, time\n"
        "from data_tools import pool\n"
        "def work(_):\n"
        "    time.sleep(0.01)\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    for process in pool.run(work, itertools.count(), 2):\n"
        "        print(process, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, text=True, **streams) as parent:
        children = {int(parent.stdout.readline()) for _ in range(200)}
        parent.kill()
    assert len(children) == 2 and parent.pid not in children
    until = time.monotonic() + 20
    while any(map(_is_running, children)):
        assert time.monotonic() < until, "processes stay after their parent"
        time.sleep(0.05)


def large(number: int) -> bytes:
    """More than a pipe holds: to send it takes as long as its receiver needs."""
    return bytes(50_000_000)


def test_a_run_that_is_given_up_does_not_wait_for_the_rest_of_a_result():
    for _ in range(3):
        results = pool.run(large, itertools.count(), 2)
        next(results)
        results.close()


INTERRUPTED = "interrupted; the same command goes on from what is finished\n"

COMMAND = """
import itertools, sys, time
from data_tools import pool
from tfjoint import errors, files

def work(number):
    with files.replacing(f"{number}") as temporary:
        temporary.write_text("a")
        time.sleep(0.02)
    return bytes(300_000)

def main():
    print("ready", flush=True)
    for _ in pool.run(work, (bytes(300_000) and n for n in itertools.count()), 2):
        time.sleep(0.01)

if __name__ == "__main__":
    errors.run_or_exit(main)
"""


def interrupted(command: list[str], cwd: Path, delay: float, times: int) -> tuple[int, str]:
    """Run a command until it says that it is ready, and on for `delay`; then press Ctrl-C."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=cwd, env=environment, start_new_session=True, **streams
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            for _ in range(times):
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
                time.sleep(0.002)
            # Ends with the last process that holds stderr.
            _, said = process.communicate(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_at_any_moment_is_one_line_without_a_word_from_the_processes(times, tmp_path):
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    for delay in (0.0, 0.0005, 0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5):
        ended = interrupted([sys.executable, str(script)], tmp_path, delay, times)
        assert ended == (130, INTERRUPTED), delay


LOCK_TAKEN = """
import itertools, signal, sys, time
from data_tools import pool
from tfjoint import errors

def work(number):
    time.sleep(0.02)

def interrupt(frame, event, _):
    taken = event == "c_return" and frame.f_code.co_name == "__enter__"
    if taken and "futures" in frame.f_back.f_code.co_filename:
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)

def main():
    print("ready", flush=True)
    results = pool.run(work, itertools.count(), 2)
    next(results)
    sys.setprofile(interrupt)
    for _ in results:
        pass

if __name__ == "__main__":
    errors.run_or_exit(main)
"""


def test_an_interrupt_just_after_a_lock_was_taken_leaves_it_free_for_the_end(tmp_path):
    script = tmp_path / "command.py"
    script.write_text(LOCK_TAKEN)
    assert interrupted([sys.executable, str(script)], tmp_path, 0.0, times=0) == (130, INTERRUPTED)
