"""An export at work: images to codes, codes to views and to a shape.

    images [V, H, W, 3] --encode--> Codes --> file or packets --> Codes --decode-->      views
                                                                      --reconstruct--> occupancy

Any export, also one of the camera's or the ground's side alone, which has some of the signatures.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfjoint import bitstream, coding, words
from tfjoint.bitstream import RAW, TABLE, BitstreamError, Bytes, Codes, Source
from tfjoint.config import Config
from tfjoint.errors import UserError
from tfjoint.exported import TABLES, ExportError, find_export, read_description

CODINGS = (RAW, TABLE)

_SAME = 1.005  # rates are given with a few digits


class CodecError(UserError):
    """Something that an export cannot do, or input that is not for it."""


class Codec:
    """A loaded export.

    Args:
      export: the directory of one version, or the one above, of which the newest is taken.

    Raises:
      ExportError: there is no export, or it is damaged.
    """

    def __init__(self, export: str | os.PathLike) -> None:
        self.path = find_export(Path(export))
        self.description = read_description(self.path)
        self.config = Config.from_json(self.description["config"])
        self._signatures = load_signatures(self.path)

    @property
    def signatures(self) -> tuple[str, ...]:
        """The names of what it can do."""
        return tuple(self._signatures)

    @property
    def takes_images(self) -> bool:
        """Whether shapes are made of images themselves: the system has no codes."""
        return not self.config.code_size

    @property
    def side(self) -> int | None:
        """Of a view in pixels; None where any multiples of 16 do."""
        return self.config.image_size if self.config.uses("grid_size") else None

    @functools.cached_property
    def tables(self) -> coding.Tables:
        """What shortens its codes. Raises `CodingError` if it has none, or they are damaged."""
        return coding.read(self.path / TABLES)

    def coder(self, name: str) -> coding.Tables | None:
        """Return what codes a payload: `tables` for "table", None for "raw".

        Raises:
          CodingError: the tables or the range coder are not there.
        """
        if name == RAW:
            return None
        if not self.config.binarizer:
            raise CodecError(f"the codes of {self.path} are floats, which have no tables: use raw")
        coding.range_coder()
        return self.tables

    def source(self, size: tuple[int, int] | None = None) -> Source:
        """Return what it fixes of codes of views of (height, width). Raises `BitstreamError`."""
        return Source.of_export(self.description, size)

    def encode(self, images: np.ndarray, iterations: int | None = None) -> Codes:
        """Return the codes of one object's views.

        Args:
          images: [V, H, W, 3] float32 in [0, 1].
          iterations: T; None is as many as in training. A system without iterations takes None.

        Raises:
          CodecError: the export does not encode, or not these images.
        """
        _, height, width, _ = images.shape
        source = self.source((height, width))
        given: dict[str, Any] = {"images": tf.constant(images[np.newaxis])}
        if source.iterative:
            given["iterations"] = tf.constant(iterations or self.config.iterations_max)
        elif iterations is not None:
            raise CodecError(
                f"model {self.config.model} has no iterations. Received: {iterations}; leave it out"
            )
        return Codes(source, self._run("encode", given)["codes"].numpy()[0])

    def iterations_of(self, rate: float) -> int | None:
        """Return T of the nominal rate, or of the next rate above: never more bits than asked for.

        None of a system without iterations, of which `rate` must be the one that it has.

        Raises:
          CodecError: no number of iterations, up to those in training, has such a rate.
        """
        config = self.config
        lowest = config.rate(config.iterations_max if config.uses("iterations_max") else 1)
        highest = config.rate()
        if not lowest / _SAME <= rate <= highest * _SAME:
            allowed = f"{highest:.4g}"
            if lowest < highest:
                allowed = f"from {lowest:.4g} (T = {config.iterations_max}) to {allowed} (T = 1)"
            raise CodecError(
                f"the rate of {self.path} is {allowed}. Received: {rate:g}; use another rate or "
                "export"
            )
        return int(highest * _SAME / rate) if config.uses("iterations_max") else None

    def encode_within(
        self, images: np.ndarray, most_bytes: int, coder: coding.Tables | None
    ) -> tuple[Codes, bytes]:
        """Return the codes of views with the most iterations whose file has `most_bytes` at most.

        Raises:
          CodecError: even the file of one iteration is larger.
        """
        codes = self.encode(images)
        for iterations in range(codes.iterations or 1, 0, -1):
            first = codes.first(iterations=iterations) if codes.iterations else codes
            data = bitstream.encode(first, coder)
            if len(data) <= most_bytes:
                return first, data
        raise CodecError(
            f"an object of {words.count(codes.views, 'view')} takes at least {len(data)} bytes. "
            f"Received: {most_bytes}; allow more, or send fewer views"
        )

    def decode(self, codes: Codes) -> np.ndarray:
        """Return views [V, T, H, W, 3] float32 in [0, 1], after each iteration.

        Raises:
          CodecError: the export does not decode, or not these codes.
        """
        return self._run("decode", self._given(codes))["images"].numpy()[0]

    def reconstruct(self, codes: Codes) -> np.ndarray:
        """Return the occupancy of one object [D, D, D] float32, probabilities.

        Raises:
          CodecError: the export does not reconstruct, or not from these codes.
        """
        return self._run("reconstruct", self._given(codes))["occupancy"].numpy()[0]

    def reconstruct_images(self, images: np.ndarray) -> np.ndarray:
        """Return the same of views [V, H, W, 3] float32 in [0, 1], of a system without codes."""
        if not self.takes_images:
            raise CodecError(f"model {self.config.model} makes shapes of codes: encode the images")
        given = {"images": tf.constant(images[np.newaxis])}
        return self._run("reconstruct", given)["occupancy"].numpy()[0]

    def read(self, data: Bytes) -> Codes:
        """Return the codes in a .tfj file.

        Raises:
          BitstreamError: the file is damaged, or coded with the tables of another export.
          CodingError: it is coded with tables, and they or the range coder are not there.
          CodecError: it is of another model.
        """
        coded = bitstream.inspect(data).coding
        codes = bitstream.decode(data, self.coder(coded))
        self._require_own(codes)
        return codes

    def read_packets(self, packets: Mapping[str, Bytes]) -> Codes:
        """Return the codes in packets of one object, in the order of views.

        Args:
          packets: what each holds by its name, which an error says.

        Raises:
          BitstreamError, CodingError: as `read`, or they are of several objects.
        """
        found = []
        for name, data in packets.items():
            coder = self.coder(bitstream.coding_of_packet(data))
            try:
                found.append(bitstream.decode_packet(data, self.source(), coder))
            except BitstreamError as error:
                raise BitstreamError(f"{name}: {error}") from error
        numbers = [packet.object_number for packet in found]
        for name, number in zip(packets, numbers):
            if number != numbers[0]:
                raise BitstreamError(
                    f"{next(iter(packets))} and {name} are of two objects: give packets of one"
                )
        return bitstream.join(found)

    def _given(self, codes: Codes) -> dict[str, tf.Tensor]:
        self._require_own(codes)
        return {"codes": tf.constant(codes.values[np.newaxis])}

    def _require_own(self, codes: Codes) -> None:
        size = codes.source.height, codes.source.width
        expected = self.source() if self.side else self.source(size)
        if codes.source != expected:
            raise CodecError(
                f"the codes are of another model ({codes.source}), {self.path} is {expected}: use "
                "the export that made them"
            )

    def _run(self, name: str, given: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        if name not in self._signatures:
            raise CodecError(
                f"{self.path} cannot {name}: model {self.config.model} or this part of it has "
                f"{', '.join(self._signatures) or 'no signatures'}; use another export"
            )
        try:
            return self._signatures[name](**given)
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise CodecError(f"{self.path} could not {name}: {_reason(error)}") from error


def beyond_training(config: Config, iterations: int | None) -> str:
    """Return a line about more iterations than in training, which are allowed; otherwise ""."""
    if not config.uses("iterations_max") or (iterations or 0) <= config.iterations_max:
        return ""
    return (
        f"T = {iterations} is more than the model was trained for, 1 to {config.iterations_max}: "
        "what it makes of the further iterations is not known"
    )


def load_signatures(export: Path) -> Mapping[str, Any]:
    """Return the signatures of one version by name. Raises `ExportError` if it is damaged."""
    return load(export).signatures


def load(export: Path) -> Any:
    """Return the SavedModel of one version. Raises `ExportError` if it is damaged."""
    try:
        return tf.saved_model.load(str(export))
    except Exception as error:  # of many kinds, from OSError to IndexError
        raise ExportError(
            f"{export} is damaged ({_first_line(error)}): export the run again"
        ) from error


def _reason(error: Exception) -> str:
    # What a check in the graph says stands behind lines about where it was: [words] [received].
    said = re.search(r"assertion failed: \[(.+?)\] *($|\n|\[\[)", str(error))
    return said[1].replace("] [", " ") if said else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
