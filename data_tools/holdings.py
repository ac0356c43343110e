"""What an output directory holds: the records that are asked for, to go on with, or others.

A finished set says so in its manifest, one on its way in `unfinished.json` beside its shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_tools import splits
from tfjoint.errors import UserError

UNFINISHED = "unfinished.json"
_MANIFEST = "manifest.json"  # as in `tfjoint.records`, which would load TensorFlow
_FIELDS = ("name", "split_sha256", "image_size", "views", "voxel_size")
_LONGEST = 60  # characters of a value that is shown


def refuse_others(output: Path, wanted: Mapping[str, Any]) -> None:
    """Raise `UserError` where `output` holds, or is to hold, other records than the wanted ones.

    Args:
        output: directory of a record set; it need not exist.
        wanted: fields of the manifest, as far as they are known. More objects of the same split,
            and a version of their files while the set is unfinished, do not make other records.
    """
    found = _read(output / _MANIFEST)
    finished = found is not None
    if found is None:
        found = _read(output / UNFINISHED)
    if found is None:
        sets = sorted(path.parent.name for path in output.glob(f"*/{_MANIFEST}"))
        if sets and not (output / _MANIFEST).exists():
            raise UserError(
                f"{output} holds record sets in directories of its own, {', '.join(sets[:3])}: "
                "choose another --output"
            )
        return
    was, now = _identity(found), _identity(json.loads(json.dumps(wanted)))
    if not finished or not was["sources"] or not now["sources"]:  # trees have no digests
        del now["sources"]
    different = [name for name in now if name in was and was[name] != now[name]]
    if different:
        there, asked = (
            ", ".join(f"{name} {_short(values[name])}" for name in different)
            for values in (was, now)
        )
        raise UserError(
            f"{output} holds other records ({there}) than are asked for ({asked}): choose another "
            f"--output, or remove {output} first"
        )


def _read(path: Path) -> dict[str, Any] | None:
    """Return the fields in a manifest; None where there is none, or none that can be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields = fields.get("manifest", fields)  # of JPEG 2000 views on their way
        _identity(fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return fields


def _identity(fields: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**fields["settings"]}
    settings.pop("absent", None)  # what is not there may come
    identity = {**settings, **{name: fields[name] for name in _FIELDS if name in fields}}
    if "split_name" in fields:
        identity["split"] = fields["split_name"].removesuffix(splits.PART)
    identity["sources"] = sorted(fields["sources"].values())
    identity["JPEG 2000 rate"] = fields.get("jpeg2000", {}).get("rate")
    return identity


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = ",".join(str(item)[:12] for item in value) or "none"
    return str(value)[:12] if _is_digest(value) else str(value)[:_LONGEST]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and value.isalnum()
