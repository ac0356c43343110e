"""Work over several processes: the order of the jobs, few at a time, and every way to end."""

from __future__ import annotations

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
