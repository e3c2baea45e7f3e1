"""Tokens in which what was said before can be found again, in bounded memory.

The places of every 2 and every 4 tokens are in chains, most recent first, as in LZ77: a token more costs O(1), looking for a
context the reach of two chains, however long the text is. Source: Ziv and Lempel, 1977; the chains are zlib's (deflate,
algorithm.txt)."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

ORDERS = (4, 2)
"""Tokens that a context has in common with its place at least; longer ones are looked for first."""
LENGTHS = (16, 8, 4, 2)
"""How far back a context and a place are compared."""
CONTEXT = LENGTHS[0]
REACH = 8
"""Most recent places that are looked at."""
NOWHERE = -1


class _Text:
    """At most ``capacity`` tokens. Memory: 16 to 24 bytes for each."""

    def __init__(self, capacity: int) -> None:
        self.tokens = array("I")
        slots = 1 << max(1, (capacity - 1).bit_length())
        self._mask = slots - 1
        self._latest = [array("i", [NOWHERE]) * slots for _ in ORDERS]
        """By hash: the place behind the latest tokens that have it."""
        self._before = [array("i") for _ in ORDERS]
        """[place - 1]: the place before it in its chain."""

    def append(self, token: int) -> None:
        self.tokens.append(token)
        place = len(self.tokens)
        for order, latest, before in zip(ORDERS, self._latest, self._before, strict=True):
            slot = self._slot(self.tokens[-order:])
            before.append(latest[slot])
            latest[slot] = place

    def places(self, context: array[int], number: int) -> Iterator[tuple[int, int]]:
        """(place, tokens in common: one of LENGTHS) of the latest that have the last ``ORDERS[number]`` of ``context`` before
        them."""
        order, tokens, before = ORDERS[number], self.tokens, self._before[number]
        if len(context) < order:
            return
        place = self._latest[number][self._slot(context[-order:])]
        for _ in range(REACH):
            if place == NOWHERE:
                return
            if place < len(tokens):
                common = next((one for one in LENGTHS if _ends_alike(tokens, place, context, one)), 0)
                if common >= order:
                    yield place, common
            place = before[place - 1]

    def _slot(self, tokens: array[int]) -> int:
        return zlib.crc32(tokens.tobytes()) & self._mask


def _ends_alike(tokens: array[int], place: int, context: array[int], length: int) -> bool:
    return length <= len(context) and length <= place and tokens[place - length : place] == context[-length:]


@dataclass(slots=True)
class Found:
    """Args:
    weights: token that came next -> how much that says: 2 to the power of the tokens in common, summed over places.
    common: the most tokens in common; 0 where there is no place.
    """

    weights: dict[int, int] = field(default_factory=dict)
    common: int = 0

    def add(self, token: int, weight: int, common: int) -> None:
        self.weights[token] = self.weights.get(token, 0) + weight
        self.common = max(self.common, common)


class History:
    """The last tokens, at least ``capacity`` of them once there were so many, at most twice as many."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._texts = [_Text(capacity)]
        """The one that is written, and the one before it."""

    def append(self, token: int) -> None:
        """Time: O(1)."""
        if len(self._texts[0].tokens) >= self._capacity:
            self._texts = [_Text(self._capacity), self._texts[0]]
        self._texts[0].append(token)

    def found(self, context: array[int]) -> Found:
        """What came next where ``context`` ends: only where 4 tokens of it are found, if they are anywhere."""
        found = Found()
        for number in range(len(ORDERS)):
            for text in self._texts:
                for place, common in text.places(context, number):
                    found.add(text.tokens[place], 1 << common, common)
            if found.weights:
                break
        return found

    @property
    def num_bytes(self) -> int:
        """Of all arrays."""
        arrays = [one for text in self._texts for one in (text.tokens, *text._latest, *text._before)]
        return sum(one.itemsize * len(one) for one in arrays)
