"""A picture of a record set, so that a person can look at it: views beside their grids.

One line of cells per category; a cell is an object's view and its grid as the same camera sees it.
Of the views it is the one whose camera stands nearest to 45 degrees, in front and to one side: what
is in ShapeNet's pose looks out of the picture, down and to the right.
"""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_tools import layout, meshes, pool, render
from tfjoint import files, voxels

if TYPE_CHECKING:
    from tfjoint import records

FILE = "contact-sheet.png"
_AZIMUTH_DEGREES = 45.0
_SIDE = 72  # pixels of a picture
_COLUMNS, _GAP = 10, 6
_CAPTION, _HEADING = 11, 20
_FONT_SIZE, _HEADING_SIZE = 9, 13
_CAPTION_LETTERS = 26
_GRID_COLOUR = (0.50, 0.68, 0.90)
_INK = {"train": (0, 0, 0), "test": (190, 0, 0)}


class Cell(NamedTuple):
    """One object to draw."""

    split: str
    object_id: str
    png: bytes
    camera: np.ndarray
    grid: np.ndarray


def write(directory: str | os.PathLike, per_category: int = 20, processes: int = 1) -> Path:
    """Draw a record directory into `contact-sheet.png` beside its manifest; return its path.

    Args:
        directory: of the records.
        per_category: most objects of a category, spread evenly; augmented copies are left aside.
        processes: how many objects are drawn at once.

    Raises `UserError` when the records are missing or damaged.
    """
    chosen = choose(directory, per_category)
    cells = [cell for found in chosen.values() for cell in found.cells]
    pictures = pool.run(draw, cells, min(processes, len(cells)))
    sheet = _compose(chosen, list(pool.report_progress(pictures, len(cells), "contact sheet")))
    path = Path(directory) / FILE
    with files.replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


class Shown(NamedTuple):
    """The objects of a category that are shown, and how many there are."""

    objects: int
    cells: list[Cell]


def choose(directory: str | os.PathLike, per_category: int) -> dict[str, Shown]:
    """Return by category, sorted, what is to be drawn. Raises `UserError`."""
    from tfjoint import records  # TensorFlow comes with it, and the processes that draw need none

    sides = {n: records.RecordSet(directory, n) for n in records.read_manifest(directory).splits}
    originals: dict[str, list[tuple[str, str, int]]] = {}
    for split, side in sides.items():
        for index, found in enumerate(side.objects):
            if not layout.Model(found.category, found.object_id).copy_number:
                originals.setdefault(found.category, []).append((found.object_id, split, index))
    shown = {}
    for category, members in sorted(originals.items()):
        members.sort()
        count = min(per_category, len(members))
        picked = [members[i * len(members) // count] for i in range(count)]
        cells = [_cell(split, sides[split].record(index)) for _, split, index in picked]
        shown[category] = Shown(len(members), cells)
    return shown


def _cell(split: str, record: records.ObjectRecord) -> Cell:
    turn = np.abs(record.cameras[:, 0] - _AZIMUTH_DEGREES)
    view = int(np.argmin(np.minimum(turn, 360.0 - turn)))
    return Cell(split, record.object_id, record.views[view], record.cameras[view], record.voxels)


def draw(cell: Cell) -> np.ndarray:
    """Return the view of an object beside its grid, [side, 2 side, 3] uint8 on white."""
    pictures = [Image.open(io.BytesIO(cell.png)).convert("RGBA"), _draw_grid(cell)]
    strip = Image.new("RGB", (2 * _SIDE, _SIDE), "white")
    for column, picture in enumerate(pictures):
        small = picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)
        strip.paste(small, (column * _SIDE, 0), small)
    return np.asarray(strip)


def _draw_grid(cell: Cell) -> Image.Image:
    points, faces = voxels.surface(cell.grid)
    count = len(faces)
    mesh = meshes.Mesh(
        points[faces].astype(np.float64),
        np.zeros((count, 3, 2)),
        np.zeros(count, int),
        (meshes.Material(np.array(_GRID_COLOUR), None),),
    )
    try:
        # Centred, diagonal 1: where the object stood when it was rendered.
        mesh = meshes.normalize(mesh)
    except meshes.UnusableMesh:  # an empty grid
        return Image.new("RGBA", (_SIDE, _SIDE))
    return Image.fromarray(render.Renderer(mesh).render(cell.camera, 2 * _SIDE, 1))


def _compose(chosen: dict[str, Shown], pictures: Sequence[np.ndarray]) -> Image.Image:
    width, height = 2 * _SIDE + _GAP, _SIDE + _CAPTION
    rows = sum(-(-len(shown.cells) // _COLUMNS) for shown in chosen.values())
    sheet = Image.new("RGB", (_COLUMNS * width, len(chosen) * _HEADING + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    small, large = (ImageFont.load_default(size) for size in (_FONT_SIZE, _HEADING_SIZE))
    waiting, top = iter(pictures), 0
    for category, shown in chosen.items():
        heading = f"{_drawable(category)}: {len(shown.cells)} of {shown.objects} objects"
        pen.text((0, top + 3), heading, fill="black", font=large)
        top += _HEADING
        for index, cell in enumerate(shown.cells):
            row, column = divmod(index, _COLUMNS)
            corner = column * width, top + row * height
            sheet.paste(Image.fromarray(next(waiting)), corner)
            caption = _drawable(cell.object_id)[-_CAPTION_LETTERS:]
            ink = _INK.get(cell.split, _INK["test"])
            pen.text((corner[0], corner[1] + _SIDE - 1), caption, fill=ink, font=small)
        top += -(-len(shown.cells) // _COLUMNS) * height
    return sheet


def _drawable(name: str) -> str:
    # The font has ASCII's letters alone.
    letters = (c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return "".join(letters).encode("ascii", "replace").decode()
