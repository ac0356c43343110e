"""Tables from results files, and from nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def table(results: Mapping[str, Any]) -> str:
    """Return a results file as text: one line per rate, the baselines below.

    Columns that a system has no values for are left out.
    """
    rows, baselines = results["rows"], results["baselines"]
    first = rows[0]
    title = (
        f"{first['system']}, {first['profile']} profile, {first['steps']} steps; {first['data']} "
        f"{first['split']}: {len(first['objects'])} objects, {first['views']} views each"
    )
    columns = [[name, *map(show, rows)] for name, show in _COLUMNS.items()]
    columns = [cells for cells in columns if any(cells[1:])]
    widths = [max(map(len, cells)) for cells in columns]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip()
        for line in zip(*columns)
    ]
    return "\n".join([title, *lines, *_baselines(baselines)])


def _baselines(baselines: Mapping[str, Any]) -> list[str]:
    lines = []
    if "mean_shape" in baselines:
        shape, nearest = baselines["mean_shape"], baselines["best_training_grid"]
        lines += [
            f"mean shape of the {baselines['training_objects']} training objects: mIoU "
            f"{shape['mean']:.3f} +- {shape['std']:.3f} (at threshold {shape['threshold']})",
            f"best training grid for each test object (oracle): mIoU {nearest['mean']:.3f}",
        ]
    if "mean_colour" in baselines:
        psnr = baselines["mean_colour"]["psnr_db"]
        lines.append(f"one mean colour as every view: PSNR {psnr:.2f} dB")
    return lines


def _rate(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: _number(row["rate"].get(name), ".4g", ":1")


def _shape(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: _number((row["iou"] or {}).get(name), ".3f")


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _mean_std(row: Mapping[str, Any]) -> str:
    return f"{row['iou']['mean']:.3f} +- {row['iou']['std']:.3f}" if row["iou"] else ""


# How a row's cell is shown, by column; "" where the row has no such value.
_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "T": lambda row: _number(row["iterations"], "d"),
    "rate": _rate("nominal"),
    "payload": _rate("payload"),
    "file": _rate("file"),
    "bits/view": lambda row: _number(row["bits_per_view"], "d"),
    "mIoU +- STD": _mean_std,
    "class mean": _shape("class_mean"),
    "pooled": _shape("pooled_6"),
    "AP": lambda row: _number(row["average_precision"], ".3f"),
    "L_comp": lambda row: _number(row["l_comp"], ".3f"),
    "PSNR": lambda row: _number(row["psnr_db"], ".2f", " dB"),
}
