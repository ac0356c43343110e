"""Compare the camera's end for TensorFlow Lite with the SavedModel, on a test split.

    python -m tfjoint.camera --ends=runs/direct/ends

`--ends` is what `tfjoint.split --lite` wrote. For each precision: how many bits are equal, what the
others do to the shape, megabytes and milliseconds per view. All compute with one thread.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from tfjoint import entry, files, metrics, provenance
from tfjoint.config import Config, ConfigError
from tfjoint.split import CAMERA, GROUND, LITE, SplitError, find_ends, size

if TYPE_CHECKING:
    from tfjoint.dataset import Example

Encode = Callable[[np.ndarray, int], np.ndarray]
"""(view [H, W, 3], iterations) -> its code [T, H/16, W/16, M] or [K]."""


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("ends", None, "directory that tfjoint.split wrote, with --lite")
    flags.DEFINE_string("data", "", 'record directory; "" is the one the run was trained on')
    flags.DEFINE_integer("views", 5, "views per object")
    flags.DEFINE_string("output", "", 'results file; "" is camera.json among the ends')


def origin(config: Config, description: Mapping[str, Any], test: Any, views: int) -> dict[str, Any]:
    """Return what a result is of and what it was made with."""
    return {
        "system": config.model,
        "profile": config.profile,
        "views": views,
        "split": "test",
        "data": test.manifest.name,
        "data_sha256": test.data_sha256,
        "objects": len(test),
        "config": description["config"],
        "steps": description["step"],
        "weights_sha256": description["weights_sha256"],
        "trained_by": description["code_revision"],
        "code_revision": provenance.code_revision(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }


def compare(directory: Path, data: str, views: int) -> dict[str, Any]:
    """Return the results of all precisions beside the SavedModel's.

    Args:
      directory: of the ends.
      data: record directory; "" is the one the run was trained on.
      views: per object.
    """
    from tfjoint.codec import load_signatures
    from tfjoint.dataset import evaluation_examples, open_split
    from tfjoint.lite import PRECISIONS, LiteCamera

    ends, description = find_ends(directory, (CAMERA, GROUND, LITE))
    config = Config.from_json(description["config"])
    if data:
        config = dataclasses.replace(config, data=data)
    test = open_split(config, "test", views)
    examples = list(evaluation_examples(config, test, views, seed=0))
    most = config.iterations_max if config.uses("iterations_max") else 1
    reconstruct = load_signatures(ends[GROUND]).get("reconstruct")
    encode = _saved_model(load_signatures(ends[CAMERA])["encode"], config)
    expected, seconds = _codes(encode, examples, most)
    shapes = [_ious(reconstruct, config, codes, examples) for codes in _by_rate(expected, config)]
    found = {
        "saved_model": {
            "bytes": size(ends[CAMERA]),
            "milliseconds_per_view": _milliseconds(seconds, config),
        }
    }
    for precision in PRECISIONS:
        path = ends[LITE] / f"{CAMERA}-{precision}.tflite"
        codes, seconds = _codes(LiteCamera(path).encode, examples, most)
        rows = []
        for of_lite, of_saved, ious in zip(
            _by_rate(codes, config), _by_rate(expected, config), shapes
        ):
            own = _ious(reconstruct, config, of_lite, examples)
            rows.append({**_agreement(of_lite, of_saved), **_loss(own, ious)})
        if config.uses("iterations_max"):
            rows = [{"iterations": t, **row} for t, row in enumerate(rows, 1)]
        found[precision] = {
            "bytes": path.stat().st_size,
            "milliseconds_per_view": _milliseconds(seconds, config),
            "rows": rows,
        }
    return {**origin(config, description, test, views), "cameras": found}


def _saved_model(encode: Any, config: Config) -> Encode:
    import tensorflow as tf

    def of_view(view: np.ndarray, iterations: int) -> np.ndarray:
        given = {"images": tf.constant(view[np.newaxis, np.newaxis])}
        if config.uses("iterations_max"):
            given["iterations"] = tf.constant(iterations)
        return encode(**given)["codes"].numpy()[0, 0]

    return of_view


def _codes(
    encode: Encode, examples: Sequence[Example], most: int
) -> tuple[np.ndarray, dict[int, list[float]]]:
    """Return codes [objects, V, ...] and, by iterations, the seconds that each view took."""
    seconds: dict[int, list[float]] = {iterations: [] for iterations in sorted({1, most})}
    for iterations in seconds:
        encode(examples[0].images[0], iterations)  # the first call prepares
        codes = []
        for example in examples:
            for view in example.images:
                start = time.perf_counter()
                codes.append(encode(view, iterations))
                seconds[iterations].append(time.perf_counter() - start)
    whole = np.stack(codes)
    return whole.reshape(len(examples), -1, *whole.shape[1:]), seconds


def _by_rate(codes: np.ndarray, config: Config) -> list[np.ndarray]:
    # The codes of 1, 2, ... iterations, or the only ones.
    if not config.uses("iterations_max"):
        return [codes]
    return [codes[:, :, :t] for t in range(1, codes.shape[2] + 1)]


def _ious(
    reconstruct: Any, config: Config, codes: np.ndarray, examples: Sequence[Example]
) -> np.ndarray | None:
    import tensorflow as tf

    if reconstruct is None:
        return None
    shapes = [
        reconstruct(codes=tf.constant(views[np.newaxis]))["occupancy"].numpy()[0] for views in codes
    ]
    return np.array([metrics.iou(shape, e.voxels) for shape, e in zip(shapes, examples)])


def _agreement(codes: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    same = codes == expected
    return {
        "values_equal": float(same.mean()),
        "views_equal": float(same.reshape(*same.shape[:2], -1).all(axis=-1).mean()),
    }


def _loss(own: np.ndarray | None, expected: np.ndarray | None) -> dict[str, Any]:
    if own is None or expected is None:
        return {}
    return {
        "iou": float(own.mean()),
        "iou_saved_model": float(expected.mean()),
        "iou_lost": float(expected.mean() - own.mean()),
        "iou_largest_change": float(np.abs(own - expected).max()),
    }


def _milliseconds(seconds: Mapping[int, Sequence[float]], config: Config) -> Any:
    # Medians; where there are iterations, of one and of all.
    found = {str(t): round(1e3 * float(np.median(s)), 3) for t, s in seconds.items()}
    return found if config.uses("iterations_max") else found["1"]


def table(results: Mapping[str, Any]) -> str:
    """Return results as lines to print."""
    lines = [f"{'camera':<12}     MB  ms/view    T  bits equal  views equal    mIoU    lost"]
    for name, camera in sorted(results["cameras"].items(), reverse=True):
        times = camera["milliseconds_per_view"]
        shown = f"{name:<12} {camera['bytes'] / 1e6:6.2f}"
        for row in camera.get("rows", [{}]):
            t = row.get("iterations")
            time_ = times.get(str(t or 1), "") if isinstance(times, dict) else times
            line = f"{shown} {time_:>8} {t or '':>4}"
            if row:
                line += f"  {row['values_equal']:10.4%}  {row['views_equal']:11.2%}"
            if "iou" in row:
                line += f"  {row['iou']:6.4f}  {row['iou_lost']:+.4f}"
            lines.append(line.rstrip())
    return "\n".join(lines)


def hand_over(results: Mapping[str, Any], shown: str, output: Path) -> None:
    """Print results as they are to be `shown`, write them to `output`, say where they are."""
    print(shown)
    files.write_json(output, results)
    print(f"results: {output}")


def main(argv: Sequence[str]) -> None:
    """Compare, print the table, write the JSON."""
    values = flags.FLAGS
    if not values.ends:
        raise SplitError("--ends is missing: give the directory that tfjoint.split wrote")
    if values.views < 1:
        raise ConfigError(f"views must be at least 1. Received: {values.views}")

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    results = compare(Path(values.ends), values.data, values.views)
    hand_over(results, table(results), Path(values.output or Path(values.ends) / "camera.json"))


if __name__ == "__main__":
    define_flags()
    entry.run(main)
