"""Values as messages show them."""

from __future__ import annotations

MOST_CHARS = 200
"""Enough for any value that was meant."""


def printable(text: str) -> str:
    """``text`` on one line and without signs that move a cursor or turn text round: they are written as escapes."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def quoted(value: object) -> str:
    """What ``value`` looks like, in at most 200 characters and whatever its own ``repr`` does."""
    try:
        text = repr(value)
    except Exception:  # anybody's code; or an int of more digits than Python writes
        return f"a value of type {type(value).__name__}"
    half = (MOST_CHARS - 5) // 2
    return text if len(text) <= MOST_CHARS else f"{text[:half]} ... {text[-half:]}"
