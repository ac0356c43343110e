"""How messages say a number of things."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Return "1 view", "2 views"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
