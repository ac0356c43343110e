"""Measure what a shape is worth after each packet, with views lost and out of order.

    python -m tfjoint.arrivals --ends=runs/direct/ends

The camera's end encodes the test split, a `tfjoint.station` with the ground's end receives the
packets. In order, in another order, and with every packet lost with some probability; what is lost
is drawn once, so that all rates lose the same views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from tfjoint import bitstream, entry, metrics
from tfjoint.bitstream import Codes
from tfjoint.camera import hand_over, origin
from tfjoint.config import Config, ConfigError
from tfjoint.split import CAMERA, GROUND, SplitError, find_ends
from tfjoint.station import Station

LOSSES = (0.1, 0.3, 0.5)
"""Probabilities that a packet is lost."""


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("ends", None, "directory that tfjoint.split wrote")
    flags.DEFINE_string("data", "", 'record directory; "" is the one the run was trained on')
    flags.DEFINE_integer("views", 5, "views per object")
    flags.DEFINE_list("iterations", "", "iterations to measure; without any, 1 and the most")
    flags.DEFINE_integer("seed", 0, "seed of losses and orders")
    flags.DEFINE_string("output", "", 'results file; "" is arrivals.json among the ends')


def orders(count: int, views: int, seed: int) -> dict[str, np.ndarray]:
    """Return the orders [objects, V] in which views arrive, by name."""
    rng = np.random.default_rng([seed, 1])
    in_order = np.tile(np.arange(views), (count, 1))
    return {
        "in_order": in_order,
        "reversed": in_order[:, ::-1],
        "shuffled": rng.permuted(in_order, axis=1),
    }


def losses(count: int, views: int, seed: int) -> dict[float, np.ndarray]:
    """Return by probability which packets [objects, V] are lost.

    What is lost with one probability is lost with every greater one.
    """
    drawn = np.random.default_rng([seed, 2]).random((count, views))
    return {probability: drawn < probability for probability in LOSSES}


def measure(
    directory: Path, data: str, views: int, iterations: Sequence[int], seed: int
) -> dict[str, Any]:
    """Return the results, one row per number of iterations.

    Args:
      directory: of the ends.
      data: record directory; "" is the one the run was trained on.
      views: per object.
      iterations: of each row; empty of a system without iterations.
      seed: of losses and orders.
    """
    from tfjoint.codec import Codec
    from tfjoint.dataset import evaluation_examples, open_split

    ends, description = find_ends(directory, (CAMERA, GROUND))
    config = Config.from_json(description["config"])
    if data:
        config = dataclasses.replace(config, data=data)
    test = open_split(config, "test", views)
    examples = list(evaluation_examples(config, test, views, seed=0))
    camera, ground = Codec(ends[CAMERA]), Codec(ends[GROUND])
    iterative = config.uses("iterations_max")
    if iterations and not iterative:
        raise ConfigError(f"iterations have no effect on model {config.model}: leave them out")
    rates: Sequence[int | None] = iterations or [None]
    if iterative and not iterations:
        rates = sorted({1, config.iterations_max})
    station = Station.of_export(ends[GROUND])
    truth = [example.voxels for example in examples]
    rows = []
    for rate in rates:
        codes = [camera.encode(example.images, rate) for example in examples]
        at_once = [metrics.iou(ground.reconstruct(c), v) for c, v in zip(codes, truth)]
        row = {"iterations": rate, "packet_bytes": len(_packets(codes[0], 0)[0])}
        rows.append({**row, **_row(station, codes, truth, np.array(at_once), seed)})
    return {**origin(config, description, test, views), "link_seed": seed, "rows": rows}


def _row(
    station: Station,
    codes: Sequence[Codes],
    truth: Sequence[np.ndarray],
    at_once: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    count, views = len(codes), codes[0].views
    ious = {
        name: np.array([_ious(station, *given) for given in zip(codes, truth, order)])
        for name, order in orders(count, views, seed).items()
    }
    whole = ious["in_order"][:, -1]
    lossy = {}
    for probability, lost in losses(count, views, seed).items():
        arrived = [np.flatnonzero(~row) for row in lost]
        found = [_ious(station, *given)[-1:] for given in zip(codes, truth, arrived)]
        some = [ious_[0] for ious_ in found if len(ious_)]
        lossy[str(probability)] = {
            "packets_lost": int(lost.sum()),
            "objects_without_a_view": count - len(some),
            "iou_of_the_others": float(np.mean(some)) if some else None,
            "iou": float(np.sum(some)) / count,  # an object without a view has no shape
        }
    return {
        "iou_by_views": {name: of.mean(axis=0).tolist() for name, of in ious.items()},
        "iou_at_once": float(at_once.mean()),
        "largest_change_by_order": {
            name: float(np.abs(of[:, -1] - whole).max())
            for name, of in ious.items()
            if name != "in_order"
        },
        "mean_change_by_order": {
            name: float(np.abs(of[:, -1] - whole).mean())
            for name, of in ious.items()
            if name != "in_order"
        },
        "lost": lossy,
    }


def _packets(codes: Codes, number: int) -> list[bytes]:
    return [bitstream.encode_packet(packet) for packet in codes.packets(number)]


def _ious(
    station: Station, codes: Codes, voxels: np.ndarray, arriving: Iterable[int]
) -> list[float]:
    # After each packet that arrives; an object of its own.
    station.forget(0)
    packets = _packets(codes, 0)
    found = []
    for view in arriving:
        occupancy = station.receive(packets[view]).occupancy
        assert occupancy is not None, "nothing damages these packets"
        found.append(float(metrics.iou(occupancy, voxels)))
    return found


def table(results: Mapping[str, Any]) -> str:
    """Return results as lines to print: mIoU by what arrives."""
    numbers = "  ".join(f"{n} view{'s' if n > 1 else ' '}" for n in range(1, results["views"] + 1))
    lines = [f"   T  bytes  {'arriving':<12}  {numbers}"]
    for row in results["rows"]:
        shown = f"{row['iterations'] or '':>4}  {row['packet_bytes']:5}"
        for name, ious in row["iou_by_views"].items():
            values = "  ".join(f"{iou:7.3f}" for iou in ious)
            lines.append(f"{shown}  {name.replace('_', ' '):<12}  {values}")
        for probability, found in row["lost"].items():
            name = f"{float(probability):.0%} lost"
            lines.append(
                f"{shown}  {name:<12}  {found['iou']:7.3f}, "
                f"{found['objects_without_a_view']} of {results['objects']} objects without a view"
            )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Measure, print the table, write the JSON."""
    values = flags.FLAGS
    if not values.ends:
        raise SplitError("--ends is missing: give the directory that tfjoint.split wrote")
    if values.views < 1 or values.seed < 0:
        raise ConfigError(
            f"views must be at least 1, seed at least 0. Received: {values.views} and {values.seed}"
        )
    if not all(text.isdigit() and int(text) for text in values.iterations):
        raise ConfigError(
            f"iterations are numbers from 1 on. Received: {','.join(values.iterations)}"
        )
    iterations = [int(text) for text in values.iterations]
    results = measure(Path(values.ends), values.data, values.views, iterations, values.seed)
    hand_over(results, table(results), Path(values.output or Path(values.ends) / "arrivals.json"))


if __name__ == "__main__":
    define_flags()
    entry.run(main)
