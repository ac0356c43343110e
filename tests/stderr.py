"""What a command said on stderr."""

from __future__ import annotations

import re


def own_lines(text: str) -> list[str]:
    """Return the lines without those that TensorFlow 2.21 writes before it can be told not to."""
    return [
        line for line in text.splitlines() if not re.match(r"WARNING: All log|[IWE]0000 ", line)
    ]
