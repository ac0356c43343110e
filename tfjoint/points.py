"""Every point of the study's figures, read from its results files and from nothing else.

A point is one run at one rate: results/study/<run>.json has one or several. Points of a curve are
put together by rate; seeds of a run are the same curve.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfjoint import report
from tfjoint.report import ResultsError


def plan_path(directory: Path) -> Path:
    """Return where the plan of the results in a directory lies: beside it, results/study.json."""
    return directory.with_name(f"{directory.name}.json")


class Point(NamedTuple):
    """A run at one rate. Of what a system does not make, the value is None."""

    run: str
    curve: str
    seed: int
    rate: float | None
    """Nominal: raw bits over code bits, of JPEG 2000 over the bits asked for. None of raw views."""
    row: Mapping[str, Any]
    """The result as tfjoint.evaluate wrote it."""

    def values(self, name: str) -> np.ndarray:
        """Return a figure of every test object, in the order of their ids."""
        objects = sorted(self.row["objects"], key=lambda entry: entry["id"])
        return np.array([entry[name] for entry in objects], np.float64)

    @property
    def miou(self) -> float | None:
        """Mean IoU over objects at threshold 0.4."""
        return self.row["iou"]["mean"] if self.row["iou"] else None


class Results(NamedTuple):
    """What a directory of results holds."""

    plan: Mapping[str, Any]
    runs: Mapping[str, Mapping[str, Any]]
    """Results files by run, in the order of the plan; runs that are not done are not there."""
    points: tuple[Point, ...]

    def baseline(self, name: str) -> Mapping[str, Any] | None:
        """Return a baseline that does not depend on the system; None while no run has it."""
        for results in self.runs.values():
            if name in results["baselines"]:
                return results["baselines"][name]
        return None

    @property
    def shared_seeds(self) -> frozenset[int]:
        """The seeds that every point has, or, where there is none such, all that there are.

        What a seed changes, it changes in all systems alike, so that means over different seeds do
        not compare.
        """
        found: dict[tuple[str, float | None], set[int]] = {}
        for point in self.points:
            found.setdefault((point.curve, point.rate), set()).add(point.seed)
        shared = frozenset.intersection(*map(frozenset, found.values())) if found else None
        return shared or frozenset(point.seed for point in self.points)

    def comparable(self, points: Iterable[Point]) -> list[Point]:
        """Return those of `points` that are of the seeds that every point has."""
        seeds = self.shared_seeds
        return [point for point in points if point.seed in seeds]

    def on(self, curve: str, rate: float | None = None, seed: int | None = None) -> list[Point]:
        """Return the points of a curve; of all rates and seeds, or of one. Rates as one reads them.

        Args:
          curve: its name, as in `tfjoint.plan`.
          rate: nominal; one that rounds to it counts, because 479.5:1 is called 480:1.
          seed: of the training.
        """
        return [
            point
            for point in self.points
            if point.curve == curve
            and (rate is None or is_rate(point.rate, rate))
            and (seed is None or point.seed == seed)
        ]


def is_rate(found: float | None, wanted: float) -> bool:
    """Return whether a rate is called `wanted`: it is within 1 % of it."""
    return found is not None and abs(found / wanted - 1) < 0.01


def read_results(directory: Path) -> Results:
    """Return what a directory of results holds. Raises `ResultsError`."""
    path = plan_path(directory)
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        names = [run["name"] for run in plan["runs"]]
    except (OSError, *report.WRONG_CONTENT) as error:
        raise ResultsError(
            f"{path} is no plan of a study ({type(error).__name__}: {error}): tfjoint.study writes "
            "it beside the results"
        ) from error
    runs = {
        name: report.read_results(directory / f"{name}.json")
        for name in names
        if (directory / f"{name}.json").exists()
    }
    curves = {run["name"]: run["curve"] for run in plan["runs"]}
    points = [
        Point(name, curves[name], row["seed"], row["rate"]["nominal"], row)
        for name, results in runs.items()
        for row in results["rows"]
    ]
    _require_same_objects(directory, points)
    return Results(plan, runs, tuple(points))


def _require_same_objects(directory: Path, points: Iterable[Point]) -> None:
    # Paired tests compare object with object, seen in the same views.
    seen: dict[Any, str] = {}
    for point in points:
        key = json.dumps(sorted((o["id"], o["views"]) for o in point.row["objects"]))
        seen.setdefault(key, point.run)
    if len(seen) > 1:
        raise ResultsError(
            f"{directory}: {' and '.join(list(seen.values())[:2])} were evaluated on different "
            "objects or views: evaluate one of them again"
        )


def by_rate(points: Iterable[Point]) -> dict[float | None, list[Point]]:
    """Return points by nominal rate, the highest first; of a rate, one per seed."""
    found: dict[float | None, list[Point]] = {}
    for point in sorted(points, key=lambda point: (-(point.rate or 0), point.seed)):
        found.setdefault(point.rate, []).append(point)
    return found


def mean_values(points: Iterable[Point], name: str) -> np.ndarray:
    """Return a figure of every object, as mean over the seeds of `points`."""
    return np.mean([point.values(name) for point in points], axis=0)


class Pair(NamedTuple):
    """A figure of two systems on the same objects, after training with the same seeds."""

    seeds: tuple[int, ...]
    first: np.ndarray
    """[S, N]: by seed and object, in the order of their ids."""
    second: np.ndarray
    """[S, N]."""


def paired(
    results: Results,
    first: tuple[str, float | None],
    second: tuple[str, float | None],
    name: str = "iou",
    objects: np.ndarray | None = None,
) -> Pair | None:
    """Return a figure of objects for two (curve, rate), of the seeds that both have.

    None where one of them is not there, or they have no seed in common.

    Args:
      results: of the study.
      first: curve and rate.
      second: likewise.
      name: of the figure.
      objects: positions of those that count, in the order of their ids; None is all.
    """
    sides = [{p.seed: p for p in results.on(*wanted)} for wanted in (first, second)]
    common = tuple(sorted(set(sides[0]) & set(sides[1])))
    if not common:
        return None
    chosen = slice(None) if objects is None else objects
    stacked = (np.stack([side[seed].values(name)[chosen] for seed in common]) for side in sides)
    return Pair(common, *stacked)


def greedy_bins(values: np.ndarray, std: float) -> list[np.ndarray]:
    """Return the positions of `values`, ascending, in bins of about equal spread (Fig. 9).

    A bin takes the next value as long as its standard deviation stays at most `std`.
    """
    order = np.argsort(values, kind="stable")
    bins: list[list[int]] = []
    for position in order:
        if bins and np.std(values[[*bins[-1], position]]) <= std:
            bins[-1].append(int(position))
        else:
            bins.append([int(position)])
    return [np.array(positions) for positions in bins]
