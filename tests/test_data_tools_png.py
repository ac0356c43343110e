"""Views as PNG: what passes can be decoded by everybody, and nothing damaged passes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_tools import png

SIDE = 9


def _pixels(channels):
    return np.random.default_rng(channels).integers(0, 256, (SIDE, SIDE, channels), np.uint8)


def _encode(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _file(rows, size=(SIDE, SIDE), rest=(8, 6, 0, 0, 0), parts=1):
    packed = zlib.compress(rows)
    cuts = [len(packed) * n // parts for n in range(parts + 1)]
    chunks = [("IHDR", struct.pack(">II5B", *size, *rest))]
    chunks += [("IDAT", packed[first:last]) for first, last in zip(cuts, cuts[1:])]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name.encode(), data) for name, data in [*chunks, ("IEND", b"")]
    )


ROWS = b"".join(b"\0" + row.tobytes() for row in _pixels(4))


@pytest.mark.parametrize(
    "data",
    [
        _encode(_pixels(3)),
        _encode(_pixels(4), compress_level=0),
        _encode(_pixels(4), optimize=True),
        _file(ROWS, parts=5),
        _file(ROWS) + b"anything behind the end",
    ],
)
def test_what_passes_is_decoded_alike_by_pillow_and_tensorflow(data):
    png.check(data, SIDE)
    expected = np.array(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(tf.io.decode_png(data), expected)
    assert expected.shape[:2] == (SIDE, SIDE)


def test_no_flipped_bit_passes():
    data = bytearray(_encode(_pixels(4)))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"\w"):
            png.check(bytes(data), SIDE)
        data[bit // 8] ^= 1 << bit % 8
    png.check(bytes(data), SIDE)


def test_no_file_that_is_cut_off_passes():
    data = _file(ROWS, parts=3)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"\w"):
            png.check(data[:length], SIDE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_file(ROWS[:-1]), "not 9 rows of 37 bytes"),
        (_file(ROWS[: len(ROWS) // 2]), "not 9 rows of 37 bytes"),
        (_file(ROWS + b"\0"), "not 9 rows of 37 bytes"),
        (_file(bytes(1 << 24)), "not 9 rows of 37 bytes"),
        (_file(b"\5" + ROWS[1:]), "not 9 rows of 37 bytes"),
        (_file(ROWS, size=(9, 8)), "9 x 8 pixels, not 9 x 9"),
        (_file(ROWS, size=(1 << 31, 1 << 31)), "2147483648 x 2147483648 pixels"),
        (_file(ROWS, rest=(16, 6, 0, 0, 0)), "16 bits of colour type 6, not interlaced"),
        (_file(ROWS, rest=(8, 3, 0, 0, 0)), "8 bits of colour type 3"),
        (_file(ROWS, rest=(8, 6, 0, 0, 1)), "8 bits of colour type 6, interlaced"),
        (_encode(_pixels(4)[..., 0]), "8 bits of colour type 0"),
        (b"\x89PNG\r\n\x1a\n" + _chunk(b"IEND", b""), "it has no header"),
        (b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", b"12"), "it has no header"),
        (b"GIF89a", "does not begin like a PNG"),
        (b"", "does not begin like a PNG"),
    ],
)
def test_what_is_whole_but_no_view_is_refused_with_the_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        png.check(data, SIDE)
