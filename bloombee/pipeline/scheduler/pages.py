"""KV pages as the scheduler counts them: so many of each group are free on whichever stages have it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bloombee.kv.pool import most_pages
from bloombee.types import PageGroup

LEAST_ROOM, MOST_ROOM = 1 / 16, 1 / 4
"""Shares of the pages between which lies what a client leaves to others; see :meth:`PageLedger.leaves_room`."""


class PageLedger:
    """Of one plan. A sequence is counted with the most pages that it will ever hold, from its admission until every stage has
    confirmed its end, so no stage ever runs out.

    Args:
        max_rows: most rows of a sequence in one work.
    """

    def __init__(self, groups: Sequence[PageGroup], page_size: int, *, max_rows: int) -> None:
        self._groups = tuple(groups)
        self._page_size = page_size
        self._max_rows = max_rows
        self.all = tuple([group.num_pages for group in groups])
        self.free = list(self.all)

    def need(self, num_slots: int) -> tuple[int, ...]:
        """The most pages that a sequence of ``num_slots`` will hold, one a group."""
        rows = self._max_rows
        return tuple([most_pages(num_slots, self._page_size, window=group.window, rows=rows) for group in self._groups])

    def can_ever(self, need: Sequence[int]) -> bool:
        """Whether there are as many at all."""
        return all(count <= group.num_pages for count, group in zip(need, self._groups, strict=True))

    def can_take(self, need: Sequence[int]) -> bool:
        return all(count <= free for count, free in zip(need, self.free, strict=True))

    def leaves_room(self, need: Sequence[int]) -> bool:
        """Whether a sequence as large still finds a place beside one of ``need`` (a sixteenth of the pages at least, a quarter
        at most, in each group)."""
        return all(
            count + min(max(count, int(LEAST_ROOM * group.num_pages)), int(MOST_ROOM * group.num_pages)) <= free
            for count, group, free in zip(need, self._groups, self.free, strict=True)
        )

    def take(self, need: Sequence[int]) -> None:
        self.free = [free - count for free, count in zip(self.free, need, strict=True)]

    def give(self, need: Sequence[int]) -> None:
        self.free = [free + count for free, count in zip(self.free, need, strict=True)]
