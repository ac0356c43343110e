"""Print the results files of a directory side by side.

    python -m tfjoint.compare --results=results/demo
    python -m tfjoint.compare --results=runs --bytes

The second command shows what is really sent of an object, against the nominal rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tfjoint import entry, report
from tfjoint.report import ResultsError


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("results", "runs", "directory of results files, or of run directories")
    flags.DEFINE_bool("bytes", False, "show the bytes of an object's views at every rate")


def read_results(directory: Path) -> dict[str, Mapping[str, Any]]:
    """Return the results of a directory by name: <name>.json and <name>/results.json, in order.

    Raises `ResultsError` where there is none, or a file is something else.
    """
    paths = {path.stem: path for path in directory.glob("*.json")}
    paths |= {path.parent.name: path for path in directory.glob("*/results.json")}
    if not paths:
        raise ResultsError(f"no results files in {directory}: tfjoint.evaluate writes them")
    return {name: report.read_results(path) for name, path in sorted(paths.items())}


def main(argv: Sequence[str]) -> None:
    """Read, print."""
    show = report.sent_bytes if flags.FLAGS.bytes else report.comparison
    print(show(read_results(Path(flags.FLAGS.results))))


if __name__ == "__main__":
    define_flags()
    entry.run(main)
