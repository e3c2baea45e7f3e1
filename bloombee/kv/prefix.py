"""First rows of sequences that are kept by content for sequences to come. Pure bookkeeping, as ``pool.py``.

Theory of operation. What is kept has a key, which names its token ids, and the pages of positions [0, length) in every group, as
far as rows that follow can see them. The pages are those that the sequence has computed, and nobody writes to them again: a
sequence that begins on them shares them, and has one of its own from the first row that it writes. So keeping costs no copy.

Pages that are kept and that no sequence holds count as free. When a pool has no unused page left, what has been of no use for the
longest time makes way: never a page that is held, so no sequence is the worse for it. Where it lies in the host's memory as well
(``tiers.py``) it stays kept, and comes back for whoever begins on it; else it is let go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial

from bloombee.kv.kept import Arrival, Kept, KeptPage, Place, StoredPrefix
from bloombee.kv.places import Places
from bloombee.kv.pool import PagePool, PageTable, can_go_back
from bloombee.kv.tiers import Tiers
from bloombee.types import SequenceId

NOBODY: SequenceId = -1
"""Whose rows those are that another process has computed."""
MOST_KEPT = 4096
"""Prefixes; one more lets the oldest go."""


class PrefixStore:
    """Of one span.

    Args:
        pools, windows: of the groups of its layers.
    """

    def __init__(self, pools: Sequence[PagePool], windows: Sequence[int]) -> None:
        self._pools = tuple(pools)
        self._windows = tuple(windows)
        self.places = Places(pools)
        self.places.lose = self._lose
        self.tiers = Tiers(self.places)
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        """By key, the one that was used last at the end."""
        self._gone: list[SequenceId] = []
        for group, pool in enumerate(self._pools):
            pool.let_go = partial(self.places.make_way, group)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(
        self, key: bytes, sequence: SequenceId, tables: Sequence[PageTable], length: int, newest: int, tokens: bytes
    ) -> bool:
        """Keep rows [0, length) of what ``tables`` hold; said again it is only fresh again. False: a window has gone on, and does
        not hold them any more."""
        if key in self._kept:
            self._touch(key)
            return True
        if not self._can_follow(length, newest):
            return False
        parts = []
        for group, table in enumerate(tables):
            start, pages = table.part(length)
            parts.append((start, tuple([self.places.page(group, page) for page in pages])))
        kept = self._add(Kept(key, sequence, length, newest, tuple(parts), tokens))
        self._touch(key)
        self.tiers.kept(kept)
        while len(self._kept) > MOST_KEPT:
            self._let_go(next(iter(self._kept.values())))
        return True

    def restore(self, prefixes: Sequence[StoredPrefix]) -> None:
        """These are on disk, from before; what was of use last at the end."""
        pages: dict[tuple[int, Place], KeptPage] = {}
        for stored in prefixes:
            if stored.key in self._kept:
                continue
            parts = []
            for group, (start, places) in enumerate(stored.parts):
                own = [pages.setdefault((group, place), KeptPage(group)) for place in places]
                for page, place in zip(own, places, strict=True):
                    if page.disk is None:
                        self.places.is_on_disk(page, place)
                parts.append((start, tuple(own)))
            self._add(Kept(stored.key, NOBODY, stored.length, stored.newest, tuple(parts), stored.tokens))

    def _add(self, kept: Kept) -> Kept:
        self._kept[kept.key] = kept
        for page in kept.pages():
            page.keepers[kept] = None
        return kept

    @property
    def latest(self) -> Iterator[Kept]:
        """All that are kept, what was of use last first."""
        return reversed(self._kept.values())

    def usable(self, key: bytes, length: int) -> int:
        """How many of rows [0, length) of the prefix a sequence can begin on: all that are kept, or none."""
        kept = self._kept.get(key)
        if kept is None:
            return 0
        usable = min(length, kept.length)
        return usable if self._can_follow(usable, kept.newest) else 0

    def begin(self, key: bytes, length: int) -> Arrival:
        """Of rows [0, length), which must be usable, for a sequence that begins on them."""
        kept = self._kept[key]
        self._touch(key)
        return self.tiers.bring(Arrival(kept, length, kept.first(length, self._pools[0].page_size)))

    def tables(self, arrival: Arrival) -> tuple[PageTable, ...]:
        """Of the sequence that an arrival was for; all of it is here."""
        tables = []
        for pool, window, (start, pages) in zip(self._pools, self._windows, arrival.parts, strict=True):
            table = PageTable(pool, window)
            table.begin_on(start if pages else 0, [page.device for page in pages if page.device is not None])
            table.truncate(arrival.length)
            tables.append(table)
        self.tiers.end(arrival)
        return tuple(tables)

    def clear(self) -> None:
        """Let go of all."""
        for kept in list(self._kept.values()):
            self._let_go(kept)

    def take_gone(self) -> list[SequenceId]:
        """The sequences of which something has been let go since this was last asked."""
        gone, self._gone = self._gone, []
        return gone

    def _touch(self, key: bytes) -> None:
        self._kept.move_to_end(key)
        self.places.touch(self._kept[key].pages())

    def _can_follow(self, length: int, newest: int) -> bool:
        return all(can_go_back(length, newest, window) for window in self._windows)

    def _lose(self, keeper: Kept | Arrival) -> None:
        """Some of its pages are nowhere any more."""
        if isinstance(keeper, Kept):
            self._let_go(keeper)
        else:
            self.tiers.fail(keeper)

    def _let_go(self, kept: Kept) -> None:
        del self._kept[kept.key]
        self.places.forget(kept)
        if kept.sequence != NOBODY:
            self._gone.append(kept.sequence)
