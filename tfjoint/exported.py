"""Where an export is and what it says of itself, without loading TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfjoint.config import Config
from tfjoint.errors import UserError

DESCRIPTION = Path("assets.extra") / "tfjoint.json"
TABLES = Path("assets.extra") / "tables.json"


class ExportError(UserError):
    """A run that cannot be exported, or an export that is missing or wrong."""


def find_export(path: Path) -> Path:
    """Return the directory of one version: `path` itself, or the newest below it.

    Raises:
      ExportError: there is none.
    """
    found = path if (path / "saved_model.pb").is_file() else latest_version(path)
    if found is None or not (found / "saved_model.pb").is_file():
        raise ExportError(
            f"no export at {path}: give the directory `export` of a run, or one of its versions"
        )
    return found


def latest_version(root: Path) -> Path | None:
    """Return the directory of the highest version below `root`, or None."""
    versions = [path for path in root.glob("*") if path.name.isdigit() and path.is_dir()]
    return max(versions, key=lambda path: int(path.name), default=None)


def read_description(export: Path, name: Path = DESCRIPTION) -> dict[str, Any]:
    """Return what an export says of itself in its file `name`. Raises `ExportError`."""
    try:
        description = json.loads((export / name).read_text(encoding="utf-8"))
        Config.from_json(description["config"])
        known = {"step", "data_sha256", "weights_sha256", "code_revision", "versions"}
        if missing := known - set(description):
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{export} is not an export of tfjoint ({error}): give the directory that holds "
            "saved_model.pb, or the one above its versions"
        ) from error
    return description
