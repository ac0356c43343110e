"""How a command ends when it cannot go on: a user's mistake or interrupt is one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input from outside: a flag, a file, a directory.

    The message says what was wrong, what was received, what is allowed and what to do.
    """


def run_or_exit(entry: Callable[[], None]) -> None:
    """Run an entry point; a `UserError` becomes one line on stderr and exit code 2.

    So does what the system refuses: a file that may not be read, a full disk. Ctrl-C becomes one
    line and exit code 130, the shells' code for it.
    """
    try:
        entry()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error}: check that it is there, permitted and has room", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one could only disturb the end
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        sys.exit(130)
