"""The codes of one object's views as bytes: a file `.tfj`, and a packet per view for a link.

    file      magic "TFJ"                                                   3 bytes
              version, flags                                                1
              digest of the model; of the tables, where they code           4
              V, T, H/16, W/16, M;  without iterations V, K, image size     5
              payload
              CRC-32 of everything before it                                4

    packet    version, flags                                                1
              object number                                                 2
              view                                                          1
              T, where there are iterations                                 1
              payload of the one view
              CRC-32 of what a file of this view would begin with,
              then of everything before it                                  4

Integers are little-endian. A file is 17 bytes longer than its payload, a packet 9, or 8 without
iterations: it leaves out what both ends know from the export, and its CRC-32 holds that too.

The payload has the order of the codes: view, iteration, row, column, channel. Raw bits (1 is +1)
start at the highest bit of the first byte, and zeros fill the last one; floats are little-endian.
A payload coded with tables belongs to a `Coder`; `tfjoint.coding` has one.

There is one sequence of bytes for given codes and coder, and every other is refused.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, Union

import numpy as np

from tfjoint.config import DOWNSAMPLING, FLOAT_BITS, MOST_COUNTED, Config
from tfjoint.errors import UserError

MAGIC = b"TFJ"
VERSION = 1
OVERHEAD = 17
"""Bytes of a file beyond its payload."""
RAW, TABLE = "raw", "table"
"""Codings of a payload: packed bits or floats as they are; bits coded with a `Coder`."""

Bytes = Union[bytes, bytearray, memoryview]

# Flags in the low half of the byte that has the version in its high half.
_FLOATS, _NO_ITERATIONS, _TABLE, _LAST = 1, 2, 4, 8

_START = struct.Struct("<3sB4s")
_ITERATIVE = struct.Struct("<BBBBB")  # V, T, H/16, W/16, M
_PLAIN = struct.Struct("<BHH")  # V, K, image size
_HEAD = _START.size + _ITERATIVE.size
_PACKET = struct.Struct("<BHB")  # version and flags, object number, view
_CRC = struct.Struct("<I")


class BitstreamError(UserError):
    """Codes that cannot be written, or bytes that are damaged or of something else."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What a model fixes of its codes; both ends of a link know it from the export."""

    digest: str
    """First 8 hexadecimal digits of the SHA-256 of the model's weights."""
    height: int
    """Of a view in pixels; with iterations a multiple of 16, up to 4080."""
    width: int
    """As `height`; without iterations they are equal."""
    channels: int
    """M, up to 255, values per position and iteration; without iterations K, up to 65535."""
    iterative: bool = True
    """Whether a code has iterations: of all systems but the implicit one."""
    binary: bool = True
    """Whether values are bits, -1 or +1; else they are float32 in [-1, 1]."""

    def __post_init__(self) -> None:
        if not (len(self.digest) == 8 and set(self.digest) <= set("0123456789abcdef")):
            raise BitstreamError(
                f"a digest is 8 hexadecimal digits in lower case. Received: {self.digest[:70]!r}"
            )
        step, most = (DOWNSAMPLING, 255) if self.iterative else (1, 2**16 - 1)
        for name in ("height", "width"):
            size = getattr(self, name)
            if size % step or not 1 <= size // step <= most:
                raise BitstreamError(
                    f"{name} must be a multiple of {step} in [{step}, {step * most}]. "
                    f"Received: {size}"
                )
        if not 1 <= self.channels <= most:
            raise BitstreamError(f"channels must be in [1, {most}]. Received: {self.channels}")
        if not self.iterative and self.height != self.width:
            raise BitstreamError(
                f"without iterations views are square. Received: {self.height} x {self.width}"
            )

    @classmethod
    def of_export(
        cls, description: Mapping[str, Any], size: tuple[int, int] | None = None
    ) -> Source:
        """Return the source that an export is.

        Args:
          description: what the export says of itself (`tfjoint.exported.read_description`).
          size: height and width of its views in pixels, where they are not the config's: a codec
            alone takes any multiples of 16.

        Raises:
          BitstreamError: the system has no code, or cannot have views of that size.
        """
        config = Config.from_json(description["config"])
        if not config.code_size:
            raise BitstreamError(f"model {config.model} has no code to send: choose another export")
        trained = (config.image_size, config.image_size)
        if size not in (None, trained) and config.uses("grid_size"):
            raise BitstreamError(
                f"model {config.model} takes views of {config.image_size} x {config.image_size} "
                f"pixels. Received: {size}"
            )
        height, width = size or trained
        iterative = config.uses("iterations_max")
        channels = config.code_channels if iterative else config.code_bits
        digest = description["weights_sha256"][:8]
        return cls(digest, height, width, channels, iterative, config.binarizer)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a view's code in one iteration: (H/16, W/16, M); without iterations (K,)."""
        if not self.iterative:
            return (self.channels,)
        return self.height // DOWNSAMPLING, self.width // DOWNSAMPLING, self.channels

    def raw_bytes(self, views: int, iterations: int | None) -> int:
        """Return the size of a raw payload; its last byte may be used in part."""
        values = views * (iterations or 1)
        for side in self.shape:
            values *= side
        return -(-values * (1 if self.binary else FLOAT_BITS) // 8)

    def __str__(self) -> str:
        values = " x ".join(map(str, self.shape)) + (" bits" if self.binary else " floats")
        per = " per iteration" if self.iterative else ""
        return f"{self.digest}, {self.width} x {self.height} pixels, {values}{per}"


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """The codes of one object's views; never changes.

    Raises:
      BitstreamError: the values are not of the source, or not what its codes can be.
    """

    source: Source
    values: np.ndarray
    """[V, T, H/16, W/16, M], or [V, K] without iterations: what the signatures of an export take,
    without the objects' axis. int8, -1 or +1; float32 in [-1, 1] of a source that is not binary.
    V and T are at most 255. A copy, not to be written to."""

    def __post_init__(self) -> None:
        values, axes = np.asarray(self.values), 1 + self.source.iterative
        dtype = np.dtype(np.int8 if self.source.binary else np.float32)
        counts = values.shape[:axes]
        if values.dtype != dtype or values.shape[axes:] != self.source.shape:
            wanted = ", ".join(("V", "T")[:axes] + tuple(map(str, self.source.shape)))
            raise BitstreamError(
                f"codes must be {dtype} [{wanted}]. Received: {values.dtype} {list(values.shape)}"
            )
        if not all(1 <= count <= MOST_COUNTED for count in counts):
            raise BitstreamError(
                f"views and iterations must be in [1, {MOST_COUNTED}]. Received: {list(counts)}"
            )
        if not _allowed(values):
            allowed = "-1 or +1" if self.source.binary else "in [-1, 1]"
            raise BitstreamError(f"codes must be {allowed}, others were received")
        values = np.array(values, order="C")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        # By bytes: -0.0 is another code than 0.0.
        if not isinstance(other, Codes):
            return NotImplemented
        same_shape = self.values.shape == other.values.shape
        return (
            self.source == other.source
            and same_shape
            and self.values.tobytes() == other.values.tobytes()
        )

    def __hash__(self) -> int:
        return hash((self.source, self.values.tobytes()))

    @property
    def views(self) -> int:
        """V."""
        return self.values.shape[0]

    @property
    def iterations(self) -> int | None:
        """T; None without iterations."""
        return self.values.shape[1] if self.source.iterative else None

    @property
    def raw_bytes(self) -> int:
        """Size of the raw payload: what the nominal rate counts, in whole bytes."""
        return self.source.raw_bytes(self.views, self.iterations)

    def first(self, views: int | None = None, iterations: int | None = None) -> Codes:
        """Return the codes of the first views and iterations; None is all that there are.

        Raises:
          BitstreamError: there are fewer, or the source has no iterations.
        """
        _check_prefix(self, views, iterations)
        values = self.values[:views]
        return Codes(self.source, values if iterations is None else values[:, :iterations])

    def packets(self, object_number: int) -> list[Packet]:
        """Return the packets of all views, in order."""
        return [
            Packet(object_number, view, view == self.views - 1, Codes(self.source, row[np.newaxis]))
            for view, row in enumerate(self.values)
        ]


class Coder(Protocol):
    """What turns the bits of a source into fewer bytes and back, exactly."""

    @property
    def source(self) -> Source:
        """Of the codes that it is for."""

    @property
    def digest(self) -> str:
        """8 hexadecimal digits that differ for every source and every way of coding it."""

    def encode(self, values: np.ndarray) -> bytes:
        """Return the payload of values as in `Codes`. Raises `BitstreamError`."""

    def decode(self, payload: Bytes, shape: tuple[int, ...]) -> np.ndarray:
        """Return the values of a payload. Raises `BitstreamError` unless `encode` made it."""


class Header(NamedTuple):
    """What a file says before its payload."""

    source: Source
    """Where tables code the payload, `digest` is of them; they know the model."""
    views: int
    iterations: int | None
    """None without iterations."""
    coding: str
    """`RAW` or `TABLE`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return (self.views, *([self.iterations] if self.iterations else []), *self.source.shape)

    @property
    def raw_bytes(self) -> int:
        """Size that a raw payload has; one that tables code is smaller."""
        return self.source.raw_bytes(self.views, self.iterations)


class Packet(NamedTuple):
    """A view's code on its way. Packets may be lost, repeated, or arrive in another order."""

    object_number: int
    """In [0, 65535]; the sender counts its objects and starts again at 0."""
    view: int
    """Of the object, from 0."""
    last: bool
    """Whether the object has no further view."""
    codes: Codes
    """Of one view."""


def encode(codes: Codes, coder: Coder | None = None) -> bytes:
    """Return the file of `codes`.

    Args:
      codes: of one object.
      coder: codes the payload where that makes it smaller; without it the payload is raw.

    Raises:
      BitstreamError: the coder is for other codes.
    """
    header, payload = _code(codes, coder)
    return _sealed(_head(header) + payload)


def decode(data: Bytes, coder: Coder | None = None) -> Codes:
    """Return the codes in a file.

    Args:
      data: the whole file and nothing else.
      coder: what the payload may be coded with; a raw payload does not need it.

    Raises:
      BitstreamError: the file is damaged, or coded with something else than `coder`. Nothing is
        allocated for what the file only says that it holds.
    """
    header = inspect(data)
    return _decoded(header, memoryview(data)[_HEAD : -_CRC.size], coder)


def inspect(data: Bytes) -> Header:
    """Return what a file says of itself after every check that needs no coder.

    Raises:
      BitstreamError: the file is damaged.
    """
    data = memoryview(data)
    if len(data) < OVERHEAD:
        raise BitstreamError(
            f"a .tfj file has at least {OVERHEAD} bytes. Received: {len(data)}; it is cut off or "
            "none, get it again"
        )
    header = _parse_head(data[:_HEAD])
    _check_size(header, len(data) - OVERHEAD)
    _check_crc(data)
    return header


def cut(data: Bytes, views: int | None = None, iterations: int | None = None) -> bytes:
    """Return the file of the first views and iterations of a raw file, as `encode` makes it.

    A payload that tables code is one whole. To cut it, decode it with them:
    `encode(decode(data, coder).first(views, iterations), coder)`.

    Raises:
      BitstreamError: the file is damaged or not raw, or does not have that many.
    """
    header = inspect(data)
    if header.coding != RAW:
        raise BitstreamError(
            "only a raw file can be cut as it is; this one is coded with tables: decode it with "
            "them, take the first views or iterations, encode again"
        )
    return encode(decode(data).first(views, iterations))


def encode_packet(packet: Packet, coder: Coder | None = None) -> bytes:
    """Return the bytes of a packet; `coder` as for `encode`.

    Raises:
      BitstreamError: a number is out of range, or the coder is for other codes.
    """
    if not (0 <= packet.object_number < 2**16 and 0 <= packet.view < MOST_COUNTED):
        raise BitstreamError(
            "a packet has an object number in [0, 65535] and a view in [0, 254]. Received: "
            f"{packet.object_number} and {packet.view}"
        )
    if packet.codes.views != 1:
        raise BitstreamError(f"a packet has one view. Received: {packet.codes.views}")
    header, payload = _code(packet.codes, coder)
    flags = _flags(header) | (_LAST if packet.last else 0)
    start = _PACKET.pack(flags, packet.object_number, packet.view)
    if header.iterations:
        start += bytes([header.iterations])
    return _sealed(start + payload, zlib.crc32(_head(header)))


def decode_packet(data: Bytes, source: Source, coder: Coder | None = None) -> Packet:
    """Return what a packet holds.

    Args:
      data: the whole packet and nothing else.
      source: what was sent from, known from the export.
      coder: what the payload may be coded with.

    Raises:
      BitstreamError: the packet is damaged, from another source, or coded with something else.
    """
    data = memoryview(data)
    start = _PACKET.size + source.iterative
    if len(data) < start + _CRC.size:
        raise BitstreamError(
            f"a packet has at least {start + _CRC.size} bytes. Received: {len(data)}; drop it"
        )
    flags, object_number, view = _PACKET.unpack(data[: _PACKET.size])
    iterations = data[_PACKET.size] if source.iterative else None
    header = Header(source, 1, iterations, TABLE if flags & _TABLE else RAW)
    if flags & ~_LAST != _flags(header) or iterations == 0 or view == MOST_COUNTED:
        raise BitstreamError(
            f"the packet is damaged or not from {source}: it starts with "
            f"{bytes(data[:start]).hex()}; drop it"
        )
    otherwise = f" or not from {source}"
    if header.coding == TABLE:
        header = header._replace(source=_coded(_matching(coder, source)))
        otherwise += f" with the tables {header.source.digest}"
    _check_size(header, len(data) - start - _CRC.size)
    _check_crc(data, zlib.crc32(_head(header)), otherwise)
    codes = _decoded(header, data[start : -_CRC.size], coder)
    return Packet(object_number, view, bool(flags & _LAST), codes)


def coding_of_packet(data: Bytes) -> str:
    """Return how a packet says that its payload is coded, which only `decode_packet` checks."""
    return TABLE if len(data) and memoryview(data)[0] & _TABLE else RAW


def join(packets: Iterable[Packet]) -> Codes:
    """Return the codes of the views that arrived, in the order of views.

    A view that arrived twice counts once; every view has the iterations that all have.

    Raises:
      BitstreamError: there is no packet, or they are of several objects or sources.
    """
    packets = list(packets)
    objects = {(packet.object_number, packet.codes.source) for packet in packets}
    if len(objects) != 1:
        raise BitstreamError(
            f"a shape is made of packets of one object. Received: of {len(objects)}; leave out "
            "those of the others"
        )
    arrived = {packet.view: packet.codes for packet in packets}
    codes = [arrived[view] for view in sorted(arrived)]
    iterations = min(code.iterations or 0 for code in codes) or None
    rows = [code.first(iterations=iterations).values for code in codes]
    return Codes(codes[0].source, np.concatenate(rows))


def _check_prefix(codes: Codes, views: int | None, iterations: int | None) -> None:
    for name, wanted, there in (
        ("views", views, codes.views),
        ("iterations", iterations, codes.iterations),
    ):
        if wanted is not None and not 1 <= wanted <= (there or 0):
            raise BitstreamError(
                f"{name} must be in [1, {there}], which is what was sent. Received: {wanted}"
                if there
                else f"these codes have no {name}. Received: {name}={wanted}; leave it out"
            )


def _allowed(values: np.ndarray) -> bool:
    if values.dtype == np.int8:
        return bool(np.all(np.abs(values) == 1))  # the absolute value of int8 -128 is -128
    with np.errstate(invalid="ignore"):  # a signalling NaN, which is refused like any other
        return bool(np.all(np.abs(values) <= 1))


def _flags(header: Header) -> int:
    return (
        VERSION << 4
        | (0 if header.source.binary else _FLOATS)
        | (0 if header.source.iterative else _NO_ITERATIONS)
        | (_TABLE if header.coding == TABLE else 0)
    )


def _head(header: Header) -> bytes:
    source, views = header.source, header.views
    start = _START.pack(MAGIC, _flags(header), bytes.fromhex(source.digest))
    if source.iterative:
        return start + _ITERATIVE.pack(views, header.iterations, *source.shape)
    return start + _PLAIN.pack(views, source.channels, source.height)


def _parse_head(head: memoryview) -> Header:
    magic, flags, digest = _START.unpack(head[: _START.size])
    if magic != MAGIC:
        raise BitstreamError(f"not a .tfj file: it starts with {magic!r}, not with {MAGIC!r}")
    if flags >> 4 != VERSION or flags & _LAST or flags & (_FLOATS | _TABLE) == _FLOATS | _TABLE:
        raise BitstreamError(
            f"the .tfj file is damaged or of a later version: its fourth byte is {flags:#04x}, "
            f"version {VERSION} has 0x10 to 0x16"
        )
    iterations: int | None
    if flags & _NO_ITERATIONS:
        iterations = None
        views, channels, height = _PLAIN.unpack(head[_START.size :])
        width = height
    else:
        views, iterations, rows, columns, channels = _ITERATIVE.unpack(head[_START.size :])
        height, width = rows * DOWNSAMPLING, columns * DOWNSAMPLING
    if not (views and iterations != 0 and height and width and channels):
        raise BitstreamError(
            "the .tfj file is damaged: a number of views, iterations or values is 0; get it again"
        )
    binary, coding = not flags & _FLOATS, TABLE if flags & _TABLE else RAW
    source = Source(digest.hex(), height, width, channels, iterations is not None, binary)
    return Header(source, views, iterations, coding)


def _check_size(header: Header, payload_bytes: int) -> None:
    raw = header.raw_bytes
    if header.coding == RAW and payload_bytes != raw:
        raise BitstreamError(
            f"damaged or cut off: codes of {list(header.shape)} take {raw} bytes. Received: "
            f"{payload_bytes}; get it again"
        )
    if header.coding == TABLE and payload_bytes >= raw:
        raise BitstreamError(
            f"damaged: coded codes of {list(header.shape)} take less than {raw} bytes. Received: "
            f"{payload_bytes}; get it again"
        )


def _sealed(body: bytes, start: int = 0) -> bytes:
    return body + _CRC.pack(zlib.crc32(body, start))


def _check_crc(data: memoryview, start: int = 0, otherwise: str = "") -> None:
    (said,) = _CRC.unpack(data[-_CRC.size :])
    found = zlib.crc32(data[: -_CRC.size], start)
    if said != found:
        raise BitstreamError(
            f"damaged{otherwise}: the CRC-32 is {found:08x}, it should be {said:08x}; get it again"
        )


def _code(codes: Codes, coder: Coder | None) -> tuple[Header, bytes]:
    if coder is not None:
        payload = _matching(coder, codes.source).encode(codes.values)
        if len(payload) < codes.raw_bytes:
            return Header(_coded(coder), codes.views, codes.iterations, TABLE), payload
    return Header(codes.source, codes.views, codes.iterations, RAW), _pack(codes.values)


def _decoded(header: Header, payload: memoryview, coder: Coder | None) -> Codes:
    if header.coding == RAW:
        return Codes(header.source, _unpack(payload, header))
    coder = _given(coder)
    if header.source != _coded(coder):
        raise BitstreamError(
            f"coded with the tables {header.source}. Received: {_coded(coder)}; use those of the "
            "export that the codes are from"
        )
    return Codes(coder.source, coder.decode(payload, header.shape))


def _coded(coder: Coder) -> Source:
    return dataclasses.replace(coder.source, digest=coder.digest)


def _given(coder: Coder | None) -> Coder:
    if coder is None:
        raise BitstreamError(
            "the payload is coded with tables, none were given: use those of the export that the "
            "codes are from"
        )
    return coder


def _matching(coder: Coder | None, source: Source) -> Coder:
    coder = _given(coder)
    if coder.source != source:
        raise BitstreamError(f"the tables are for {coder.source}. Received: codes of {source}")
    return coder


def _pack(values: np.ndarray) -> bytes:
    if values.dtype == np.int8:
        return np.packbits(values.ravel() > 0).tobytes()
    return values.astype("<f4", copy=False).tobytes()


def _unpack(payload: memoryview, header: Header) -> np.ndarray:
    if not header.source.binary:
        return np.frombuffer(payload, "<f4").astype(np.float32, copy=False).reshape(header.shape)
    count = int(np.prod(header.shape, dtype=np.int64))
    if payload[-1] & (0xFF >> ((count - 1) % 8 + 1)):
        raise BitstreamError("damaged: the bits behind the last one are not 0; get it again")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), count=count).view(np.int8)
    bits *= 2
    bits -= 1
    return bits.reshape(header.shape)
