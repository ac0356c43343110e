"""Hold out a part of the training objects of a record set, to choose settings on.

    python -m data_tools.hold_out --records=data/open-68 --output=data/open-68-held-out

Of the groups of near-duplicate meshes of the split "train", a fraction becomes the split "test" of
a new record set, without augmented copies; the rest is its split "train". The test objects of the
records are in neither, so that what is chosen here was not chosen on them. The same command ends
in the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_tools import holdings, layout, seeding
from tfjoint import entry, files, records
from tfjoint.errors import UserError


class HoldOutError(UserError):
    """A part that cannot be held out."""


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("records", None, "Directory of the records.", required=True)
    flags.DEFINE_string("output", None, "Directory of the new records.", required=True)
    flags.DEFINE_float("fraction", 0.15, "Part of the groups of training objects to hold out.")
    flags.DEFINE_integer("seed", 0, "Of which groups these are.", lower_bound=0)


def hold_out(source: Path, output: Path, fraction: float, seed: int) -> records.Manifest:
    """Write the record set `output` from the training objects of `source`; return its manifest.

    Args:
      source: record directory.
      output: record directory to write; the same one is written anew.
      fraction: part of the groups that is held out, in (0, 1).
      seed: of which these are.

    Raises:
      RecordError: the records are missing or damaged.
      HoldOutError: the fraction leaves one side without objects.
      UserError: `output` holds other records.
    """
    opened = records.RecordSet(source, "train")
    held = _held_out([entry.source for entry in opened.objects], fraction, seed)
    sides: dict[str, list[int]] = {"train": [], "test": []}
    for index, found in enumerate(opened.objects):
        if found.source not in held:
            sides["train"].append(index)
        elif not layout.Model(found.category, found.object_id).copy_number:
            sides["test"].append(index)
    settings = {"held_out": fraction, "seed": seed, "records_sha256": opened.data_sha256}
    draft = dataclasses.replace(
        opened.manifest,
        name=f"{opened.manifest.name}-held-out",
        split_name=f"{opened.manifest.split_name}-held-out",
        split_sha256=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        splits={},
        settings={**opened.manifest.settings, **settings},
    )
    holdings.refuse_others(output, draft.to_json())
    with files.replacing(output) as temporary:
        temporary.mkdir()
        shards = {
            side: records.write_split(
                temporary, side, (opened.record(index) for index in indices), len(indices)
            )
            for side, indices in sides.items()
        }
        manifest = dataclasses.replace(draft, splits=shards)
        records.write_manifest(temporary, manifest)
    return manifest


def _held_out(sources: Sequence[str], fraction: float, seed: int) -> set[str]:
    groups = sorted(set(sources))
    order = sorted(groups, key=lambda group: seeding.generator(seed, "held out", group).random())
    count = round(fraction * len(groups))
    if not 0 < count < len(groups):
        raise HoldOutError(
            f"fraction={fraction} of {len(groups)} groups of training objects leaves one side "
            "empty: give a number above 0 and below 1 that does not"
        )
    return set(order[:count])


def main(_: Sequence[str]) -> None:
    """Hold out, print how many objects lie where."""
    values = flags.FLAGS
    output = Path(values.output)
    manifest = hold_out(Path(values.records), output, values.fraction, values.seed)
    counts = {
        side: sum(shard.records for shard in shards) for side, shards in manifest.splits.items()
    }
    print(f"{output}: {counts['train']} training objects, {counts['test']} held out")


if __name__ == "__main__":
    define_flags()
    entry.run(main)
