"""Measure an export on a test split and write its results as JSON.

    python -m tfjoint.evaluate --export=runs/direct/export

Everything is computed from the SavedModel's signatures, so what is measured is what is shipped.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import flags

from tfjoint import bitstream, entry, files, metrics, provenance, report
from tfjoint.baselines import THRESHOLDS, best_training_grid, mean_shape, pack
from tfjoint.bitstream import Source
from tfjoint.config import Config, ConfigError
from tfjoint.exported import TABLES, find_export, read_description
from tfjoint.gallery import Gallery, from_arrays, percent, write_gallery

if TYPE_CHECKING:
    from tfjoint.coding import Tables
    from tfjoint.dataset import Example, Split

POOLED_OBJECTS = 6
"""Objects per minibatch in the pooled IoU, as in the released code of the paper."""

_PER_OBJECT = ("iou", "l_comp", "psnr_db")
"""What results keep of every object."""


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("export", None, "export directory, of one version or of all")
    flags.DEFINE_string("data", "", 'record directory; "" is the one the run was trained on')
    flags.DEFINE_string("split", "test", "split to evaluate")
    flags.DEFINE_integer("views", 5, "views per object")
    flags.DEFINE_integer("iterations", 0, "most iterations; 0 is as many as in training")
    flags.DEFINE_integer("seed", 0, "seed of the drawn views")
    flags.DEFINE_string("output", "", 'results file; "" is results.json beside the export')
    flags.DEFINE_integer(
        "examples",
        0,
        "objects whose shapes, or of a codec alone decoded views, are written "
        "beside the results, for tfjoint.view",
    )
    flags.DEFINE_bool(
        "spread_examples", False, "take these from the whole split instead of its first objects"
    )
    flags.DEFINE_bool("view_counts", False, "also measure after the first 1, 2, ... of the views")
    flags.DEFINE_string(
        "originals", "", "raw records that JPEG 2000 views were made of, to compare the views with"
    )


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How to evaluate: the same for every system and rate that is to be compared."""

    split: str = "test"
    views: int = 5
    iterations: int = 8
    """Most iterations, of a system that has iterations."""
    seed: int = 0
    view_counts: bool = False
    """Whether to measure after the first 1, 2, ... of the views, too."""
    originals: str = ""
    """Raw records of the objects, for what JPEG 2000 makes of them; "" where it is not asked."""


class Measured(NamedTuple):
    """What is measured of one object at one rate; None where a system does not make it."""

    iou: float | None = None
    overlap: tuple[int, int] | None = None
    """Voxels in the intersection and in the union."""
    by_threshold: tuple[float, ...] | None = None
    l_3d: float | None = None
    average_precision: float | None = None
    """NaN of an empty grid."""
    l_comp: float | None = None
    psnr_db: float | None = None
    sent: dict[str, int] | None = None
    """Bytes of all views by what they count, as in `Sizes.of_codes`."""
    ms_ssim: float | None = None
    by_views: tuple[float, ...] | None = None
    """IoU after the first 1, 2, ... of the views."""


class Point(NamedTuple):
    """One rate of a system, and what was measured of every object there."""

    iterations: int | None
    bits_per_view: int | None
    rate: dict[str, float | None]
    """Raw bits over: "nominal" code bits; what is really sent, real "payload" and "file" bits, of
    codes with all views in one raw file; those of "table_payload" and "table_file" coded with the
    export's tables, where the range coder is installed."""
    measured: list[Measured]


class Sizes(NamedTuple):
    """What counts the bytes of an object's codes."""

    source: Source
    tables: Tables | None
    """None where codes have none, or nothing codes with them."""

    @classmethod
    def of_export(cls, export: Path, config: Config, description: dict) -> Sizes | None:
        """Return that of an export; None of a system whose codes no bitstream holds."""
        from tfjoint import coding

        if not config.code_size:
            return None
        try:
            source = Source.of_export(description)
        except bitstream.BitstreamError as error:  # a width that no bitstream holds
            print(f"without real bytes: {error}")
            return None
        if not (export / TABLES).is_file():
            return cls(source, None)
        try:
            coding.range_coder()
        except coding.CodingError as error:
            print(f"real bytes of raw codes alone: {error}")
            return cls(source, None)
        return cls(source, coding.read(export / TABLES))

    def of_codes(self, values: np.ndarray) -> dict[str, int]:
        """Return bytes of codes [V, T, H/16, W/16, M] or [V, K] as one file: "file", "payload"."""
        codes = bitstream.Codes(self.source, values)
        found = {"": len(bitstream.encode(codes))}
        if self.tables and (codes.iterations or 1) <= self.tables.iterations:
            found["table_"] = len(bitstream.encode(codes, self.tables))
        return {
            f"{coded}{part}": size - beyond
            for coded, size in found.items()
            for part, beyond in (("payload", bitstream.OVERHEAD), ("file", 0))
        }


def evaluate(export: Path, config: Config, description: dict, protocol: Protocol) -> dict:
    """Return {"rows": one result per rate, "baselines": ...} of an export.

    L_comp, PSNR and MS-SSIM are of the images as the export decodes them, clipped to [0, 1]; of
    JPEG 2000, whose one image counts as one iteration, as the records hold them.

    Args:
      export: directory of one version.
      config: the export's config; `data` says where the records are.
      description: what the export says of itself.
      protocol: split, views, iterations, seed.
    """
    from tfjoint.codec import load_signatures
    from tfjoint.dataset import evaluation_examples, evaluation_views, open_split

    start = time.monotonic()
    test, train = (open_split(config, name, protocol.views) for name in (protocol.split, "train"))
    signatures = load_signatures(export)
    counted = Sizes.of_export(export, config, description)
    points = _measure(signatures, config, protocol, test, counted)
    # Of the first rate; nothing of this but the images depends on it.
    examples = evaluation_examples(config, test, protocol.views, protocol.seed)
    against = baselines(
        config,
        train,
        examples,
        protocol.views,
        shapes="reconstruct" in signatures,
        images="decode" in signatures,
    )
    objects = [
        {
            "id": entry.object_id,
            "category": entry.category,
            "views": list(
                evaluation_views(
                    protocol.seed, entry.object_id, test.manifest.views, protocol.views
                )
            ),
        }
        for entry in test.objects
    ]
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
    rows = [{**common, **_row(point, objects)} for point in points]
    for row in rows:
        row["wall_seconds"] = round(time.monotonic() - start, 1)
    return {"rows": rows, "baselines": against}


def baselines(
    config: Config,
    train: Split,
    examples: Iterable[Example],
    views: int,
    shapes: bool,
    images: bool,
) -> dict[str, Any]:
    """Return what needs no network: an mIoU or a PSNR means little without them.

    mean_shape: the mean training grid, at the threshold that is best on the training grids.
    best_training_grid: the training grid nearest to each test grid (an oracle).
    mean_colour: the mean colour of the training views as every view.

    Args:
      config: as it was trained.
      train: the training objects.
      examples: the test objects.
      views: views per object, of training objects too.
      shapes: whether the first two are wanted.
      images: whether the last is wanted.
    """
    from tfjoint.dataset import evaluation_examples

    found: dict[str, Any] = {"training_objects": len(train)}
    if images:
        colours = [
            example.images.mean(axis=(0, 1, 2), dtype=np.float64)
            for example in evaluation_examples(config, train, views, seed=0)
        ]
        colour = np.mean(colours, axis=0)
    grids, psnr = [], []
    for example in examples:
        grids.append(example.voxels)
        if images:
            mean = np.broadcast_to(colour, example.images.shape)
            psnr.append(metrics.psnr(example.images, mean).mean())
    if shapes:
        training = pack(train.record(i).voxels for i in range(len(train)))
        truth = pack(grids)
        threshold, ious = mean_shape(truth, training)
        found["mean_shape"] = {"threshold": threshold, **_mean_std(ious)}
        found["best_training_grid"] = _mean_std(best_training_grid(truth, training))
    if images:
        rgb = [round(float(c), 6) for c in colour]
        found["mean_colour"] = {"rgb": rgb, "psnr_db": float(np.mean(psnr))}
    return found


def _measure(
    signatures: Mapping[str, Any],
    config: Config,
    protocol: Protocol,
    test: Split,
    counted: Sizes | None,
) -> list[Point]:
    """Return the system's points: one per iteration, per JPEG 2000 rate, or one."""
    from tfjoint.dataset import evaluation_examples

    if test.rates:
        raw_bytes = 3 * test.manifest.image_size**2
        originals = _originals(config, protocol, test)
        points = []
        for index, rate in enumerate(test.rates):
            found, sizes = [], []
            for number, example in enumerate(
                evaluation_examples(config, test, protocol.views, protocol.seed, rate_index=index)
            ):
                (measured,) = _measure_object(signatures, config, example, protocol)
                if originals:
                    decoded = example.images[:, np.newaxis]
                    (measured,) = _measured_images(originals[number], decoded, [measured])
                found.append(measured)
                assert example.code_bytes is not None, "JPEG 2000 records say their sizes"
                sizes.append(example.code_bytes)
            _, file, payload = np.mean(np.concatenate(sizes), axis=0)
            rates = {"nominal": rate, "payload": raw_bytes / payload, "file": raw_bytes / file}
            points.append(Point(None, None, rates, found))
        return points
    examples = evaluation_examples(config, test, protocol.views, protocol.seed)
    by_object = [_measure_object(signatures, config, e, protocol, counted) for e in examples]
    iterative = config.uses("iterations_max")
    return [
        Point(
            iterations=t if iterative else None,
            bits_per_view=config.bits_per_view(t) if config.code_size else None,
            rate={
                "nominal": config.rate(t) if config.code_size else None,
                **_real_rates(config, protocol.views, measured),
            },
            measured=list(measured),
        )
        for t, measured in enumerate(zip(*by_object), start=1)
    ]


def _real_rates(config: Config, views: int, measured: Iterable[Measured]) -> dict[str, float]:
    """Return raw bytes over the mean of those that were sent, by what they count."""
    raw_bytes = 3 * config.image_size**2 * views
    sent = [found.sent for found in measured if found.sent]
    names = sent[0] if sent else ()
    return {name: raw_bytes / float(np.mean([s[name] for s in sent])) for name in names}


def _originals(config: Config, protocol: Protocol, coded: Split) -> list[np.ndarray]:
    """Return the views [V, H, W, 3] of each object before they were coded; [] if not asked for."""
    from tfjoint.dataset import evaluation_examples, open_split

    if not protocol.originals:
        return []
    # Any model that takes raw views opens them.
    raw = dataclasses.replace(config, model="reconstruction", data=protocol.originals, rates=())
    records = open_split(raw, protocol.split, protocol.views)
    if [o.object_id for o in records.objects] != [o.object_id for o in coded.objects] or (
        records.manifest.views != coded.manifest.views
    ):
        raise ConfigError(
            f"originals={protocol.originals} does not hold the objects and views of {config.data}: "
            "name the records that data_tools.build_jpeg2000 was given"
        )
    found = evaluation_examples(raw, records, protocol.views, protocol.seed)
    return [example.images for example in found]


def _measure_object(
    signatures: Mapping[str, Any],
    config: Config,
    example: Example,
    protocol: Protocol,
    counted: Sizes | None = None,
) -> list[Measured]:
    """Return what is measured of one object: one item per iteration, or one."""
    sent = _sent(signatures, config, example.images, protocol.iterations)
    found = [Measured()] * len(sent)
    if "reconstruct" in signatures:
        found = [_measured_shape(signatures["reconstruct"](**views), example) for views in sent]
        if protocol.view_counts:
            found = [
                shape._replace(by_views=_by_views(signatures, views, example, shape))
                for views, shape in zip(sent, found)
            ]
    if counted:
        found = [
            measured._replace(sent=counted.of_codes(views["codes"].numpy()[0]))
            for measured, views in zip(found, sent)
        ]
    if "decode" not in signatures:
        return found
    decoded = signatures["decode"](**sent[-1])["images"].numpy()[0]  # [V, T, H, W, 3]
    return _measured_images(example.images, decoded, found)


def _measured_images(
    images: np.ndarray, decoded: np.ndarray, shapes: Sequence[Measured]
) -> list[Measured]:
    """Return `shapes`, one per iteration, with what is measured of the views decoded there.

    Args:
      images: [V, H, W, 3], the originals.
      decoded: [V, T, H, W, 3].
      shapes: T items.
    """
    original = np.broadcast_to(images[:, np.newaxis], decoded.shape)
    l_comp = np.abs(original - decoded).mean(axis=(-3, -2, -1))  # [V, T]
    psnr, similarity = metrics.psnr(original, decoded), _ms_ssim(original, decoded)
    return [
        shape._replace(
            l_comp=float(l_comp[:, : t + 1].mean()),
            psnr_db=float(psnr[:, t].mean()),
            ms_ssim=float(similarity[:, t].mean()),
        )
        for t, shape in enumerate(shapes)
    ]


def _ms_ssim(images: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Return the multi-scale structural similarity [...] of images [..., H, W, 3] in [0, 1]."""
    import tensorflow as tf

    found = tf.image.ssim_multiscale(
        tf.constant(images),
        tf.constant(decoded),
        max_val=1.0,
        power_factors=metrics.ms_ssim_weights(min(images.shape[-3:-1])),
        filter_size=metrics.MS_SSIM_FILTER,
    )
    return found.numpy()


def _by_views(
    signatures: Mapping[str, Any], sent: Mapping[str, Any], example: Example, whole: Measured
) -> tuple[float, ...]:
    """Return the IoU after the first 1, 2, ... of the views; `whole` is after all of them."""
    found = []
    for count in range(1, len(example.view_ids)):
        first = {name: given[:, :count] for name, given in sent.items()}
        occupancy = signatures["reconstruct"](**first)["occupancy"].numpy()[0]
        found.append(float(metrics.iou(occupancy, example.voxels)))
    assert whole.iou is not None, "a shape is measured"
    return (*found, whole.iou)


def _sent(
    signatures: Mapping[str, Any], config: Config, images: np.ndarray, iterations: int
) -> list[dict[str, Any]]:
    """Return what is sent of the views [V, H, W, 3] at each rate, as `reconstruct` takes it."""
    import tensorflow as tf

    views = tf.constant(images[np.newaxis])
    if not config.code_size:
        return [{"images": views}]
    if not config.uses("iterations_max"):
        return [{"codes": signatures["encode"](images=views)["codes"]}]
    codes = signatures["encode"](images=views, iterations=tf.constant(iterations))["codes"]
    # A code is a prefix of a longer one: iteration t does not know how many follow.
    return [{"codes": codes[:, :, :t]} for t in range(1, iterations + 1)]


def _measured_shape(result: Mapping[str, Any], example: Example) -> Measured:
    probabilities, voxels = result["occupancy"].numpy()[0], example.voxels
    intersection, union = metrics.overlap(probabilities, voxels)
    return Measured(
        iou=float(metrics.iou(probabilities, voxels)),
        overlap=(int(intersection), int(union)),
        by_threshold=tuple(float(metrics.iou(probabilities, voxels, t)) for t in THRESHOLDS),
        l_3d=float(metrics.cross_entropy(probabilities, voxels)),
        average_precision=metrics.average_precision(probabilities, voxels),
    )


def _row(point: Point, objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = {name: [getattr(m, name) for m in point.measured] for name in Measured._fields}
    categories = [entry["category"] for entry in objects]
    return {
        "iterations": point.iterations,
        "bits_per_view": point.bits_per_view,
        "rate": point.rate,
        "threshold": metrics.THRESHOLD,
        "iou": None if None in columns["iou"] else _iou(columns, categories),
        "l_3d": _mean(columns["l_3d"]),
        "average_precision": _mean(columns["average_precision"]),
        "l_comp": _mean(columns["l_comp"]),
        "psnr_db": _mean(columns["psnr_db"]),
        "ms_ssim": _mean(columns["ms_ssim"]),
        "objects": [
            {**entry, **{name: getattr(measured, name) for name in _PER_OBJECT}}
            for entry, measured in zip(objects, point.measured)
        ],
    }


def _iou(columns: Mapping[str, Sequence[Any]], categories: Sequence[str]) -> dict[str, Any]:
    ious, names = np.array(columns["iou"]), np.array(categories)
    classes = {name: float(ious[names == name].mean()) for name in sorted(set(categories))}
    means = np.mean(columns["by_threshold"], axis=0)
    by_views = [] if None in columns["by_views"] else np.mean(columns["by_views"], axis=0)
    return {
        **_mean_std(ious),
        "class_mean": float(np.mean(list(classes.values()))),
        "per_class": classes,
        "pooled_6": metrics.pooled_iou(np.array(columns["overlap"]), POOLED_OBJECTS),
        "by_threshold": {str(t): float(mean) for t, mean in zip(THRESHOLDS, means)},
        "by_views": {str(count): float(mean) for count, mean in enumerate(by_views, start=1)},
    }


def examples(
    export: Path,
    config: Config,
    protocol: Protocol,
    rows: Sequence[Mapping[str, Any]],
    count: int,
    spread: bool = False,
) -> Gallery:
    """Return the shapes of `count` objects at every rate, of 1, 2, ... of their views.

    Of a codec alone, their decoded views.

    Args:
      export: directory of one version.
      config: the export's config; `data` says where the records are.
      protocol: split, views, iterations, seed.
      rows: the results of the same.
      count: of objects, or all if there are fewer.
      spread: whether they are taken from the whole split, whose neighbours are of one category;
        else they are the first.
    """
    from tfjoint.codec import load_signatures
    from tfjoint.dataset import evaluation_examples, open_split

    signatures = load_signatures(export)
    split = open_split(config, protocol.split, protocol.views)
    shown: Sequence[int] = range(min(count, len(split)))
    if spread:  # the middle of each of so many parts
        shown = [(2 * part + 1) * len(split) // (2 * len(shown)) for part in shown]
    by_rate = [
        evaluation_examples(config, split, protocol.views, protocol.seed, shown, rate_index=index)
        for index in range(len(split.rates) or 1)
    ]
    objects = [_example(signatures, config, coded, protocol) for coded in zip(*by_rate)]
    return from_arrays(
        {
            **{name: np.stack([found[name] for found in objects]) for name in objects[0]},
            "rates": [report.rate_name(row) for row in rows],
            **({"views": range(1, protocol.views + 1)} if config.uses("grid_size") else {}),
            "title": report.title({"rows": rows}),
            "weights_sha256": rows[0]["weights_sha256"],
        }
    )


def _example(
    signatures: Mapping[str, Any], config: Config, coded: Sequence[Example], protocol: Protocol
) -> dict[str, Any]:
    """Return the arrays of `tfjoint.gallery` for one object, given at each rate of its views."""
    first = coded[0]
    sent = [
        views
        for example in coded
        for views in _sent(signatures, config, example.images, protocol.iterations)
    ]
    found: dict[str, Any] = {"names": first.object_id, "categories": first.category}
    if "reconstruct" in signatures:
        shapes = [_shapes(signatures, views, protocol.views) for views in sent]
        found |= {"percent": np.stack(shapes), "truth": first.voxels}
    if first.code_bytes is not None:  # JPEG 2000: the original is not there
        return {**found, "decoded": np.stack([example.images for example in coded])}
    if "decode" in signatures:
        decoded = signatures["decode"](**sent[-1])["images"].numpy()[0]  # [V, T, H, W, 3]
        found["decoded"] = np.moveaxis(decoded, 1, 0)
    return {**found, "images": first.images}


def _shapes(signatures: Mapping[str, Any], sent: Mapping[str, Any], views: int) -> np.ndarray:
    # [S, D, D, D] in whole percent, after the first, the first two, ... of the views.
    shapes = [
        signatures["reconstruct"](**{name: given[:, :count] for name, given in sent.items()})
        for count in range(1, views + 1)
    ]
    return percent(np.concatenate([shape["occupancy"].numpy() for shape in shapes]))


def _mean_std(ious: np.ndarray) -> dict[str, float]:
    return {"mean": float(ious.mean()), "std": float(ious.std()), "objects": len(ious)}


def _mean(values: Sequence[float | None]) -> float | None:
    # An empty grid has no average precision, and JSON has no NaN.
    defined = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(defined)) if defined else None


def main(argv: Sequence[str]) -> None:
    """Evaluate, write the JSON, print the table."""
    values = flags.FLAGS
    if not values.export:
        raise ConfigError("--export is missing: give the export directory of a trained run")

    from tfjoint.codec import beyond_training

    export = find_export(Path(values.export))

    description = read_description(export)
    if end := description.get("end"):
        raise ConfigError(f"{export} is the {end} end of an export: evaluate the whole one")
    config = Config.from_json(description["config"])
    if values.data:
        config = dataclasses.replace(config, data=values.data)
    if values.iterations and not config.uses("iterations_max"):
        raise ConfigError(f"iterations={values.iterations} has no effect on model {config.model}")
    if values.views < 1 or min(values.iterations, values.seed, values.examples) < 0:
        raise ConfigError(
            "views must be at least 1, iterations, examples and seed at least 0. "
            f"Received: {values.views}, {values.iterations}, {values.examples}, {values.seed}"
        )
    iterations = values.iterations or config.iterations_max
    if values.originals and not config.uses("rates"):
        raise ConfigError(f"originals={values.originals} has no effect on model {config.model}")
    if values.view_counts and not config.uses("grid_size"):
        raise ConfigError(f"view_counts has no effect on model {config.model}")
    protocol = Protocol(
        *(values.split, values.views, iterations, values.seed),
        *(values.view_counts, values.originals),
    )
    if note := beyond_training(config, iterations):
        print(note, file=sys.stderr)
    results = evaluate(export, config, description, protocol)
    output = Path(values.output or export.parent.parent / "results.json")
    print(report.table(results))
    try:
        files.write_json(output, results)
        if values.examples:
            shapes = examples(
                *(export, config, protocol, results["rows"]),
                *(values.examples, values.spread_examples),
            )
            write_gallery(report.examples_path(output), shapes)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written ({error}): give another --output") from error
    print(f"results: {output}")
    if values.examples:
        path = report.examples_path(output)
        if config.uses("grid_size"):
            print(f"shapes: {path}; tfjoint.view {output} shows them")
        else:
            print(f"decoded views: {path}")


if __name__ == "__main__":
    define_flags()
    entry.run(main)
