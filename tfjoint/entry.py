"""What every command does around its work: flags, quiet logs, mistakes in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from tfjoint.errors import UserError, run_or_exit


class FlagError(UserError):
    """A flag that absl does not accept."""


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parse the flags and run `main(argv)`; a `UserError` ends in one line and exit code 2."""
    # TensorFlow's errors arrive as exceptions; what its C++ side prints besides is noise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.WARNING)
    run_or_exit(lambda: app.run(main, flags_parser=parse))


def parse(argv: Sequence[str]) -> list[str]:
    """Parse absl flags. Raises `FlagError` for a wrong flag or an argument that is none."""
    try:
        remaining = flags.FLAGS(list(argv))
    except flags.Error as error:
        said = "; ".join(line.strip() for line in str(error).splitlines())
        raise FlagError(f"{said}; --help lists the flags") from error
    except UnicodeDecodeError as error:
        raise FlagError(
            f"a file among the flags is no text ({error}): {' '.join(argv[1:])}"
        ) from error
    if len(remaining) > 1:
        raise FlagError(f"unexpected argument {remaining[1]!r}: every setting is a --flag")
    return remaining
