"""Tables from results files, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfjoint import words
from tfjoint.errors import UserError

Column = Callable[[Mapping[str, Any]], str]
"""What a column shows of a row; "" where the row has no such value."""


WRONG_CONTENT = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)
"""What is raised where a file that should hold results holds something else."""
_MOST_SAID = 8  # names, in one line


class ResultsError(UserError):
    """A results file that is missing, or holds something else."""

    @classmethod
    def wrong(cls, path: Path, found: str) -> ResultsError:
        """Return the error that says that `path` holds no results, but what was `found`."""
        return cls(
            f"{path} is not a results file: {found}. One holds rows and baselines; give a file "
            "that tfjoint.evaluate wrote"
        )


def examples_path(path: Path) -> Path:
    """Return where the shapes that belong to a results file lie, if they were asked for."""
    return path.with_name(f"{path.stem}-examples.npz")


def read_results(path: Path) -> dict[str, Any]:
    """Return what a results file holds. Raises `ResultsError`."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultsError(f"no file at {path}: give one that tfjoint.evaluate wrote") from error
    except OSError as error:
        raise ResultsError(f"{path} cannot be read ({error.strerror})") from error
    except WRONG_CONTENT as error:
        raise ResultsError.wrong(path, f"it is no JSON ({_said(error)})") from error
    try:
        table(results)
    except WRONG_CONTENT as error:
        raise ResultsError.wrong(path, fault(results, error)) from error
    return results


def fault(content: Any, error: Exception) -> str:
    """Return what is wrong with the content of a file that raised one of `WRONG_CONTENT`."""
    if not isinstance(content, Mapping):
        return f"it holds a {type(content).__name__}"
    if not {"rows", "baselines"} <= content.keys():
        names = sorted(content)
        held = names[:_MOST_SAID] + ["..."] * (len(names) > _MOST_SAID)
        return f"it holds {', '.join(held) or 'nothing'}"
    if isinstance(error, KeyError):
        return f"something in it has no {error.args[0]}"
    return f"something in it is of another kind ({_said(error)})"


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


def table(results: Mapping[str, Any]) -> str:
    """Return a results file as text: one line per rate, the baselines below.

    Columns that a system has no values for are left out.
    """
    rows, baselines = results["rows"], results["baselines"]
    return "\n".join([title(results), *_grid(_COLUMNS, rows), *_baselines(baselines)])


def title(results: Mapping[str, Any]) -> str:
    """Return what a results file measures, in a line."""
    first = results["rows"][0]
    return (
        f"{first['system']}, {first['profile']} profile, {first['steps']} steps; {first['data']} "
        f"{first['split']}: {words.count(len(first['objects']), 'object')}, "
        f"{words.count(first['views'], 'view')} each"
    )


def rate_name(row: Mapping[str, Any]) -> str:
    """Return what tells a row from the others: "T = 3, 128:1"; "" of raw views."""
    rate = _number(row["rate"]["nominal"], ".4g", ":1")
    return f"T = {row['iterations']}, {rate}" if row["iterations"] else rate


def comparison(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return several results files as text: the highest and the lowest rate of each.

    Args:
      results: by the name that each is to have.
    """
    rows = []
    for name, result in results.items():
        # A rate that is None is of raw views, of which there is one row.
        ordered = sorted(result["rows"], key=lambda row: -(row["rate"]["nominal"] or 0))
        ends = ordered[:1] + ordered[1:][-1:]
        rows += [{**row, "name": name if row is ends[0] else ""} for row in ends]
    widest = max(map(len, results))
    columns = {"results".ljust(widest): lambda row: row["name"].ljust(widest), **_COLUMNS}
    return "\n".join(_grid(columns, rows))


def sent_bytes(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what several results files say of real bytes as text: every rate of each.

    Bytes are of one object's views, on average; with tables there is what they save of the file.

    Args:
      results: by the name that each is to have. Rows without real bytes are left out.

    Raises:
      ResultsError: no file says any.
    """
    rows = [
        {**row, "name": name}
        for name, result in results.items()
        for row in result["rows"]
        if row["rate"].get("file")
    ]
    if not rows:
        raise ResultsError("no results file holds real bytes: evaluate the exports again")
    widest = max(len(row["name"]) for row in rows)
    columns = {"results".ljust(widest): lambda row: row["name"].ljust(widest), **_SENT}
    return "\n".join(_grid(columns, rows))


def _grid(columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a head and one line per row; columns without any value are left out."""
    table = [[name, *map(show, rows)] for name, show in columns.items()]
    table = [cells for cells in table if any(cells[1:])]
    widths = [max(map(len, cells)) for cells in table]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip()
        for line in zip(*table)
    ]


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


def _rate(name: str) -> Column:
    return lambda row: _number(row["rate"].get(name), ".4g", ":1")


def _bytes(name: str) -> Column:
    def show(row: Mapping[str, Any]) -> str:
        rate, code_bits = row["rate"].get(name), row["bits_per_view"]
        if not (rate and code_bits):
            return ""
        nominal_bytes = code_bits * row["views"] / 8
        return _number(nominal_bytes * row["rate"]["nominal"] / rate, ".1f")

    return show


def _saved(row: Mapping[str, Any]) -> str:
    coded = row["rate"].get("table_file")
    return _number(1 - row["rate"]["file"] / coded if coded else None, ".0%")


def _shape(name: str) -> Column:
    return lambda row: _number((row["iou"] or {}).get(name), ".3f")


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _mean_std(row: Mapping[str, Any]) -> str:
    return f"{row['iou']['mean']:.3f} +- {row['iou']['std']:.3f}" if row["iou"] else ""


_COLUMNS: dict[str, Column] = {
    "T": lambda row: _number(row["iterations"], "d"),
    "rate": _rate("nominal"),
    "payload": _rate("payload"),
    "file": _rate("file"),
    "table payload": _rate("table_payload"),
    "table file": _rate("table_file"),
    "bits/view": lambda row: _number(row["bits_per_view"], "d"),
    "mIoU +- STD": _mean_std,
    "class mean": _shape("class_mean"),
    "pooled": _shape("pooled_6"),
    "AP": lambda row: _number(row["average_precision"], ".3f"),
    "L_comp": lambda row: _number(row["l_comp"], ".3f"),
    "PSNR": lambda row: _number(row["psnr_db"], ".2f", " dB"),
}

_SENT: dict[str, Column] = {
    **{name: _COLUMNS[name] for name in ("T", "rate")},
    "nominal B": _bytes("nominal"),
    "payload B": _bytes("payload"),
    "file B": _bytes("file"),
    "table payload B": _bytes("table_payload"),
    "table file B": _bytes("table_file"),
    "saved": _saved,
    "real rate": _rate("file"),
    "with tables": _rate("table_file"),
}
