"""How much the beginnings of sequences may take of one frame's header. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bloombee.pipeline.held import opening_of
from bloombee.wire.messages import Fork, Item, Opening

MOST_BYTES = 5 << 16
"""Of grammars and biases together: those of one sequence at least, and less than a third of a header."""
BIAS_BYTES = 16
"""Of one, on the wire, or less."""


def has_room(items: Sequence[Item], begun: Opening | Fork | None) -> bool:
    """Whether an item that begins so may be in a frame beside ``items``."""
    wanted = _num_bytes(begun)
    return not (items and wanted) or wanted + sum([_num_bytes(item.opening) for item in items]) <= MOST_BYTES


def _num_bytes(begun: Opening | Fork | None) -> int:
    if begun is None:
        return 0
    opening = opening_of(begun)
    text = 0 if opening.grammar is None else len(opening.grammar.text.encode())
    return text + BIAS_BYTES * len(opening.biases)
