"""Serve an export of tfjoint with NVIDIA's Triton Inference Server, without Docker.

    .venv-serving/bin/python examples/triton_server.py --export=runs/direct/export

needs TensorFlow and nvidia-pytriton, whose package holds the server itself; of tfjoint it needs
nothing. Every signature becomes a model of its name, with the signature's inputs and outputs, all
axes free that the signature leaves free:

    HTTP   http://127.0.0.1:8000/v2/models/reconstruct_files/infer
    gRPC   127.0.0.1:8001

Triton knows no scalars: `iterations` is an array of one number. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is loaded

import numpy as np
import tensorflow as tf

try:
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig
except ImportError:
    print(
        f"error: {sys.executable} has no nvidia-pytriton: use .venv-serving, which `make serving` "
        "creates, or install it here",
        file=sys.stderr,
    )
    sys.exit(2)


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--export", type=Path, required=True, help="an export, or the directory of its versions"
    )
    parser.add_argument("--address", default="127.0.0.1", help="where to listen")
    parser.add_argument("--http_port", type=int, default=8000, help="where to listen for HTTP")
    parser.add_argument("--grpc_port", type=int, default=8001, help="where to listen for gRPC")
    parser.add_argument("--workers", type=int, default=1, help="requests computed at once")
    given = parser.parse_args()
    if given.workers < 1:
        refuse(f"workers are 1 or more. Received: {given.workers}")
    if given.http_port == given.grpc_port:
        refuse(f"HTTP and gRPC need a port each. Received: {given.http_port} for both")
    find_libpython()
    for port in (given.http_port, given.grpc_port):
        require_free(given.address, port)
    config = TritonConfig(
        http_address=given.address,
        http_port=given.http_port,
        grpc_address=given.address,
        grpc_port=given.grpc_port,
        allow_metrics=False,
        exit_timeout_secs=5,
    )
    export = newest(given.export)
    signatures = tf.saved_model.load(str(export)).signatures
    with Triton(config=config) as triton:
        for name, signature in signatures.items():
            bind(triton, name, signature, given.workers)
        triton.run()
        print(f"serving {export}: {', '.join(signatures)}", flush=True)
        triton.serve()


def require_free(address: str, port: int) -> None:
    """Exit if there is no such port, or something listens there already."""
    if not 0 < port < 2**16:
        refuse(f"a port is in [1, 65535]. Received: {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            refuse(f"port {port} of {address} cannot be had ({error.strerror}): give another one")


def refuse(reason: str) -> NoReturn:
    """Say what is wrong in one line and end with code 2."""
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


def newest(export: Path) -> Path:
    """Return `export` itself, or its highest version. Exits where there is neither."""
    if (export / "saved_model.pb").is_file():
        return export
    versions = [path for path in export.glob("*") if path.name.isdigit()]
    if not versions:
        refuse(f"{export} holds no export: give the directory that training printed")
    return max(versions, key=lambda path: int(path.name))


def find_libpython() -> None:
    """Put the shared library of this very Python on the path where Triton's processes look for it.

    Exits where there is none: with the library of another Python, even of the same 3.x, Triton's
    processes fail when they start.
    """
    directory = sysconfig.get_config_var("LIBDIR") or ""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    if not (name.startswith("libpython") and ".so" in name and Path(directory, name).is_file()):
        version = ".".join(map(str, sys.version_info[:2]))
        refuse(
            f"Triton needs libpython{version} as a shared library, {sys.executable} has "
            f"none in {directory}: on Debian and its own Python apt-get install libpython{version},"
            " else a Python that was built with --enable-shared"
        )
    others = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = f"{directory}:{others}" if others else directory


def bind(triton: Triton, name: str, signature: Any, workers: int) -> None:
    """Make a Triton model of a signature."""
    _, inputs = signature.structured_input_signature
    outputs = signature.structured_outputs

    def answer(requests: list) -> list[dict[str, np.ndarray]]:
        return [_run(signature, inputs, request) for request in requests]

    triton.bind(
        model_name=name,
        infer_func=[answer] * workers,
        inputs=[_tensor(key, spec) for key, spec in inputs.items()],
        outputs=[_tensor(key, spec) for key, spec in outputs.items()],
        config=ModelConfig(batching=False),  # requests differ in views and iterations
    )


def _run(signature: Callable, inputs: dict, request: dict) -> dict[str, np.ndarray]:
    values = {}
    for name, spec in inputs.items():
        value = request[name]
        if spec.shape.rank == 0:
            value = value.reshape(())
        values[name] = tf.constant(value, spec.dtype)
    # An InvalidArgumentError reaches the client, at the end of Triton's account of it.
    return {name: np.asarray(value) for name, value in signature(**values).items()}


def _tensor(name: str, spec: tf.TensorSpec) -> Tensor:
    shape = spec.shape.as_list() if spec.shape.rank else [1]
    dtype = np.bytes_ if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
    return Tensor(name=name, dtype=dtype, shape=tuple(-1 if n is None else n for n in shape))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before it serves
        print("interrupted", file=sys.stderr)
        sys.exit(130)
