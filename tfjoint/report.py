"""Tables from results files, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(results: Mapping[str, Any]) -> str:
    """Return a results file as text: one line per rate, the baselines below."""
    rows, baselines = results["rows"], results["baselines"]
    first = rows[0]
    lines = [
        f"{first['system']}, {first['profile']} profile, {first['steps']} steps; {first['data']} "
        f"{first['split']}: {first['iou']['objects']} objects, {first['views']} views each",
        "   T     rate  bits/view   mIoU +- STD   class mean  pooled     AP  L_comp     PSNR",
    ]
    lines += [
        f"{row['iterations']:>4}  {_rate(row):>7}  {row['bits_per_view']:>9}"
        f"  {row['iou']['mean']:.3f} +- {row['iou']['std']:.3f}"
        f"  {row['iou']['class_mean']:>9.3f}   {row['iou']['pooled_6']:.3f}"
        f"  {_or_dash(row['average_precision'])}   {row['l_comp']:.3f}  {row['psnr_db']:5.2f} dB"
        for row in rows
    ]
    shape, nearest = baselines["mean_shape"], baselines["best_training_grid"]
    lines += [
        f"mean shape of the {baselines['training_objects']} training objects: mIoU "
        f"{shape['mean']:.3f} +- {shape['std']:.3f} (at threshold {shape['threshold']})",
        f"best training grid for each test object (oracle): mIoU {nearest['mean']:.3f}",
        f"one mean colour as every view: PSNR {baselines['mean_colour']['psnr_db']:.2f} dB",
    ]
    return "\n".join(lines)


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['rate']['nominal']:.4g}:1"


def _or_dash(value: float | None) -> str:
    return "    -" if value is None else f"{value:.3f}"
