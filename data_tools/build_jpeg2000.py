"""Code the views of a record set with JPEG 2000 and store what is decoded, once for every rate.

    python -m data_tools.build_jpeg2000 --records=tfjoint/demo --output=data/demo-jpeg2000

writes one record set per rate, <output>/48 and so on. The same command again keeps what is
complete, resumes the rest, and ends in the same bytes. So does --runner=beam, an Apache Beam
pipeline; --output must then be on storage that is there for every worker, by the same path.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_tools import beam
from tfjoint import entry

_RECORDS = flags.DEFINE_string("records", None, "Directory of the records.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the rates' records.", required=True)
_RATES = flags.DEFINE_list(
    "rates",
    ["6", "12", "24", "48", "96", "128", "192", "256", "384", "480"],
    "Rates c of c:1, raw bytes over coded bytes.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "asked",
    ["asked", "payload", "file"],
    "What has to fit the rate: asked = whatever OpenJPEG makes of it, a .jp2 file; payload = a "
    "codestream without its headers; file = a whole codestream.",
)
_BACKGROUND = flags.DEFINE_enum(
    "background", "black", ["black", "white"], "Colour behind the object when it is coded."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Default: all cores.", lower_bound=1)
_RUNNER = flags.DEFINE_string("runner", "processes", beam.RUNNER_HELP)


def main(_: Sequence[str]) -> None:
    """Build what the flags say and print what every rate came to."""
    start = time.monotonic()
    # Imported here so that --help and a wrong flag answer at once.
    from data_tools import jpeg2000

    rates = jpeg2000.read_rates(_RATES.value)
    from data_tools import integrity, jpeg2000_records  # TensorFlow comes with them: not before

    config = jpeg2000_records.Jpeg2000Config(rates, _MODE.value, _BACKGROUND.value)
    processes = _PROCESSES.value or os.cpu_count() or 1
    output = Path(_OUTPUT.value)
    rows = jpeg2000_records.build(
        Path(_RECORDS.value),
        output,
        config,
        processes=processes,
        run=beam.runner(_RUNNER.value, output),
    )
    print("\n".join(jpeg2000_records.table(rows)))
    print(integrity.confirm([output], processes), file=sys.stderr)
    print(f"{len(rows)} rates in {time.monotonic() - start:.1f} s: {_OUTPUT.value}")


if __name__ == "__main__":
    entry.run(main)
