"""A stand-in for TensorFlow Serving that speaks its protocol, gRPC and REST; for tests alone.

    python tests/protocol_server.py --model_name=direct --model_base_path=runs/direct/export

The TensorFlow Serving binary is in no package index. This process answers by its published service
definitions (tensorflow-serving-api) and its REST conventions, with TensorFlow's own runtime behind
them, so that clients and exports can be tried against each other. It says nothing about the speed
of the binary, its batching or its limits. Loopback alone; it prints its two ports as JSON.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

LARGEST_REQUEST = 32 * 2**20
LARGEST_TENSOR = 2**27
POLL_SECONDS = 0.2
State = get_model_status_pb2.ModelVersionStatus.State

# gRPC's codes as TensorFlow Serving answers them over HTTP.
HTTP_OF = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


class Version:
    """One loaded version of a model."""

    def __init__(self, path: Path) -> None:
        self.number = int(path.name)
        proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        (graph,) = [g for g in proto.meta_graphs if "serve" in g.meta_info_def.tags]
        self.signature_defs = {
            name: signature
            for name, signature in graph.signature_def.items()
            if signature.method_name == "tensorflow/serving/predict"
        }
        self._loaded = tf.saved_model.load(str(path))
        self.warmed_up = self._warm_up(path / "assets.extra" / "tf_serving_warmup_requests")

    def _warm_up(self, path: Path) -> int:
        records = tf.data.TFRecordDataset(str(path)) if path.exists() else []
        done = 0
        for record in records:
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            self.predict(log.predict_log.request)
            done += 1
        return done

    def signature_def(self, name: str) -> meta_graph_pb2.SignatureDef:
        try:
            return self.signature_defs[name or "serving_default"]
        except KeyError:
            raise invalid(f"Serving signature name: {name!r} not found in signature def") from None

    def predict(self, request: predict_pb2.PredictRequest) -> dict[str, tf.Tensor]:
        name = request.model_spec.signature_name or "serving_default"
        wanted = self.signature_def(name).inputs
        if set(wanted) != set(request.inputs):
            raise invalid(
                f"input tensors must be {sorted(wanted)}. Received: {sorted(request.inputs)}"
            )
        values = {key: _tensor(key, request.inputs[key], wanted[key]) for key in wanted}
        try:
            outputs = self._loaded.signatures[name](**values)
        except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError) as error:
            raise invalid(error.message) from error
        chosen = list(request.output_filter) or list(outputs)
        if unknown := set(chosen) - set(outputs):
            raise invalid(f"output tensor alias not found in signature: {sorted(unknown)}")
        return {key: outputs[key] for key in chosen}


def _tensor(name: str, proto: Any, wanted: meta_graph_pb2.TensorInfo) -> tf.Tensor:
    dtype, shape = tf.dtypes.as_dtype(wanted.dtype), tf.TensorShape(wanted.tensor_shape)
    if proto.dtype != wanted.dtype:
        raise invalid(f"{name} must be {dtype.name}. Received: type {proto.dtype}")
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    # A tensor may hold less than its shape says; what is left out is the last value again.
    if min(sizes, default=0) < 0 or math.prod(sizes) > LARGEST_TENSOR:
        raise invalid(f"{name} has an invalid shape: {sizes}")
    try:
        value = tf.make_ndarray(proto)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise invalid(f"{name} is no tensor: {error}") from error
    if not shape.is_compatible_with(value.shape):
        raise invalid(f"{name} must have shape {shape}. Received: {list(value.shape)}")
    return tf.constant(value, dtype, shape=value.shape)


class Model:
    """The versions below a directory; the newest is loaded, the one before it then leaves."""

    def __init__(self, name: str, base: Path) -> None:
        self.name = name
        self._base = base
        self._statuses: dict[int, Any] = {}
        self._serving: Version | None = None
        self.poll()

    def watch(self) -> None:
        """Look for new versions for as long as the process that started this one lives."""
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
            self.poll()
        os._exit(1)

    def poll(self) -> None:
        numbers = [int(p.name) for p in self._base.glob("*") if re.fullmatch(r"[0-9]+", p.name)]
        newest = max(numbers, default=None)
        if newest is None or newest in self._statuses:
            return
        self._statuses[newest] = State.LOADING
        try:
            version = Version(self._base / str(newest))
        except Exception as error:  # whatever is wrong with a version, the one before it stays
            print(f"version {newest} does not load: {error}", file=sys.stderr)
            self._statuses[newest] = State.END
            return
        before, self._serving = self._serving, version
        self._statuses[newest] = State.AVAILABLE
        if before is not None:
            self._statuses[before.number] = State.END

    def version(self, spec: Any) -> Version:
        self._check_name(spec)
        serving = self._serving
        wanted = spec.version.value if spec.HasField("version") else None
        if serving is None or wanted not in (None, serving.number):
            raise self._not_found(wanted)
        return serving

    def status(self, spec: Any) -> get_model_status_pb2.GetModelStatusResponse:
        self._check_name(spec)
        wanted = spec.version.value if spec.HasField("version") else None
        known = {n: s for n, s in sorted(self._statuses.items()) if wanted in (None, n)}
        if not known:
            raise self._not_found(wanted)
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state in known.items():
            response.model_version_status.add(version=number, state=state).status.SetInParent()
        return response

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        if list(request.metadata_field) != ["signature_def"]:
            raise invalid(f"Metadata field {list(request.metadata_field)} is not supported")
        version = self.version(request.model_spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        self._say(response.model_spec, version)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in version.signature_defs.items():
            signatures.signature_def[name].CopyFrom(signature)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def predict(self, request: predict_pb2.PredictRequest) -> tuple[Version, dict[str, tf.Tensor]]:
        version = self.version(request.model_spec)
        return version, version.predict(request)

    def predict_response(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        version, outputs = self.predict(request)
        response = predict_pb2.PredictResponse()
        self._say(response.model_spec, version)
        response.model_spec.signature_name = request.model_spec.signature_name or "serving_default"
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response

    def _say(self, spec: Any, version: Version) -> None:
        spec.name = self.name
        spec.version.value = version.number

    def _check_name(self, spec: Any) -> None:
        if not spec.name:
            raise invalid("Missing ModelSpec")
        if spec.name != self.name:
            raise Refused(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})"
            )

    def _not_found(self, wanted: int | None) -> Refused:
        which = "Latest" if wanted is None else f"Specific({wanted})"
        return Refused(
            grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {which} of {self.name}"
        )


# --- gRPC -----------------------------------------------------------------------------------------


def _answer(context: grpc.ServicerContext, answer: Callable[[], Any]) -> Any:
    try:
        return answer()
    except Refused as refused:
        return context.abort(refused.code, str(refused))


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the base class refuses the rest as unimplemented."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def Predict(self, request, context):
        return _answer(context, lambda: self._model.predict_response(request))

    def GetModelMetadata(self, request, context):
        return _answer(context, lambda: self._model.metadata(request))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def GetModelStatus(self, request, context):
        return _answer(context, lambda: self._model.status(request.model_spec))


# --- REST -----------------------------------------------------------------------------------------

PREDICT = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict")
STATUS = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?")
METADATA = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?/metadata")


def rest_predict(model: Model, name: str, version: str | None, body: bytes) -> dict[str, Any]:
    """Answer the JSON of a predict request."""
    request = predict_pb2.PredictRequest()
    _fill_spec(request.model_spec, name, version)
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(given, dict):
        raise invalid("JSON Value: is not object")
    signature = given.get("signature_name", "")
    if not isinstance(signature, str):
        raise invalid("'signature_name' key must be a string value.")
    request.model_spec.signature_name = signature
    wanted = model.version(request.model_spec).signature_def(signature).inputs
    if ("instances" in given) == ("inputs" in given):
        raise invalid("expecting exactly one of 'inputs' or 'instances' keys")
    by_rows = "instances" in given
    columns = _columns(given["instances"], wanted) if by_rows else _named(given["inputs"], wanted)
    for key, value in columns.items():
        request.inputs[key].CopyFrom(_from_json(key, value, wanted[key]))
    _, outputs = model.predict(request)
    return _by_rows(outputs) if by_rows else _by_columns(outputs)


def _fill_spec(spec: Any, name: str, version: str | None) -> None:
    spec.name = name
    if version is not None:
        try:
            spec.version.value = int(version)
        except ValueError as error:
            raise invalid(f"Failed to convert version: {version} to numeric.") from error


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and set(value) != {"b64"}


def _named(value: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    if _is_object(value):
        if missing := set(wanted) - set(value):
            raise invalid(f"Missing named input: {sorted(missing)} in 'inputs' object.")
        return {key: value[key] for key in wanted}
    if len(wanted) > 1:
        raise invalid("inputs is a plain value/list, but expecting an object")
    return {next(iter(wanted)): value}


def _columns(rows: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(rows, list) or not rows:
        raise invalid("expecting 'instances' to be a list with values")
    named = [row if _is_object(row) else {next(iter(wanted)): row} for row in rows]
    for row in named:
        if set(row) != set(wanted):
            raise invalid(f"keys of 'instances' must be equal to: {', '.join(sorted(wanted))}")
    return {key: [row[key] for row in named] for key in wanted}


def _from_json(name: str, value: Any, wanted: Any) -> Any:
    dtype = tf.dtypes.as_dtype(wanted.dtype)
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        if not inner:
            break
        inner = inner[0]
    leaves: list[Any] = []
    _collect(name, value, shape, _leaf(name, dtype), leaves)
    try:
        array = np.array(leaves, dtype.as_numpy_dtype).reshape(shape)
    except (OverflowError, ValueError) as error:
        raise invalid(f"{name} is not {dtype.name}: {error}") from error
    return tf.make_tensor_proto(array, dtype, shape)


def _collect(name: str, value: Any, shape: list[int], leaf: Callable, leaves: list[Any]) -> None:
    if not shape:
        leaves.append(leaf(value))
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        raise invalid(f"{name}: Encountered list at unexpected size, expected size: {shape[0]}")
    for inner in value:
        _collect(name, inner, shape[1:], leaf, leaves)


def _leaf(name: str, dtype: tf.DType) -> Callable[[Any], Any]:
    def error(value: Any) -> Refused:
        return invalid(
            f"{name}: JSON Value: {str(value)[:40]} is not of expected type: {dtype.name}"
        )

    def string(value: Any) -> bytes:
        if isinstance(value, dict) and isinstance(value.get("b64"), str):
            try:
                return base64.b64decode(value["b64"], validate=True)
            except (binascii.Error, ValueError):
                raise invalid("Unable to base64 decode") from None
        if not isinstance(value, str):
            raise error(value)
        return value.encode()

    def number(value: Any) -> Any:
        kinds = (int,) if dtype.is_integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise error(value)
        if dtype.is_integer and not dtype.min <= value <= dtype.max:
            raise error(value)
        return value

    return string if dtype == tf.string else number


def _to_json(name: str, value: np.ndarray) -> Any:
    if value.dtype != object:
        return value.tolist()
    as_bytes = name.endswith("_bytes")
    flat = [
        {"b64": base64.b64encode(item).decode()} if as_bytes else item.decode(errors="replace")
        for item in value.ravel()
    ]
    filled = np.empty(len(flat), object)
    filled[:] = flat
    return filled.reshape(value.shape).tolist()


def _by_columns(outputs: Mapping[str, tf.Tensor]) -> dict[str, Any]:
    found = {name: _to_json(name, value.numpy()) for name, value in outputs.items()}
    return {"outputs": found if len(found) > 1 else next(iter(found.values()))}


def _by_rows(outputs: Mapping[str, tf.Tensor]) -> dict[str, Any]:
    found = {name: _to_json(name, value.numpy()) for name, value in outputs.items()}
    if len(found) == 1:
        return {"predictions": next(iter(found.values()))}
    rows = zip(*found.values())
    return {"predictions": [dict(zip(found, row)) for row in rows]}


def rest_metadata(model: Model, name: str, version: str | None) -> dict[str, Any]:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    _fill_spec(request.model_spec, name, version)
    response = model.metadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    described = json_format.MessageToDict(signatures, preserving_proto_field_name=True)
    spec = {"name": name, "signature_name": "", "version": str(response.model_spec.version.value)}
    return {"model_spec": spec, "metadata": {"signature_def": described}}


def rest_status(model: Model, name: str, version: str | None) -> dict[str, Any]:
    spec = predict_pb2.PredictRequest().model_spec
    _fill_spec(spec, name, version)
    statuses = model.status(spec).model_version_status
    return {
        "model_version_status": [
            {
                "version": str(status.version),
                "state": State.Name(status.state),
                "status": {"error_code": "OK", "error_message": ""},
            }
            for status in statuses
        ]
    }


def handler_of(model: Model) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            self._respond(self._get)

        def do_POST(self) -> None:
            self._respond(self._post)

        def log_message(self, *_: Any) -> None:
            pass

        def _get(self) -> dict[str, Any]:
            if match := METADATA.fullmatch(self.path):
                return rest_metadata(model, *match.groups())
            if match := STATUS.fullmatch(self.path):
                return rest_status(model, *match.groups())
            raise invalid(f"Malformed request: GET {self.path}")

        def _post(self) -> dict[str, Any]:
            try:
                length = int(self.headers.get("Content-Length", ""))
            except ValueError:
                length = -1
            if not 0 <= length <= LARGEST_REQUEST:
                self.close_connection = True  # whose body is not read
                raise Refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"a request has a Content-Length of at most {LARGEST_REQUEST} bytes",
                )
            body = self.rfile.read(length)
            match = PREDICT.fullmatch(self.path)
            if match is None:
                raise invalid(f"Malformed request: POST {self.path}")
            return rest_predict(model, *match.groups(), body)

        def _respond(self, answer: Callable[[], dict[str, Any]]) -> None:
            status = HTTPStatus.OK
            try:
                content = answer()
            except Refused as refused:
                status = HTTP_OF.get(refused.code, HTTPStatus.INTERNAL_SERVER_ERROR)
                content = {"error": str(refused)}
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


class HttpServer(ThreadingHTTPServer):
    """The REST side."""

    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--model_base_path", required=True, type=Path)
    given = parser.parse_args()
    model = Model(given.model_name, given.model_base_path)
    server = grpc.server(
        futures.ThreadPoolExecutor(4),
        options=[("grpc.max_receive_message_length", LARGEST_REQUEST)],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(model), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(model), server)
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    http = HttpServer(("127.0.0.1", 0), handler_of(model))
    threading.Thread(target=model.watch, daemon=True).start()
    print(json.dumps({"grpc": grpc_port, "rest": http.server_address[1]}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        http.serve_forever()


if __name__ == "__main__":
    main()
