"""The ground station: shapes that become better with every packet that arrives.

    packets --> decode_packet --> codes of one view --> refine --> state of the object's grid
                                                              --> occupancy

A link loses packets, repeats them, damages them, brings them in another order and mixes objects.
What arrives whole is taken in the order in which it arrives: the grid has no place for a view, and
waiting for one that is late would cost more than its place is worth (`tfjoint.arrivals` measures
that).
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfjoint import bitstream
from tfjoint.bitstream import BitstreamError, Bytes, Coder, Packet, Source
from tfjoint.errors import UserError
from tfjoint.exported import read_description

REFINED, REPEATED, DAMAGED = "refined", "repeated", "damaged"
"""What a packet was: a view that is new, one that is there already, nothing that can be used."""

Refine = Callable[..., Mapping[str, Any]]
"""The signature `refine` of an export."""


class StationError(UserError):
    """An export that a ground station cannot work with."""


class Arrival(NamedTuple):
    """What one packet changed."""

    kind: str
    """`REFINED`, `REPEATED` or `DAMAGED`."""
    object_number: int | None = None
    """None of a damaged packet, as in all that follows: nothing that it says can be trusted."""
    view: int | None = None
    arrived: tuple[int, ...] = ()
    """The views of the object that are in its shape, in the order in which they arrived."""
    total: int | None = None
    """How many views the object has; None until its last one has arrived."""
    occupancy: np.ndarray | None = None
    """[D, D, D] float32, probabilities, of all views in `arrived`."""
    reason: str = ""
    """Why a packet is damaged."""

    @property
    def complete(self) -> bool:
        """Whether all views of the object have arrived."""
        return self.total is not None and len(self.arrived) >= self.total


@dataclasses.dataclass
class _Object:
    """What the station keeps of an object."""

    state: dict[str, Any]
    """`hidden` and `cell`, as `refine` returns them."""
    views: dict[int, bytes] = dataclasses.field(default_factory=dict)
    """The first iteration's code by view."""
    total: int | None = None
    occupancy: np.ndarray | None = None

    def arrival(self, kind: str, packet: Packet) -> Arrival:
        arrived = tuple(self.views)
        return Arrival(kind, packet.object_number, packet.view, arrived, self.total, self.occupancy)


class Station:
    """Keeps the grid of each object and refines it with every packet. For one thread.

    Args:
      refine: the signature of an export.
      source: the export, as packets name it.
      coder: what payloads may be coded with.
      objects: how many objects are kept; the one that has waited longest for a packet is forgotten
        when another begins. 2 * 4 * F * G**3 bytes and its shape are kept of each.

    Raises:
      StationError: fewer than one object.
    """

    def __init__(
        self, refine: Refine, source: Source, coder: Coder | None = None, objects: int = 64
    ) -> None:
        if objects < 1:
            raise StationError(f"a station keeps at least 1 object. Received: {objects}")
        self.source = source
        self._refine = refine
        self._coder = coder
        self._most = objects
        self._objects: OrderedDict[int, _Object] = OrderedDict()

    @classmethod
    def of_export(cls, export: Path, coder: Coder | None = None, objects: int = 64) -> Station:
        """Return a station that uses an export, or its ground side, of one version.

        Raises:
          StationError: the export has no `refine`.
          ExportError: it is damaged or none of tfjoint.
        """
        from tfjoint.codec import load_signatures

        description = read_description(export)
        signatures = load_signatures(export)
        if "refine" not in signatures:
            raise StationError(
                f"{export} cannot refine a shape, it has {', '.join(sorted(signatures))}: give an "
                "export of a system with codes and a grid, or its ground side; an older export is "
                "made new by repeating its training command"
            )
        return cls(signatures["refine"], Source.of_export(description), coder, objects)

    @property
    def objects(self) -> tuple[int, ...]:
        """The numbers of the objects that are kept; the next to be forgotten first."""
        return tuple(self._objects)

    def receive(self, data: Bytes) -> Arrival:
        """Take the bytes of a packet, whatever they are, and return what they changed."""
        try:
            packet = bitstream.decode_packet(data, self.source, self._coder)
        except BitstreamError as error:
            return Arrival(DAMAGED, reason=str(error))
        return self.take(packet)

    def take(self, packet: Packet) -> Arrival:
        """Take a packet and return what it changed.

        A view that is there already is left out, also with more or fewer iterations. Where it is
        another than the one that is there, the sender has begun to count its objects again, and
        the number stands for a new one.
        """
        codes = packet.codes
        first = codes.first(iterations=1) if codes.iterations else codes
        code = first.values.tobytes()
        known = self._objects.get(packet.object_number)
        if known and known.views.get(packet.view, code) != code:
            self.forget(packet.object_number)
            known = None
        if known is None:
            known = self._begin(packet.object_number)
        self._objects.move_to_end(packet.object_number)
        if packet.last:
            known.total = packet.view + 1
        if packet.view in known.views:
            return known.arrival(REPEATED, packet)
        self._advance(known, packet)
        known.views[packet.view] = code
        return known.arrival(REFINED, packet)

    def shape(self, object_number: int) -> np.ndarray | None:
        """Return the occupancy [D, D, D] of an object, or None if nothing is kept of it."""
        known = self._objects.get(object_number)
        return known.occupancy if known else None

    def forget(self, object_number: int) -> None:
        """Drop what is kept of an object, if anything is."""
        self._objects.pop(object_number, None)

    def _begin(self, object_number: int) -> _Object:
        while len(self._objects) >= self._most:
            self._objects.popitem(last=False)
        return self._objects.setdefault(object_number, _Object(zero_state(self._refine)))

    def _advance(self, known: _Object, packet: Packet) -> None:
        import tensorflow as tf

        codes = tf.constant(packet.codes.values[np.newaxis])
        found = dict(self._refine(codes=codes, **known.state))
        known.occupancy = found.pop("occupancy").numpy()[0]
        known.state = found


def zero_state(refine: Refine, objects: int = 1) -> dict[str, Any]:
    """Return the state before the first view of `objects` objects, as `refine` takes it."""
    import tensorflow as tf

    _, inputs = refine.structured_input_signature  # type: ignore[attr-defined]
    return {name: tf.zeros([objects, *inputs[name].shape[1:]]) for name in ("hidden", "cell")}
