"""The paper's figures, drawn from points; the same points give the same bytes.

matplotlib draws, which comes with the extra `study`. Its version is part of the bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfjoint import claims, voxels
from tfjoint.errors import UserError
from tfjoint.points import Point, Results, by_rate, mean_values

STYLES: dict[str, tuple[str, str]] = {
    "implicit": ("#1b7837", "o"),
    "direct": ("#2166ac", "s"),
    "sequential": ("#b2182b", "D"),
    "separate": ("#8c510a", "v"),
    claims.ASKED: ("#555555", "x"),
    claims.PAYLOAD: ("#999999", "+"),
    "compression, small, random T": ("#762a83", "o"),
    "compression, small, constant T": ("#c2a5cf", "o"),
    "compression, original, random T": ("#e08214", "s"),
    "compression, original, constant T": ("#fdb863", "s"),
}
"""Colour and marker of every curve."""

LOW = {
    "implicit, floats": "implicit",
    "direct, floats": "direct",
    "sequential, floats": "sequential",
    "separate, floats": "separate",
    "JPEG 2000, asked, low": claims.ASKED,
    "compression, floats": "compression, small, random T",
}
"""The curves at 12:1 and 6:1, and the ones that they belong to."""

RATES = (6, 12, 24, 48, 96, 192, 384, 1024, 4096)


_SIZE = (7.0, 5.0)  # inches
_FURTHER: dict[str, Any] = {"lw": 0.6, "alpha": 0.5, "zorder": 1}
"""How the seeds are drawn that not every point has."""


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "matplotlib, which draws the figures, is not there: pip install -c "
            "constraints/default.txt '.[study]'"
        ) from error
    matplotlib.use("agg", force=True)
    from matplotlib import pyplot

    return pyplot


def _svg(draw: Callable[[Any, Any], None], size: tuple[float, float] = _SIZE) -> bytes:
    """Return what `draw(axes, figure)` draws."""
    pyplot = _pyplot()
    settings = {
        "svg.hashsalt": "tfjoint",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.style.context("default"), pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        draw(axes, figure)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=3, frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return stream.getvalue()


# --- Curves against the rate ----------------------------------------------------------------------


Measure = Callable[[Point], float]


class Curve(NamedTuple):
    """What is drawn of a curve, by rate; of one seed, nothing varies."""

    rates: list[float]
    means: list[float]
    """Over the seeds."""
    below: list[float]
    """How far the least of several seeds is below the mean; NaN of one."""
    above: list[float]


def curve(points: Sequence[Point], measure: Measure, rate: str = "nominal") -> Curve:
    """Return the points of a curve as mean over seeds.

    Args:
      points: of one curve.
      measure: what is shown of a point.
      rate: which rate is meant.
    """
    made = Curve([], [], [], [])
    for same in by_rate(points).values():
        values = np.array([measure(point) for point in same])
        made.rates.append(float(np.mean([rate_of(point, rate) for point in same])))
        made.means.append(float(values.mean()))
        several = len(values) > 1
        made.below.append(float(values.mean() - values.min()) if several else math.nan)
        made.above.append(float(values.max() - values.mean()) if several else math.nan)
    return made


def rate_of(point: Point, name: str) -> float:
    """Return a rate of a point; where only the nominal one is known, that."""
    found = point.row["rate"].get(name) or point.row["rate"]["nominal"]
    return float(found)


SYSTEMS = ("implicit", "direct", "sequential", "separate", claims.ASKED, claims.PAYLOAD)
"""The systems of Fig. 8."""


def miou_against_rate(results: Results, rate: str = "nominal") -> bytes:
    """Return Fig. 8: mIoU against the rate, all systems."""

    def draw(axes: Any, _: Any) -> None:
        _draw_curves(axes, results, SYSTEMS, _miou, rate)
        _draw_references(axes, results, _miou)
        if shape := results.baseline("mean_shape"):
            axes.axhline(shape["mean"], color="black", lw=0.8, ls=":", label="mean shape")
        _label(axes, f"rate ({rate}), raw bits : code bits", "mean IoU at threshold 0.4, 5 views")

    return _svg(draw)


def precision_against_rate(results: Results) -> bytes:
    """Return average precision over voxels against the rate, all systems."""

    def draw(axes: Any, _: Any) -> None:
        _draw_curves(axes, results, SYSTEMS, _precision)
        _draw_references(axes, results, _precision)
        _label(axes, "rate (nominal), raw bits : code bits", "average precision, 5 views")

    return _svg(draw)


def _miou(point: Point) -> float:
    return float(point.row["iou"]["mean"])


def _precision(point: Point) -> float:
    return float(point.row["average_precision"])


def l_comp_against_rate(results: Results, systems: Sequence[str]) -> bytes:
    """Return Fig. 10 or 11: L_comp against the rate; nothing where no system has results."""
    if not any(results.on(name) for name in systems):
        return b""

    def draw(axes: Any, _: Any) -> None:
        _draw_curves(axes, results, systems, lambda p: p.row["l_comp"])
        _label(axes, "rate (nominal), raw bits : code bits", "L_comp")
        axes.set_ylim(bottom=0)

    return _svg(draw)


def _draw_curves(
    axes: Any, results: Results, systems: Sequence[str], measure: Measure, rate: str = "nominal"
) -> None:
    low = {owner: name for name, owner in LOW.items()}
    for name in systems:
        points = results.on(name)
        if shown := results.comparable(points):
            _draw_curve(axes, curve(shown, measure, rate), name, label=name)
        for seed in sorted({point.seed for point in points} - results.shared_seeds):
            of_seed = curve([p for p in points if p.seed == seed], measure, rate)
            colour, marker = STYLES[name]
            axes.plot(of_seed.rates, of_seed.means, color=colour, marker=marker, ms=2.5, **_FURTHER)
        if name in low and (points := results.comparable(results.on(low[name]))):
            _draw_curve(axes, curve(points, measure, rate), name, ls=":", mfc="white")
    axes.set_xscale("log")
    axes.set_xticks(RATES, [str(rate) for rate in RATES])
    axes.minorticks_off()


def _draw_curve(axes: Any, shown: Curve, name: str, **style: Any) -> None:
    colour, marker = STYLES[name]
    axes.errorbar(shown.rates, shown.means, (shown.below, shown.above), color=colour,
                  marker=marker, ms=4, lw=1.2, capsize=2, **style)  # fmt: skip


def _draw_references(axes: Any, results: Results, measure: Measure) -> None:
    if points := results.comparable(results.on("reconstruction")):
        mean = float(np.mean([measure(point) for point in points]))
        axes.axhline(mean, color="black", lw=0.8, ls="--", label="uncompressed")
        # Its 1024 floats per view are 12:1 without any coding: the paper's magenta square.
        axes.plot([12], [mean], marker="s", ms=6, color="magenta", ls="")
    for point in results.on("reconstruction"):
        if point.seed not in results.shared_seeds:
            axes.axhline(measure(point), color="black", ls="--", **_FURTHER)


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, lw=0.3, alpha=0.5)


def middle_bin(results: Results) -> bytes:
    """Return Fig. 9: mIoU against the rate within one bin of objects of equal difficulty.

    Nothing where the uncompressed network has no results, by which objects are binned.
    """
    chosen = claims.middle_bin(results)
    if chosen is None:
        return b""

    def draw(axes: Any, _: Any) -> None:
        shown = [n for n in ("implicit", "direct", "sequential", claims.ASKED) if results.on(n)]
        for number, name in enumerate(shown):
            colour, marker = STYLES[name]
            groups = by_rate(results.comparable(results.on(name)))
            values = [mean_values(same, "iou")[chosen] for same in groups.values()]
            # Beside each other, so that bars at one rate can be told apart.
            xs = [float(rate or 0) * 1.03 ** (number - len(shown) / 2) for rate in groups]
            ys, stds = [v.mean() for v in values], [v.std() for v in values]
            axes.errorbar(xs, ys, stds, label=name, color=colour, marker=marker, ms=4, lw=1,
                          capsize=2)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(RATES, [str(rate) for rate in RATES])
        axes.minorticks_off()
        _label(axes, "rate (nominal)", f"IoU of the {len(chosen)} objects of the middle bin")

    return _svg(draw)


def miou_by_views(results: Results, rate: float = 384.0) -> bytes:
    """Return mIoU after the first 1, 2, ... of the views, at one rate."""

    def draw(axes: Any, _: Any) -> None:
        curves: Mapping[str, list[Point]] = {
            "reconstruction": results.on("reconstruction"),
            **{name: results.on(name, rate) for name in STYLES},
        }
        for name, points in curves.items():
            shown = results.comparable(points)
            found = [p.row["iou"].get("by_views") for p in shown if p.row["iou"]]
            if found and all(found):
                counts = sorted(map(int, found[0]))
                colour, marker = STYLES.get(name, ("black", "."))
                ys = [np.mean([each[str(count)] for each in found]) for count in counts]
                axes.plot(counts, ys, label=name, color=colour, marker=marker, ms=4, lw=1.2)
                axes.set_xticks(counts)
        _label(axes, "views", f"mean IoU at {rate:g}:1")

    return _svg(draw)


# --- Pictures -------------------------------------------------------------------------------------


def mosaic(rows: Sequence[tuple[str, Sequence[np.ndarray | None]]], columns: Sequence[str]
           ) -> bytes:  # fmt: skip
    """Return pictures as a table, as PNG: rows with their name, columns with theirs.

    Args:
      rows: name and pictures [H, W, 3] uint8; None leaves a cell empty.
      columns: names.
    """
    pyplot = _pyplot()
    with pyplot.style.context("default"), pyplot.rc_context({"font.size": 8}):
        figure, grid = pyplot.subplots(
            len(rows), len(columns), squeeze=False, layout="constrained",
            figsize=(1.2 + 1.05 * len(columns), 0.3 + 1.05 * len(rows)),
        )  # fmt: skip
        for axes_row, (name, pictures) in zip(grid, rows):
            for axes, picture in zip(axes_row, pictures):
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_frame_on(False)
                if picture is not None:
                    axes.imshow(picture, interpolation="nearest")
            axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, name in zip(grid[0], columns):
            axes.set_title(name, fontsize=8)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=80, metadata={"Software": None})
        pyplot.close(figure)
    return stream.getvalue()


def shape_picture(grid: np.ndarray) -> np.ndarray:
    """Return a picture of an occupancy grid [D, D, D] bool."""
    return voxels.picture(grid)
