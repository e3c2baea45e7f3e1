"""The alphabet in which byte-level tokenizers write their tokens: one printable character a byte."""

from __future__ import annotations

from itertools import count

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
"""Bytes that stand for themselves as Latin-1; the others follow above 255, in their order. Source: GPT-2's encoder."""
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = {**{chr(byte): byte for byte in _PRINTABLE}, **{chr(at): byte for at, byte in zip(count(256), _OTHERS)}}
LETTERS = {byte: letter for letter, byte in BYTES.items()}


def from_letters(token: str) -> bytes | None:
    """The bytes that a token stands for; None if it has a character outside the alphabet."""
    try:
        return bytes(map(BYTES.__getitem__, token))
    except KeyError:
        return None
