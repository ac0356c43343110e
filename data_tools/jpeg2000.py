"""JPEG 2000 for views: code them, decode them, and say how many bytes of a file are what.

    PNG -> compose over the background -> JPEG 2000 -> pixels -> PNG
                                             |
                              bytes asked, of the file, of its payload

Pillow's OpenJPEG encodes and decodes; glymur reads the structure of the codestream. A rate c:1 asks
for raw bytes / c, raw = side x side x 3, and a mode says what has to fit into that:

- asked: OpenJPEG is asked for the rate and nothing more is done. A .jp2 file with its defaults, the
  colour transform on: OpenJPEG's own programs and glymur switch it on for RGB, Pillow does not.
- payload: the packets alone fit; the headers, the same for every view of a rate, do not count.
- file: everything that is written fits.

The last two write a bare codestream with the settings that `Coding` names, filled from below: no
view exceeds the rate unless the encoder cannot make it any smaller.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from glymur.codestream import Codestream
from PIL import Image, features

from tfjoint.errors import UserError
from tfjoint.png import encode_png

MODES = ("asked", "payload", "file")
BACKGROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255)}

# The best of 1-6 resolutions and both wavelets in mean PSNR at equal payload, over views of 68 and
# of 137 pixels: 9/7 wins where the loss is visible; a fourth resolution where bytes are scarce.
_IRREVERSIBLE_FROM_RATE = 48.0
_FOUR_RESOLUTIONS_BELOW_BYTES_PER_ROW = 4 / 3
_ABOUT_A_HEADER = 110

_CODESTREAM_START = b"\xff\x4f\xff\x51"  # SOC, then SIZ; JP2's boxes before it hold no such bytes
_TILE_PART_HEADER_BYTES = 14  # SOT and SOD
_END_BYTES = 2  # EOC
MOST_RATE = 2000.0
"""What may be asked for: from there on OpenJPEG makes one and the same file of a view of 137 pixels
or fewer, whatever it is told and in every mode."""
_MOST_ENCODES = 4
_LEAST_ERROR = 1e-10  # 100 dB, what equal images get, here as in `tfjoint.metrics`


@dataclasses.dataclass(frozen=True)
class Coding:
    """How views of one size are coded at one rate."""

    rate: float
    mode: str
    side: int
    """Side of the square view in pixels."""

    @property
    def raw_bytes(self) -> int:
        return self.side * self.side * 3

    @property
    def asked_bytes(self) -> float:
        return self.raw_bytes / self.rate

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """What Pillow is told beside the rate."""
        most = self.side.bit_length()  # a smaller image has no more resolutions
        if self.mode == "asked":
            return {"quality_mode": "rates", "mct": 1, "num_resolutions": min(6, most)}
        room = self.asked_bytes - (_ABOUT_A_HEADER if self.mode == "file" else 0)
        scarce = room < _FOUR_RESOLUTIONS_BELOW_BYTES_PER_ROW * self.side
        return {
            "quality_mode": "rates",
            "mct": 1,
            "num_resolutions": min(4 if scarce else 3, most),
            "irreversible": self.rate >= _IRREVERSIBLE_FROM_RATE,
            "no_jp2": True,
            "comment": "-",  # the shortest; without one OpenJPEG writes a line about itself
        }

    def settings(self) -> dict[str, Any]:
        """What a manifest says of this coding."""
        return {
            "rate": self.rate,
            "mode": self.mode,
            "encoder": f"OpenJPEG {features.version('jpg_2000')}",
            "container": "codestream" if self.options.get("no_jp2") else "jp2",
            "resolutions": self.options["num_resolutions"],
            "wavelet": "9/7" if self.options.get("irreversible") else "5/3",
            "colour_transform": True,
        }


_ALLOWED = f"numbers from 1 to {MOST_RATE:g}, e.g. 6,12,48; no file is smaller beyond"


def read_rates(texts: Sequence[str]) -> tuple[float, ...]:
    """Return rates c of c:1, of 1 to `MOST_RATE`. Raises `UserError` for others, and for twice."""
    rates: dict[str, float] = {}
    for text in texts:
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if not 1 <= rate <= MOST_RATE:
            raise UserError(f"--rates takes {_ALLOWED}; received: {text}")
        if f"{rate:g}" in rates:
            raise UserError(f"--rates names {rate:g} twice; received: {','.join(texts)}")
        rates[f"{rate:g}"] = rate
    if not rates:
        raise UserError(f"--rates is empty; it takes {_ALLOWED}")
    return tuple(rates.values())


class ByteCounts(NamedTuple):
    """What a file consists of: `header` + `payload` + the end marker = `file`, in bytes."""

    file: int
    header: int
    """Boxes, main header, headers of tile parts."""
    payload: int
    """Packets, with their own headers."""


def count_bytes(data: bytes) -> ByteCounts:
    """Return the byte counts of a .jp2 file or codestream, read from its structure by glymur."""
    start = data.index(_CODESTREAM_START)
    stream = io.BytesIO(data[start:])
    segments = Codestream(stream, len(data) - start, header_only=False).segment
    payload, part_ends = 0, 0
    for segment in segments:
        if segment.marker_id == "SOT":
            part_ends = segment.offset + segment.psot
        elif segment.marker_id == "SOD":
            payload += part_ends - (segment.offset + 2)
    return ByteCounts(len(data), len(data) - payload - _END_BYTES, payload)


def payload_bytes(data: bytes, coding: Coding) -> int:
    """Return the payload of a file that `encode` made: as `count_bytes`, a hundred times as fast.

    The files of one coding differ in nothing before the first packet but two lengths, so glymur
    reads one of them; 20 us for every view would be one part in twenty of the whole work.
    """
    header = _fixed_bytes(coding).header
    payload = len(data) - header - _END_BYTES
    tile_part = data[header - _TILE_PART_HEADER_BYTES : header]
    length = int.from_bytes(tile_part[6:10], "big")
    if (
        tile_part.startswith(b"\xff\x90")  # SOT
        and tile_part.endswith(b"\xff\x93")  # SOD
        and length == _TILE_PART_HEADER_BYTES + payload
    ):
        return payload
    return count_bytes(data).payload


def encode(image: Image.Image, coding: Coding) -> bytes:
    """Return an RGB image of `coding.side` as JPEG 2000, as the mode says."""
    if coding.mode == "asked":
        return _save(image, coding, coding.rate)
    header, rationed = _fixed_bytes(coding)
    wanted = math.floor(coding.asked_bytes)
    if coding.mode == "file":
        wanted -= header + _END_BYTES
    # OpenJPEG fills what the rate leaves beside the main header, rounded up, as far as its coding
    # passes allow and never beyond: the first answer is the best one. The others are for when it
    # cannot go so low, or keeps its books differently one day.
    smallest, allowed = b"", wanted
    for _ in range(_MOST_ENCODES):
        rate = coding.raw_bytes / max(allowed + rationed - 0.5, 1.0)
        data = _save(image, coding, max(rate, 1.0))
        excess = len(data) - header - _END_BYTES - wanted
        if excess <= 0:
            return data
        if smallest and len(data) >= len(smallest):
            break
        smallest, allowed = data, allowed - excess
    return smallest


class _Fixed(NamedTuple):
    """Bytes that every file of a coding has alike."""

    header: int
    rationed: int
    """Those of the header that OpenJPEG takes off the rate."""


@functools.cache
def _fixed_bytes(coding: Coding) -> _Fixed:
    data = _save(Image.new("RGB", (coding.side, coding.side)), coding, 1000.0)
    header = count_bytes(data).header
    return _Fixed(header, header - _TILE_PART_HEADER_BYTES)


def _save(image: Image.Image, coding: Coding, rate: float) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG2000", quality_layers=[rate], **coding.options)
    return stream.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Return the pixels [S, S, 3] uint8 of a JPEG 2000 file or codestream."""
    return np.asarray(Image.open(io.BytesIO(data), formats=("JPEG2000",)))


def compose(png: bytes, background: str) -> Image.Image:
    """Return a view over its background, an RGB image. Raises `UserError` when it is no image."""
    try:
        stored = Image.open(io.BytesIO(png), formats=("PNG",))
        stored.load()
        view = stored if stored.mode == "RGBA" else stored.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"a view is no readable PNG ({error})") from error
    composed = Image.new("RGB", view.size, BACKGROUNDS[background])
    composed.paste(view, mask=view)
    return composed


def psnr(image: np.ndarray, decoded: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of uint8 images; at most 100 (equal images)."""
    difference = np.subtract(image, decoded, dtype=np.int64).ravel()  # exact on every machine
    error = int(difference.dot(difference)) / (difference.size * 255.0**2)
    return -10 * math.log10(max(error, _LEAST_ERROR))


class Job(NamedTuple):
    """Objects to code, by name and encoded views, and the rates to code them at."""

    objects: Sequence[tuple[str, Sequence[bytes]]]
    codings: Sequence[Coding]
    background: str


class CodedObject(NamedTuple):
    """The V views of one object at one rate."""

    views: list[bytes]
    """What was decoded, as PNG."""
    code_bytes: np.ndarray
    """[V, 3] int32: asked, file, payload."""
    psnr: np.ndarray
    """[V] dB."""
    seconds: float
    """Of one core."""


def code_objects(job: Job) -> list[list[CodedObject]]:
    """Return every object of a job at every rate of it. Raises `UserError` naming a bad one."""
    coded = []
    for name, pngs in job.objects:
        try:
            views = [compose(png, job.background) for png in pngs]
        except UserError as error:
            raise UserError(f"{name}: {error}: rebuild the records") from error
        # All rates of a view in turn: it is decoded and composed once for all of them.
        rows = [_code_view(view, job.codings) for view in views]
        coded.append([_joined(column) for column in zip(*rows)])
    return coded


class _CodedView(NamedTuple):
    png: bytes
    code_bytes: tuple[int, int, int]
    psnr: float
    seconds: float


def _code_view(view: Image.Image, codings: Sequence[Coding]) -> list[_CodedView]:
    original, before, coded = np.asarray(view), b"", []
    for coding in codings:
        start = time.thread_time()
        data = encode(view, coding)
        if data != before:  # at its floor the encoder makes the same file for every higher rate
            pixels = decode(data)
            png, decibels = encode_png(pixels), psnr(original, pixels)
        before = data
        code_bytes = (round(coding.asked_bytes), len(data), payload_bytes(data, coding))
        coded.append(_CodedView(png, code_bytes, decibels, time.thread_time() - start))
    return coded


def _joined(views: Sequence[_CodedView]) -> CodedObject:
    pngs, code_bytes, decibels, seconds = zip(*views)
    return CodedObject(
        list(pngs), np.array(code_bytes, np.int32), np.array(decibels), float(sum(seconds))
    )
