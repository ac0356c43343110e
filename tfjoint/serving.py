"""What an export offers to the clients of a model server, beside the tensors of `tfjoint.export`.

    serving_default:    images_bytes [B, V] -> occupancy, at the most iterations of the training;
                        of the compression model, the decoded images [B, V, H, W, 3]
    reconstruct_files:  images_bytes, iterations [] int32 -> occupancy
    encode_files:       images_bytes, iterations [] int32 -> codes_bytes [B, V]
    reconstruct_packed: codes_bytes -> occupancy

`images_bytes` are PNG or JPEG files of the size that the model was trained at; alpha blends a view
over the background of the training. `codes_bytes` are what a packet of `tfjoint.bitstream` has as
its raw payload; the iterations follow from their length. TensorFlow Serving's REST interface writes
tensors whose names end in `_bytes` as {"b64": ...}: a file costs a third more than its size, where
a JSON array costs some ten bytes per value.

A system has what it can serve: without iterations `serving_default` is `reconstruct_files`, without
a code it stands alone, and the compression model, which takes images of any multiple of 16 pixels,
lacks both signatures that reconstruct.

    assets.extra/tf_serving_warmup_requests    a small request of every signature, which TensorFlow
                                               Serving runs before a version counts as loaded
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfjoint.config import DOWNSAMPLING, FLOAT_BITS, Config
from tfjoint.dataset import TEST_GREY

DEFAULT = "serving_default"
"""The signature that a request without a name means."""
MOST = 255
"""Views of an object and iterations of a code, at most: what `tfjoint.bitstream` can write."""
MOST_IN_ALL = 4096
"""Files or payloads in a request, at most."""
LARGEST = MOST * DOWNSAMPLING
"""Pixels of a view's height and width, at most."""
WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"

Signature = Any  # a tf.function with an input_signature; TensorFlow's own name for it is private

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_HEADER = 24
"""Bytes of a PNG up to its width and height, which are the last eight of them."""
_BITS = np.arange(7, -1, -1, dtype=np.int32)  # of a byte, the highest first


def signatures(by_name: Mapping[str, Signature], config: Config) -> dict[str, Signature]:
    """Return the signatures for clients, made of those in `by_name` that take tensors.

    Every one refuses what it cannot take with an InvalidArgumentError that says what is allowed.
    """
    encode, reconstruct = by_name.get("encode"), by_name.get("reconstruct")
    iterative = config.uses("iterations_max")
    most = [config.iterations_max] if iterative else []
    found = {}

    def read(images_bytes, *iterations):
        images = read_images(images_bytes, config)
        return encode(images, *iterations)["codes"] if encode else images

    if reconstruct:
        found[DEFAULT] = _of_files(lambda files: reconstruct(read(files, *most)))
    else:
        decode = by_name["decode"]
        found[DEFAULT] = _of_files(
            lambda files: {"images": decode(read(files, *most))["images"][:, :, -1]}
        )
    if encode:
        of_files = _of_files_and_iterations if iterative else _of_files
        found["encode_files"] = of_files(lambda *given: {"codes_bytes": pack(read(*given))})
    if reconstruct and iterative:
        found["reconstruct_files"] = _of_files_and_iterations(
            lambda *given: reconstruct(read(*given))
        )
    # A code shorter than a byte does not say how many iterations it has.
    if reconstruct and config.code_size >= 8:
        found["reconstruct_packed"] = _of_codes(lambda codes: reconstruct(unpack(codes, config)))
    return found


# TensorFlow names the inputs of a signature as its function names its arguments.


def _of_files(run: Callable) -> Signature:
    def of_files(images_bytes):
        return run(images_bytes)

    spec = tf.TensorSpec([None, None], tf.string, "images_bytes")
    return tf.function(of_files, [spec], autograph=False)


def _of_files_and_iterations(run: Callable) -> Signature:
    def of_files(images_bytes, iterations):
        return run(images_bytes, iterations)

    specs = [
        tf.TensorSpec([None, None], tf.string, "images_bytes"),
        tf.TensorSpec([], tf.int32, "iterations"),
    ]
    return tf.function(of_files, specs, autograph=False)


def _of_codes(run: Callable) -> Signature:
    def of_codes(codes_bytes):
        return run(codes_bytes)

    spec = tf.TensorSpec([None, None], tf.string, "codes_bytes")
    return tf.function(of_codes, [spec], autograph=False)


# --- Files ----------------------------------------------------------------------------------------


def read_images(images_bytes: tf.Tensor, config: Config) -> tf.Tensor:
    """Return [B, V, H, W, 3] float32 in [0, 1] of PNG or JPEG files [B, V]; part of a graph.

    Sizes are read from the files' headers before any pixel is decoded.
    """
    shape = tf.shape(images_bytes)
    flat = _listed("images_bytes", images_bytes)
    kinds = _are_png(flat)
    sizes = tf.map_fn(_size, (flat, kinds), fn_output_signature=tf.TensorSpec([2], tf.int32))
    side = config.image_size if config.uses("grid_size") else None
    with tf.control_dependencies([_assert_sizes(sizes, side)]):
        flat = tf.identity(flat)
    background = {"black": 0.0, "white": 1.0, "random": TEST_GREY}[config.background]
    images = tf.map_fn(
        lambda file: _pixels(file[0], file[1], background, side),
        (flat, kinds),
        fn_output_signature=tf.TensorSpec([side, side, 3]),
    )
    return tf.reshape(images, tf.concat([shape, tf.shape(images)[1:]], 0))


def _are_png(files: tf.Tensor) -> tf.Tensor:
    def start_with(magic: bytes, least: int) -> tf.Tensor:
        fits = tf.strings.substr(files, 0, len(magic)) == magic
        return fits & (tf.strings.length(files) >= least)

    png, jpeg = start_with(_PNG, _PNG_HEADER), start_with(_JPEG, len(_JPEG))
    message = "images_bytes must be PNG or JPEG files. Received, of so many bytes:"
    return require(png, tf.reduce_all(png | jpeg), message, tf.strings.length(files))


def _size(file: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    data, is_png = file
    return tf.cond(
        is_png,
        # Width before height, the highest byte first.
        lambda: tf.io.decode_raw(
            tf.strings.substr(data, _PNG_HEADER - 8, 8), tf.int32, little_endian=False
        )[::-1],
        lambda: tf.image.extract_jpeg_shape(data)[:2],
    )


def _assert_sizes(sizes: tf.Tensor, side: int | None) -> tf.Operation:
    if side is not None:
        fits = tf.reduce_all(sizes == side)
        message = f"images_bytes must be files of {side} x {side} pixels. Received:"
    else:
        whole = tf.reduce_all((sizes % DOWNSAMPLING == 0) & (sizes > 0) & (sizes <= LARGEST))
        fits = whole & tf.reduce_all(sizes == sizes[:1])
        message = (
            f"images_bytes must be files of one size, a multiple of {DOWNSAMPLING} up to {LARGEST} "
            "in height and width. Received:"
        )
    return tf.debugging.Assert(fits, [message, sizes])


def _pixels(data: tf.Tensor, is_png: tf.Tensor, background: float, side: int | None) -> tf.Tensor:
    def png() -> tf.Tensor:
        rgba = _in_0_1(tf.io.decode_png(data, channels=4))
        return rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])

    def jpeg() -> tf.Tensor:
        return _in_0_1(tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"))

    return tf.ensure_shape(tf.cond(is_png, png, jpeg), [side, side, 3])


def _in_0_1(pixels: tf.Tensor) -> tf.Tensor:
    # Looked up, because a graph's division by 255 is optimised to a product, which rounds
    # otherwise than the division of the training.
    return tf.gather(np.arange(256, dtype=np.float32) / np.float32(255), tf.cast(pixels, tf.int32))


# --- Packed codes ---------------------------------------------------------------------------------


def pack(codes: tf.Tensor) -> tf.Tensor:
    """Return the payloads [B, V] of codes [B, V, ...], as in a packet; part of a graph.

    int8 codes become bits, 1 for +1, from the highest of the first byte on; zeros fill the last
    one. float32 codes are little-endian.
    """
    flat = tf.reshape(codes, tf.concat([tf.shape(codes)[:2], [-1]], 0))
    if codes.dtype == tf.int8:
        bits = tf.pad(tf.cast(flat > 0, tf.int32), [[0, 0], [0, 0], [0, -tf.shape(flat)[2] % 8]])
        bits = tf.reshape(bits, tf.concat([tf.shape(codes)[:2], [-1, 8]], 0))
        octets = tf.reduce_sum(tf.bitwise.left_shift(bits, _BITS), -1)
    else:
        octets = tf.cast(tf.bitcast(flat, tf.uint8), tf.int32)  # [B, V, values, 4]
        octets = tf.reshape(octets, tf.concat([tf.shape(codes)[:2], [-1]], 0))
    return tf.strings.reduce_join(tf.gather(_every_byte(), octets), -1)


def _every_byte() -> tf.Tensor:
    # TensorFlow writes strings of octets, but has no operation that makes them of numbers.
    return tf.constant(np.array([bytes([value]) for value in range(256)], object))


def unpack(codes_bytes: tf.Tensor, config: Config) -> tf.Tensor:
    """Return the codes [B, V, T, H/16, W/16, M] or [B, V, K] of payloads [B, V]; part of a graph.

    The reverse of `pack`, for a model with a grid: the size of its code is known.
    """
    shape = tf.shape(codes_bytes)
    flat = _listed("codes_bytes", codes_bytes)
    lengths = tf.strings.length(flat)
    flat = require(
        flat, tf.reduce_all(lengths == lengths[0]),
        "codes_bytes must all have one length in bytes. Received:", lengths,
    )  # fmt: skip
    iterations = _iterations(lengths[0], config)
    with tf.control_dependencies([iterations]):
        values = _values(flat, iterations * config.code_size, config.binarizer)
    axes = [config.code_size]
    if config.uses("iterations_max"):
        side = config.image_size // DOWNSAMPLING
        axes = [iterations, side, side, config.code_channels]
    return tf.reshape(values, tf.concat([shape, axes], 0))


def _iterations(length: tf.Tensor, config: Config) -> tf.Tensor:
    # Of a payload of `length` bytes; 1 for a code without iterations.
    bits = config.code_size * (1 if config.binarizer else FLOAT_BITS)
    most = MOST if config.uses("iterations_max") else 1
    iterations = 8 * length // bits
    fits = (iterations >= 1) & (iterations <= most) & ((iterations * bits + 7) // 8 == length)
    whole = f"1 to {MOST} iterations of {bits} bits" if most > 1 else f"{bits} bits"
    return require(iterations, fits, f"codes_bytes must hold {whole}. Received, in bytes:", length)


def _values(flat: tf.Tensor, count: tf.Tensor | int, binary: bool) -> tf.Tensor:
    if not binary:
        return tf.io.decode_raw(flat, tf.float32, little_endian=True)
    octets = tf.cast(tf.io.decode_raw(flat, tf.uint8), tf.int32)
    bits = tf.bitwise.right_shift(octets[..., tf.newaxis], _BITS) & 1
    bits = tf.reshape(bits, [tf.shape(octets)[0], -1])
    behind = tf.reduce_all(bits[:, count:] == 0)
    bits = require(bits, behind, "codes_bytes: the bits behind the last one must be 0")
    return tf.cast(2 * bits[:, :count] - 1, tf.int8)


# --- Checks ---------------------------------------------------------------------------------------


def filled(name: str, value: tf.Tensor) -> tf.Tensor:
    """Return `value` [B, V, ...] once it is known not to be empty and to have 1 to 255 views."""
    shape = tf.shape(value)
    fits = (tf.size(value) > 0) & (shape[1] <= MOST)
    message = f"{name} must not be empty, and hold at most {MOST} views of an object. Received:"
    return require(value, fits, message, shape)


def _listed(name: str, strings: tf.Tensor) -> tf.Tensor:
    # A request may say that its last string is repeated, so that few bytes would be many views.
    strings = filled(name, strings)
    message = f"{name} must hold at most {MOST_IN_ALL} views in all. Received:"
    fits = tf.size(strings) <= MOST_IN_ALL
    return tf.reshape(require(strings, fits, message, tf.shape(strings)), [-1])


def require(value: tf.Tensor, condition: tf.Tensor, message: str, *received: tf.Tensor):
    """Return `value` once `condition` holds; an InvalidArgumentError says the message otherwise."""
    # Without the dependency, an operation on `value` may fail first, with a message of its own.
    with tf.control_dependencies([tf.debugging.Assert(condition, [message, *received])]):
        return tf.identity(value)


# --- Warm-up --------------------------------------------------------------------------------------


def write_warmup(export: Path, by_name: Mapping[str, Signature], config: Config) -> None:
    """Write a request of one object, one view and one iteration for every signature."""
    images = np.zeros([1, 1, config.image_size, config.image_size, 3], np.float32)
    values: dict[str, tf.Tensor] = {"images": tf.constant(images), "iterations": tf.constant(1)}
    blank = tf.zeros(images.shape[2:], tf.uint8)
    values["images_bytes"] = tf.reshape(tf.io.encode_png(blank), [1, 1])
    if config.code_size:
        times = [values["iterations"]] * config.uses("iterations_max")
        values |= by_name["encode"](values["images"], *times)
        values["codes_bytes"] = pack(values["codes"])
    path = export / WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, signature in sorted(by_name.items()):
            inputs = {
                spec.name: values.get(spec.name, _zeros(spec)) for spec in signature.input_signature
            }
            writer.write(_prediction_log(config.model, name, inputs))


def _zeros(spec: tf.TensorSpec) -> tf.Tensor:
    return tf.zeros([side or 1 for side in spec.shape], spec.dtype)  # as the state of a grid begins


def _prediction_log(model: str, signature: str, inputs: Mapping[str, tf.Tensor]) -> bytes:
    """Return a tensorflow.serving.PredictionLog of one Predict request, as protobuf writes it.

    Its published definitions come with packages of their own; of this one message, every field is
    a string or another message.
    """
    spec = _message([(1, model.encode()), (3, signature.encode())])  # name, signature_name
    entries = [
        (2, _message([(1, name.encode()), (2, _tensor(value))]))  # inputs: a map is its entries
        for name, value in sorted(inputs.items())
    ]
    request = _message([(1, spec), *entries])
    return _message([(6, _message([(1, request)]))])  # predict_log, request


def _tensor(value: tf.Tensor) -> bytes:
    return tf.make_tensor_proto(value.numpy(), value.dtype).SerializeToString(deterministic=True)


def _message(fields: Iterable[tuple[int, bytes]]) -> bytes:
    parts = []
    for number, content in fields:
        parts += [_varint(number << 3 | 2), _varint(len(content)), content]  # 2: of a said length
    return b"".join(parts)


def _varint(value: int) -> bytes:
    octets = []
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])
