"""Build records of ShapeNet as 3D-R2N2 distributes it, from its two archives or what is in them.

    python -m data_tools.build_shapenet --renderings=ShapeNetRendering.tgz \
        --voxels=ShapeNetVox32.tgz --output=data/shapenet

Archives are read as they are, never extracted. The same command again goes on from the shards that
are whole, and ends in the same bytes. `--layout` takes any directory of the same layout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_tools import beam
from tfjoint import entry
from tfjoint.errors import UserError

_RENDERINGS = flags.DEFINE_string(
    "renderings", None, "ShapeNetRendering: its archive (.tgz or .tar) or its directory."
)
_VOXELS = flags.DEFINE_string(
    "voxels", None, "ShapeNetVox32: its archive (.tgz or .tar) or its directory."
)
_LAYOUT = flags.DEFINE_string(
    "layout", None, "Directory with both of them, instead of --renderings and --voxels."
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the records.", required=True)
_WORK_DIR = flags.DEFINE_string(
    "work_dir",
    None,
    "Directory for what is read from archives, at times as much as the output, and for notes; "
    "default <output>-work.",
)
_SPLIT = flags.DEFINE_string(
    "split", "r2n2", "r2n2 (80/20 by name), pix2vox (with --split_list), or a split list."
)
_SPLIT_LIST = flags.DEFINE_string("split_list", None, "ShapeNet.json of Pix2Vox, for its split.")
_CATEGORIES = flags.DEFINE_list(
    "categories", [], "Names or synsets of the categories to take; default: all."
)
_OBJECTS = flags.DEFINE_list(
    "objects", [], "Objects to take, <model> or <synset>/<model>; default: all."
)
_NAME = flags.DEFINE_string("name", "shapenet", "Name of the data set in the manifest.")
_VIEWS = flags.DEFINE_integer(
    "views", 24, "Views per object, the first.", lower_bound=1, upper_bound=99
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 137, "Side of a view in pixels; others are bad.", lower_bound=1
)
_VOXEL_SIZE = flags.DEFINE_integer(
    "voxel_size", 32, "Side of a grid; others are bad.", lower_bound=1
)
_COPIES = flags.DEFINE_integer("copies", 0, "Copies per training object.", lower_bound=0)
_RECORDS_PER_SHARD = flags.DEFINE_integer(
    "records_per_shard", 512, "Objects per file.", lower_bound=1
)
_STRICT = flags.DEFINE_bool(
    "strict", False, "Stop at an object that is absent or bad, instead of leaving it out."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Default: all cores.", lower_bound=1)
_RUNNER = flags.DEFINE_string("runner", "processes", beam.RUNNER_HELP)


def main(_: Sequence[str]) -> None:
    """Build what the flags say and print what was built."""
    renderings, voxels = _halves()
    # Imported here so that --help and a wrong flag answer at once.
    from data_tools import integrity, records_from_layout, shapenet

    config = records_from_layout.RecordsConfig(
        name=_NAME.value,
        views=_VIEWS.value,
        image_size=_IMAGE_SIZE.value,
        voxel_size=_VOXEL_SIZE.value,
        copies=_COPIES.value,
        records_per_shard=_RECORDS_PER_SHARD.value,
        strict=_STRICT.value,
        settings={
            "categories": sorted(_CATEGORIES.value),
            "objects": sorted(_OBJECTS.value),
            "copies": _COPIES.value,
        },
    )
    processes = _PROCESSES.value or os.cpu_count() or 1
    # Absolute, for workers on other machines.
    output = Path(_OUTPUT.value).absolute()
    work = Path(_WORK_DIR.value or f"{output}-work").absolute()
    run = beam.runner(_RUNNER.value, work)
    if work.resolve() == output.resolve():
        raise UserError(f"--work_dir and --output are both {output}: give one of its own for each")
    with records_from_layout.opened(renderings, voxels, work) as data:
        selection = shapenet.select(
            data.grids,
            _SPLIT.value,
            Path(_SPLIT_LIST.value) if _SPLIT_LIST.value else None,
            _CATEGORIES.value,
            _OBJECTS.value,
        )
        manifest = records_from_layout.build_records(
            data, selection, output, config, processes, run
        )
    print("\n".join(records_from_layout.summary(manifest)), file=sys.stderr)
    print(integrity.confirm([output], processes), file=sys.stderr)


def _halves() -> tuple[Path, Path]:
    layout, renderings, voxels = _LAYOUT.value, _RENDERINGS.value, _VOXELS.value
    if layout and not renderings and not voxels:
        return Path(layout).absolute(), Path(layout).absolute()
    if layout or not renderings or not voxels:
        raise UserError("give --renderings and --voxels, or --layout alone")
    return Path(renderings).absolute(), Path(voxels).absolute()


if __name__ == "__main__":
    entry.run(main)
