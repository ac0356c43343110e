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
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from tfjoint import claims, entry, figures, files, gallery, plan, points, view, words
from tfjoint.errors import UserError
from tfjoint.points import Point, Results, by_rate

EVALUATION = "python -m tfjoint.study_report"
WARNING = (
    "Published numbers are of ShapeNet, a hundred times as many objects and other widths: none is "
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

_SYSTEMS = ("implicit", "direct", "sequential", "separate", claims.ASKED, claims.PAYLOAD)
_DECODING = ("compression, small, random T", "sequential", "direct", claims.ASKED, claims.PAYLOAD)
_LIMITS = {
    "reconstruction, long": "three times the steps",
    "reconstruction, wide": "twice the widths",
    "reconstruction, half the meshes": "half of the training meshes, as many steps",
}
_BASELINES = (("mean_shape", "mean shape"), ("best_training_grid", "best training grid"))
_LOW = tuple(name for name in figures.LOW if not name.startswith("compression"))
_CODECS = tuple(name for name in figures.STYLES if name.startswith("compression"))
_PICTURED_RATES = (48.0, 96.0, 192.0, 384.0)
_RATES = {
    "nominal": "nominal",
    "payload": "payload",
    "file": "file",
    "table_payload": "payload, tables",
    "table_file": "file, tables",
}
"""The rates of a result, by what they are called in a table."""
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
    every = ("reconstruction", *_LIMITS, *plan.FIRST.values(), *_SYSTEMS, *figures.LOW, *_CODECS)
    return [
        Section("State", _state(results), _budget(results)),
        Section("The seven claims", claims.__doc__ or "", _claims_table(found)),
        *_claim_details(found),
        Section(
            "Table I: reconstruction alone",
            f"mIoU and STD over objects, 5 views. Paper: {PUBLISHED_TABLE_I}; first author's port "
            f"0.591. {WARNING}",
            _table_1(results),
            curves=("reconstruction", "reconstruction, long"),
        ),
        Section(
            "Figure 8: mIoU against rate",
            f"Every point is the mean over test objects{_seeds_text(results)}. Left of 24:1 codes "
            "are floats (dotted). The magenta square is the uncompressed network, whose "
            "features of a view, as floats, are 12:1. The rates are nominal and of what is really "
            f"sent, packed or coded with tables. {WARNING}",
            _rates_table(results, (*_SYSTEMS, *_LOW)),
            "figure-8.svg",
            (*_SYSTEMS, *_LOW),
        ),
        Section(
            "Figure 8, by the bits really sent",
            "The same points against the rate of the payload: of JPEG 2000 what is left without "
            "the headers that are the same for every view, of a learned code its bits where no "
            "entropy coder is measured.",
            figure="figure-8-payload.svg",
            curves=_SYSTEMS,
        ),
        Section(
            "Figure 8, by whole files", "Headers included.", figure="figure-8-file.svg",
            curves=_SYSTEMS,
        ),
        Section(
            "Figure 9: within one bin of equal difficulty", _bins_text(results),
            figure="figure-9.svg", curves=("reconstruction", "implicit", "direct", "sequential"),
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
            _images_table(results, _DECODING),
            "figure-10.svg",
            _DECODING,
        ),
        Section(
            "Figure 11: codec and number of iterations in training",
            "Random T is drawn from 1 to 8 in every minibatch, constant T is 8.",
            _images_table(results, _CODECS),
            "figure-11.svg",
            _CODECS,
        ),
        Section("Table II: reconstructed shapes", _pictured(results), figure="table-2.png",
                curves=_SYSTEMS, pages=pages),
        Section("Table III: run times", *_table_3(bench)),
        Section("Table IV: decoded views", figure="table-4.png", curves=_DECODING),
        Section("Table V: decoded views of the codecs", figure="table-5.png", curves=_CODECS),
        Section(
            "What the level depends on",
            f"The paper's uncompressed network: {PUBLISHED_TABLE_I}. A line changes one thing: of "
            "the training of a network, of how its shapes are measured, or of how JPEG 2000's "
            "bytes are counted. p is two-sided, by flipping signs over the same test objects.",
            _limits_table(results),
            curves=("reconstruction", *_LIMITS, *plan.FIRST, *plan.FIRST.values(), claims.ASKED,
                    claims.PAYLOAD),
        ),
        Section("Rates, thresholds and average precision",
                "Of every point; mIoU at other thresholds than 0.4.", _all_points(results)),
        Section("Every run", "Training and evaluation of each.", curves=every),
    ]  # fmt: skip


def _state(results: Results) -> str:
    wanted = [run["name"] for run in results.plan["runs"]]
    missing = [name for name in wanted if name not in results.runs]
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
            text += f". {called}: mIoU {baseline['mean']:.3f} +- {baseline['std']:.3f}"
    return f"{text}. Missing: {', '.join(missing) if missing else 'none'}."


def _budget(results: Results) -> list[list[str]]:
    rows = [["run", "parameters of the training", "steps", "objects seen", "minutes", "threads"]]
    for name, found in results.runs.items():
        row, study = found["rows"][0], found.get("study", {})
        config = row["config"]
        shown = ["learning_rate", "loss_weight", "batch_size"]
        shown += ["original_views_steps"] * bool(config.get("original_views_steps"))
        rows.append([
            name,
            ", ".join(f"{key} {config[key]:g}" for key in shown),
            str(row["steps"]),
            str(row["steps"] * config["batch_size"]),
            f"{study['train_seconds'] / 60:.0f}" if study else "",
            str(study.get("threads", "")),
        ])  # fmt: skip
    return rows


def _claims_table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["claim", "verdict", "p"]]
    return rows + [[c["claim"], c["verdict"], _optional(c["p_value"], ".4f")] for c in found]


def _claim_details(found: Sequence[Mapping[str, Any]]) -> list[Section]:
    return [
        Section(
            f"Evidence of claim {claim['claim'].partition('.')[0]}: {claim['verdict']}",
            "",
            [["statement: mean difference, p, over"], *([line] for line in claim["evidence"])],
        )
        for claim in found
    ]


def _seeds_text(results: Results) -> str:
    seeds = sorted({point.seed for point in results.points})
    if len(seeds) < 2:
        return ", of one seed"
    several = sorted({p.curve for p in results.points if p.seed != seeds[0]})
    return (
        f" and over the seeds; bars are the STD over seeds where several ran ({', '.join(several)})"
    )


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
    rows = [["system", *_RATES.values(), "mIoU", "STD over objects", "seeds", "runs"]]
    for curve in curves:
        for rate, same in by_rate(results.on(curve)).items():
            rows.append([
                curve,
                _rate(rate),
                *(_rate(_mean_rate(same, name)) for name in list(_RATES)[1:]),
                _mean_miou(same),
                f"{np.mean([p.row['iou']['std'] for p in same]):.3f}",
                _by_seed(same),
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
    values = results.on("reconstruction")
    if not values:
        return "The uncompressed network is not there yet."
    ious = points.mean_values(values, "iou")
    bins = points.greedy_bins(ious, claims.BIN_STD)
    middle = bins[len(bins) // 2]
    return (
        f"Test objects by the IoU of the uncompressed network, cut greedily into {len(bins)} bins "
        f"of STD at most {claims.BIN_STD} ({', '.join(str(len(b)) for b in bins)} objects); shown "
        f"is the middle one, {len(middle)} objects of IoU {ious[middle].min():.2f} to "
        f"{ious[middle].max():.2f}. Bars are the STD over its objects. The paper has 7 bins."
    )


def _views_table(results: Results) -> list[list[str]]:
    rows = [["system", "1", "2", "3", "4", "5"]]
    of_rate = {name: results.on(name, 384.0) for name in _SYSTEMS}
    for name, same in {"reconstruction": results.on("reconstruction"), **of_rate}.items():
        found = [p.row["iou"]["by_views"] for p in same if p.row["iou"].get("by_views")]
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
            figures_ = [(_mean(same, name), form) for name, form in names]
            if any(value is not None for value, _ in figures_):
                shown = [_optional(value, form) for value, form in figures_]
                rows.append([curve, _rate(rate), *shown, ", ".join(p.run for p in same)])
    return rows


def _limits_table(results: Results) -> list[list[str]]:
    rows = [["what is changed", "mIoU", "before", "difference", "p"]]
    whole = ("reconstruction", None)
    for curve, text in _LIMITS.items():
        rows += _change(results, text, (curve, None), whole)
    for point in results.on(*whole)[:1]:
        iou = point.row["iou"]
        threshold, best = max(iou["by_threshold"].items(), key=lambda item: item[1])
        measured = {
            f"the threshold: {threshold}, the best one of these objects": best,
            "IoU pooled over 6 objects, as the released code prints it": iou["pooled_6"],
        }
        for text, value in measured.items():
            change = f"{value - iou['mean']:+.3f}"
            rows.append([text, f"{value:.3f}", f"{iou['mean']:.3f}", change, ""])
    highest = claims.RATES[0]
    for name, curve in plan.FIRST.items():
        text = f"{name} at {highest:g}:1, trained for its first iteration alone"
        rows += _change(results, text, (curve, highest), (name, highest))
    for rate in claims.RATES:
        text = f"JPEG 2000 at {rate:g}:1 without what all its headers have in common"
        rows += _change(results, text, (claims.PAYLOAD, rate), (claims.ASKED, rate))
    return rows


def _change(
    results: Results, text: str, new: tuple[str, float | None], old: tuple[str, float | None]
) -> list[list[str]]:
    pair = points.paired(results, new, old)
    if pair is None:
        return [[text, "not measured", "", "", ""]]
    found = claims.sign_flip(pair[0] - pair[1])
    p_value = min(1.0, 2 * min(found.p_for, found.p_against))
    means = (f"{values.mean():.3f}" for values in pair)
    return [[text, *means, f"{found.mean:+.3f}", f"{p_value:.4f}"]]


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
    return (text if forward else f"{text} bench/results.json does not hold them yet."), rows


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
    """Return Fig. 8 as a table of text: mIoU by system and nominal rate, mean over the seeds."""
    rows = [["", *(f"{rate}:1" for rate in _SUMMED_UP), "seeds"]]
    for name in _SYSTEMS:
        same = [p for p in results.points if figures.LOW.get(p.curve, p.curve) == name]
        if same:
            cells = [_mean_miou([p for p in same if points.is_rate(p.rate, r)]) for r in _SUMMED_UP]
            seeds = len({point.seed for point in same})
            rows.append([name, *cells, str(seeds)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    whole = _mean_miou(results.on("reconstruction"))
    lines.append(f"uncompressed {whole}" if whole else "uncompressed: not there yet")
    for name, called in _BASELINES:
        if baseline := results.baseline(name):
            lines[-1] += f"; {called} {baseline['mean']:.3f}"
    return "\n".join(lines)


def _mean_miou(same: Sequence[Point]) -> str:
    return f"{np.mean([p.row['iou']['mean'] for p in same]):.3f}" if same else ""


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}:1"


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def commands(results: Results, curves: Sequence[str]) -> list[str]:
    """Return the commands that make the points of curves again, in the order of the plan."""
    chosen = [run for run in results.plan["runs"] if run["curve"] in curves]
    needed = {run["after"] for run in chosen}
    chosen = [run for run in results.plan["runs"] if run in chosen or run["name"] in needed]
    views = {run["views"] for run in chosen}
    made = [made for name, made in results.plan["records"].items() if name in views]
    return made + [command for run in chosen for command in (run["train"], run["evaluate"])]


# --- Figures --------------------------------------------------------------------------------------


def draw(results: Results, directory: Path) -> dict[str, bytes]:
    """Return every figure by its file name.

    Args:
      results: of the study.
      directory: where the shapes and views to look at lie.
    """
    return {
        "figure-8.svg": figures.miou_against_rate(results),
        "figure-8-payload.svg": figures.miou_against_rate(results, "payload"),
        "figure-8-file.svg": figures.miou_against_rate(results, "file"),
        "figure-9.svg": figures.middle_bin(results),
        "views.svg": figures.miou_by_views(results),
        "figure-10.svg": figures.l_comp_against_rate(results, _DECODING),
        "figure-11.svg": figures.l_comp_against_rate(results, _CODECS),
        **_pictures(results, directory),
    }


def _pictures(results: Results, directory: Path) -> dict[str, bytes]:
    shown = _galleries(results, directory)
    rates = {name: [p.rate for p in results.points if p.run == run] for name, run in shown.items()}
    kept = {name: gallery.read_gallery(directory / f"{run}-examples.npz")
            for name, run in shown.items()}  # fmt: skip
    return {
        "table-2.png": _shapes(results, directory),
        "table-4.png": _views(kept, rates, _DECODING),
        "table-5.png": _views(kept, rates, _CODECS),
    }


def _galleries(results: Results, directory: Path) -> dict[str, str]:
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
    shown = sorted(_galleries(results, directory).values(), key=list(results.runs).index)
    shaped = {point.run for point in results.points if point.row["iou"]}
    return {run: view.page_of(directory / f"{run}.json") for run in shown if run in shaped}


def _shapes(results: Results, directory: Path) -> bytes:
    """Return Table II: the truth and the uncompressed network, then systems by rate."""
    rates = [*_PICTURED_RATES, 480.0]
    rows: list[tuple[str, list[np.ndarray | None]]] = []
    cells: dict[tuple[str, float | None], tuple[gallery.Gallery, int]] = {}
    for run in results.runs:
        path = directory / f"{run}-examples.npz"
        if path.exists():
            shapes = gallery.read_gallery(path)
            for index, point in enumerate(p for p in results.points if p.run == run):
                cells.setdefault((point.curve, point.rate), (shapes, index))
    whole = next((v for (curve, _), v in cells.items() if curve == "reconstruction"), None)
    if whole is not None and whole[0].truth is not None:
        truth = figures.shape_picture(whole[0].truth[0])
        found = figures.shape_picture(whole[0].shapes()[0, 0, 0] > 0)
        rows.append(("truth, then\nuncompressed", [truth, found, None, None, None]))
    for name in _SYSTEMS:
        pictures = [_shape(cells, name, rate) for rate in rates]
        if any(picture is not None for picture in pictures):
            rows.append((name, pictures))
    return figures.mosaic(rows, [f"{rate:g}:1" for rate in rates]) if rows else b""


def _shape(cells: Mapping, name: str, rate: float) -> np.ndarray | None:
    for (curve, found), (shapes, index) in cells.items():
        if curve == name and points.is_rate(found, rate):
            return figures.shape_picture(shapes.shapes()[0, index, 0] > 0)
    return None


def _views(
    kept: Mapping[str, gallery.Gallery], rates: Mapping[str, Sequence[float | None]],
    curves: Sequence[str],
) -> bytes:  # fmt: skip
    """Return Table IV or V: the original, then systems by rate."""
    rows: list[tuple[str, list[np.ndarray | None]]] = []
    wanted = [*_PICTURED_RATES]
    shown = {name: kept[name] for name in curves if name in kept and kept[name].decoded is not None}
    originals = [shapes.images[0, 0] for shapes in kept.values() if shapes.images is not None]
    if shown and originals:
        rows.append(("original", [originals[0], None, None, None]))

    def pick(shapes: gallery.Gallery, index: int) -> np.ndarray | None:
        return None if shapes.decoded is None else shapes.decoded[0, index, 0]

    rows += figures.gallery_rows(shown, wanted, rates, pick)
    return figures.mosaic(rows, [f"{rate:g}:1" for rate in wanted]) if shown else b""


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
        if part.curves:
            made = "\n".join(commands(results, part.curves))
            lines += ["<details><summary>Commands</summary>", "", "```bash", made, "```", "",
                      "</details>", ""]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


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
        if part.curves:
            made = html.escape("\n".join(commands(results, part.curves)))
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
