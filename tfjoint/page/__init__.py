"""One HTML file that shows shapes and results: nothing beside it, nothing from the network.

page.html is filled with the style sheet, the scripts and what they show. Names and texts go into
the page as JSON alone, and the scripts put them into the document as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfjoint import report
from tfjoint.errors import UserError
from tfjoint.gallery import Gallery
from tfjoint.png import encode_png

LARGEST_SIDE = 256
"""Cells along a side of a grid: the page counts them in bytes."""

_DIRECTORY = Path(__file__).parent
_SCRIPTS = ("voxels.js", "draw.js", "page.js")


class PageError(UserError):
    """Something that a page cannot show."""


def render(
    gallery: Gallery | None = None,
    results: Mapping[str, Any] | None = None,
    title: str = "",
    notes: Sequence[str] = (),
) -> str:
    """Return a page as HTML.

    Args:
      gallery: shapes to turn, with their views; probabilities are kept in whole percent.
      results: a results file, shown as a table with a line for each object.
      title: of the page.
      notes: shown below the title.

    Raises:
      PageError: the grids are too large.
    """
    data = {
        "title": title,
        "notes": list(notes),
        "gallery": None if gallery is None else _gallery(gallery),
        "table": None if results is None else _table(results),
    }
    style = _read("page.css")
    script = "\n".join(map(_read, _SCRIPTS))
    page = _read("page.html").replace("@POLICY@", _policy(style, script))
    # What is put in is not searched again, or a name could ask for something.
    before, _, rest = page.partition("@STYLE@")
    between, _, rest = rest.partition("@DATA@")
    after, _, end = rest.partition("@SCRIPT@")
    return "".join([before, style, between, _json(data), after, script, end])


def _read(name: str) -> str:
    return (_DIRECTORY / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    # The browser then refuses every other script, and every request.
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> str:
    # "<" in a text would let it end the script element that holds it.
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _gallery(gallery: Gallery) -> dict[str, Any]:
    shapes = gallery.shapes()
    objects, rates, steps, side = shapes.shape[:4]
    if side > LARGEST_SIDE:
        raise PageError(f"grids have {side} cells a side; a page shows up to {LARGEST_SIDE}")
    return {
        "side": side,
        "probabilities": shapes.dtype != bool,
        "threshold": min(100, max(1, round(gallery.threshold * 100))),
        "rates": gallery.rates or [f"{index + 1}" if rates > 1 else "" for index in range(rates)],
        "views": gallery.views or (list(range(1, steps + 1)) if steps > 1 else [0]),
        "objects": [_object(gallery, index) for index in range(objects)],
    }


def _object(gallery: Gallery, index: int) -> dict[str, Any]:
    shapes = gallery.shapes()
    one = gallery._replace(occupancy=shapes[index])
    names, categories = gallery.names, gallery.categories
    unnamed = f"object {index + 1}" if len(shapes) > 1 else ""
    truth, images, decoded = gallery.truth, gallery.images, gallery.decoded
    return {
        "name": names[index] if names else unnamed,
        "category": categories[index] if categories else "",
        "percent": _packed(one.percent()),
        "truth": None if truth is None else _packed(truth[index].astype(np.uint8)),
        "images": None if images is None else _pictures(images[index]),
        "decoded": None if decoded is None else [_pictures(rate) for rate in decoded[index]],
    }


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode("ascii")


def _pictures(views: np.ndarray) -> list[str]:
    return [base64.b64encode(encode_png(view)).decode("ascii") for view in views]


def _table(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line per object and a column per rate: IoU, or PSNR of a system without shapes."""
    rows = results["rows"]
    shapes = rows[0]["iou"] is not None
    measure, what, digits = ("iou", "IoU", 3) if shapes else ("psnr_db", "PSNR in dB", 2)
    objects = [(str(entry["id"]), str(entry["category"])) for entry in rows[0]["objects"]]
    values = np.array([[entry[measure] for entry in row["objects"]] for row in rows], np.float64)
    values = values.reshape(len(rows), len(objects)).T
    return {
        "title": f"{what} of every object",
        "columns": [report.rate_name(row).replace(", ", "\n") or what for row in rows],
        "rows": [
            {"name": name, "category": category, "values": found}
            for (name, category), found in zip(objects, values.tolist())
        ],
        "means": values.mean(axis=0).tolist(),
        "digits": digits,
        "most": 1 if shapes else 0,
    }
