"""Check a record directory: manifest, digests, every record of every split.

python -m data_tools.check_records --records=DIR
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from tfjoint import entry

_RECORDS = flags.DEFINE_string("records", None, "Directory of the records.", required=True)


def main(_: Sequence[str]) -> None:
    """Open every split; print what it holds. Raises `UserError` for the first thing wrong."""
    # Imported here so that --help and a wrong flag answer at once.
    from tfjoint import records

    manifest = records.read_manifest(_RECORDS.value)
    sides = {name: records.RecordSet(_RECORDS.value, name) for name in manifest.splits}
    print(
        f"{manifest.name}: split {manifest.split_name}, {manifest.views} views per object, "
        f"{manifest.image_size} pixels, grid {manifest.voxel_size}"
    )
    for name, side in sides.items():
        sources = {found.source for found in side.objects}
        print(f"{name}: {len(side)} objects of {len(sources)} sources, intact")


if __name__ == "__main__":
    entry.run(main)
