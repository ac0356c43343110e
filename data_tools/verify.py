"""Verify record sets: manifest, digests, checksums, every record of every split.

python -m data_tools.verify --records=DIR

DIR may be one set or hold many, such as a JPEG 2000 set with one per rate. What is intact is told
on stdout; every fault is one line on stderr, and the exit code then is 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from absl import flags

from tfjoint import entry

_RECORDS = flags.DEFINE_multi_string(
    "records", None, "Directory of a record set, or of several; may be repeated.", required=True
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "At most; default: all cores, once there is enough to do.", lower_bound=1
)


def main(_: Sequence[str]) -> None:
    """Check every set, print what is in it or every fault; exit with 2 if there is one."""
    # Imported here so that --help and a wrong flag answer at once.
    from data_tools import integrity

    reports = integrity.verify(_RECORDS.value, _PROCESSES.value or os.cpu_count() or 1)
    for report in reports:
        for line in report.faults:
            print(f"error: {_printable(line)}", file=sys.stderr)
        for line in () if report.faults else report.holdings:
            print(_printable(line))
    if any(report.faults for report in reports):
        sys.exit(2)


def _printable(line: str) -> str:
    # A damaged name may hold anything: line breaks, or halves of characters.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


if __name__ == "__main__":
    entry.run(main)
