"""Divide an export between the two ends of a link.

    python -m tfjoint.split --export=runs/direct/export

writes two SavedModels, each with the variables that it needs and nothing else, and with --lite the
camera's end once more for TensorFlow Lite:

    <output>/camera/<version>/   encode, encode_files: images to codes
    <output>/ground/<version>/   reconstruct, reconstruct_packed, refine, decode: codes to shapes
                                 and views
    <output>/lite/<version>/     camera-float32.tflite, camera-int8.tflite, tfjoint.json

They compute what the whole export does, bit by bit, need TensorFlow alone, and name the same model
in what they send. Of systems with iterations the camera's end holds the image decoder too: an
iteration encodes what the ones before it left over, and that takes decoding them.

A server's warm-up requests stay with the whole export. What is there already stays as it is.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tfjoint import entry, files
from tfjoint.errors import UserError
from tfjoint.exported import (
    DESCRIPTION,
    ExportError,
    find_export,
    latest_version,
    read_description,
)

CAMERA, GROUND, LITE = "camera", "ground", "lite"
TAKEN_ALONG = ("tables.json",)
"""Of an export's `assets.extra`, beside its description."""
_CODES = {"codes", "codes_bytes"}


class SplitError(UserError):
    """An export that cannot be divided, or an output that holds something else."""


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("export", None, "export directory, of one version or of all")
    flags.DEFINE_string("output", "", 'directory of the ends; "" is `ends` beside the export')
    flags.DEFINE_bool("lite", False, "write the camera's end for TensorFlow Lite as well")


def split(export: Path, output: Path, lite: bool = False) -> list[Path]:
    """Write the ends of an export that are not there yet; all or nothing.

    Args:
      export: directory of one version.
      output: directory of the ends.
      lite: write the camera's end for TensorFlow Lite too.

    Returns:
      the directory of each end, of this version.

    Raises:
      SplitError: the export has only one end, or the output has one of another model.
      LiteError: this TensorFlow cannot convert.
      ExportError: the export is damaged or none of tfjoint.
    """
    description = read_description(export)
    if end := description.get("end"):
        raise SplitError(f"{export} is the {end} end of an export: give the whole one")
    ends = {end: output / end / export.name for end in (CAMERA, GROUND, *([LITE] if lite else []))}
    missing = [end for end, path in ends.items() if not _is_there(path, end, description)]
    if not missing:
        return list(ends.values())
    from tfjoint.codec import load

    loaded = load(export)  # held here: its signatures alone do not keep its variables
    names = _names_by_end(export, loaded.signatures)
    with contextlib.ExitStack() as stack:
        # Renamed one after another when all of them are written.
        new = {end: stack.enter_context(files.replacing(ends[end])) for end in missing}
        for end in new.keys() & names.keys():
            _write_end(loaded.signatures, names[end], new[end])
            _describe(export, new[end], {**description, "end": end, "signatures": names[end]})
        if LITE in new:
            from tfjoint.lite import convert

            new[LITE].mkdir()
            for name, content in convert(export).items():
                (new[LITE] / f"{CAMERA}-{name}.tflite").write_bytes(content)
            files.write_json(new[LITE] / "tfjoint.json", {**description, "end": LITE})
    return list(ends.values())


def _names_by_end(export: Path, signatures: Mapping[str, Any]) -> dict[str, list[str]]:
    # What goes from images to shapes needs both ends, and is of neither.
    makes = {name: set(found.structured_outputs) for name, found in signatures.items()}
    takes = {name: set(found.structured_input_signature[1]) for name, found in signatures.items()}
    camera, ground = (sorted(n for n in found if found[n] & _CODES) for found in (makes, takes))
    if not (camera and ground):
        raise SplitError(
            f"{export} has {', '.join(sorted(signatures))} alone: there is nothing between two "
            "ends; give an export of a system with codes"
        )
    return {CAMERA: camera, GROUND: ground}


def _write_end(signatures: Mapping[str, Any], names: Sequence[str], path: Path) -> None:
    import tensorflow as tf

    chosen = {name: signatures[name] for name in names}
    end = tf.Module()
    # What a signature computes with is what it captures; each variable once, in a stable order.
    used = {id(v): v for name in names for v in chosen[name].graph.variables}
    end.weights = list(used.values())
    tf.saved_model.save(end, str(path), chosen)


def _describe(export: Path, end: Path, description: Mapping[str, Any]) -> None:
    extra = end / "assets.extra"
    extra.mkdir()
    files.write_json(extra / "tfjoint.json", description)
    for name in TAKEN_ALONG:
        if (export / "assets.extra" / name).is_file():
            shutil.copyfile(export / "assets.extra" / name, extra / name)


def _is_there(path: Path, end: str, description: Mapping[str, Any]) -> bool:
    if not path.exists():
        return False
    try:
        found = _read_description(path, end)
    except ExportError as error:
        raise SplitError(f"{path} is in the way: remove it, or choose another --output") from error
    if any(found[name] != description[name] for name in ("step", "weights_sha256")):
        raise SplitError(
            f"{path} is of another model (step {found['step']}, this is {description['step']}): "
            "remove it, or choose another --output"
        )
    return found.get("end") == end


def find_ends(directory: Path, ends: Iterable[str]) -> tuple[dict[str, Path], dict[str, Any]]:
    """Return the newest version of each end, and what it says of itself.

    Args:
      directory: what `split` wrote.
      ends: `CAMERA`, `GROUND`, `LITE`.

    Raises:
      SplitError: one is missing, or they are of different models.
    """
    found, descriptions = {}, []
    for end in ends:
        path = latest_version(directory / end)
        if path is None:
            lite = " --lite" if end == LITE else ""
            raise SplitError(
                f"no {end} end in {directory}: python -m tfjoint.split{lite} writes it"
            )
        try:
            descriptions.append(_read_description(path, end))
        except ExportError as error:
            raise SplitError(f"{path} is no {end} end: split the export again") from error
        found[end] = path
    if len({description["weights_sha256"] for description in descriptions}) != 1:
        raise SplitError(f"the ends in {directory} are of different models: split the export again")
    return found, descriptions[0]


def _read_description(path: Path, end: str) -> dict[str, Any]:
    return read_description(path, Path("tfjoint.json") if end == LITE else DESCRIPTION)


def size(path: Path) -> int:
    """Return the bytes of all files below a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main(argv: Sequence[str]) -> None:
    """Divide, say where the ends are and how large."""
    values = flags.FLAGS
    if not values.export:
        raise SplitError("--export is missing: give the export directory of a trained run")

    export = find_export(Path(values.export))
    output = Path(values.output or export.parent.parent / "ends")
    ends = split(export, output, values.lite)
    for path in (export, *ends):
        print(f"{size(path) / 1e6:7.2f} MB  {path}")


if __name__ == "__main__":
    define_flags()
    entry.run(main)
