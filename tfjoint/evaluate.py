"""Measure an export on a test split and write its results as JSON.

    python -m tfjoint.evaluate --export=runs/direct/export

Everything is computed from the SavedModel's signatures, so what is measured is what is shipped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from tfjoint import entry, files, metrics, provenance, report
from tfjoint.config import Config, ConfigError

if TYPE_CHECKING:
    from tfjoint.dataset import Example
    from tfjoint.records import RecordSet

THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
POOLED_OBJECTS = 6
"""Objects per minibatch in the pooled IoU, as in the released code of the paper."""


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("export", None, "export directory, of one version or of all")
    flags.DEFINE_string("data", "", 'record directory; "" is the one the run was trained on')
    flags.DEFINE_string("split", "test", "split to evaluate")
    flags.DEFINE_integer("views", 5, "views per object")
    flags.DEFINE_integer("iterations", 0, "most iterations; 0 is as many as in training")
    flags.DEFINE_integer("seed", 0, "seed of the drawn views")
    flags.DEFINE_string("output", "", 'results file; "" is results.json beside the export')


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How to evaluate: the same for every system and rate that is to be compared."""

    split: str = "test"
    views: int = 5
    iterations: int = 8
    seed: int = 0


def evaluate(export: Path, config: Config, description: dict, protocol: Protocol) -> dict:
    """Return {"rows": one result per number of iterations, "baselines": ...} of an export.

    L_comp and PSNR are of the images as the export decodes them, clipped to [0, 1].

    Args:
      export: directory of one version.
      config: the export's config; `data` says where the records are.
      description: what the export says of itself.
      protocol: split, views, iterations, seed.
    """
    from tfjoint.dataset import evaluation_examples, open_split

    start = time.monotonic()
    test, train = (open_split(config, name, protocol.views) for name in (protocol.split, "train"))
    examples = list(evaluation_examples(config, test, protocol.views, protocol.seed))
    measured = list(_measure(export, examples, protocol.iterations))
    common = {
        "system": config.model,
        "profile": config.profile,
        "views": protocol.views,
        "split": protocol.split,
        "data": test.manifest.name,
        "split_list": test.manifest.split_name,
        "data_sha256": test.data_sha256,
        "config": description["config"],
        "seed": config.seed,
        "view_seed": protocol.seed,
        "steps": description["step"],
        "weights_sha256": description["weights_sha256"],
        "trained_by": description["code_revision"],
        "trained_on_sha256": description["data_sha256"],
        "code_revision": provenance.code_revision(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
    rows = [
        {**common, **_row(config, examples, measured, t)} for t in range(1, protocol.iterations + 1)
    ]
    for row in rows:
        row["wall_seconds"] = round(time.monotonic() - start, 1)
    return {"rows": rows, "baselines": baselines(config, train, examples)}


def baselines(config: Config, train: RecordSet, examples: Sequence[Example]) -> dict[str, Any]:
    """Return what needs no network: an mIoU or a PSNR means little without them.

    mean_shape: the mean training grid, at the threshold that is best on the training grids.
    best_training_grid: the training grid nearest to each test grid (an oracle).
    mean_colour: the mean colour of the training views as every view.
    """
    from tfjoint.dataset import evaluation_examples

    views = len(examples[0].view_ids)
    grids, colours = [], []
    for example in evaluation_examples(config, train, views, seed=0):
        grids.append(np.packbits(example.voxels))
        colours.append(example.images.mean(axis=(0, 1, 2), dtype=np.float64))
    side = examples[0].voxels.shape
    training = np.unpackbits(np.array(grids), axis=1).astype(bool).reshape(-1, *side)
    mean = training.mean(axis=0)
    threshold = max(THRESHOLDS, key=lambda t: metrics.iou(mean, training, t).mean())
    truth = np.stack([example.voxels for example in examples])
    shape_ious = metrics.iou(mean, truth, threshold)
    images = np.stack([example.images for example in examples])
    colour = np.mean(colours, axis=0)
    return {
        "training_objects": len(training),
        "mean_shape": {"threshold": threshold, **_mean_std(shape_ious)},
        "best_training_grid": _mean_std(_best_ious(truth, training)),
        "mean_colour": {
            "rgb": [round(float(c), 6) for c in colour],
            "psnr_db": float(metrics.psnr(images, np.broadcast_to(colour, images.shape)).mean()),
        },
    }


def _measure(export: Path, examples: Sequence[Example], iterations: int) -> Iterator[dict]:
    """Yield, per object, occupancy [T, D, D, D], L_comp [V, T] and PSNR [V, T]."""
    import tensorflow as tf

    from tfjoint.export import ExportError

    try:
        signatures = tf.saved_model.load(str(export)).signatures
    except Exception as error:  # of many kinds, from OSError to IndexError
        reason = str(error).splitlines()[0][:200]
        raise ExportError(f"{export} is damaged ({reason}): export the run again") from error
    for example in examples:
        images = tf.constant(example.images[np.newaxis])
        codes = signatures["encode"](images=images, iterations=tf.constant(iterations))["codes"]
        decoded = signatures["decode"](codes=codes)["images"].numpy()[0]  # [V, T, H, W, 3]
        original = example.images[:, np.newaxis]
        yield {
            # A code is a prefix of a longer one: iteration t does not know how many follow.
            "occupancy": np.concatenate(
                [
                    signatures["reconstruct"](codes=codes[:, :, :t])["occupancy"].numpy()
                    for t in range(1, iterations + 1)
                ]
            ),
            "l_comp": np.abs(original - decoded).mean(axis=(-3, -2, -1)),
            "psnr": metrics.psnr(np.broadcast_to(original, decoded.shape), decoded),
        }


def _row(
    config: Config, examples: Sequence[Example], measured: Sequence[dict], iterations: int
) -> dict[str, Any]:
    probabilities = np.stack([result["occupancy"][iterations - 1] for result in measured])
    truth = np.stack([example.voxels for example in examples])
    ious = metrics.iou(probabilities, truth)
    categories = np.array([example.category for example in examples])
    classes = {name: float(ious[categories == name].mean()) for name in sorted(set(categories))}
    precision = [metrics.average_precision(p, v) for p, v in zip(probabilities, truth)]
    bits = iterations * (config.image_size // 16) ** 2 * config.code_channels
    return {
        "iterations": iterations,
        "bits_per_view": bits,
        "rate": {"nominal": config.image_size**2 * 24 / bits},
        "threshold": metrics.THRESHOLD,
        "iou": {
            **_mean_std(ious),
            "class_mean": float(np.mean(list(classes.values()))),
            "per_class": classes,
            "pooled_6": metrics.pooled_iou(probabilities, truth, POOLED_OBJECTS),
            "by_threshold": {
                str(t): float(metrics.iou(probabilities, truth, t).mean()) for t in THRESHOLDS
            },
        },
        "l_3d": float(metrics.cross_entropy(probabilities, truth).mean()),
        "average_precision": _mean_of_defined(precision),
        "l_comp": float(np.mean([result["l_comp"][:, :iterations] for result in measured])),
        "psnr_db": float(np.mean([result["psnr"][:, iterations - 1] for result in measured])),
        "objects": [
            {
                "id": example.object_id,
                "category": example.category,
                "views": list(example.view_ids),
                "iou": float(iou),
            }
            for example, iou in zip(examples, ious)
        ],
    }


def _mean_std(ious: np.ndarray) -> dict[str, float]:
    return {"mean": float(ious.mean()), "std": float(ious.std()), "objects": len(ious)}


def _mean_of_defined(values: Sequence[float]) -> float | None:
    # An empty grid has no average precision, and JSON has no NaN.
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else None


def _best_ious(truth: np.ndarray, training: np.ndarray) -> np.ndarray:
    # All pairs by matrix products, a block of training grids at a time.
    test = truth.reshape(len(truth), -1).astype(np.float32)
    best = np.zeros(len(truth), np.float32)
    for block in np.array_split(training.reshape(len(training), -1), -(-len(training) // 512)):
        grids = block.astype(np.float32)
        intersection = test @ grids.T
        union = test.sum(1)[:, None] + grids.sum(1) - intersection
        ious = np.where(union == 0, 1, intersection / np.maximum(union, 1))
        best = np.maximum(best, ious.max(axis=1))
    return best


def _find_export(path: str | None) -> Path:
    if not path:
        raise ConfigError("--export is missing: give the export directory of a trained run")

    from tfjoint.export import ExportError, latest_version

    given = Path(path)
    found = given if (given / "saved_model.pb").is_file() else latest_version(given)
    if found is None or not (found / "saved_model.pb").is_file():
        raise ExportError(
            f"no export at {given}: give the directory of one version, or the one above"
        )
    return found


def main(argv: Sequence[str]) -> None:
    """Evaluate, write the JSON, print the table."""
    values = flags.FLAGS
    export = _find_export(values.export)

    from tfjoint.export import read_description

    description = read_description(export)
    config = Config.from_json(description["config"])
    if values.data:
        config = dataclasses.replace(config, data=values.data)
    if values.views < 1 or values.iterations < 0 or values.seed < 0:
        raise ConfigError(
            "views must be at least 1, iterations and seed at least 0. "
            f"Received: {values.views}, {values.iterations}, {values.seed}"
        )
    iterations = values.iterations or config.iterations_max
    protocol = Protocol(values.split, values.views, iterations, values.seed)
    results = evaluate(export, config, description, protocol)
    output = Path(values.output or export.parent.parent / "results.json")
    print(report.table(results))
    try:
        files.write_json(output, results)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written ({error}): give another --output") from error
    print(f"results: {output}")


if __name__ == "__main__":
    define_flags()
    entry.run(main)
