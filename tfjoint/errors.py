"""How a command ends when it cannot go on: a user's mistake or interrupt is one line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input from outside: a flag, a file, a directory.

    The message says what was wrong, what was received, what is allowed and what to do.
    """


INTERRUPTED = "interrupted; the same command goes on from what is finished"


def run_or_exit(entry: Callable[[], None], interrupted: str = INTERRUPTED) -> None:
    """Run an entry point; a `UserError` becomes one line on stderr and exit code 2.

    So does what the system refuses: a file that may not be read, a full disk. Ctrl-C becomes one
    line, `interrupted`, and exit code 130, the shells' code for it. Where nobody reads on, as
    behind `| head`, it ends without a word and with 141, likewise.
    """
    try:
        try:
            entry()
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(141)
    except OSError as error:
        print(f"error: {error}: check that it is there, permitted and has room", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one could only disturb the end
        print(interrupted, file=sys.stderr)
        sys.exit(130)
