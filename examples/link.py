"""Two ends of a thin link: a camera sends codes, a ground station watches the shape grow.

    python -m tfjoint.split --export=runs/direct/export
    python examples/link.py --ends=runs/direct/ends --loss=0.2

The camera is a process of its own with the camera's end of the export. It encodes views of test
objects and sends a packet for each through a pipe that is slow, loses packets, flips bits and mixes
up their order; which ones depends on --seed alone. This process has the ground's end. In a terminal
it draws the voxels anew as each packet arrives, elsewhere it prints a line.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from tfjoint import bitstream, entry, errors, files, metrics, page, voxels, words
from tfjoint.config import Config
from tfjoint.gallery import from_arrays
from tfjoint.split import CAMERA, GROUND, SplitError, find_ends
from tfjoint.station import DAMAGED, Arrival, Station

if TYPE_CHECKING:
    from tfjoint.dataset import Example

BLOCK = "▀"
"""Upper half in one colour, lower half in the other: two pixels a character."""


class LinkError(errors.UserError):
    """A flag out of range, or an end that stopped."""


@dataclasses.dataclass(frozen=True)
class Sent:
    """What the camera sends; both ends know the test set, to show the truth beside the shape."""

    camera: Path
    config: Config
    objects: int
    views: int
    iterations: int | None


@dataclasses.dataclass(frozen=True)
class Faults:
    """What happens to packets on their way."""

    bytes_per_second: float
    loss: float = 0.0
    """Probability that a packet is lost."""
    bit_errors: float = 0.0
    """Probability that a bit flips."""
    reorder: float = 0.0
    """Probability that a packet arrives after the one behind it."""
    seed: int = 0


class Link:
    """The sending end of a bad link."""

    def __init__(self, connection: Connection, faults: Faults) -> None:
        self._connection = connection
        self._faults = faults
        self._rng = np.random.default_rng(faults.seed)
        self._late: bytes | None = None

    def send(self, data: bytes) -> None:
        """Send a packet; takes as long as its bytes need."""
        faults = self._faults
        time.sleep(len(data) / faults.bytes_per_second)
        # Drawn for every packet, so that one fault does not move the others.
        lost, late = self._rng.random(2)
        flips = self._rng.random(8 * len(data)) < faults.bit_errors
        if lost < faults.loss:
            return
        damaged = np.frombuffer(data, np.uint8) ^ np.packbits(flips)
        if late < faults.reorder and self._late is None:
            self._late = damaged.tobytes()
            return
        self._connection.send_bytes(damaged.tobytes())
        self._send_late()

    def close(self) -> None:
        """Send what is still held back; the other end sees that nothing follows."""
        self._send_late()
        self._connection.close()

    def _send_late(self) -> None:
        if self._late is not None:
            self._connection.send_bytes(self._late)
            self._late = None


def camera(connection: Connection, sent: Sent, faults: Faults) -> None:
    """Encode and send view after view, object after object: the process of the camera."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the ground station ends both
    errors.run_or_exit(lambda: _send_all(Link(connection, faults), sent))


def _send_all(link: Link, sent: Sent) -> None:
    from tfjoint.codec import Codec

    codec = Codec(sent.camera)
    for number, example in enumerate(read(sent)):
        codes = codec.encode(example.images, sent.iterations)
        for packet in codes.packets(number):
            link.send(bitstream.encode_packet(packet))
    link.close()


def read(sent: Sent) -> list[Example]:
    """Return the test objects that the camera sees."""
    from tfjoint.dataset import evaluation_examples, open_split

    test = open_split(sent.config, "test", sent.views)
    chosen = range(min(sent.objects, len(test)))
    return list(evaluation_examples(sent.config, test, sent.views, 0, chosen))


class Screen:
    """Shows what arrives: a picture drawn over the one before, or a line."""

    def __init__(self, draws: bool) -> None:
        self._draws = draws
        self._height = 0
        self._picture: list[str] = []

    def show(self, arrival: Arrival, example: Example | None, missing: int = 0) -> None:
        """Show what a packet changed; `example` is its object, where it is known.

        A picture stands below one line, and stays there while packets change nothing.
        """
        line = describe(arrival, example) + (f"; {missing} missing so far" if missing else "")
        if not self._draws:
            print(line, flush=True)
            return
        size = shutil.get_terminal_size()
        if arrival.occupancy is not None and example is not None:
            shape = arrival.occupancy >= metrics.THRESHOLD
            self._picture = blocks(shape, example.voxels, size.columns, size.lines - 2)
        # A line that is longer than the terminal would take two, and the next picture stand lower.
        drawn = [line[: size.columns], *self._picture]
        up = f"\x1b[{self._height}A\x1b[J" if self._height else ""
        print(up + "\n".join(drawn), flush=True)
        self._height = len(drawn)


def describe(arrival: Arrival, example: Example | None) -> str:
    """Return what a packet changed as a line."""
    if arrival.kind == DAMAGED:
        return f"of no use: {arrival.reason}"
    total = f" of {arrival.total}" if arrival.total else ""
    line = (
        f"object {arrival.object_number} view {arrival.view} {arrival.kind}: "
        f"{len(arrival.arrived)}{total} arrived"
    )
    if example is not None and arrival.occupancy is not None:
        line += f", IoU {metrics.iou(arrival.occupancy, example.voxels):.3f}, {example.object_id}"
    return line


def blocks(shape: np.ndarray, truth: np.ndarray, columns: int, lines: int) -> list[str]:
    """Return a shape, and where there is room the truth beside it, as lines of colours.

    Args:
      shape, truth: [D, D, D] bool.
      columns, lines: of the terminal.
    """
    picture = voxels.picture(shape)
    if 2 * 32 <= columns:
        picture = np.concatenate([picture, voxels.picture(truth, (90, 130, 190))], axis=1)
    for step in (8, 12, 16):  # pixels of the picture per character
        small = _shrink(picture, step)
        if small.shape[1] <= columns and len(small) // 2 <= lines:
            break
    return [
        "".join(
            f"\x1b[38;2;{r};{g};{b}m\x1b[48;2;{r2};{g2};{b2}m{BLOCK}"
            for (r, g, b), (r2, g2, b2) in zip(upper.tolist(), lower.tolist())
        )
        + "\x1b[0m"
        for upper, lower in zip(small[::2], small[1::2])
    ]


def _shrink(picture: np.ndarray, step: int) -> np.ndarray:
    height, width = (side // step for side in picture.shape[:2])
    height -= height % 2
    cut = picture[: height * step, : width * step].astype(np.float32)
    return cut.reshape(height, step, width, step, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def receive(
    connection: Connection,
    station: Station,
    examples: Sequence[Example],
    views: int,
    screen: Screen,
) -> list[Arrival]:
    """Take packets until the camera has closed the link; return what they changed."""
    arrivals: list[Arrival] = []
    while True:
        try:
            data = connection.recv_bytes()
        except EOFError:
            return arrivals
        arrivals.append(station.receive(data))
        number = arrivals[-1].object_number
        known = [] if number is None else examples[number : number + 1]
        screen.show(arrivals[-1], known[0] if known else None, missing_so_far(arrivals, views))


def missing_so_far(arrivals: Sequence[Arrival], views: int) -> int:
    """Return how many packets before the latest one that was sent have not arrived.

    Args:
      views: of every object.
    """
    sent = 0
    for arrival in arrivals:
        if arrival.object_number is None or arrival.view is None:
            sent += 1  # damaged, so that its place is not known: the next one, most likely
        else:
            sent = max(sent, arrival.object_number * views + arrival.view + 1)
    return max(0, sent - len(arrivals))


def summary(arrivals: Sequence[Arrival], examples: Sequence[Example], views: int) -> str:
    """Return what came of it as a line."""
    sent = len(examples) * views
    damaged = sum(arrival.kind == DAMAGED for arrival in arrivals)
    last = {a.object_number: a.occupancy for a in arrivals if a.occupancy is not None}
    ious = [metrics.iou(last[n], e.voxels) for n, e in enumerate(examples) if n in last]
    parts = [f"{sent} packets sent, {sent - len(arrivals)} lost, {damaged} damaged"]
    if ious:
        parts.append(f"mIoU {np.mean(ious):.3f} of {words.count(len(ious), 'object')}")
    if nothing := len(examples) - len(ious):
        parts.append(f"nothing of {words.count(nothing, 'object')}")
    return "; ".join(parts)


def write_page(
    path: Path, arrivals: Sequence[Arrival], examples: Sequence[Example], views: int
) -> None:
    """Write a page with the shapes after 1, 2, ... views that came, and these views in their order.

    Where views are missing, the last shape stays and pictures are black.
    """
    shown = np.zeros((len(examples), 1, views, *examples[0].voxels.shape), np.float32)
    came: dict[int, tuple[int, ...]] = {}
    for arrival in arrivals:
        if arrival.occupancy is not None and arrival.object_number is not None:
            shown[arrival.object_number, 0, len(arrival.arrived) - 1 :] = arrival.occupancy
            came[arrival.object_number] = arrival.arrived
    pictures = np.zeros((len(examples), *examples[0].images.shape), np.float32)
    names = []
    for number, example in enumerate(examples):
        order = came.get(number, ())
        pictures[number, : len(order)] = example.images[list(order)]
        names.append(f"{example.object_id}: {len(order) or 'none'} of {views} views came")
    gallery = from_arrays(
        {
            "probabilities": shown,
            "truth": np.stack([e.voxels for e in examples]),
            "images": pictures,
            "names": names,
            "categories": [e.category for e in examples],
            "views": range(1, views + 1),
            "title": "What arrived",
        }
    )
    with files.replacing(path) as temporary:
        temporary.write_text(page.render(gallery, title=gallery.title), encoding="utf-8")


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("ends", "runs/direct/ends", "directory that tfjoint.split wrote")
    flags.DEFINE_string("data", "", 'record directory; "" is the one the run was trained on')
    flags.DEFINE_integer("objects", 5, "objects to send")
    flags.DEFINE_integer("views", 5, "views per object")
    flags.DEFINE_integer("iterations", 0, "iterations of a code; 0 is as many as in training")
    flags.DEFINE_float("bytes_per_second", 500, "bandwidth of the link, below 65536")
    flags.DEFINE_float("loss", 0.1, "probability that a packet is lost")
    flags.DEFINE_float("bit_errors", 0, "probability that a bit flips")
    flags.DEFINE_float("reorder", 0.1, "probability that a packet arrives after the next one")
    flags.DEFINE_integer("seed", 0, "seed of what goes wrong")
    flags.DEFINE_enum("show", "auto", ["auto", "blocks", "lines"], "how to show what arrives")
    flags.DEFINE_string("page", "", "page to write at the end, .html")


def _checked() -> tuple[Sent, Faults, Path]:
    values = flags.FLAGS
    for name in ("loss", "bit_errors", "reorder"):
        if not 0 <= getattr(values, name) <= 1:
            raise LinkError(f"{name} must be in [0, 1]. Received: {getattr(values, name):g}")
    for name in ("objects", "views", "bytes_per_second"):
        if not 0 < getattr(values, name) < 2**16:
            raise LinkError(f"{name} must be in (0, 65536). Received: {getattr(values, name):g}")
    if min(values.iterations, values.seed) < 0:
        raise LinkError(
            f"iterations and seed are at least 0. Received: {values.iterations} and {values.seed}"
        )
    if values.page and not values.page.endswith((".html", ".htm")):
        raise LinkError(f"a page is an .html file. Received: {values.page}")
    ends, description = find_ends(Path(values.ends), (CAMERA, GROUND))
    config = Config.from_json(description["config"])
    if values.iterations and not config.uses("iterations_max"):
        raise LinkError(f"iterations have no effect on model {config.model}: leave them out")
    if not config.uses("grid_size"):
        raise SplitError(f"{values.ends} is of model {config.model}, which makes no shapes")
    if values.data:
        config = dataclasses.replace(config, data=values.data)
    sent = Sent(ends[CAMERA], config, values.objects, values.views, values.iterations or None)
    faults = Faults(
        values.bytes_per_second, values.loss, values.bit_errors, values.reorder, values.seed
    )
    return sent, faults, ends[GROUND]


def main(argv: Sequence[str]) -> None:
    """Start the camera, receive until it ends, say what came of it."""
    values = flags.FLAGS
    sent, faults, ground = _checked()
    from tfjoint.codec import beyond_training

    print(f"starting both ends: {sent.camera} and {ground}", flush=True)
    if note := beyond_training(sent.config, sent.iterations):
        print(note, flush=True)
    examples = read(sent)
    station = Station.of_export(ground)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=camera, args=(sender, sent, faults), daemon=True)
    process.start()
    sender.close()  # the camera's copy is the only one left, so its end is seen here
    draws = values.show == "blocks" or (values.show == "auto" and sys.stdout.isatty())
    if draws:
        print("green: the shape as it grows; blue, where there is room: the truth", flush=True)
    arrivals = receive(receiver, station, examples, sent.views, Screen(draws))
    process.join()
    if process.exitcode:
        raise LinkError(f"the camera stopped with exit code {process.exitcode}")
    print(summary(arrivals, examples, sent.views))
    if values.page:
        write_page(Path(values.page), arrivals, examples, sent.views)
        print(f"page: {values.page}")


if __name__ == "__main__":
    define_flags()
    entry.run(main, interrupted="interrupted")
