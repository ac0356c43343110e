"""PNG files as records hold them: 8 bits a channel, RGB or RGBA, row by row."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colours, three methods
_CHANNELS = {2: 3, 6: 4}  # of the colours RGB and RGBA
_FILTERS = 5


def check(png: bytes, side: int) -> None:
    """Raise `ValueError`, with the reason, unless every pixel of a square image can be decoded.

    Readers are lenient in different ways: Pillow's verification looks at no pixel, its decoder at
    no checksum of them and not at whether they all come, and TensorFlow stops the training.
    """
    if not png.startswith(_SIGNATURE):
        raise ValueError("it does not begin like a PNG file")
    chunks = _chunks(png)
    kind, header = next(chunks)
    if kind != b"IHDR" or len(header) != _HEADER.size:
        raise ValueError("it has no header")
    width, height, bits, colours, _, _, interlaced = _HEADER.unpack(header)
    if (width, height) != (side, side):
        raise ValueError(f"it has {width} x {height} pixels, not {side} x {side}")
    if bits != 8 or colours not in _CHANNELS or interlaced:
        raise ValueError(
            f"it has {bits} bits of colour type {colours}, {'' if interlaced else 'not '}"
            "interlaced; views are RGB or RGBA of 8 bits, not interlaced"
        )
    packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
    stride = 1 + side * _CHANNELS[colours]
    unpacker = zlib.decompressobj()
    try:
        rows = unpacker.decompress(packed, side * stride + 1)
    except zlib.error as error:
        raise ValueError(f"its pixels cannot be unpacked ({error})") from error
    if len(rows) != side * stride or not unpacker.eof or max(rows[::stride]) >= _FILTERS:
        raise ValueError(f"its pixels are not {side} rows of {stride} bytes")


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    # Length (4 bytes), name (4), data, checksum of name and data (4); up to the one called IEND.
    start, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(png[start : start + 4], "big"), png[start + 4 : start + 8]
        end = start + 8 + length
        if end + 4 > len(png):
            raise ValueError(f"it ends after {len(png)} bytes")
        if zlib.crc32(png[start + 4 : end]) != int.from_bytes(png[end : end + 4], "big"):
            raise ValueError(f"the checksum before byte {end + 4} is wrong")
        yield kind, png[start + 8 : end]
        start = end + 4
