"""Build the demo set, or with other flags any part of the open mesh set, as records.

    python -m data_tools.build_demo --output=data/demo

fetches the pinned package, renders and voxelises its CC0 models, and writes records. The same
command again resumes, and ends in the same bytes. So does --runner=beam, an Apache Beam pipeline;
--output and --work_dir must then be on storage that is there for every worker, by the same path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_tools import beam
from tfjoint import entry

_OUTPUT = flags.DEFINE_string("output", None, "Directory of the records.", required=True)
_WORK_DIR = flags.DEFINE_string(
    "work_dir", None, "Directory of the download and the layout; default <output>-work."
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
    "split_list", "open-demo", "Split list: open-demo (the committed one), a path, or new."
)
_NAME = flags.DEFINE_string("name", "open-demo", "Name of the data set in the manifest.")
_LICENCES = flags.DEFINE_multi_enum(
    "licence", ["CC0"], ["CC0", "CC-BY-3.0"], "Licence to include; may be repeated."
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 68, "Side of a view in pixels.", lower_bound=8)
_VIEWS = flags.DEFINE_integer("views", 7, "Views per object.", lower_bound=1, upper_bound=99)
_COPIES = flags.DEFINE_integer("copies", 2, "Augmented copies per training object.", lower_bound=0)
_VOXEL_SIZE = flags.DEFINE_integer("voxel_size", 32, "Side of the grid.", lower_bound=4)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of cameras, copies and split.")
_RECORDS_PER_SHARD = flags.DEFINE_integer(
    "records_per_shard", 128, "Objects per file.", lower_bound=1
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Default: all cores.", lower_bound=1)
_RUNNER = flags.DEFINE_enum("runner", "processes", beam.RUNNERS, "What builds the objects.")
_BEAM_OPTIONS = flags.DEFINE_string(
    "beam_options",
    "",
    "Options of the pipeline, for instance '--runner=FlinkRunner --flink_master=host:8081'; "
    "default: in this process.",
)


def main(_: Sequence[str]) -> None:
    """Build what the flags say and print what was built."""
    # Imported here so that --help and a wrong flag answer at once.
    from data_tools import open_set, sweethome3d

    config = open_set.OpenSetConfig(
        name=_NAME.value,
        licences=tuple(_LICENCES.value),
        image_size=_IMAGE_SIZE.value,
        views=_VIEWS.value,
        copies=_COPIES.value,
        voxel_size=_VOXEL_SIZE.value,
        seed=_SEED.value,
        records_per_shard=_RECORDS_PER_SHARD.value,
    )
    output = Path(_OUTPUT.value)
    work = Path(_WORK_DIR.value or f"{output}-work").absolute()
    run = beam.runner(_RUNNER.value, _BEAM_OPTIONS.value, work)
    source = sweethome3d.fetch(_SOURCE.value, _SOURCE_SHA256.value, work / "download")
    manifest = open_set.build(
        config,
        source,
        work,
        output,
        split_list=_split_list(_SPLIT_LIST.value),
        processes=_PROCESSES.value or os.cpu_count() or 1,
        run=run,
    )
    from data_tools import records_from_layout  # TensorFlow comes with it: not before

    print("\n".join(records_from_layout.summary(manifest)), file=sys.stderr)


def _split_list(value: str) -> Path | None:
    if value == "new":
        return None
    if value == "open-demo":
        return Path(__file__).parent / "open-demo.json"
    return Path(value)


if __name__ == "__main__":
    entry.run(main)
