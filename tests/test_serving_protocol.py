"""An export behind TensorFlow Serving's protocol, by published stubs, ovmsclient and plain HTTP.

The server is `tests/protocol_server.py`, a stand-in. `make test-serving` has what these need.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from pictures import SIZE, noise, png

ONLY = "the environment of servers has it: make test-serving"
grpc = pytest.importorskip("grpc", reason=ONLY)
pytest.importorskip("tensorflow_serving", reason=ONLY)
ovmsclient = pytest.importorskip("ovmsclient", reason=ONLY)

from bench import servers  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

NAME = "direct"
SIDE, BITS = 2, 16
SECONDS = 60  # for one answer, on a machine that has other work
MALFORMED = 1000
SIGNATURES = {
    *("serving_default", "encode", "reconstruct", "decode"),
    *("encode_files", "reconstruct_files", "reconstruct_packed", "refine"),
}


class Client(NamedTuple):
    """A server and the ways to it."""

    server: servers.Server
    versions: Path
    channel: Any
    predictions: Any
    models: Any

    def predict(self, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Ask by gRPC."""
        response = self.predictions.Predict(request(signature, **inputs), timeout=SECONDS)
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def rest(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask by HTTP; bytes are sent as they are, anything else as JSON."""
        connection = http.client.HTTPConnection(self.server.http, timeout=SECONDS)
        try:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, None if body is None else data)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def post(self, body: Any, path: str = f"/v1/models/{NAME}:predict") -> Any:
        """Ask for a prediction by HTTP, which must succeed."""
        status, answer = self.rest("POST", path, body)
        assert status == 200, answer
        return answer


def request(signature: str, **inputs: Any) -> predict_pb2.PredictRequest:
    made = predict_pb2.PredictRequest()
    made.model_spec.name = NAME
    made.model_spec.signature_name = signature
    for name, value in inputs.items():
        made.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return made


def _connected(server: servers.Server, versions: Path) -> Client:
    options = [(f"grpc.max_{way}_message_length", 64 * 2**20) for way in ("send", "receive")]
    channel = grpc.insecure_channel(server.grpc, options)
    predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return Client(
        server, versions, channel, predictions, model_service_pb2_grpc.ModelServiceStub(channel)
    )


@pytest.fixture(scope="module")
def start(exported, tmp_path_factory) -> Iterator[Callable[[], Client]]:
    """A function that starts a server of its own on a copy of the export."""
    with contextlib.ExitStack() as stack:

        def run() -> Client:
            versions = tmp_path_factory.mktemp("served") / NAME
            shutil.copytree(exported, versions / "1")
            server = stack.enter_context(servers.protocol_server(versions, NAME))
            client = _connected(server, versions)
            stack.callback(client.channel.close)
            return client

        yield run


@pytest.fixture(scope="module")
def client(start) -> Iterator[Client]:
    """A server that lives through all tests of this file."""
    made = start()
    yield made
    assert made.server.process.poll() is None


@pytest.fixture(scope="module")
def loaded(exported):
    """The same signatures in this process."""
    return tf.saved_model.load(str(exported)).signatures


def files_of(pixels: np.ndarray) -> list[list[bytes]]:
    return [[png(view) for view in views] for views in pixels]


def b64(value: Any) -> Any:
    """Bytes, in lists or not, as REST carries them."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return [b64(item) for item in value]


def inputs_of(signature: str, loaded: Any, seed: int = 0) -> dict[str, Any]:
    """Inputs of two objects with two views, as they would come from a client."""
    pixels = noise(2, 2, seed)
    images = (pixels / np.float32(255)).astype(np.float32)
    codes = loaded["encode"](images=tf.constant(images), iterations=tf.constant(2))["codes"].numpy()
    packed = [[np.packbits(view.ravel() > 0).tobytes() for view in row] for row in codes]
    values = {
        "images": images,
        "iterations": np.int32(2),
        "codes": codes,
        "images_bytes": np.array(files_of(pixels), object),
        "codes_bytes": np.array(packed, object),
        **dict.fromkeys(("hidden", "cell"), np.full((2, 4, 4, 4, 8), 0.5, np.float32)),
    }
    return {name: values[name] for name in loaded[signature].structured_input_signature[1]}


def expected_of(signature: str, loaded: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    outputs = loaded[signature](**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


# --- What is answered -----------------------------------------------------------------------------


@pytest.mark.parametrize("signature", sorted(SIGNATURES))
def test_every_signature_answers_by_grpc_what_the_savedmodel_answers(client, loaded, signature):
    assert set(loaded) == SIGNATURES
    inputs = inputs_of(signature, loaded)
    found = client.predict(signature, **inputs)
    expected = expected_of(signature, loaded, inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("signature", sorted(SIGNATURES))
def test_every_signature_answers_by_rest_in_columns(client, loaded, signature):
    inputs = inputs_of(signature, loaded)
    carried = {
        name: b64(value.tolist()) if value.dtype == object else value.tolist()
        for name, value in inputs.items()
    }
    answer = client.post({"signature_name": signature, "inputs": carried})["outputs"]
    outputs = expected_of(signature, loaded, inputs)
    answers = answer if len(outputs) > 1 else dict.fromkeys(outputs, answer)  # one has no name
    for name, expected in outputs.items():
        if name.endswith("_bytes"):
            assert answers[name] == b64(expected.tolist())
        else:
            # float32, and int8 codes, come through JSON as they are.
            np.testing.assert_array_equal(np.array(answers[name], expected.dtype), expected)


def test_rest_without_a_signature_takes_files_to_shapes_row_by_row(client, loaded):
    pixels = noise(2, 3)
    files = files_of(pixels)
    expected = loaded["serving_default"](images_bytes=tf.constant(files))["occupancy"]
    named = client.post({"instances": [{"images_bytes": b64(row)} for row in files]})
    plain = client.post({"instances": b64(files)})
    assert named == plain
    found = np.array(named["predictions"], np.float32)
    assert found.shape == (2, 32, 32, 32)
    np.testing.assert_array_equal(found, expected)


def test_what_encode_files_returns_is_what_reconstruct_packed_takes(client, loaded):
    inputs = inputs_of("reconstruct_files", loaded)
    body = {"images_bytes": b64(inputs["images_bytes"].tolist()), "iterations": 2}
    sent = client.post({"signature_name": "encode_files", "inputs": body})["outputs"]
    body = {"signature_name": "reconstruct_packed", "inputs": {"codes_bytes": sent}}
    found = np.array(client.post(body)["outputs"], np.float32)
    expected = expected_of("reconstruct_files", loaded, inputs)["occupancy"]
    np.testing.assert_array_equal(found, expected)


def test_any_number_of_objects_and_views_is_answered(client, loaded):
    for objects, views in ((1, 1), (3, 1), (1, 7)):
        files = np.array(files_of(noise(objects, views)), object)
        found = client.predict("reconstruct_files", images_bytes=files, iterations=np.int32(1))
        assert found["occupancy"].shape == (objects, 32, 32, 32)


def test_an_independent_client_asks_by_grpc(client, loaded):
    """It always names a version; the newest is 0 to it, and to its own server alone."""
    theirs = ovmsclient.make_grpc_client(client.server.grpc)
    files = files_of(noise(1, 2))
    found = theirs.predict(
        {"images_bytes": np.array(files)}, NAME, model_version=1, timeout=SECONDS
    )
    expected = loaded["serving_default"](images_bytes=tf.constant(files))["occupancy"]
    np.testing.assert_array_equal(found, expected)
    assert theirs.get_model_status(NAME, 1, timeout=SECONDS)[1]["state"] == "AVAILABLE"
    described = theirs.get_model_metadata(NAME, model_version=1, timeout=SECONDS)
    assert described["model_version"] == 1
    assert described["inputs"] == {"images_bytes": {"shape": [-1, -1], "dtype": "DT_STRING"}}
    assert described["outputs"]["occupancy"]["dtype"] == "DT_FLOAT"
    with pytest.raises(Exception, match="must be PNG or JPEG files"):
        theirs.predict({"images_bytes": np.array([[b"no image"]])}, NAME, 1, timeout=SECONDS)


def test_an_independent_client_asks_by_http(client):
    """It can send bytes of one axis alone: of two axes they must be text, which no image is."""
    theirs = ovmsclient.make_http_client(client.server.http)
    status = theirs.get_model_status(NAME, model_version=1, timeout=SECONDS)
    assert status[1]["state"] == "AVAILABLE"
    with pytest.raises(Exception, match="must be PNG or JPEG files"):
        theirs.predict({"images_bytes": np.array([[b"no image"]])}, NAME, 1, timeout=SECONDS)


# --- Status, metadata, versions -------------------------------------------------------------------


def status_of(client: Client) -> dict[int, str]:
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = NAME
    statuses = client.models.GetModelStatus(asked, timeout=SECONDS).model_version_status
    state = get_model_status_pb2.ModelVersionStatus.State
    return {status.version: state.Name(status.state) for status in statuses}


def test_status_is_told_by_grpc_and_rest(client):
    assert status_of(client) == {1: "AVAILABLE"}
    for path in (f"/v1/models/{NAME}", f"/v1/models/{NAME}/versions/1"):
        status, answer = client.rest("GET", path)
        (version,) = answer["model_version_status"]
        assert (status, version["version"], version["state"]) == (200, "1", "AVAILABLE")
    assert client.rest("GET", f"/v1/models/{NAME}/versions/7")[0] == 404
    assert client.rest("GET", "/v1/models/another")[0] == 404


def test_metadata_tells_the_signatures_by_grpc_and_rest(client, loaded):
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = NAME
    response = client.predictions.GetModelMetadata(asked, timeout=SECONDS)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert response.model_spec.version.value == 1
    described = {
        name: {key: (tf.dtypes.as_dtype(i.dtype), tf.TensorShape(i.tensor_shape).as_list())
               for key, i in signature.inputs.items()}
        for name, signature in signatures.signature_def.items()
    }  # fmt: skip
    assert described == {
        name: {key: (spec.dtype, spec.shape.as_list())
               for key, spec in signature.structured_input_signature[1].items()}
        for name, signature in loaded.items()
    }  # fmt: skip
    _, answer = client.rest("GET", f"/v1/models/{NAME}/metadata")
    assert answer["model_spec"]["version"] == "1"
    told = answer["metadata"]["signature_def"]["signature_def"]
    assert set(told) == SIGNATURES
    assert told["encode_files"]["inputs"]["images_bytes"]["dtype"] == "DT_STRING"


def test_the_warm_up_is_of_the_published_kind(exported):
    path = exported / "assets.extra" / "tf_serving_warmup_requests"
    found = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(path))
    ]
    assert {log.predict_log.request.model_spec.signature_name for log in found} == SIGNATURES
    for log in found:
        assert log.WhichOneof("log_type") == "predict_log"
        assert log.predict_log.request.model_spec.name == NAME
        again = prediction_log_pb2.PredictionLog.FromString(log.SerializeToString())
        assert again == log


def test_a_new_version_takes_over_without_a_failed_request(start, exported):
    client = start()
    files = np.array(files_of(noise()), object)
    versions = []

    def ask() -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and 2 not in versions[-1:]:
            response = client.predictions.Predict(
                request("serving_default", images_bytes=files), timeout=SECONDS
            )
            versions.append(response.model_spec.version.value)

    ask_once = request("serving_default", images_bytes=files)
    assert client.predictions.Predict(ask_once, timeout=SECONDS).model_spec.version.value == 1
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        shutil.copytree(exported, client.versions / ".2.tmp")
        (client.versions / ".2.tmp").rename(client.versions / "2")
        asking.result()
    assert versions == sorted(versions) and versions[-1] == 2
    assert status_of(client) == {1: "END", 2: "AVAILABLE"}
    path = f"/v1/models/{NAME}/versions"
    body = {"instances": b64(files.tolist())}
    assert client.rest("POST", f"{path}/2:predict", body)[0] == 200
    assert client.rest("POST", f"{path}/1:predict", body)[0] == 404

    broken = client.versions / ".3.tmp"
    shutil.copytree(exported, broken)
    (broken / "saved_model.pb").write_bytes((broken / "saved_model.pb").read_bytes()[:1000])
    broken.rename(client.versions / "3")
    until = time.monotonic() + SECONDS
    while status_of(client).get(3) != "END" and time.monotonic() < until:
        time.sleep(0.1)
    assert status_of(client) == {1: "END", 2: "AVAILABLE", 3: "END"}
    assert client.rest("POST", f"/v1/models/{NAME}:predict", body)[0] == 200


# --- What is refused ------------------------------------------------------------------------------


FILES = files_of(noise(1, 1))
B64 = b64(FILES)
BLANK = np.zeros((1, 1, SIZE, SIZE, 3), np.float32)
ONES = np.ones((1, 1, 1, SIDE, SIDE, BITS), np.int8)
PREDICT = f"/v1/models/{NAME}:predict"


def some_shape(rng: np.random.Generator) -> tuple[int, ...]:
    """A shape that no input has."""
    return tuple(int(n) for n in rng.integers(0, 3, int(rng.integers(0, 5))))


def encode_json(images: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"signature_name": "encode", "inputs": {"images": images.tolist(), **more}}


REST: list[Callable[[np.random.Generator], Any]] = [
    lambda rng: json.dumps({"instances": B64}).encode()[: int(rng.integers(0, 200))],
    lambda rng: rng.bytes(int(rng.integers(1, 200))),
    lambda rng: b"[" * int(rng.integers(2, 100_000)),
    lambda rng: str(rng.choice(["null", "3", '"x"', "[]", "{}", "[{}]"])).encode(),
    lambda rng: {"instances": B64, "inputs": B64},
    lambda rng: {"instances": []},
    lambda rng: {"instances": {}},
    lambda rng: {"inputs": {}},
    lambda rng: {"inputs": {"another": B64}},
    lambda rng: {"signature_name": "another", "instances": B64},
    lambda rng: {"signature_name": int(rng.integers(9)), "instances": B64},
    lambda rng: {"instances": [[int(rng.integers(9))]]},
    lambda rng: {"instances": [["text"]]},
    lambda rng: {"instances": [[None]]},
    lambda rng: {"instances": [[{"b64": "not base64!"}]]},
    lambda rng: {"instances": [[{"b64": 3}]]},
    lambda rng: {"instances": [[{"b65": ""}]]},
    lambda rng: {"instances": [[]]},
    lambda rng: {"instances": [B64[0], []]},
    lambda rng: {"instances": [B64[0][0], B64[0]]},
    lambda rng: {"instances": [B64[0] * 256]},
    lambda rng: {"instances": b64([[png(np.zeros((int(rng.integers(1, 32)), SIZE), np.uint8))]])},
    lambda rng: {"instances": b64([[rng.bytes(int(rng.integers(0, 99)))]])},
    lambda rng: {"instances": b64([[FILES[0][0][: int(rng.integers(0, 2000))]]])},
    lambda rng: encode_json(BLANK),
    *(
        lambda rng, wrong=wrong: encode_json(BLANK, iterations=wrong)
        for wrong in (0, -1, 256, 2**31 - 1, 2**40, 1.5, [1], "1", None, True)
    ),
    lambda rng: encode_json(np.full(BLANK.shape, np.nan), iterations=1),
    lambda rng: encode_json(np.full(BLANK.shape, 1 + rng.random()), iterations=1),
    lambda rng: encode_json(np.zeros(some_shape(rng)), iterations=1),
    lambda rng: {"signature_name": "reconstruct", "inputs": (ONES * 0).tolist()},
    lambda rng: {"signature_name": "reconstruct", "inputs": ONES[np.newaxis].tolist()},
    lambda rng: {"signature_name": "reconstruct", "inputs": [[[]]]},
    lambda rng: {"signature_name": "decode", "inputs": (ONES * 300.0).astype(int).tolist()},
    lambda rng: {"signature_name": "decode", "inputs": (ONES * 0.5).tolist()},
    lambda rng: {"signature_name": "reconstruct_packed",
                 "inputs": b64([[bytes(8 * int(rng.integers(9)) + int(rng.integers(1, 8)))]])},
    lambda rng: {"signature_name": "reconstruct_packed", "inputs": b64([[bytes(8), bytes(16)]])},
]  # fmt: skip
"""Bodies of a predict request, each wrong in a way of its own."""

PATHS = (
    *("/", "/v1/models", f"/v1/models/{NAME}", f"/v1/models/{NAME}:classify"),
    *(f"/v1/models/{NAME}/versions/9:predict", f"/v1/models/{NAME}/versions/x:predict"),
    *("/v1/models/another:predict", f"/v1/models/{NAME}/versions/{'9' * 30}:predict"),
)


def malformed_rest(rng: np.random.Generator) -> tuple[str, bytes]:
    """A path and a body, of which one is wrong."""
    chosen = int(rng.integers(len(REST) + 4))
    if chosen >= len(REST):
        return str(rng.choice(PATHS)), json.dumps({"instances": B64}).encode()
    body = REST[chosen](rng)
    return PREDICT, body if isinstance(body, bytes) else json.dumps(body).encode()


def changed(change: Callable[[predict_pb2.PredictRequest], None]) -> predict_pb2.PredictRequest:
    """A request that was right before the change."""
    made = request("serving_default", images_bytes=np.array(FILES, object))
    change(made)
    return made


def says_size(made: predict_pb2.PredictRequest, size: int) -> None:
    made.inputs["images_bytes"].tensor_shape.dim[0].size = size


def with_pixel(value: float) -> np.ndarray:
    images = BLANK.copy()
    images[0, 0, 3, 4, 1] = value
    return images


GRPC: list[Callable[[np.random.Generator], Any]] = [
    lambda rng: changed(lambda made: None).SerializeToString()[: int(rng.integers(1, 500))],
    lambda rng: b"\xff" + rng.bytes(int(rng.integers(1, 200))),
    lambda rng: changed(lambda made: says_size(made, -int(rng.integers(1, 2**40)))),
    lambda rng: changed(lambda made: says_size(made, int(rng.integers(5000, 2**20)))),
    lambda rng: changed(lambda made: made.model_spec.ClearField("name")),
    lambda rng: changed(lambda made: setattr(made.model_spec, "name", "another")),
    lambda rng: changed(lambda made: setattr(made.model_spec.version, "value", 7)),
    lambda rng: changed(lambda made: made.output_filter.append("another")),
    lambda rng: changed(lambda made: setattr(made.model_spec, "signature_name", "another")),
    lambda rng: changed(lambda made: made.inputs.clear()),
    lambda rng: request("serving_default", another=np.array(FILES, object)),
    lambda rng: request("serving_default", images_bytes=np.array(FILES[0], object)),
    lambda rng: request("serving_default", images_bytes=np.zeros((1, 1), np.int32)),
    lambda rng: request("serving_default", images_bytes=np.zeros((1, 0), object)),
    lambda rng: request("serving_default", images_bytes=np.zeros((0, 1), object)),
    lambda rng: request("serving_default", images_bytes=np.array([[rng.bytes(50)]], object)),
    *(
        lambda rng, wrong=wrong: request("encode", images=with_pixel(wrong), iterations=np.int32(1))
        for wrong in (np.nan, np.inf, -np.inf, 1.01, -0.01)
    ),
    *(
        lambda rng, wrong=wrong: request("encode", images=BLANK, iterations=wrong)
        for wrong in (np.int32(0), np.int32(2**31 - 1), np.int64(1), np.float32(1), ONES)
    ),
    lambda rng: request("encode", images=BLANK.astype(np.float64), iterations=np.int32(1)),
    lambda rng: request("encode", images=BLANK[:, :0], iterations=np.int32(1)),
    lambda rng: request("encode", images=BLANK.repeat(256, 1), iterations=np.int32(1)),
    lambda rng: request(
        "encode", images=np.zeros(some_shape(rng), np.float32), iterations=np.int32(1)
    ),
    lambda rng: request("reconstruct", codes=ONES[:, :0]),
    lambda rng: request("reconstruct", codes=ONES[:, :, :0]),
    lambda rng: request("reconstruct", codes=ONES * np.int8(2)),
    lambda rng: request("reconstruct", codes=ONES.astype(np.float32)),
    lambda rng: request("decode", codes=np.zeros((1, 1, 1, SIDE, SIDE, BITS + 1), np.int8)),
    lambda rng: request("reconstruct_packed", codes_bytes=np.array([[rng.bytes(7)]], object)),
]
"""Messages to Predict, each wrong in a way of its own."""


def malformed_grpc(rng: np.random.Generator) -> bytes:
    """The bytes of a message to Predict."""
    chosen = GRPC[int(rng.integers(len(GRPC)))](rng)
    return chosen if isinstance(chosen, bytes) else chosen.SerializeToString()


def test_a_thousand_malformed_requests_are_answered_by_errors(client):
    rng = np.random.default_rng(0)
    raw = client.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    answers: dict[Any, int] = {}
    for _ in range(MALFORMED // 2):
        path, body = malformed_rest(rng)
        status, answer = client.rest("POST", path, body)
        assert status in (400, 404) and set(answer) == {"error"} and answer["error"], body[:200]
        answers[status] = answers.get(status, 0) + 1

        data = malformed_grpc(rng)
        with pytest.raises(grpc.RpcError) as caught:
            raw(data, timeout=SECONDS)
        answers[caught.value.code()] = answers.get(caught.value.code(), 0) + 1
    codes = grpc.StatusCode
    # Internal is what gRPC itself says of bytes that are no such message.
    assert set(answers) == {400, 404, codes.INVALID_ARGUMENT, codes.NOT_FOUND, codes.INTERNAL}
    assert sum(answers.values()) == MALFORMED
    assert client.server.process.poll() is None
    files = np.array(files_of(noise()), object)
    assert client.predict("serving_default", images_bytes=files)["occupancy"].shape[0] == 1


def test_requests_that_are_too_large_are_refused_unread(client):
    connection = http.client.HTTPConnection(client.server.http, timeout=SECONDS)
    connection.putrequest("POST", f"/v1/models/{NAME}:predict")
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413 and "Content-Length" in json.loads(response.read())["error"]
    connection.close()
    raw = client.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError) as caught:
        raw(bytes(33 * 2**20), timeout=SECONDS)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_of(client) == {1: "AVAILABLE"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"instances": b64([[b"no image"]])}, "images_bytes must be PNG or JPEG files"),
        ({"instances": b64([[png(np.zeros((16, 16, 3), np.uint8))]])}, "files of 32 x 32 pixels"),
        ({"signature_name": "reconstruct_packed", "inputs": b64([[bytes(9)]])},
         "codes_bytes must hold 1 to 255 iterations of 64 bits"),
        ({"signature_name": "reconstruct_files",
          "inputs": {"images_bytes": b64(files_of(noise())), "iterations": 0}},
         "iterations must be in [1, 255]"),
        ({"signature_name": "reconstruct", "inputs": np.zeros((1, 1, 1, 2, 2, 16), int).tolist()},
         "codes must be -1 or +1"),
    ],
)  # fmt: skip
def test_the_error_says_what_was_wrong(client, body, words):
    status, answer = client.rest("POST", f"/v1/models/{NAME}:predict", body)
    assert status == 400 and words in answer["error"]


# --- Load -----------------------------------------------------------------------------------------


def test_no_answer_is_lost_or_mixed_up_under_concurrent_load(client, loaded):
    """Eight clients of both kinds, each with objects of its own, 25 requests each."""
    files = [np.array(files_of(noise(1, 2, seed)), object) for seed in range(8)]
    expected = [
        loaded["reconstruct_files"](images_bytes=tf.constant(f.tolist()), iterations=tf.constant(2))
        for f in files
    ]

    def ask(number: int) -> int:
        right = 0
        for _ in range(25):
            if number % 2:
                found = client.predict(
                    "reconstruct_files", images_bytes=files[number], iterations=np.int32(2)
                )["occupancy"]
            else:
                inputs = {"images_bytes": b64(files[number].tolist()), "iterations": 2}
                body = {"signature_name": "reconstruct_files", "inputs": inputs}
                found = np.array(client.post(body)["outputs"], np.float32)
            right += np.array_equal(found, expected[number]["occupancy"])
        return right

    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [25] * 8
    assert time.monotonic() - start < 120
