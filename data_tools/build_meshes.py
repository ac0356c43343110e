"""Make records of your own meshes.

    python -m data_tools.build_meshes --meshes=DIR --output=data/mine

DIR has a sub-folder per category with OBJ, PLY, STL, GLB or OFF files. They are rendered and
voxelised like the open mesh set; near-duplicates stay on one side of the split. The same command
again resumes, and ends in the same bytes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from data_tools import beam
from tfjoint import entry

_MESHES = flags.DEFINE_string(
    "meshes", None, "Folder with a sub-folder of meshes per category.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Directory of the records; smaller views go to <output>-<size>.", required=True
)
_WORK_DIR = flags.DEFINE_string("work_dir", None, "Directory of the layout; default <output>-work.")
_UP = flags.DEFINE_enum("up", "y", ["y", "z"], "Axis of the files that is up.")
_FRONT = flags.DEFINE_enum(
    "front",
    None,
    ["x", "-x", "y", "-y", "z", "-z"],
    "Where things look to in the files; default z where y is up, -y where z is up.",
)
_LARGEST_MB = flags.DEFINE_integer(
    "largest_mb", 128, "Larger meshes are skipped, with what they name.", lower_bound=1
)
_SPLIT_LIST = flags.DEFINE_string("split_list", "new", "Split list: new, or a path.")
_IMAGE_SIZES = flags.DEFINE_list(
    "image_sizes", ["137", "68"], "Sides of the views in pixels, falling; one record set for each."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Default: all cores.", lower_bound=1)
_RUNNER = flags.DEFINE_string("runner", "processes", beam.RUNNER_HELP)
_SETTINGS = (
    flags.DEFINE_string("name", "meshes", "Name of the data set in the manifest."),
    flags.DEFINE_integer("views", 24, "Views per object.", lower_bound=1, upper_bound=99),
    flags.DEFINE_integer("copies", 4, "Augmented copies per training object.", lower_bound=0),
    flags.DEFINE_integer("voxel_size", 32, "Side of the grid.", lower_bound=4),
    flags.DEFINE_integer("seed", 0, "Seed of cameras, copies and split."),
    flags.DEFINE_float("train_fraction", 0.8, "Share of training.", 0.0, 1.0),
    flags.DEFINE_integer("records_per_shard", 256, "Objects per file.", lower_bound=1),
)


def main(_: Sequence[str]) -> None:
    """Build what the flags say and print what was built."""
    start = time.monotonic()
    # Imported here so that --help and a wrong flag answer at once.
    from data_tools import integrity, mesh_folder, mesh_set

    given: dict[str, Any] = {flag.name: flag.value for flag in _SETTINGS}
    config = mesh_folder.FolderConfig(
        **given,
        **mesh_set.read_sizes(_IMAGE_SIZES.value),
        up=_UP.value,
        front=_FRONT.value or {"y": "z", "z": "-y"}[_UP.value],
        largest_bytes=_LARGEST_MB.value << 20,
    )
    processes = _PROCESSES.value or os.cpu_count() or 1
    output = Path(_OUTPUT.value)
    work = Path(_WORK_DIR.value or f"{output}-work").absolute()
    built = mesh_folder.build(
        config,
        Path(_MESHES.value).absolute(),
        work,
        output,
        split_list=None if _SPLIT_LIST.value == "new" else Path(_SPLIT_LIST.value),
        processes=processes,
        run=beam.runner(_RUNNER.value, work),
    )
    print("\n".join(mesh_set.summary(built)), file=sys.stderr)
    print(integrity.confirm(list(built.manifests), processes), file=sys.stderr)
    print(f"built in {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    entry.run(main)
