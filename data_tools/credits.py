"""Who made the meshes, and under which licence they may be passed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools import sweethome3d
from data_tools.sweethome3d import CatalogueModel, Source
from tfjoint import files

CREDITS = "CREDITS.md"
_LICENCE_PAGES = {
    "CC0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
}


def write_credits(path: Path, models: Sequence[CatalogueModel], source: Source) -> None:
    """Write the attribution of every model, sorted by library and id."""
    licences = sorted({model.licence for model in models})
    lines = [
        "# Credits",
        "",
        f"The {len(models)} objects in these records were rendered and voxelised, some of them "
        "stretched, mirrored and",
        "recoloured, from 3D models of SweetHome3D's furniture libraries:",
        "",
        f"- source: `{source.name}`, SHA-256 `{source.sha256}`",
        f"- package: `{sweethome3d.PACKAGE}` {sweethome3d.VERSION} of Debian",
        f"- upstream: <{sweethome3d.UPSTREAM}>",
        *(f"- licence: {name}, <{_LICENCE_PAGES.get(name, 'unknown')}>" for name in licences),
        "",
        "| object | name | creator | licence |",
        "|---|---|---|---|",
    ]
    for model in sorted(models):
        cells = (model.object_id, model.name, model.creator, model.licence)
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    with files.replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
