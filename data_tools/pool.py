"""The same work on many things: over all cores, in the order of the things, with progress."""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import resource_tracker
from typing import Protocol, TypeVar

from tfjoint.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


class Runner(Protocol):
    """What `run` is, and what may stand in its place."""

    def __call__(
        self, work: Callable[[Job], Result], jobs: Iterable[Job], processes: int
    ) -> Generator[Result, None, None]: ...


_WAITING_PER_PROCESS = 4  # enough that no process waits, few enough to hold in memory
_PATIENCE = 0.1  # seconds until Ctrl-C is asked about again


def run(
    work: Callable[[Job], Result], jobs: Iterable[Job], processes: int
) -> Generator[Result, None, None]:
    """Yield `work(job)` of every job, in the order of the jobs; 1 process is this one.

    Jobs are drawn as they are needed, so they may be made on the way and be many. Raises whatever
    `work` raises, and `UserError` when a process is killed. Where it ends early, what the processes
    are at is given up.
    """
    if processes <= 1:
        yield from map(work, jobs)
        return
    # Started afresh rather than forked: the parent may hold threads of its own.
    context = multiprocessing.get_context("spawn")
    with _interrupts_put_off():  # a semaphore that is made by half is complained of at the end
        executor = concurrent.futures.ProcessPoolExecutor(
            processes, mp_context=context, initializer=_end_with_parent
        )
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for job in jobs:
            with _interrupts_put_off():  # a process may be started here
                waiting.append(executor.submit(work, job))
            if len(waiting) >= processes * _WAITING_PER_PROCESS:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a process of the work was killed, perhaps for want of memory: the same command "
            "goes on from what is finished; fewer --processes take less memory"
        ) from error
    finally:
        # Where Ctrl-C has ended it already, another one has nothing to add.
        with _interrupts_put_off(dropped=bool(waiting)):
            if waiting:
                # What they have half written has a temporary name; the next run removes it.
                for process in multiprocessing.active_children():
                    process.terminate()
                # Of a result that was half sent the executor would await the rest, and for good
                # while this process holds an end of the pipe open for writing, too.
                executor._result_queue._writer.close()  # type: ignore[attr-defined]
            executor.shutdown(cancel_futures=True)


def _result(future: concurrent.futures.Future[Result]) -> Result:
    # Ctrl-C is answered between two waits: in one, it may leave a lock of the future taken that the
    # executor's thread needs for its end.
    while True:
        with _interrupts_put_off():
            if concurrent.futures.wait([future], _PATIENCE).done:
                return future.result()


@contextlib.contextmanager
def _interrupts_put_off(dropped: bool = False) -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block; a process that starts in it never sees one.

    With `dropped` it is lost.

    Ctrl-C reaches every process of the terminal, but only the parent is to answer it: a child that
    begins to run would print a traceback, and so would one that is started by half.
    """
    asked: list[int] = []
    here = threading.current_thread() is threading.main_thread()  # where signals are handled
    here = here and signal.getsignal(signal.SIGINT) != signal.SIG_IGN  # as in a shell's background
    handler = signal.signal(signal.SIGINT, lambda *_: asked.append(1)) if here else None
    try:
        resource_tracker.ensure_running()  # which, where it comes later, would end the blocking
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which children inherit
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        if here:
            signal.signal(signal.SIGINT, handler)
    if asked and not dropped:
        raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only started processes come here"
    sentinel = parent.sentinel

    def watch() -> None:
        # A parent that was killed cannot say that there are no more jobs.
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Progress:
    """Prints, every two seconds, how much of `total` is done and how long the rest will take."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what = total, what
        self._start = self._shown = time.monotonic()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if done and (now - self._shown > 2.0 or done == self._total):
            self._shown = now
            left = (now - self._start) / done * (self._total - done)
            print(
                f"{self._what}: {done}/{self._total}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def report_progress(
    results: Iterable[Result], total: int, what: str
) -> Generator[Result, None, None]:
    """Yield `results`; print how many of `total` are done, and the time left, every two seconds."""
    progress = Progress(total, what)
    for done, result in enumerate(results, 1):
        progress.show(done)
        yield result
