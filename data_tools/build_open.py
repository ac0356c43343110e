"""Build the open mesh set, all of it or the part that lies in the repository, as records.

    python -m data_tools.build_open --output=data/open

fetches the pinned package, renders and voxelises its models, and writes records with 137 pixels
for the paper's profile to data/open, with 68 for mini to data/open-68. The same command again
resumes, and ends in the same bytes. So does --runner=beam, an Apache Beam pipeline.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from data_tools import beam
from tfjoint import entry

_OUTPUT = flags.DEFINE_string(
    "output", None, "Directory of the records; smaller views go to <output>-<size>.", required=True
)
_WORK_DIR = flags.DEFINE_string(
    "work_dir", None, "Directory of the download and the layout; default <output>-work."
)
_PRESET = flags.DEFINE_enum(
    "preset",
    "full",
    ["full", "demo"],
    "full = every usable model, 24 views, four copies; demo = what tfjoint/demo holds. The flags "
    "below change parts of it.",
)
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "Path or URL of the package, of a zip with .sh3f libraries or of one library, or a directory "
    "of them; default: `apt-get download`.",
)
_SOURCE_SHA256 = flags.DEFINE_string(
    "source_sha256", None, "SHA-256 of --source when it is not the pinned package."
)
_SPLIT_LIST = flags.DEFINE_string(
    "split_list", "committed", "Split list: committed (the preset's own), a path, or new."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Default: all cores.", lower_bound=1)
_RUNNER = flags.DEFINE_string("runner", "processes", beam.RUNNER_HELP)

# Where not given, the preset decides.
_IMAGE_SIZES = flags.DEFINE_list(
    "image_sizes", None, "Sides of the views in pixels, falling; one record set for each."
)
_SETTINGS = (
    flags.DEFINE_string("name", None, "Name of the data set in the manifest."),
    flags.DEFINE_integer("views", None, "Views per object.", lower_bound=1, upper_bound=99),
    flags.DEFINE_integer("copies", None, "Augmented copies per training object.", lower_bound=0),
    flags.DEFINE_integer("voxel_size", None, "Side of the grid.", lower_bound=4),
    flags.DEFINE_integer("seed", None, "Seed of cameras, copies and split."),
    flags.DEFINE_integer("records_per_shard", None, "Objects per file.", lower_bound=1),
)
_LICENCES = flags.DEFINE_multi_enum(
    "licence", None, ["CC0", "CC-BY-3.0"], "Licence to include; may be repeated."
)


def main(_: Sequence[str]) -> None:
    """Build what the flags say and print what was built."""
    start = time.monotonic()
    # Imported here so that --help and a wrong flag answer at once.
    from data_tools import integrity, mesh_set, open_set, sweethome3d

    given: dict[str, Any] = {flag.name: flag.value for flag in _SETTINGS if flag.value is not None}
    if _LICENCES.value is not None:
        given["licences"] = tuple(_LICENCES.value)
    if _IMAGE_SIZES.value is not None:
        given.update(mesh_set.read_sizes(_IMAGE_SIZES.value))
    config = dataclasses.replace(open_set.PRESETS[_PRESET.value], **given)
    processes = _PROCESSES.value or os.cpu_count() or 1
    output = Path(_OUTPUT.value)
    work = Path(_WORK_DIR.value or f"{output}-work").absolute()
    run = beam.runner(_RUNNER.value, work)
    source = sweethome3d.fetch(_SOURCE.value, _SOURCE_SHA256.value, work / "download")
    built = open_set.build(
        config,
        source,
        work,
        output,
        split_list=_split_list(_SPLIT_LIST.value),
        processes=processes,
        run=run,
    )
    print("\n".join(mesh_set.summary(built)), file=sys.stderr)
    print(integrity.confirm(list(built.manifests), processes), file=sys.stderr)
    print(f"built in {time.monotonic() - start:.0f} s", file=sys.stderr)


def _split_list(value: str) -> Path | None:
    if value == "new":
        return None
    if value == "committed":
        name = {"full": "open.json", "demo": "open-demo.json"}[_PRESET.value]
        return Path(__file__).parent / name
    return Path(value)


if __name__ == "__main__":
    entry.run(main)
