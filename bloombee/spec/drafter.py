"""What a drafter in this process is: pure, synchronous, of bounded work. One in a process of its own is behind
``roles/drafter.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bloombee.spec.tree import Draft

NGRAM = 1
"""Found before in the request, or in what others were given."""
MODEL = 2
"""A small model's, in a process of its own, where the likeliest token is picked."""
SAMPLED = 4
"""The same, where tokens are drawn: what it says of them means something else."""


class Drafter(Protocol):
    """Proposes what may follow. A proposal costs time in the length of the draft, not of the sequence; tokens that are new since
    the last call are taken up at O(1) each."""

    def propose(self, sequence: int, tokens: Sequence[int], budget: int) -> Draft:
        """A draft of at most ``budget`` nodes behind ``tokens``, which are all the sequence's confirmed ones and only ever
        grow."""
        ...

    def closed(self, sequence: int) -> None:
        """It ends; nothing is kept that it alone needed. Unknown ones are none."""
        ...
