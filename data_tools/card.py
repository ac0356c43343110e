"""Write the data card of a record set, and a contact sheet to look at, beside its manifest.

    python -m data_tools.card --records=DIR

The builders do the same at their end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import flags

from tfjoint import entry

_RECORDS = flags.DEFINE_string("records", None, "Directory of the records.", required=True)
_PER_CATEGORY = flags.DEFINE_integer(
    "per_category", 20, "Most objects of a category on the contact sheet.", lower_bound=1
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Default: all cores.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    """Write card and contact sheet; print the card."""
    # Imported here so that --help and a wrong flag answer at once.
    from data_tools import contact_sheet, data_card

    card = data_card.write(_RECORDS.value)
    processes = _PROCESSES.value or os.cpu_count() or 1
    contact_sheet.write(_RECORDS.value, _PER_CATEGORY.value, processes)
    print("\n".join(data_card.as_text(card)))


if __name__ == "__main__":
    entry.run(main)
