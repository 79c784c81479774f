"""Words that every part says in the same way."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 draw`, `12 draws`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
