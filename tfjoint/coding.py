"""Entropy coding of codes: integer tables of probabilities, and TensorFlow Compression's coder.

    codes of the training set --> count --> Tables, one file --> bitstream.encode(codes, tables)

Every bit of a code has a probability of its own, by iteration, row, column and channel. It depends
on nothing that was sent before, so that a packet is decoded alone. Everything is made of integers:
the same codes give the same bytes on every machine. Floats have no tables; they are sent raw.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tfjoint import files
from tfjoint.bitstream import BitstreamError, Bytes, Codes, Source
from tfjoint.errors import UserError

PRECISION = 16
"""Probabilities are multiples of 2**-16, and never 0 or 1."""
FORMAT = 1

# By how many bits a stream's length may differ from its ideal: the coder's last bytes, and, for
# every bit, rounding. It is least for the likeliest codes, and the shortest stream is of these; of
# others it was measured to be 2**-10 at most, with the most extreme tables.
_LAST_BITS = 64
_ROUNDING_OF_LIKELIEST, _ROUNDING = 2**-14, 2**-8


class CodingError(UserError):
    """Tables that cannot be counted or read, or a machine without the range coder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """The probability of every bit of a source's codes: a `bitstream.Coder`.

    Raises:
      CodingError: the probabilities are not of the source.
    """

    source: Source
    ones: np.ndarray
    """[T, H/16, W/16, M], or [K] without iterations, uint16: probability of +1 times 2**16, at
    least 1. T is the most iterations that can be coded."""

    def __post_init__(self) -> None:
        ones, axes = np.array(self.ones), int(self.source.iterative)
        if not self.source.binary:
            raise CodingError("codes of floats have no tables: send them raw")
        of_source = ones.dtype == np.uint16 and ones.shape[axes:] == self.source.shape
        if not (of_source and ones.size and ones.all()):
            raise CodingError(
                f"tables of {self.source} must be positive uint16, T times {self.source.shape}. "
                f"Received: {ones.dtype} {ones.shape}"
            )
        ones.flags.writeable = False
        object.__setattr__(self, "ones", ones)

    @functools.cached_property
    def digest(self) -> str:
        """8 hexadecimal digits of the SHA-256 over source and probabilities."""
        return _sha256(self.source, self.ones)[:8]

    def encode(self, values: np.ndarray) -> bytes:
        """Return the coded payload of values [V, T, H/16, W/16, M] or [V, K], -1 or +1.

        Raises:
          BitstreamError: there are more iterations than in the tables.
          CodingError: the range coder is not installed.
        """
        self._check_iterations(values.shape)
        return self._encode((values > 0).astype(np.int32).reshape(len(values), -1))

    def decode(self, payload: Bytes, shape: tuple[int, ...]) -> np.ndarray:
        """Return the int8 values of a payload, of the shape given to `encode`.

        Raises:
          BitstreamError: `encode` does not make this payload of any values of that shape.
          CodingError: the range coder is not installed.
        """
        self._check_iterations(shape)
        size = shape[0], math.prod(shape[1:])
        costs = self._costs[:, : size[1]]
        least = size[0] * costs.min(axis=0).sum()
        if least - 8 * len(payload) > _LAST_BITS + _ROUNDING_OF_LIKELIEST * math.prod(size):
            raise BitstreamError(
                f"damaged: codes of {list(shape)} take at least {least / 8:.0f} bytes. Received: "
                f"{len(payload)}; get it again"
            )
        coder, channels = range_coder(), self._channels(size[1])
        handle = coder.create_range_decoder(_tensor(bytes(payload)), channels)
        _, tensor = coder.entropy_decode_channel(handle, _integers(size), channels.dtype)
        bits = tensor.numpy()
        # Nearly all that is damaged has another length than its bits would have, which is found
        # out in a fraction of the time that coding takes.
        ones = bits.sum(axis=0)
        ideal = costs[1] @ ones + costs[0] @ (size[0] - ones)
        near = abs(ideal - 8 * len(payload)) <= _LAST_BITS + _ROUNDING * math.prod(size)
        if not near or self._encode(tensor) != payload:
            raise BitstreamError("damaged: the coded payload is not one of codes; get it again")
        return (2 * bits - 1).astype(np.int8).reshape(shape)

    def _encode(self, bits: Any) -> bytes:
        # Bits [V, bits of a view], int32, an array or a tensor.
        coder = range_coder()
        handle = coder.create_range_encoder(_integers(()), self._channels(bits.shape[1]))
        handle = coder.entropy_encode_channel(handle, bits)
        return coder.entropy_encode_finalize(handle).numpy()

    def _channels(self, count: int) -> Any:
        # The lookup of a view's first bits, made once, as to make it takes as long as to code.
        if count not in self._tensors:
            self._tensors[count] = _tensor(self._lookup[:count])
        return self._tensors[count]

    @functools.cached_property
    def _tensors(self) -> dict[int, Any]:
        return {}

    @functools.cached_property
    def _lookup(self) -> np.ndarray:
        # By bit of a view, a channel to the coder: the precision, then the cumulative
        # probabilities of -1 and +1.
        ones, whole = self.ones.ravel().astype(np.int32), 2**PRECISION
        return np.stack(
            [np.full_like(ones, PRECISION), 0 * ones, whole - ones, np.full_like(ones, whole)], 1
        )

    @functools.cached_property
    def _costs(self) -> np.ndarray:
        # Bits that a -1 and a +1 take, [2, bits of a view].
        share = self.ones.ravel() / 2**PRECISION
        return -np.log2([1 - share, share])

    @property
    def iterations(self) -> int:
        """The most that can be coded; 1 without iterations."""
        return len(self.ones) if self.source.iterative else 1

    def _check_iterations(self, shape: tuple[int, ...]) -> None:
        if self.source.iterative and shape[1] > self.iterations:
            raise BitstreamError(
                f"the tables are for up to {self.iterations} iterations. Received: {shape[1]}; "
                "send these codes raw"
            )


def count(codes: Iterable[Codes]) -> Tables:
    """Return tables with the share of +1 among `codes`, Laplace smoothed.

    Args:
      codes: of many objects, the training set's: all of one source and number of iterations.

    Raises:
      CodingError: there are none, they differ in that, or they are floats.
    """
    source = iterations = None
    views, ones = 0, np.zeros((), np.int64)
    for code in codes:
        if source is None:
            source, iterations = code.source, code.iterations
        if (code.source, code.iterations) != (source, iterations):
            raise CodingError(
                f"tables are counted on codes of one kind: {source}, {iterations} iterations. "
                f"Received: {code.source}, {code.iterations}"
            )
        views += code.views
        ones = ones + np.sum(code.values > 0, axis=0)
    if source is None:
        raise CodingError("there are no codes to count: give those of the training set")
    share = ((ones + 1) << PRECISION) // (views + 2)
    return Tables(source, share.clip(1, 2**PRECISION - 1).astype(np.uint16))


def write(path: str | os.PathLike, tables: Tables) -> None:
    """Write tables as JSON: format, source, probabilities, and their SHA-256."""
    files.write_json(
        path,
        {
            "format": FORMAT,
            "source": dataclasses.asdict(tables.source),
            "ones": tables.ones.tolist(),
            "sha256": _sha256(tables.source, tables.ones),
        },
    )


def read(path: str | os.PathLike) -> Tables:
    """Return the tables in a file. Raises `CodingError` if it is missing or damaged."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}, this tfjoint reads {FORMAT}")
        ones = np.array(found["ones"])
        if ones.dtype.kind != "i" or ones.min() < 1 or ones.max() >= 2**PRECISION:
            raise ValueError("its probabilities are not integers in [1, 65535]")
        tables = Tables(Source(**found["source"]), ones.astype(np.uint16))
        if found["sha256"] != _sha256(tables.source, tables.ones):
            raise ValueError("its SHA-256 does not fit")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CodingError(
            f"{path} does not hold tables of probabilities ({error}): export the run again"
        ) from error
    return tables


def _sha256(source: Source, ones: np.ndarray) -> str:
    text = json.dumps([FORMAT, dataclasses.asdict(source), ones.shape], sort_keys=True)
    return hashlib.sha256(text.encode() + ones.astype("<u2").tobytes()).hexdigest()


def _tensor(value: Any) -> Any:
    # To an operation it is given several times as fast as what is yet to become a tensor.
    import tensorflow as tf  # the coder's operations bring it

    return tf.constant(value)


@functools.lru_cache
def _integers(values: tuple[int, ...]) -> Any:
    return _tensor(np.array(values, np.int32))


@functools.lru_cache(maxsize=1)
def range_coder() -> Any:
    """Return the module that has the range coder's operations.

    Raises:
      CodingError: it is not installed, or for another TensorFlow.
    """
    try:
        try:
            import tensorflow_compression_ops as operations
        except ImportError:
            import tensorflow_compression as operations
    except Exception as error:  # of many kinds where it was built for another TensorFlow
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CodingError(
            f"coding with tables needs TensorFlow Compression, which is not here ({reason}): use "
            "raw, or install tfjoint[tfc] with TensorFlow 2.17, tfjoint[tf214] with 2.14"
        ) from error
    return operations
