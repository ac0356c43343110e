"""Measure tfjoint on this machine, beside its peers, and write what was found.

    python -m bench --sections=data

writes bench/results.json; sections that are not named stay in it as they were. Leave the machine
alone meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tfjoint import entry, files, provenance
from tfjoint.errors import UserError

SECTIONS = ("data",)

_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), f"Some of {', '.join(SECTIONS)}.")
_OUTPUT = flags.DEFINE_string("output", "bench/results.json", "File of the results.")
_DATA = flags.DEFINE_string(
    "data", "data/open", "Records of 137 pixels; those of 68 lie in <data>-68. From `make data`."
)
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Of every measurement.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    """Measure the sections, one after another, and write each as soon as it is there."""
    unknown = sorted(set(_SECTIONS.value) - set(SECTIONS))
    if unknown:
        raise UserError(f"no section {unknown[0]!r}: --sections takes {', '.join(SECTIONS)}")
    output = Path(_OUTPUT.value)
    for section in _SECTIONS.value:
        found = {**_measure(section), "provenance": _provenance()}
        results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
        files.write_json(output, {**results, section: found})
        print(f"{output}: {section}")


def _measure(section: str) -> dict[str, Any]:
    # Imported here so that --help and a wrong flag answer at once.
    if section == "data":
        from bench import data

        return data.measure(Path(_DATA.value), _REPETITIONS.value)
    raise AssertionError(section)


def _provenance() -> dict[str, Any]:
    return {
        "code_revision": provenance.code_revision(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "repetitions": _REPETITIONS.value,
    }


if __name__ == "__main__":
    entry.run(main)
