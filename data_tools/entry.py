"""How a data command starts: absl flags, and every mistake of the user as one line, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from absl import app, flags

from tfjoint import errors


def run(main: Callable[[], None]) -> None:
    """Parse the flags and run `main`; a wrong flag or a `UserError` ends in one line and exit 2."""
    app.run(lambda _: errors.run_or_exit(main), flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise flags.Error(f"unknown argument {rest[1]!r}; every setting is a --flag=value")
    except flags.Error as error:
        reason = " ".join(str(error).split())
        print(f"error: {reason}: see --help", file=sys.stderr)
        sys.exit(2)
    return rest
