"""What every command does around its work: flags, quiet logs, mistakes in one line."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from tfjoint.errors import INTERRUPTED, UserError, run_or_exit


class FlagError(UserError):
    """A flag that absl does not accept."""


def run(
    main: Callable[[Sequence[str]], None], inputs: int = 0, interrupted: str = INTERRUPTED
) -> None:
    """Parse the flags and run `main(argv)`; a `UserError` ends in one line and exit code 2.

    Args:
      main: the command.
      inputs: how many arguments that are no flags it takes, at most.
      interrupted: what Ctrl-C ends with, see `errors.run_or_exit`.
    """
    set_environment()
    logging.set_verbosity(logging.WARNING)
    parser = functools.partial(parse, inputs=inputs)
    run_or_exit(lambda: app.run(main, flags_parser=parser), interrupted)


def set_environment() -> None:
    """Set what TensorFlow reads when it is loaded, unless the user has set it."""
    # TensorFlow's errors arrive as exceptions; what its C++ side prints besides is noise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow takes oneDNN's kernels by itself only where the processor has instructions for
    # neural networks. They are faster on any: a training step of `direct` at mini width takes a
    # third of the time on a processor that has AVX2 alone.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def parse(argv: Sequence[str], inputs: int = 0) -> list[str]:
    """Parse absl flags. Raises `FlagError` for a wrong flag or more than `inputs` that are none.

    --help and its kin print what they have and end the process with 0.
    """
    try:
        remaining = flags.FLAGS(list(argv))
    except SystemExit:  # of --help and its kin alone, and with 1: absl takes it for a mistake
        sys.exit(0)
    except flags.Error as error:
        said = "; ".join(line.strip() for line in str(error).splitlines())
        raise FlagError(f"{said}; --help lists the flags") from error
    except UnicodeDecodeError as error:
        raise FlagError(
            f"a file among the flags is no text ({error}): {' '.join(argv[1:])}"
        ) from error
    if len(remaining) > 1 + inputs:
        raise FlagError(f"unexpected argument {remaining[1 + inputs]!r}: every setting is a --flag")
    return remaining
