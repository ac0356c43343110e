"""Servers of an export, as processes of their own on the loopback interface."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "127.0.0.1"
PATIENCE_SECONDS = 300


class Server(NamedTuple):
    """A server that answers."""

    process: subprocess.Popen
    http: str
    """Host and port."""
    grpc: str
    """Host and port."""


@contextlib.contextmanager
def protocol_server(export: Path, model: str) -> Iterator[Server]:
    """Run the stand-in for TensorFlow Serving on the versions below `export`."""
    command = ["tests/protocol_server.py", f"--model_name={model}", f"--model_base_path={export}"]
    with _running(command, '{"') as (process, line):
        ports = json.loads(line)
        yield Server(process, f"{ADDRESS}:{ports['rest']}", f"{ADDRESS}:{ports['grpc']}")


@contextlib.contextmanager
def triton_server(export: Path) -> Iterator[Server]:
    """Run Triton by `examples/triton_server.py`."""
    http, grpc = _free_ports(2)
    command = [
        *("examples/triton_server.py", f"--export={export}"),
        *(f"--http_port={http}", f"--grpc_port={grpc}"),
    ]
    with _running(command, "serving ") as (process, _):
        yield Server(process, f"{ADDRESS}:{http}", f"{ADDRESS}:{grpc}")


@contextlib.contextmanager
def _running(command: list[str], ready: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run a Python script; yield once it printed a line that starts with `ready`, with the line."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    try:
        yield process, _wait_for(ready, lines)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(5)


def _read(process: subprocess.Popen, lines: queue.Queue[str | None]) -> None:
    # To the end, so that a server that says a lot never waits for a reader.
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def _wait_for(ready: str, lines: queue.Queue[str | None]) -> str:
    said: list[str] = []
    until = time.monotonic() + PATIENCE_SECONDS
    while (left := until - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            break
        if line is None:
            raise RuntimeError(f"the server ended before it was ready: {''.join(said[-20:])}")
        if line.startswith(ready):
            return line
        said.append(line)
    raise RuntimeError(f"not ready after {PATIENCE_SECONDS} seconds: {''.join(said[-20:])}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((ADDRESS, 0))
        return [each.getsockname()[1] for each in sockets]
