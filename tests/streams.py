"""Codes of several geometries for the tests of bitstreams, and a coder that needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np

from tfjoint.bitstream import BitstreamError, Codes, Source

DIGEST = "0123abcd"

SOURCES = {
    "direct, mini": (Source(DIGEST, 64, 64, 16), 5, 2),
    "direct, paper": (Source(DIGEST, 128, 128, 16), 2, 3),
    "one bit": (Source("ffffffff", 16, 16, 1), 1, 1),
    "bits that fill no byte": (Source("00000000", 48, 80, 3), 3, 7),
    "most views and iterations": (Source(DIGEST, 16, 16, 1), 255, 255),
    "largest views": (Source(DIGEST, 4080, 16, 1), 1, 1),
    "most channels": (Source(DIGEST, 16, 16, 255), 2, 1),
    "implicit": (Source(DIGEST, 64, 64, 256, iterative=False), 5, None),
    "implicit, 480:1": (Source(DIGEST, 127, 127, 820, iterative=False), 3, None),
    "implicit, most": (Source(DIGEST, 65535, 65535, 65535, iterative=False), 1, None),
    "direct, floats": (Source(DIGEST, 64, 32, 4, binary=False), 2, 2),
    "implicit, floats": (Source(DIGEST, 64, 64, 60, iterative=False, binary=False), 2, None),
}
"""By name: a source, a number of views and of iterations."""

SMALL = ("direct, mini", "one bit", "bits that fill no byte", "implicit", "implicit, 480:1",
         "direct, floats", "implicit, floats")  # fmt: skip
"""Those of which a test can look at every bit."""


def make(name: str, seed: int = 0, likely: float = 0.9) -> Codes:
    """Random codes of a geometry; a bit is +1 with probability `likely`."""
    source, views, iterations = SOURCES[name]
    rng = np.random.default_rng(seed)
    shape = (views, *([iterations] if source.iterative else []), *source.shape)
    if source.binary:
        return Codes(source, np.where(rng.random(shape) < likely, 1, -1).astype(np.int8))
    return Codes(source, rng.uniform(-1, 1, shape).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Deflated:
    """A coder of the standard library: packed bits, deflated."""

    source: Source
    digest: str = "de0f1a7e"

    def encode(self, values: np.ndarray) -> bytes:
        compressor = zlib.compressobj(9, zlib.DEFLATED, -9, 1)  # of little memory
        return compressor.compress(np.packbits(values > 0).tobytes()) + compressor.flush()

    def decode(self, payload: bytes | memoryview, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        try:
            packed = zlib.decompressobj(-15).decompress(payload, -(-count // 8) + 1)
        except zlib.error as error:
            raise BitstreamError(f"damaged: {error}") from error
        if len(packed) != -(-count // 8):
            raise BitstreamError("damaged: the payload has another length")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=count)
        values = np.where(bits, 1, -1).astype(np.int8).reshape(shape)
        if self.encode(values) != payload:
            raise BitstreamError("damaged: the payload is not of these codes")
        return values


def first_bytes(codes: Codes, digest: str | None = None) -> bytes:
    """What a file of `codes` must begin with; coded where a digest of tables is given."""
    source = codes.source
    flags = (not source.binary) + 2 * (not source.iterative) + 4 * (digest is not None)
    numbers = (
        struct.pack("<5B", codes.views, codes.iterations, *source.shape)
        if source.iterative
        else struct.pack("<BHH", codes.views, source.channels, source.height)
    )
    return b"TFJ" + bytes([0x10 + flags]) + bytes.fromhex(digest or source.digest) + numbers


def crc(data: bytes) -> bytes:
    """CRC-32 as IEEE 802.3 defines it, bit by bit, in little-endian bytes."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
    return struct.pack("<I", register ^ 0xFFFFFFFF)


def flips(data: bytes):
    """All streams that differ from `data` in one bit."""
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        yield bytes(changed)
