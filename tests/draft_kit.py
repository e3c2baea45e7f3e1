"""Drafters for tests: some know what will come, some never do, some fail."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from bloombee.spec.controller import Load
from bloombee.spec.drafter import Drafter
from bloombee.spec.speculator import MOST_NODES, Speculator
from bloombee.spec.tree import Draft

Future = Callable[[Sequence[int]], Sequence[int]]
"""What follows on these tokens."""


class Drawn:
    """Trees at random, the right tokens among them as often as ``skill`` says, at each depth anew.

    Args:
        future: the tokens that follow. most: nodes of a draft, at most.
    """

    def __init__(self, rng: random.Random, future: Future, skill: float, *, most: int = 12, vocabulary: int = 50_000) -> None:
        self._rng, self._future, self._skill, self._most, self._vocabulary = rng, future, skill, most, vocabulary

    def propose(self, sequence: int, tokens: Sequence[int], budget: int) -> Draft:
        right = self._future(tokens)
        chosen: dict[tuple[int, int], float] = {}
        """(parent, token) -> score."""
        scores, trunk, depth = [1.0], 0, 0
        for _ in range(self._rng.randint(0, min(self._most, budget))):
            knows = depth < len(right) and self._rng.random() < self._skill
            parent = trunk if knows else self._rng.randrange(len(scores))
            token = right[depth] if knows else self._rng.randrange(self._vocabulary)
            if (parent, token) in chosen or (self._skill >= 1.0 and not knows):
                break
            scores.append(scores[parent] * self._rng.uniform(0.3, 1.0))
            chosen[parent, token] = scores[-1]
            if knows:
                trunk, depth = len(chosen), depth + 1
        parents, drawn = zip(*chosen, strict=True) if chosen else ((), ())
        return Draft(drawn, parents, tuple(chosen.values()), (0,) * len(chosen))

    def closed(self, sequence: int) -> None:
        pass


class Crashing:
    """Fails after so many calls."""

    def __init__(self, inner: Drawn, calls: int) -> None:
        self._inner, self._left = inner, calls

    def propose(self, sequence: int, tokens: Sequence[int], budget: int) -> Draft:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("no more drafts")
        return self._inner.propose(sequence, tokens, budget)

    def closed(self, sequence: int) -> None:
        self._inner.closed(sequence)


class Eager(Speculator):
    """Sends whatever is drafted, whether or not it pays."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__([drafter])
        self._drafter = drafter

    def draft(self, sequence: int, tokens: Sequence[int], load: Load) -> Draft | None:
        return self._drafter.propose(sequence, tokens, MOST_NODES)
