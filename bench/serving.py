"""Measure an export behind servers: from five views to a shape, by interface and encoding.

    .venv-serving/bin/python -m bench.serving --export=runs/direct/export

writes results/serving/<model>.json, for a system whose codes have iterations. The views are those
of the first test object. Servers and clients share this machine, which should do nothing else
meanwhile. gRPC and REST are asked of the stand-in for TensorFlow Serving: it shows what requests
weigh and what lies in TensorFlow, but is a Python process and says nothing of the binary's speed.
"""

from __future__ import annotations

import base64
import http.client
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from absl import flags
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tritonclient.utils import InferenceServerException

from bench import servers, timing
from tfjoint import entry, export, files, png, provenance
from tfjoint.config import Config
from tfjoint.dataset import evaluation_examples, open_split
from tfjoint.errors import UserError

VIEWS = 5
PATIENCE = 60  # seconds; what is not answered then was lost
CLIENTS = (1, 2, 4, 8)
ROW = "{:<28}{:>12}{:>12}{:>11}"

_EXPORT = flags.DEFINE_string("export", "runs/direct/export", "Directory of an export's versions.")
_OUTPUT = flags.DEFINE_string("output", "", "File of the results; results/serving/<model>.json.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 20, "Requests of each kind.", lower_bound=3)


def main(_: Sequence[str]) -> None:
    """Measure latencies, then throughput, and write both."""
    root = Path(_EXPORT.value)
    newest = export.latest_version(root)
    if newest is None:
        raise export.ExportError(f"{root} holds no version of an export: train the model first")
    description = export.read_description(newest)
    config = Config.from_json(description["config"])
    values = request_values(config, newest)
    with servers.protocol_server(root, config.model) as server:
        asks, sizes = protocol_requests(server, config.model, values)
        seconds = timing.alternate(asks, _REPETITIONS.value, warmups=3)
        throughput = {"gRPC, files": rates(asks["gRPC, files"])}
    with servers.triton_server(root) as server:
        asks = triton_requests(server, values)
        seconds |= timing.alternate(asks, _REPETITIONS.value, warmups=3)
        try:
            throughput["Triton gRPC, files"] = rates(asks["Triton gRPC, files"])
        except InferenceServerException as error:
            raise UserError(
                f"Triton left a request without an answer for {PATIENCE} s: {error}; measure again"
            ) from error
    seconds |= timing.alternate(in_process(newest, values), _REPETITIONS.value, warmups=3)
    results = {
        "views": VIEWS,
        "iterations": int(values["iterations"]),
        "requests": {
            name: {
                "milliseconds": round(1000 * statistics.median(taken), 3),
                "slowest_milliseconds": round(1000 * max(taken), 3),
                "request_bytes": sizes.get(name),
            }
            for name, taken in seconds.items()
        },
        "requests_per_second": throughput,
        "provenance": {
            "code_revision": provenance.code_revision(),
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "repetitions": _REPETITIONS.value,
            "weights_sha256": description["weights_sha256"],
            "data_sha256": description["data_sha256"],
        },
    }
    output = Path(_OUTPUT.value or f"results/serving/{config.model}.json")
    files.write_json(output, results)
    print(table(results))
    print(f"results: {output}")


def table(results: Mapping[str, Any]) -> str:
    """Return the measured requests as lines, the cheapest first."""
    lines = [ROW.format("five views to a shape", "median ms", "slowest ms", "bytes")]
    requests = sorted(results["requests"].items(), key=lambda item: item[1]["milliseconds"])
    for name, row in requests:
        slowest, size = row["slowest_milliseconds"], row["request_bytes"]
        times = (f"{row['milliseconds']:.1f}", f"{slowest:.1f}")
        lines.append(ROW.format(name, *times, size or ""))
    for name, by_clients in sorted(results["requests_per_second"].items()):
        shown = ", ".join(f"{rate:.0f} of {clients}" for clients, rate in by_clients.items())
        lines.append(f"{name}: requests per second {shown} clients")
    return "\n".join(lines)


def request_values(config: Config, newest: Path) -> dict[str, np.ndarray]:
    """The inputs of all signatures, for one object of the demo's test set at full rate."""
    records = open_split(config, "test", views=VIEWS)
    example = next(iter(evaluation_examples(config, records, VIEWS, config.seed, [0])))
    pixels = np.round(example.images * 255).astype(np.uint8)
    signatures = tf.saved_model.load(str(newest)).signatures
    values = {
        "images": (pixels / np.float32(255)).astype(np.float32)[np.newaxis],
        "images_bytes": np.array([[png.encode_png(view) for view in pixels]], object),
        "iterations": np.int32(config.iterations_max),
    }
    times = tf.constant(values["iterations"])
    packed = signatures["encode_files"](
        images_bytes=tf.constant(values["images_bytes"]), iterations=times
    )
    values["codes_bytes"] = packed["codes_bytes"].numpy()
    codes = signatures["encode"](images=tf.constant(values["images"]), iterations=times)
    values["codes"] = codes["codes"].numpy()
    return values


KINDS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "files": (("reconstruct_files", ("images_bytes", "iterations")),),
    "packed codes": (("reconstruct_packed", ("codes_bytes",)),),
    # Tensors of images become a shape by two requests.
    "tensors": (("encode", ("images", "iterations")), ("reconstruct", ("codes",))),
}
"""What a client has, and the signatures with their inputs that make a shape of it."""

Asks = dict[str, Callable[[], object]]


def protocol_requests(
    server: servers.Server, model: str, values: Mapping[str, np.ndarray]
) -> tuple[Asks, dict[str, int]]:
    """Return what asks the stand-in for a shape, by name, and the bytes that it sends."""
    options = [(f"grpc.max_{way}_message_length", 2**26) for way in ("send", "receive")]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(server.grpc, options)
    )
    asks: Asks = {}
    sizes: dict[str, int] = {}
    for kind, steps in KINDS.items():
        requests, bodies = [], []
        for signature, names in steps:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model
            request.model_spec.signature_name = signature
            for name in names:
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values[name]))
            requests.append(partial(stub.Predict, request, timeout=60))
            sizes[f"gRPC, {kind}"] = sizes.get(f"gRPC, {kind}", 0) + request.ByteSize()
            inputs = {name: _json(values[name]) for name in names}
            body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
            bodies.append(partial(_post, server.http, f"/v1/models/{model}:predict", body))
            sizes[f"REST, {kind}"] = sizes.get(f"REST, {kind}", 0) + len(body)
        asks[f"gRPC, {kind}"] = partial(_all, requests)
        asks[f"REST, {kind}"] = partial(_all, bodies)
    return asks, sizes


def triton_requests(server: servers.Server, values: Mapping[str, np.ndarray]) -> Asks:
    """Return what asks Triton for a shape, by name."""
    ways = {
        "gRPC": (
            triton_grpc,
            partial(triton_grpc.InferenceServerClient(server.grpc).infer, client_timeout=PATIENCE),
        ),
        "HTTP": (
            triton_http,
            triton_http.InferenceServerClient(server.http, network_timeout=PATIENCE).infer,
        ),
    }
    return {
        f"Triton {way}, {kind}": partial(
            _all, [partial(infer, signature, [_triton_input(module, name, values[name])
                                              for name in names])
                   for signature, names in steps]
        )
        for kind, steps in KINDS.items()
        for way, (module, infer) in ways.items()
    }  # fmt: skip


def in_process(newest: Path, values: Mapping[str, np.ndarray]) -> Asks:
    """Return the same without a server."""
    signatures = tf.saved_model.load(str(newest)).signatures
    return {
        f"no server, {kind}": partial(
            _all, [partial(signatures[signature], **{name: tf.constant(values[name])
                                                     for name in names})
                   for signature, names in steps]
        )
        for kind, steps in KINDS.items()
    }  # fmt: skip


def _all(actions: Sequence[Callable[[], object]]) -> None:
    for action in actions:
        action()


def rates(ask: Callable[[], object]) -> dict[str, float]:
    """Return the requests per second of 1, 2, 4 and 8 clients at once."""
    found = {}
    for clients in CLIENTS:
        each = 48 // clients
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(_all, [[ask] * each] * clients))
        found[str(clients)] = round(clients * each / (time.perf_counter() - start), 1)
    return found


def _json(value: np.ndarray) -> Any:
    if value.dtype != object:
        return value.tolist()
    return [[{"b64": base64.b64encode(item).decode()} for item in row] for row in value]


def _post(address: str, path: str, body: bytes) -> Any:
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("POST", path, body)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise RuntimeError(answer["error"])
    return answer


def _triton_input(module: Any, name: str, value: np.ndarray) -> Any:
    value = np.atleast_1d(value)
    dtype = {"float32": "FP32", "int32": "INT32", "int8": "INT8", "object": "BYTES"}
    made = module.InferInput(name, value.shape, dtype[value.dtype.name])
    made.set_data_from_numpy(value)
    return made


if __name__ == "__main__":
    entry.run(main)
