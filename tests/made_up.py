"""Results of a study that nobody trained: what is true of them is said by whoever makes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfjoint import files, gallery, plan, points, study

OBJECTS, VIEWS = 60, 5
MEAN_SHAPE = 0.2


def make(
    directory: Path,
    miou: Callable[[str, float | None], float],
    l_comp: Callable[[str, float | None], float] = lambda curve, rate: 0.05,
    noise: float = 0.02,
    only: Callable[[plan.Run], bool] = lambda run: True,
) -> Path:
    """Write results at `directory`, and the plan beside it; return `directory`.

    Args:
      directory: results/study, for instance.
      miou: mean IoU by curve and nominal rate, beside the mean shape's 0.2.
      l_comp: likewise.
      noise: STD over objects of what is different between two systems.
      only: whether a run is done.
    """
    asked = plan.Study("mini", "data/open-68", "runs/study", str(directory), {})
    runs = plan.planned(asked)
    study.claim_results(asked, runs)
    for number, run in enumerate(runs):
        if only(run):
            rng = np.random.default_rng(number)
            rows = [_row(asked, run, point, rng, miou, l_comp, noise) for point in served(run)]
            baselines = {"training_objects": 9} | (
                {} if run.model == "compression" else {
                    "mean_shape": {"mean": MEAN_SHAPE, "std": 0.1, "objects": OBJECTS,
                                   "threshold": 0.3},
                    "best_training_grid": {"mean": 0.5, "std": 0.1, "objects": OBJECTS},
                }
            )  # fmt: skip
            about = {"run": run.name, "curve": run.curve, "views": run.views,
                     "train_seconds": 600.0, "threads": 1}  # fmt: skip
            results = {"rows": rows, "baselines": baselines, "study": about}
            files.write_json(directory / f"{run.name}.json", results)
    return directory


def served(run: plan.Run) -> list[tuple[int | None, float | None]]:
    """The (iterations, nominal rate) that a run is evaluated at."""
    if run.model == "reconstruction":
        return [(None, None)]
    if run.views != "raw":
        return [(None, rate) for rate in run.settings["rates"]]
    if run.model == "implicit":
        return [(None, float(run.name.partition(".")[0].rpartition("-")[2]))]
    if run.name.partition(".")[0].endswith("floats"):
        return [(t, 12 / t) for t in (1, 2)]
    first = 192 if "original" in run.name else 384
    return [(t, first / t) for t in range(1, 9)]


def _row(
    asked: plan.Study, run: plan.Run, point: tuple[int | None, float | None],
    rng: np.random.Generator, miou: Callable, l_comp: Callable, noise: float,
) -> dict[str, Any]:  # fmt: skip
    iterations, rate = point
    shapes, images = run.model != "compression", run.model not in ("reconstruction", "implicit")
    difficulty = np.linspace(-0.15, 0.15, OBJECTS)
    ious = miou(run.curve, rate) + difficulty + rng.normal(0, noise, OBJECTS)
    comps = l_comp(run.curve, rate) * (1 + rng.normal(0, noise, OBJECTS))
    objects = [
        {
            "id": f"object-{index:02d}", "category": "box", "views": list(range(VIEWS)),
            "iou": float(ious[index]) if shapes else None,
            "l_comp": float(comps[index]) if images else None,
            "psnr_db": 20.0 if images else None,
        }
        for index in range(OBJECTS)
    ]  # fmt: skip
    mean = float(np.mean(ious))
    iou = {
        "mean": mean, "std": float(np.std(ious)), "objects": OBJECTS, "class_mean": mean,
        "pooled_6": mean, "per_class": {"box": mean},
        "by_threshold": {str(t): mean for t in (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)},
        "by_views": {str(v): mean - 0.01 * (VIEWS - v) for v in range(1, VIEWS + 1)},
    }  # fmt: skip
    config = plan.run_config(asked, run).to_json()
    return {
        "system": run.model, "profile": "mini", "seed": run.seed, "steps": 100, "views": VIEWS,
        "data": "open", "split": "test", "data_sha256": "0" * 64, "config": config,
        "iterations": iterations, "bits_per_view": None, "rate": {"nominal": rate},
        "threshold": 0.4, "iou": iou if shapes else None, "l_3d": 0.1 if shapes else None,
        "average_precision": 0.5 if shapes else None, "objects": objects,
        "l_comp": float(np.mean(comps)) if images else None,
        "psnr_db": 20.0 if images else None, "ms_ssim": 0.8 if images else None,
        "weights_sha256": "0" * 64,
    }  # fmt: skip


def add_shapes(directory: Path, runs: Sequence[str]) -> None:
    """Write something to look at for runs of which there are results."""
    for run in runs:
        rows = json.loads((directory / f"{run}.json").read_text())["rows"]
        rng = np.random.default_rng(0)
        shapes = gallery.from_arrays({
            "voxels": rng.random((2, len(rows), 1, 8, 8, 8)) < 0.2,
            "truth": rng.random((2, 8, 8, 8)) < 0.2,
            "images": rng.integers(0, 256, (2, 2, 16, 16, 3), np.uint8),
            "decoded": rng.integers(0, 256, (2, len(rows), 2, 16, 16, 3), np.uint8),
        })  # fmt: skip
        gallery.write_gallery(directory / f"{run}-examples.npz", shapes)


def plan_of(directory: Path) -> dict[str, Any]:
    """The plan that lies beside results."""
    return json.loads(points.plan_path(directory).read_text())
