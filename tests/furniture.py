"""Furniture made of boxes, in libraries and packages like the real ones, built by the tests."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_tools.meshes import Material, Mesh

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Two opposite corners, lowest first."""

_QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))

PNG_RED_OVER_BLUE = io.BytesIO()
Image.fromarray(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8)).save(PNG_RED_OVER_BLUE, "PNG")


class Piece(NamedTuple):
    """One catalogue entry and its boxes, in SweetHome3D's pose (y up, back at -z)."""

    own_id: str
    name: str
    boxes: Sequence[Box]
    extra: str = ""
    """More catalogue lines, with # for the entry's number."""


def chair(own_id: str, width: float, back: float) -> Piece:
    seat = ((-width, 0.0, -1.0), (width, 1.0, 1.0))
    return Piece(own_id, "Chair", [seat, ((-width, 1.0, -1.0), (width, 1.0 + back, -0.7))])


def table(own_id: str, width: float, depth: float) -> Piece:
    top = ((-width, 1.8, -depth), (width, 2.0, depth))
    return Piece(own_id, "Table", [top, ((-0.2, 0.0, -0.2), (0.2, 1.8, 0.2))])


PIECES = (
    chair("low", 1.0, 0.8),
    chair("tall", 1.0, 3.0),
    chair("wide", 2.5, 1.5),
    table("long", 3.0, 1.0),
    table("square", 1.5, 1.5),
    table("narrow", 0.6, 2.5),
    Piece("twin", "Table", table("square", 1.5, 1.5).boxes),
    Piece("gate", "Gate", [((0, 0, 0), (1, 2, 0.1))], "doorOrWindow##=true\n"),
    Piece("carpet", "Oriental rug", [((0, 0, 0), (2, 0.01, 1))]),
    Piece("glow", "Hidden lamp", []),
)


def obj_text(boxes: Sequence[Box], header: str = "") -> str:
    lines = [header]
    for number, (low, high) in enumerate(boxes):
        for corner in range(8):
            point = [(low, high)[corner >> axis & 1][axis] for axis in range(3)]
            lines.append("v {} {} {}".format(*point))
        for quad in _QUADS:
            lines.append("f " + " ".join(str(8 * number + index + 1) for index in quad))
    return "\n".join(lines) + "\n"


def catalogue_text(pieces: Sequence[Piece], licence: str) -> str:
    lines = ["# A comment", "id=Test#Furniture", f"license={licence}", ""]
    for n, piece in enumerate(pieces, 1):
        lines += [
            f"id#{n}=Test#{piece.own_id}",
            f"name#{n}={piece.name}",
            f"model#{n}=/test/{piece.own_id}/{piece.own_id}.obj",
            f"creator#{n}=Ren\\u00e9",
            piece.extra.replace("##", f"#{n}"),
        ]
    return "\n".join(lines)


def library_bytes(pieces: Sequence[Piece] = PIECES, licence: str = "Public domain") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        text = catalogue_text(pieces, licence)
        archive.writestr("PluginFurnitureCatalog.properties", text.encode("latin-1"))
        for piece in pieces:
            folder = f"test/{piece.own_id}"
            header = "mtllib m.mtl\nusemtl green"
            archive.writestr(f"{folder}/{piece.own_id}.obj", obj_text(piece.boxes, header))
            archive.writestr(f"{folder}/m.mtl", "newmtl green\nKd 0.2 0.8 0.4\n")
    return buffer.getvalue()


def write_package(path: Path, libraries: Mapping[str, bytes]) -> None:
    """Write a .deb: an `ar` archive around control.tar and data.tar.xz."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in libraries.items():
            member = tarfile.TarInfo(f"./usr/share/sweethome3d/furniture/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "control.tar": b"odd", "data.tar.xz": data.getvalue()}
    with path.open("wb") as handle:
        handle.write(b"!<arch>\n")
        for name, content in members.items():
            handle.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            handle.write(content + b"\n" * (len(content) % 2))


def box_mesh(*boxes: Box, colour: Sequence[float] = (1.0, 1.0, 1.0)) -> Mesh:
    """A mesh of boxes, exactly where they are."""
    corner = np.array([[c >> axis & 1 for axis in range(3)] for c in range(8)])
    corners = np.array([np.where(corner, high, low) for low, high in boxes], np.float64)
    triangles = np.array([t for a, b, c, d in _QUADS for t in ((a, b, c), (a, c, d))])
    faces = corners[:, triangles].reshape(-1, 3, 3)
    count = len(faces)
    return Mesh(
        faces,
        np.zeros((count, 3, 2)),
        np.zeros(count, int),
        (Material(np.array(colour, np.float64), None),),
    )
