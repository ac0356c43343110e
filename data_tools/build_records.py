"""Turn a layout of 3D-R2N2 and a split list into records.

python -m data_tools.build_records --layout=DIR --split_list=split.json --output=records
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfjoint import entry

_LAYOUT = flags.DEFINE_string(
    "layout", None, "Directory with ShapeNetRendering and ShapeNetVox32.", required=True
)
_SPLIT_LIST = flags.DEFINE_string(
    "split_list", None, "JSON file that names the objects of both sides.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the records.", required=True)
_NAME = flags.DEFINE_string("name", "shapenet", "Name of the data set in the manifest.")
_VIEWS = flags.DEFINE_integer("views", 24, "Views per object, the first.", lower_bound=1)
_COPIES = flags.DEFINE_integer("copies", 0, "Copies per training object.", lower_bound=0)
_RECORDS_PER_SHARD = flags.DEFINE_integer(
    "records_per_shard", 512, "Objects per file.", lower_bound=1
)


def main(_: Sequence[str]) -> None:
    """Build what the flags say and print what was built."""
    # Imported here so that --help and a wrong flag answer at once.
    from data_tools import records_from_layout

    config = records_from_layout.RecordsConfig(
        name=_NAME.value,
        views=_VIEWS.value,
        copies=_COPIES.value,
        records_per_shard=_RECORDS_PER_SHARD.value,
        settings={"layout": Path(_LAYOUT.value).name, "copies": _COPIES.value},
    )
    manifest = records_from_layout.build_records(
        _LAYOUT.value, _SPLIT_LIST.value, _OUTPUT.value, config
    )
    print("\n".join(records_from_layout.summary(manifest)), file=sys.stderr)


if __name__ == "__main__":
    entry.run(main)
