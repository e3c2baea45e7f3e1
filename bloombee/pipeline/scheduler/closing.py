"""Sequences that have ended and that some stage may still hold; and below which number none is left. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bloombee.types import Epoch, SequenceId

Place = tuple[Epoch, int]
"""A stage of an epoch."""


@dataclass(slots=True)
class _Ended:
    num_pages: tuple[int, ...] | None
    """None: all that there are."""
    waiting: set[Place]
    """Stages that have not confirmed."""
    asked_at: float


class Closings:
    """From a sequence's end until every stage has confirmed it.

    Args:
        takes_over: stages may hold sequences of a scheduler that is gone. What is before the first one that is opened here ends
            then, as if it were one sequence with all the pages that there are.
    """

    def __init__(self, *, takes_over: bool = False) -> None:
        self._takes_over = takes_over
        self._stages: frozenset[Place] = frozenset()
        self._ended: dict[SequenceId, _Ended] = {}
        self._alive: OrderedDict[SequenceId, None] = OrderedDict()
        """Waiting, open or closing; in rising order, as they were opened."""
        self._next: SequenceId = 0

    def __len__(self) -> int:
        """Those that some stage has yet to confirm."""
        return len(self._ended)

    @property
    def floor(self) -> SequenceId:
        """Nothing below it is waiting, open or closing, nor will be."""
        return next(iter(self._alive), self._next)

    def pages(self, all_pages: tuple[int, ...]) -> list[tuple[int, ...]]:
        """That they still hold, each."""
        return [all_pages if one.num_pages is None else one.num_pages for one in self._ended.values()]

    def may_open(self, sequence: SequenceId) -> bool:
        """Numbers rise."""
        return sequence >= self._next

    def opened(self, sequence: SequenceId) -> bool:
        """Whether it is the first in the place of another scheduler: then all pages are taken until stages have confirmed."""
        is_first, self._takes_over = self._takes_over, False
        if is_first:
            self._alive[sequence - 1] = None
            self.begin(sequence - 1, None, self._stages, -math.inf)
        self._alive[sequence] = None
        self._next = sequence + 1
        return is_first

    def never_began(self, sequence: SequenceId) -> None:
        """It ended before any stage knew of it."""
        del self._alive[sequence]

    def begin(self, sequence: SequenceId, num_pages: tuple[int, ...] | None, stages: Iterable[Place], now: float) -> None:
        """Its stages are told ``now``. ``num_pages`` None: all that there are."""
        self._ended[sequence] = _Ended(num_pages, set(stages), now)

    def confirm(self, stage: Place, sequence: SequenceId, all_pages: tuple[int, ...]) -> tuple[int, ...] | None:
        """``stage`` holds nothing of it any more; the pages that are free with that, if it was the last one to say so."""
        one = self._ended.get(sequence)
        if one is None:
            return None
        one.waiting.discard(stage)
        if one.waiting:
            return None
        del self._ended[sequence]
        self.never_began(sequence)
        return all_pages if one.num_pages is None else one.num_pages

    def rewire(self, stages: Iterable[Place]) -> None:
        """Other workers may be at the stages: all have to confirm."""
        self._stages = frozenset(stages)
        for one in self._ended.values():
            one.waiting = set(self._stages)

    def join(self, stages: Iterable[Place]) -> None:
        """These are there as well, and may get to hold what has ended."""
        self._stages |= frozenset(stages)
        for one in self._ended.values():
            one.waiting |= self._stages

    def leave(self, stages: Collection[Place], all_pages: tuple[int, ...]) -> list[tuple[int, ...]]:
        """These hold nothing that counts any more. Returns the pages that are free with that, each."""
        self._stages -= frozenset(stages)
        freed = []
        for sequence, one in list(self._ended.items()):
            for stage in stages:
                pages = self.confirm(stage, sequence, all_pages) if stage in one.waiting else None
                if pages is not None:
                    freed.append(pages)
        return freed

    def ask_again(
        self, stages: Iterable[Place], now: float, *, older_than_s: float
    ) -> list[tuple[Place, tuple[SequenceId, ...]]]:
        """Who of ``stages`` is to be told again, and of which."""
        overdue = {number: one for number, one in self._ended.items() if now - one.asked_at >= older_than_s}
        for one in overdue.values():
            one.asked_at = now
        asked = [(stage, tuple([number for number, one in overdue.items() if stage in one.waiting])) for stage in sorted(stages)]
        return [(stage, sequences) for stage, sequences in asked if sequences]

    def clear(self) -> None:
        self._ended.clear()
        self._alive.clear()
