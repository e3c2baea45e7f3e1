"""First rows of sequences that are kept by content for sequences to come. Pure bookkeeping, as ``pool.py``.

Theory of operation. What is kept has a key, which names its token ids, and the pages of positions [0, length) in every group, as
far as rows that follow can see them. The pages are those that the sequence has computed, and nobody writes to them again: a
sequence that begins on them shares them, and has one of its own from the first row that it writes. So keeping costs no copy.

Pages that are kept and that no sequence holds count as free. When a pool has no unused page left, what has been of no use for the
longest time is let go, of what has such pages there: never a page that is held, so no sequence is the worse for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bloombee.kv.pool import PagePool, PageTable, can_go_back
from bloombee.types import SequenceId

MOST_KEPT = 4096
"""Prefixes; one more lets the oldest go."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows [0, length) of a sequence that has computed them.

    Args:
        newest: the most rows that it had then: how far back one can go depends on that.
        parts: one a group: the first position, and the pages from there on.
        tokens: [length] little-endian uint32, on the last stage.
    """

    sequence: SequenceId
    length: int
    newest: int
    parts: tuple[tuple[int, tuple[int, ...]], ...]
    tokens: bytes


class PrefixStore:
    """Of one span.

    Args:
        pools, windows: of the groups of its layers.
    """

    def __init__(self, pools: Sequence[PagePool], windows: Sequence[int]) -> None:
        self._pools = tuple(pools)
        self._windows = tuple(windows)
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        """By key, the one that was used last at the end."""
        self._gone: list[SequenceId] = []
        for group, pool in enumerate(self._pools):
            pool.let_go = partial(self._let_go_in, group)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(
        self, key: bytes, sequence: SequenceId, tables: Sequence[PageTable], length: int, newest: int, tokens: bytes
    ) -> bool:
        """Keep rows [0, length) of what ``tables`` hold; said again it is only fresh again. False: a window has gone on, and does
        not hold them any more."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return True
        if not self._can_follow(length, newest):
            return False
        parts = tuple([table.part(length) for table in tables])
        for pool, (_, pages) in zip(self._pools, parts, strict=True):
            pool.keep(pages)
        self._kept[key] = Kept(sequence, length, newest, parts, tokens)
        while len(self._kept) > MOST_KEPT:
            self._let_go(next(iter(self._kept)))
        return True

    def usable(self, key: bytes, length: int) -> int:
        """How many of rows [0, length) of the prefix a sequence can begin on: all that are kept, or none."""
        kept = self._kept.get(key)
        if kept is None:
            return 0
        usable = min(length, kept.length)
        return usable if self._can_follow(usable, kept.newest) else 0

    def begin(self, key: bytes, length: int) -> tuple[Kept, tuple[PageTable, ...]]:
        """The tables of a sequence that begins on rows [0, length), which must be usable."""
        kept = self._kept[key]
        self._kept.move_to_end(key)
        tables = []
        for pool, window, (start, pages) in zip(self._pools, self._windows, kept.parts, strict=True):
            table = PageTable(pool, window)
            table.begin_on(start, pages)
            table.truncate(length)
            tables.append(table)
        return kept, tuple(tables)

    def clear(self) -> None:
        """Let go of all."""
        for key in list(self._kept):
            self._let_go(key)

    def take_gone(self) -> list[SequenceId]:
        """The sequences of which something has been let go since this was last asked."""
        gone, self._gone = self._gone, []
        return gone

    def _can_follow(self, length: int, newest: int) -> bool:
        return all(can_go_back(length, newest, window) for window in self._windows)

    def _let_go_in(self, group: int) -> bool:
        """Of what would free a page of the group, let go what was of use the longest time ago; False: there is nothing."""
        pool = self._pools[group]
        for key, kept in self._kept.items():
            if any(map(pool.is_idle, kept.parts[group][1])):
                self._let_go(key)
                return True
        return False

    def _let_go(self, key: bytes) -> None:
        kept = self._kept.pop(key)
        for pool, (_, pages) in zip(self._pools, kept.parts, strict=True):
            pool.unkeep(pages)
        self._gone.append(kept.sequence)
