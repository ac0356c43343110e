"""Write the report of the study from its results files: tables, figures, the seven claims.

    python -m tfjoint.study_report --results=results/study

    results/study/report.md        tables and figures, for a repository's page
    results/study/report.html      the same in one file, with shapes that turn under the mouse
    results/study/figures/         what they show
    results/claims.json            {claim, verdict, evidence, p_value, files} of each claim

Nothing else is read but bench/results.json, for the times of Table III. No number is typed by hand,
and the same results give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from tfjoint import claims, entry, figures, files, gallery, plan, points, view, words
from tfjoint.errors import UserError
from tfjoint.points import Point, Results, by_rate

EVALUATION = "python -m tfjoint.study_report"
WARNING = (
    "Published numbers are of ShapeNet, some 35,000 training objects, and of other widths: none is "
    "comparable with a number of this study. They stand here to compare shapes of curves."
)

PUBLISHED_TABLE_I = "reconstruction 0.64 +- 0.20 (20 epochs), 0.66 +- 0.20 (60 epochs)"
PUBLISHED_BY_VIEWS = {
    "3D-R2N2 (Res3D-GRU-3)": (0.560, 0.603, 0.617, 0.625, 0.634),
    "AttSets": (0.642, 0.662, 0.670, 0.675, 0.677),
    "Pix2Vox++": (0.670, 0.695, 0.704, 0.708, 0.711),
    "LegoFormer": (0.519, 0.644, 0.679, 0.694, 0.703),
    "UMIFormer": (0.680, 0.738, 0.752, 0.757, 0.761),
    "LRGT": (0.696, 0.746, 0.759, 0.765, 0.769),
}
PUBLISHED_TABLE_III = {
    "reconstruction": (13, 13),
    "compression original": (40, 24),
    "compression small": (32, 20),
    "sequential": (45, 33),
    "direct": (39, 27),
    "implicit": (13, 13),
}
"""Milliseconds forward and backward on a GTX 1080 Ti; 5 views, 4 iterations."""

_SYSTEMS = figures.SYSTEMS
_DECODING = ("compression, small, random T", "sequential", "direct", claims.ASKED, claims.PAYLOAD)
_BASELINES = (("mean_shape", "mean shape"), ("best_training_grid", "best training grid"))
_CHANGED = (
    *plan.LONG_CURVES.values(), plan.WIDE, plan.HALVED, plan.AS_IMPLICIT,
    *plan.FIRST.values(), plan.LIGHT, plan.ADDITIVE,
)  # fmt: skip
_CODECS = tuple(name for name in figures.STYLES if name.startswith("compression"))
_CLAIM_FIGURES = {1: "figure-8.svg", 2: "figure-8.svg", 3: "figure-9.svg", 5: "figure-10.svg",
                  6: "figure-11.svg", 7: "figure-8.svg"}  # fmt: skip
_CLAIM_SHOWN = {
    **{1: "Figure 8, below with its commands.", 2: "Figure 8, below with its commands."},
    **{3: "Figure 9, below with its commands.", 4: "Table III, below with its command."},
    **{5: "Figure 10, below with its commands.", 6: "Figure 11 and, for what is cheaper, a "
       "benchmark; below with their commands.", 7: "Figure 8, below with its commands."},
}  # fmt: skip
_PICTURED_RATES = (48.0, 96.0, 192.0, 384.0)
_RATES = {
    "nominal": "nominal",
    "payload": "payload",
    "file": "file",
    "table_payload": "payload, tables",
    "table_file": "file, tables",
}
"""The rates of a result, by what they are called in a table."""
_SAME_LEARNING_RATE = (1024.0, 480.0, 384.0, 192.0)
"""Rates at which implicit is trained as `plan.AS_IMPLICIT` is."""
_SUMMED_UP = (6, 12, 48, 96, 192, 384, 480, 1024, 4096)


class Section(NamedTuple):
    """A table or figure of the report."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    """Rows of cells, the first one the head."""
    figure: str = ""
    """Name of a file among the figures."""
    curves: Sequence[str] = ()
    """The curves whose commands stand beside it."""
    command: str = ""
    """What makes it, where no run of the study does."""
    pages: Mapping[str, str] = {}
    """By run a page that turns its shapes; the HTML report alone has room for them."""


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("results", "results/study", "directory of the study's results")
    flags.DEFINE_string("bench", "bench/results.json", "file with the times of Table III")
    flags.DEFINE_string("output", "", 'directory of the report; "" is that of the results')
    flags.DEFINE_string("claims", "", 'file of the claims; "" is claims.json beside the directory')


# --- Sections -------------------------------------------------------------------------------------


def sections(
    results: Results,
    found: Sequence[Mapping[str, Any]],
    bench: Mapping[str, Any] | None,
    pages: Mapping[str, str],
) -> list[Section]:
    """Return the report's sections in the paper's order, the claims first.

    Args:
      results: of the study.
      found: the claims with their verdicts.
      bench: what bench/results.json holds, for Table III; None where it is not there.
      pages: of shapes, by run.
    """
    every = ("reconstruction", *_CHANGED, *_SYSTEMS, *figures.LOW, *_CODECS)
    systems = ("reconstruction", *_with_low(_SYSTEMS))
    return [
        Section("State", _state(results), _budget(results)),
        Section("The seven claims", claims.__doc__ or "", _claims_table(found)),
        *_claim_details(found),
        Section(
            "Table I: reconstruction alone",
            "mIoU and STD over objects, 5 views; the mean over categories; IoU pooled over 6 "
            "objects, as the released code prints it; average precision over voxels. Paper: "
            f"{PUBLISHED_TABLE_I}; first author's port 0.591. {WARNING}",
            _table_1(results),
            curves=("reconstruction", "reconstruction, long"),
        ),
        Section(
            "Figure 8: mIoU against rate",
            f"Every point is the mean over test objects{_further_text(results)}. Dotted, at 12:1 "
            "and 6:1, are codes of floats, and JPEG 2000 trained for these rates. The magenta "
            "square is the uncompressed network, whose features of a view, as floats, are 12:1. "
            "The rates are nominal and of what is really sent, packed or coded with tables: where "
            "JPEG 2000 is asked for less than its headers, it sends more, and the same at several "
            "rates. JPEG 2000, asked, is what OpenJPEG makes when it is asked for files of that "
            "rate; of JPEG 2000, payload, what is left without the headers that are the same for "
            f"every view has to fit it. {WARNING}",
            _rates_table(results, _with_low(_SYSTEMS)),
            "figure-8.svg",
            systems,
        ),
        Section(
            "Figure 8, by the bits really sent",
            "The same points against the rate of the payload: of JPEG 2000 what is left without "
            "the headers that are the same for every view, of a learned code its bits, packed.",
            figure="figure-8-payload.svg",
            curves=systems,
        ),
        Section(
            "Figure 8, by whole files", "Headers included.", figure="figure-8-file.svg",
            curves=systems,
        ),
        Section(
            "Figure 8, without a threshold",
            "Average precision over voxels. mIoU is at the paper's threshold of 0.4, whatever the "
            "probabilities of a system mean: one that is too sure of empty space loses at 0.4 what "
            "it would have at 0.2. Where a curve falls with more bits in Figure 8 and not here, "
            "that is the reason.",
            figure="figure-8-precision.svg",
            curves=systems,
        ),
        Section(
            "Figure 9: within one bin of equal difficulty", _bins_text(results),
            _bins_table(results),
            "figure-9.svg",
            ("reconstruction", "implicit", "direct", "sequential", claims.ASKED),
        ),
        Section(
            "mIoU after 1 to 5 views",
            f"At 384:1. {WARNING}",
            _views_table(results),
            "views.svg",
            ("reconstruction", *_SYSTEMS),
        ),
        Section(
            "Figure 10: L_comp against rate",
            "L_comp counts every iteration up to the one shown, as in training; of JPEG 2000 the "
            "one image there is. MS-SSIM is over as many scales as its window fits, 3 at 64 "
            "pixels, 4 at 128, and comparable at one size alone.",
            _images_table(results, _with_low(_DECODING)),
            "figure-10.svg",
            _with_low(_DECODING),
        ),
        Section(
            "Figure 11: codec and number of iterations in training",
            "Random T is drawn from 1 to 8 in every minibatch, constant T is 8. The original codec "
            "adds each iteration's image to the one before, as it does not learn otherwise; the "
            "small one predicts it anew.",
            _images_table(results, _with_low(_CODECS)),
            "figure-11.svg",
            _with_low(_CODECS),
        ),
        Section("Table II: reconstructed shapes", _pictured(results), figure="table-2.png",
                curves=("reconstruction", *_SYSTEMS), pages=pages),
        Section("Table III: run times", *_table_3(bench), command="make bench"),
        Section("Table IV: decoded views", figure="table-4.png", curves=_DECODING),
        Section("Table V: decoded views of the codecs", figure="table-5.png", curves=_CODECS),
        Section(
            "What the results depend on, and differences from the paper",
            f"The paper's uncompressed network: {PUBLISHED_TABLE_I}. A line changes one thing: of "
            "the training, of how shapes are measured, or of which bytes of JPEG 2000 have to fit "
            "the rate. p is by flipping signs over the same test objects.",
            _changes_table(results),
            curves=("reconstruction", "implicit", *_CHANGED, *plan.FIRST,
                    "compression, small, random T", "compression, original, random T",
                    claims.ASKED, claims.PAYLOAD),
        ),
        Section("Rates, thresholds and average precision",
                "Of every point; mIoU at other thresholds than 0.4, of which 0.2 is the lowest "
                "that is tried.", _all_points(results)),
        Section("Every run", "Training and evaluation of each.", curves=every),
    ]  # fmt: skip


def _with_low(curves: Sequence[str]) -> tuple[str, ...]:
    """Return curves, and those at 12:1 and 6:1 that belong to them."""
    return (*curves, *(name for name, owner in figures.LOW.items() if owner in curves))


def _state(results: Results) -> str:
    wanted = [run["name"] for run in results.plan["runs"]]
    text = (
        f"{len(results.runs)} of {len(wanted)} runs at the {results.plan['profile']} profile on "
        f"{results.plan['data']}"
    )
    if results.points:
        row = results.points[0].row
        views = words.count(row["views"], "view")
        text += (
            f" ({row['data']} {row['split']}: {len(row['objects'])} objects, {views} each; "
            f"records {row['data_sha256'][:12]})"
        )
    for name, called in _BASELINES:
        if baseline := results.baseline(name):
            at = f" at threshold {baseline['threshold']}" if "threshold" in baseline else ""
            text += f". {called}: mIoU {baseline['mean']:.3f} +- {baseline['std']:.3f}{at}"
    return (
        f"{text}. The commands beside a figure train and evaluate its runs, after the records that "
        "they need; `python -m tfjoint.study --flagfile=configs/study.cfg --only=RUN` does the "
        "same where results are missing, and puts them where `python -m tfjoint.study_report` "
        "reads them to write this report; with `--results=runs/again` beside results that are "
        "there. With the same number of threads a training repeats bit for bit on a processor of "
        "the same kind (AVX2, or AVX-512); with another number, sums are rounded "
        f"otherwise. {_compared(results)}Minutes are those of a training that shared the machine "
        "with others."
    )


def _compared(results: Results) -> str:
    if not results.points:
        return ""
    shared = sorted(results.shared_seeds)
    seeds = f"{'seed' if len(shared) == 1 else 'seeds'} {', '.join(map(str, shared))}"
    return (
        f"Figures and levels are of {seeds}, which every run has; differences and their p, "
        "two-sided but for the claims, are of all seeds that both sides have. "
    )


def _budget(results: Results) -> list[list[str]]:
    head = ["run", "of its own", "parameters of the training", "steps", "objects seen", "minutes"]
    rows = [[*head, "threads", "trained by"]]
    for planned in results.plan["runs"]:
        name = planned["name"]
        own = [f"{key} {_shown(value)}" for key, value in planned["settings"].items()]
        own += [f"views {planned['views']}"] * (planned["views"] != "raw")
        own += [f"{planned['budget']} times the epochs"] * (planned["budget"] > 1)
        own += [f"codec of {planned['after']}"] * bool(planned["after"])
        if name not in results.runs:
            rows.append([name, ", ".join(own), "missing", *[""] * 5])
            continue
        row, study = results.runs[name]["rows"][0], results.runs[name].get("study", {})
        config = row["config"]
        shown = ["learning_rate", "epochs", "loss_weight", "batch_size", "original_views_steps"]
        rows.append([
            name,
            ", ".join(own),
            ", ".join(f"{key} {config[key]:g}" for key in shown if config.get(key)),
            str(row["steps"]),
            str(row["steps"] * config["batch_size"]),
            f"{study['train_seconds'] / 60:.0f}" if study else "",
            str(study.get("threads", "")),
            _revision(row.get("trained_by") or ""),
        ])  # fmt: skip
    return rows


def _shown(value: Any) -> str:
    items = value if isinstance(value, list) else [value]
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in items)


def _revision(text: str) -> str:
    revision, plus, changes = text.partition("+")
    return f"{revision[:10]}{plus}{changes}"


def _claims_table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["claim", "verdict", "p of the verdict; of undecided, of holds"]]
    return rows + [[c["claim"], c["verdict"], _optional(c["p_value"], ".4f")] for c in found]


def _claim_details(found: Sequence[Mapping[str, Any]]) -> list[Section]:
    return [
        Section(
            f"Evidence of claim {claim['claim'].partition('.')[0]}: {claim['verdict']}",
            _CLAIM_SHOWN[number],
            [["statement (means): mean difference, p, over"], *([n] for n in claim["evidence"])],
            _CLAIM_FIGURES.get(number, ""),
        )
        for number, claim in enumerate(found, start=1)
    ]


def _further_text(results: Results) -> str:
    shared = results.shared_seeds
    further = sorted({p.curve for p in results.points if p.seed not in shared})
    return f"; thin lines are further seeds ({', '.join(further)})" if further else ""


def _table_1(results: Results) -> list[list[str]]:
    rows = [["run", "epochs", "mIoU +- STD", "class mean", "pooled by 6", "AP"]]
    for curve in ("reconstruction", "reconstruction, long"):
        for point in results.on(curve):
            iou, config = point.row["iou"], point.row["config"]
            rows.append([
                point.run,
                "" if config["steps"] else str(config["epochs"]),
                f"{iou['mean']:.3f} +- {iou['std']:.3f}",
                f"{iou['class_mean']:.3f}",
                f"{iou['pooled_6']:.3f}",
                _optional(point.row["average_precision"], ".3f"),
            ])  # fmt: skip
    return rows


def _rates_table(results: Results, curves: Sequence[str]) -> list[list[str]]:
    head = ["system", *_RATES.values(), "mIoU", "STD over objects", "seeds", "against uncompressed"]
    rows = [[*head, "p", "runs"]]
    for curve in curves:
        for rate, same in by_rate(results.on(curve)).items():
            difference = _difference(results, (curve, rate), claims.UNCOMPRESSED)
            shown = results.comparable(same)
            rows.append([
                curve,
                _rate(rate),
                *(_rate(_mean_rate(shown, name)) for name in list(_RATES)[1:]),
                _mean_miou(shown),
                f"{np.mean([p.row['iou']['std'] for p in shown]):.3f}",
                _by_seed(same),
                *(difference[2:4] if difference else ("", "")),
                ", ".join(p.run for p in same),
            ])  # fmt: skip
    return rows


def _by_seed(same: Sequence[Point]) -> str:
    if len(same) == 1:
        return ""
    return " / ".join(f"{p.row['iou']['mean']:.3f}" for p in same)


def _mean_rate(same: Sequence[Point], name: str) -> float | None:
    found = [p.row["rate"].get(name) for p in same]
    return None if None in found else float(np.mean(found))


def _bins_text(results: Results) -> str:
    bins = claims.difficulty_bins(results)
    if not bins:
        return "The uncompressed network is not there yet."
    return (
        "Test objects by the IoU of the uncompressed network (mean over its seeds), cut greedily "
        f"into {len(bins)} bins of STD at most {claims.BIN_STD}; the paper has 7. Shown is the "
        f"middle one, bin {len(bins) // 2 + 1}, by which claim 3 is judged; bars are the STD over "
        "its objects. The table has the differences at 384:1 in every bin, and behind each its p."
    )


def _bins_table(results: Results) -> list[list[str]]:
    bins = claims.difficulty_bins(results)
    if not bins:
        return []
    ious = points.mean_values(results.on(claims.UNCOMPRESSED[0]), "iou")
    rows = [["bin", "objects", "IoU", *(f"{a} above {b}" for a, b in claims.IN_BINS)]]
    for number, chosen in enumerate(bins, 1):
        spread = f"{ious[chosen].min():.2f} to {ious[chosen].max():.2f}"
        cells = []
        for first, second in claims.IN_BINS:
            found = _difference(results, (first, 384.0), (second, 384.0), objects=chosen)
            cells.append(f"{found[2]} ({found[3]})" if found else "not measured")
        rows.append([str(number), str(len(chosen)), spread, *cells])
    return rows


def _views_table(results: Results) -> list[list[str]]:
    rows = [["system", "1", "2", "3", "4", "5"]]
    of_rate = {name: results.on(name, 384.0) for name in _SYSTEMS}
    for name, same in {"reconstruction": results.on("reconstruction"), **of_rate}.items():
        shown = results.comparable(same)
        found = [p.row["iou"]["by_views"] for p in shown if p.row["iou"].get("by_views")]
        if found:
            counts = [str(count) for count in range(1, 6)]
            means = [np.mean([f[c] for f in found]) if c in found[0] else None for c in counts]
            rows.append([name, *(_optional(mean, ".3f") for mean in means)])
    published = [
        [f"published, ShapeNet: {name}", *(f"{value:.3f}" for value in values)]
        for name, values in PUBLISHED_BY_VIEWS.items()
    ]
    return rows + published


def _images_table(results: Results, curves: Sequence[str]) -> list[list[str]]:
    rows = [["system", "rate", "L_comp", "PSNR", "MS-SSIM", "runs"]]
    for curve in curves:
        for rate, same in by_rate(results.on(curve)).items():
            names = (("l_comp", ".4f"), ("psnr_db", ".2f"), ("ms_ssim", ".3f"))
            figures_ = [(_mean(results.comparable(same), name), form) for name, form in names]
            if any(value is not None for value, _ in figures_):
                shown = [_optional(value, form) for value, form in figures_]
                rows.append([curve, _rate(rate), *shown, ", ".join(p.run for p in same)])
    return rows


def _changes_table(results: Results) -> list[list[str]]:
    rows = [["what is changed", "of", "with it", "before", "difference", "p", "seeds"]]
    for change in _changes(results):
        found = _difference(results, change.new, change.old, change.name)
        of = {"iou": "mIoU", "l_comp": "L_comp"}[change.name]
        rows.append([change.text, of, *(found or ["not measured", "", "", "", ""])])
    for point in results.on(*claims.UNCOMPRESSED)[:1]:
        iou = point.row["iou"]
        threshold, best = max(iou["by_threshold"].items(), key=lambda item: item[1])
        measured = {
            f"uncompressed: the threshold, {threshold}, the best of those tried": best,
            "uncompressed: IoU pooled over 6 objects, as the released code prints it":
                iou["pooled_6"],
        }  # fmt: skip
        for text, value in measured.items():
            by = f"{value - iou['mean']:+.3f}"
            seed = str(point.seed)
            rows.append([text, "mIoU", f"{value:.3f}", f"{iou['mean']:.3f}", by, "", seed])
    return rows


class _Change(NamedTuple):
    """A line of the table: the curve and rate with something changed, and those before."""

    text: str
    new: tuple[str, float | None]
    old: tuple[str, float | None]
    name: str = "iou"


def _changes(results: Results) -> list[_Change]:
    planned = {run["curve"] for run in results.plan["runs"]}
    # Trained as implicit is, which has settings of its own in some studies.
    narrow = plan.AS_IMPLICIT if plan.AS_IMPLICIT in planned else "reconstruction"
    highest = claims.RATES[0]
    at = f"at {highest:g}:1"
    plain, implicit = claims.UNCOMPRESSED, ("implicit", highest)
    long, implicit_long = (plan.LONG_CURVES[name] for name in ("reconstruction", "implicit"))
    changes = [
        _Change("uncompressed: three times the steps", (long, None), plain),
        _Change(f"implicit {at}: three times the steps", (implicit_long, highest), implicit),
        _Change(
            f"uncompressed, three times the steps: implicit {at}, so trained, in its place",
            (implicit_long, highest),
            (long, None),
        ),
        _Change("uncompressed: trained as implicit is", (plan.AS_IMPLICIT, None), plain),
        *(
            _Change(
                f"{narrow}: implicit at {rate:g}:1 in its place",
                ("implicit", rate),
                (narrow, None),
            )
            for rate in _SAME_LEARNING_RATE
        ),
        _Change(f"{narrow}: twice the widths", (plan.WIDE, None), (narrow, None)),
        _Change(
            "uncompressed: half of the training meshes, each seen twice as often",
            (plan.HALVED, None),
            plain,
        ),
    ]
    for name, curve in plan.FIRST.items():
        first = (curve, highest)
        changes += [
            _Change(f"{name} {at}: trained for its first iteration alone", first, (name, highest)),
            _Change(f"{name}, so trained, {at}: implicit in its place", implicit, first),
        ]
    changes += [
        _Change(
            f"separate at {rate:g}:1: trained together, {name}", (name, rate), ("separate", rate)
        )
        for name in ("sequential", "direct")
        for rate in claims.RATES
    ]
    light, sequential = (plan.LIGHT, highest), ("sequential", highest)
    changes += [
        _Change(f"sequential {at}: L_3D weighted 0.1", light, sequential, name)
        for name in ("l_comp", "iou")
    ]
    for rate in (192.0, 48.0):  # the least and the most bits that both codecs have
        additive = (plan.ADDITIVE, rate)
        small, original = ((f"compression, {c}, random T", rate) for c in ("small", "original"))
        changes += [
            _Change(
                f"small codec at {rate:g}:1: additive, as the original is",
                additive,
                small,
                "l_comp",
            ),
            _Change(
                f"small codec, additive, at {rate:g}:1: the original in its place",
                original,
                additive,
                "l_comp",
            ),
        ]
    changes += [
        _Change(
            f"JPEG 2000 at {rate:g}:1: without what all its headers have in common",
            (claims.PAYLOAD, rate),
            (claims.ASKED, rate),
        )
        for rate in claims.RATES
    ]
    return changes


def _difference(
    results: Results, new: tuple[str, float | None], old: tuple[str, float | None],
    name: str = "iou", objects: np.ndarray | None = None,
) -> list[str] | None:  # fmt: skip
    """Return both means, their difference, its two-sided p and the seeds, as text.

    Args:
      results: of the study.
      new: curve and rate.
      old: curve and rate that are subtracted.
      name: figure of an object.
      objects: positions of those that count; None is all.
    """
    pair = points.paired(results, new, old, name, objects)
    if pair is None:
        return None
    form = {"iou": ".3f", "l_comp": ".4f"}[name]
    found = claims.sign_flip((pair.first - pair.second).mean(axis=0))
    p_value = min(1.0, 2 * min(found.p_for, found.p_against))
    means = [f"{values.mean():{form}}" for values in (pair.first, pair.second)]
    return [*means, f"{found.mean:+{form}}", f"{p_value:.4f}", ", ".join(map(str, pair.seeds))]


def _mean(same: Sequence[Point], name: str) -> float | None:
    found = [p.row.get(name) for p in same]
    return None if None in found else float(np.mean(found))  # type: ignore[arg-type]


def _table_3(bench: Mapping[str, Any] | None) -> tuple[str, list[list[str]]]:
    forward, backward = (claims.pass_times(bench, which) for which in ("forward", "backward"))
    rows = [["system", "forward, s", "backward, s", "paper: forward / backward, ms"]]
    for name, (fore, back) in PUBLISHED_TABLE_III.items():
        times = (_optional(t.get(name), ".4f") or "missing" for t in (forward, backward))
        rows.append([name, *times, f"{fore} / {back}"])
    text = "Of 5 views and 4 iterations; the paper's times are of a GTX 1080 Ti."
    if not forward:
        return f"{text} bench/results.json does not hold them yet.", rows
    measured = bench["compression"]  # type: ignore[index]
    if about := measured.get("provenance"):
        revision = _revision(about["code_revision"])
        machine = about["machine"]
        text += (
            f" Here {words.count(measured['table']['objects'], 'object')} at the "
            f"{measured['table']['profile']} profile, on {machine['cores']} cores of "
            f"{machine['processor']}, by {revision}."
        )
    return text, rows


def _pictured(results: Results) -> str:
    return "Occupied from 0.4 on, 5 views; objects from the middle of equal parts of the split."


def _all_points(results: Results) -> list[list[str]]:
    rows = [["run", "T", *_RATES.values(), "AP", "L_3D", "0.2", "0.3", "0.4", "0.5"]]
    for point in results.points:
        row = point.row
        if row["iou"]:
            rows.append([
                point.run,
                _optional(row["iterations"], "d"),
                *(_rate(row["rate"].get(name)) for name in _RATES),
                _optional(row["average_precision"], ".3f"),
                _optional(row["l_3d"], ".4f"),
                *(f"{row['iou']['by_threshold'][t]:.3f}" for t in ("0.2", "0.3", "0.4", "0.5")),
            ])  # fmt: skip
    return rows


def summary(results: Results) -> str:
    """Return Fig. 8 as a table of text: mIoU by system and nominal rate, of the shared seeds."""
    rows = [["", *(f"{rate}:1" for rate in _SUMMED_UP)]]
    shown = results.comparable(results.points)
    for name in _SYSTEMS:
        same = [p for p in shown if figures.LOW.get(p.curve, p.curve) == name]
        if same:
            at = [[p for p in same if points.is_rate(p.rate, rate)] for rate in _SUMMED_UP]
            rows.append([name, *map(_mean_miou, at)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    whole = _mean_miou([p for p in shown if p.curve == "reconstruction"])
    lines.append(f"uncompressed {whole}" if whole else "uncompressed: not there yet")
    for name, called in _BASELINES:
        if baseline := results.baseline(name):
            tried = f" (at {baseline['threshold']})" if "threshold" in baseline else ""
            lines[-1] += f"; {called} {baseline['mean']:.3f}{tried}"
    return "\n".join(lines)


def _mean_miou(same: Sequence[Point]) -> str:
    return f"{np.mean([p.row['iou']['mean'] for p in same]):.3f}" if same else ""


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}:1"


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def commands(results: Results, curves: Sequence[str]) -> list[str]:
    """Return the commands that make the points of curves again, in the order of the plan.

    Those of a run that is done have its number of threads, on which the rounding of sums depends.
    """
    chosen = [run for run in results.plan["runs"] if run["curve"] in curves]
    needed = {run["after"] for run in chosen}
    chosen = [run for run in results.plan["runs"] if run in chosen or run["name"] in needed]
    records = results.plan["records"]
    others = {run["views"] for run in chosen} - {"raw"}
    made = [records[name] for name in ("raw", *sorted(others)) if chosen and records[name]]
    for run in chosen:
        threads = results.runs.get(run["name"], {}).get("study", {}).get("threads")
        prefix = f"TF_NUM_INTRAOP_THREADS={threads} " if threads else ""
        made += [f"{prefix}{run[name]}" for name in ("train", "evaluate")]
    return made


# --- Figures --------------------------------------------------------------------------------------


def draw(results: Results, directory: Path) -> dict[str, bytes]:
    """Return every figure by its file name.

    Args:
      results: of the study.
      directory: where the shapes and views to look at lie.
    """
    return {name: made() for name, made in drawings(results, directory).items()}


def drawings(results: Results, directory: Path) -> dict[str, Callable[[], bytes]]:
    """Return what draws every figure; no bytes where nothing that it shows is there."""
    shown = functools.cache(functools.partial(_galleries, results, directory))
    return {
        "figure-8.svg": lambda: figures.miou_against_rate(results),
        "figure-8-payload.svg": lambda: figures.miou_against_rate(results, "payload"),
        "figure-8-file.svg": lambda: figures.miou_against_rate(results, "file"),
        "figure-8-precision.svg": lambda: figures.precision_against_rate(results),
        "figure-9.svg": lambda: figures.middle_bin(results),
        "views.svg": lambda: figures.miou_by_views(results),
        "figure-10.svg": lambda: figures.l_comp_against_rate(results, _DECODING),
        "figure-11.svg": lambda: figures.l_comp_against_rate(results, _CODECS),
        "table-2.png": lambda: _shapes(shown()),
        "table-4.png": lambda: _views(shown(), _DECODING),
        "table-5.png": lambda: _views(shown(), _CODECS),
    }


_Shown = Mapping[str, Sequence[tuple[float | None, gallery.Gallery, int]]]
"""By curve: rates, where their shapes and views are, and at which position."""


def _galleries(results: Results, directory: Path) -> _Shown:
    kept = {
        run: gallery.read_gallery(path)
        for run in results.runs
        if (path := directory / f"{run}-examples.npz").exists()
    }
    shown: dict[str, list[tuple[float | None, gallery.Gallery, int]]] = {}
    for run, shapes in kept.items():
        for index, point in enumerate(p for p in results.points if p.run == run):
            shown.setdefault(point.curve, []).append((point.rate, shapes, index))
    return shown


def _first_runs(results: Results, directory: Path) -> dict[str, str]:
    """Return by curve the first run that has something to look at."""
    found: dict[str, str] = {}
    for point in results.points:
        if (directory / f"{point.run}-examples.npz").exists():
            found.setdefault(point.curve, point.run)
    return found


def pages(results: Results, directory: Path) -> dict[str, str]:
    """Return by run a page that turns the shapes of its test objects; a run of every curve has one.

    Args:
      results: of the study.
      directory: where the shapes lie.
    """
    shown = sorted(_first_runs(results, directory).values(), key=list(results.runs).index)
    shaped = {point.run for point in results.points if point.row["iou"]}
    return {run: view.page_of(directory / f"{run}.json") for run in shown if run in shaped}


def _shapes(shown: _Shown) -> bytes:
    """Return Table II: of each object the truth, the uncompressed network, and systems by rate."""
    rates = [*_PICTURED_RATES, 480.0]
    rows: list[tuple[str, list[np.ndarray | None]]] = []
    for number in range(_objects(shown, "occupancy")):
        before: list[np.ndarray | None] = [None, None]
        for _, shapes, index in shown.get("reconstruction", [])[:1]:
            if shapes.truth is not None:
                before[0] = figures.shape_picture(shapes.truth[number])
            before[1] = _shape(number, shapes, index)
        rows += _rows(shown, _SYSTEMS, rates, functools.partial(_shape, number), before)
    columns = ["truth", "uncompressed", *(f"{rate:g}:1" for rate in rates)]
    return figures.mosaic(rows, columns) if rows else b""


def _shape(number: int, shapes: gallery.Gallery, index: int) -> np.ndarray:
    return figures.shape_picture(shapes.shapes()[number, index, 0] > 0)


def _views(shown: _Shown, curves: Sequence[str]) -> bytes:
    """Return Table IV or V: of each object a view, and what systems decode of it by rate."""
    shown = {name: same for name, same in shown.items() if name in curves}
    originals = [s.images for same in shown.values() for _, s, _ in same if s.images is not None]
    rows: list[tuple[str, list[np.ndarray | None]]] = []
    for number in range(_objects(shown, "decoded")):
        before: list[np.ndarray | None] = [originals[0][number, 0] if originals else None]
        view_of = functools.partial(_decoded, number)
        rows += _rows(shown, curves, _PICTURED_RATES, view_of, before)
    columns = ["original", *(f"{rate:g}:1" for rate in _PICTURED_RATES)]
    return figures.mosaic(rows, columns) if rows else b""


def _decoded(number: int, shapes: gallery.Gallery, index: int) -> np.ndarray | None:
    return None if shapes.decoded is None else shapes.decoded[number, index, 0]


def _objects(shown: _Shown, what: str) -> int:
    """Return how many objects all that is there to look at has."""
    arrays = [getattr(shapes, what) for same in shown.values() for _, shapes, _ in same]
    return min((len(array) for array in arrays if array is not None), default=0)


def _rows(
    shown: _Shown,
    curves: Sequence[str],
    rates: Sequence[float],
    pick: Callable[[gallery.Gallery, int], np.ndarray | None],
    before: Sequence[np.ndarray | None],
) -> list[tuple[str, list[np.ndarray | None]]]:
    """Return the rows of an object: of systems, by rate; before the first one, what is given."""
    rows: list[tuple[str, list[np.ndarray | None]]] = []
    for name in curves:
        pictures = [
            next((pick(shapes, index) for found, shapes, index in shown.get(name, ())
                  if points.is_rate(found, rate)), None)
            for rate in rates
        ]  # fmt: skip
        if any(picture is not None for picture in pictures):
            rows.append((name, [*([None] * len(before) if rows else before), *pictures]))
    return rows


# --- Documents ------------------------------------------------------------------------------------


def as_markdown(
    results: Results, parts: Sequence[Section], drawn: Mapping[str, bytes], folder: str
) -> str:
    """Return the report as Markdown; figures are files in `folder`."""
    lines = ["# The study", "", f"Written by `{EVALUATION}` from the results files; not by hand."]
    for part in parts:
        lines += ["", f"## {part.title}", ""]
        if part.text:
            lines += [part.text.strip(), ""]
        if drawn.get(part.figure):
            lines += [f"![{part.title}]({folder}/{part.figure})", ""]
        elif part.figure:
            lines += ["Not there yet: no run that it shows is done.", ""]
        if part.table:
            head, *rows = part.table
            lines += [_row(head), _row(["---"] * len(head)), *map(_row, rows), ""]
        if made := _commands(results, part):
            lines += ["<details><summary>Commands</summary>", "", "```bash", made, "```", "",
                      "</details>", ""]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _commands(results: Results, part: Section) -> str:
    return part.command or "\n".join(commands(results, part.curves))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def as_html(results: Results, parts: Sequence[Section], drawn: Mapping[str, bytes]) -> str:
    """Return the report as one HTML file that loads nothing."""
    body = []
    for part in parts:
        body.append(f"<h2>{html.escape(part.title)}</h2>")
        body += [f"<p>{html.escape(p)}</p>" for p in part.text.strip().split("\n\n") if p]
        if content := drawn.get(part.figure):
            kind = "svg+xml" if part.figure.endswith("svg") else "png"
            data = base64.b64encode(content).decode()
            body.append(
                f'<img alt="{html.escape(part.title)}" src="data:image/{kind};base64,{data}">'
            )
        elif part.figure:
            body.append("<p>Not there yet: no run that it shows is done.</p>")
        for run, page in part.pages.items():
            frame = f'<iframe title="{run}" loading="lazy" srcdoc="{html.escape(page)}"></iframe>'
            body.append(f"<details><summary>{run}, turning</summary>{frame}</details>")
        if part.table:
            head, *rows = part.table
            body.append("<table><thead>" + _html_row(head, "th") + "</thead><tbody>")
            body += [_html_row(row, "td") for row in rows]
            body.append("</tbody></table>")
        if made := html.escape(_commands(results, part)):
            body.append(f"<details><summary>Commands</summary><pre>{made}</pre></details>")
    return _PAGE.replace("{body}", "\n".join(body))


def _html_row(cells: Sequence[str], tag: str) -> str:
    inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>The study</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 12px; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #ddd; padding: 2px 8px; text-align: left }
img { max-width: 100% } iframe { width: 100%; height: 44em; border: 1px solid #ddd }
pre { overflow-x: auto; font-size: 11px; background: #f6f6f6; padding: 1em }
p { white-space: pre-line }
</style></head><body>
<h1>The study</h1>
{body}
</body></html>
"""


# --- The command ----------------------------------------------------------------------------------


def write(
    results: Results, directory: Path, bench: Path, output: Path, claims_file: Path
) -> list[dict[str, Any]]:
    """Write the report; return the claims. Raises `UserError`.

    Args:
      results: of the study.
      directory: where they, and the shapes and views to look at, lie.
      bench: file with the times of Table III.
      output: directory of the report.
      claims_file: file of the claims.
    """
    times = _read_bench(bench)
    found = claims.claims(results, times)
    drawn = draw(results, directory)
    parts = sections(results, found, times, pages(results, directory))
    for name, content in drawn.items():
        if content:
            _write(output / "figures" / name, content)
        else:  # of results that are no longer there
            (output / "figures" / name).unlink(missing_ok=True)
    _write(output / "report.md", as_markdown(results, parts, drawn, "figures").encode())
    _write(output / "report.html", as_html(results, parts, drawn).encode())
    files.write_json(claims_file, found)
    return found


def _write(path: Path, content: bytes) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)


def _read_bench(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): `make bench` writes it again") from error


def main(argv: Sequence[str]) -> None:
    """Write the report, print Fig. 8 as a table and the verdicts."""
    values = flags.FLAGS
    directory = Path(values.results)
    output = Path(values.output or directory)
    name = directory.name.replace("study", "claims") if "study" in directory.name else "claims"
    claims_file = Path(values.claims or directory.with_name(f"{name}.json"))
    results = points.read_results(directory)
    found = write(results, directory, Path(values.bench), output, claims_file)
    print(summary(results))
    for claim in found:
        print(f"{claim['verdict']:<15} {claim['claim']}")
    print(f"report: {output / 'report.html'}, {output / 'report.md'}; {claims_file}")


if __name__ == "__main__":
    define_flags()
    entry.run(main)
