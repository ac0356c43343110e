"""What is measured, in a process of its own that is asked line by line.

TensorFlow and PyTorch each keep a pool of threads for all cores. In one process they would fight
for them; in processes of their own, only the one that is asked works. What a process needed at
most of the memory is then its own, too.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

Subject = Mapping[str, Callable[..., Any]]
"""Actions by name; arguments and results are JSON values."""


class Worker:
    """A process that holds a subject, for a `with` block.

    Args:
      subject: "package.module:function" of a function that returns a `Subject`.
      settings: JSON values, the function's keyword arguments.
      environment: variables that the process gets besides this one's.

    Raises:
      RuntimeError: the subject cannot be made or an action fails; holds the process's traceback.
    """

    def __init__(
        self,
        subject: str,
        settings: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", subject, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        )
        try:
            self._answer()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, action: str, *arguments: Any) -> Any:
        """Return what the action returned."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([action, arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the measured process ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def peak_megabytes() -> float:
    """Return the most memory that this process has held so far, in 10^6 bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found, "this system does not say what a process holds at most"
    return int(found[1]) * 1024 / 1e6


def _serve(subject: str, settings: str) -> None:
    # What libraries print goes to the error output; only answers go where this process is heard.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    actions: dict[str, Callable[..., Any]] = {"peak_megabytes": peak_megabytes}

    def make() -> None:
        module, _, name = subject.partition(":")
        actions.update(getattr(importlib.import_module(module), name)(**json.loads(settings)))

    def answer(call: Callable[[], Any]) -> None:
        try:
            said = {"value": call()}
        except Exception:
            said = {"error": traceback.format_exc()}
        print(json.dumps(said), file=channel, flush=True)

    answer(make)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answer(partial(_act, actions, name, arguments))


def _act(actions: Subject, name: str, arguments: list[Any]) -> Any:
    return actions[name](*arguments)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
