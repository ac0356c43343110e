"""A user's mistake, told in one line: every entry point ends with exit code 2 and no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input from outside: a flag, a file, a directory.

    The message says what was wrong, what was received, what is allowed and what to do.
    """


def run_or_exit(entry: Callable[[], None]) -> None:
    """Run an entry point; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        entry()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
