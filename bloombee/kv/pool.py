"""KV memory as pages: who holds which. Pure bookkeeping; the tensors live in ``engine/cache.py``.

Theory of operation. The layers of a span fall into groups by how far they see: all positions, or a sliding window. A group
has a pool, and each sequence a table in it. A table holds the pages of an interval of positions: from 0 on where layers see
all, else from the oldest position that a row to come can see. A row to come is at worst ``MAX_ROLLBACK`` positions before the
newest that was placed, as nobody rolls a sequence back by more.

Pages are taken and given back in the order in which the device runs the works that use them, and the device runs them
one after the other. So a page that is given back is free at once: whatever is written there is written by a later work, when
those that read the page are through. Within one work nothing may be reused: tables are slid once all of it is placed.

A fork shares its pages. A page that several tables hold is only read; the first of them that writes to it gets a page of
its own instead, into which the device copies the shared one before anything else.

A page may also be kept for sequences to come (``kv/prefix.py``). What is kept and no table holds counts as free: it is let go as
soon as somebody needs a page. A page that is kept is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bloombee.errors import LocalProtocolError, PoolExhausted
from bloombee.types import PageGroup

MAX_ROLLBACK = 64
"""Most positions that a new generation may go back: the largest draft."""
WINDOW_SHARE = 4
"""Groups that see less than the widest hold this part of its tokens: sequences are longer than windows where windows matter."""


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that ``num_tokens`` slots need."""
    return -(-num_tokens // page_size)


def most_pages(num_tokens: int, page_size: int, *, window: int, rows: int) -> int:
    """The most pages that a sequence of ``num_tokens`` ever holds in a group.

    Args:
        window: how many positions the group's layers see; 0 for all.
        rows: most of its rows in one work.
    """
    whole = pages_for(num_tokens, page_size)
    if not window:
        return whole
    positions = window - 1 + MAX_ROLLBACK + rows
    return min(whole, 1 + pages_for(positions - 1, page_size))  # one more, as they start anywhere in a page


def make_groups(windows: Sequence[int], num_pages: int, page_size: int, *, rows: int) -> tuple[PageGroup, ...]:
    """The groups of a model whose layers see ``windows``, widest first.

    The widest gets ``num_pages``. The others get one part in ``WINDOW_SHARE`` of them, but no less than what any sequence needs.

    Args:
        windows: distinct, widest first; 0 is all positions.
        rows: most rows of a sequence in one work.
    """
    least = -(-num_pages // WINDOW_SHARE)
    groups = [PageGroup(windows[0], num_pages)]
    for window in windows[1:]:
        need = most_pages(num_pages * page_size, page_size, window=window, rows=rows)
        groups.append(PageGroup(window, max(least, need)))
    return tuple(groups)


def can_go_back(position: int, newest: int, window: int) -> bool:
    """Whether rows can follow at ``position`` once positions [0, newest) have been placed."""
    oldest = newest - MAX_ROLLBACK - window + 1
    return not window or position == 0 or position + MAX_ROLLBACK >= newest or oldest <= 0


class PagePool:
    """``num_pages`` pages of ``page_size`` token slots, each free, or held by so many tables, or kept.

    Low page ids are handed out first, so that memory that was never needed is never touched.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"num_pages = {num_pages}, page_size = {page_size}: both must be >= 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self.let_go: Callable[[], bool] = lambda: False
        """Asked for pages when none is unused, as long as too few are: forget something that is kept; False: there is nothing."""
        self._unused = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._keepers = [0] * num_pages
        self._num_idle = 0
        """Kept, and held by nobody."""

    @property
    def num_free(self) -> int:
        return len(self._unused) + self._num_idle

    @property
    def num_idle(self) -> int:
        """Of the free ones: those that are kept."""
        return self._num_idle

    def sharers(self, page: int) -> int:
        """By how many ``page`` is held or kept; 0: it is unused."""
        return self._holders[page] + self._keepers[page]

    def holders(self, page: int) -> int:
        return self._holders[page]

    def is_idle(self, page: int) -> bool:
        """Whether ``page`` is kept, and held by nobody."""
        return not self._holders[page] and bool(self._keepers[page])

    def can_take(self, count: int) -> bool:
        return count <= self.num_free

    def take(self, count: int) -> list[int]:
        """``count`` pages, now held once; what is kept makes way.

        Raises:
            PoolExhausted: fewer are free; nothing was taken.
        """
        if not self.can_take(count):
            raise PoolExhausted(
                f"{count} KV pages wanted, {self.num_free} of {self.num_pages} free", wanted=count, free=self.num_free
            )
        while count > len(self._unused):
            if not self.let_go():
                raise LocalProtocolError(f"{self._num_idle} KV pages are kept by nobody")
        pages = [self._unused.pop() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """One holder more of each of ``pages``.

        Raises:
            LocalProtocolError: one of them is unused; the pool is as it was.
        """
        self._check_used(pages)
        for page in pages:
            self._num_idle -= not self._holders[page]
            self._holders[page] += 1

    def give(self, pages: Sequence[int]) -> None:
        """One holder less of each of ``pages``; free is what has none.

        Raises:
            LocalProtocolError: one of them is held by nobody; the pool is as it was.
        """
        self._check_used(pages, self._holders)
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                if self._keepers[page]:
                    self._num_idle += 1
                else:
                    self._unused.append(page)

    def keep(self, pages: Sequence[int]) -> None:
        """``pages`` are kept once more.

        Raises:
            LocalProtocolError: one of them is unused; the pool is as it was.
        """
        self._check_used(pages)
        for page in pages:
            self._keepers[page] += 1

    def unkeep(self, pages: Sequence[int]) -> None:
        """``pages`` are kept once less; unused is what nobody holds either.

        Raises:
            LocalProtocolError: one of them is not kept; the pool is as it was.
        """
        self._check_used(pages, self._keepers)
        for page in reversed(pages):
            self._keepers[page] -= 1
            if not self.sharers(page):
                self._num_idle -= 1
                self._unused.append(page)

    def _check_used(self, pages: Sequence[int], by: Sequence[int] | None = None) -> None:
        used = all(by[page] for page in pages) if by is not None else all(self.sharers(page) for page in pages)
        if len(set(pages)) != len(pages) or not used:
            raise LocalProtocolError(f"pages {list(pages)} shared, freed or kept that are not all held")


class PageTable:
    """The pages of one sequence in one group, in order of position, from position ``start`` on.

    Args:
        window: how many positions the group's layers see; 0 for all.
    """

    def __init__(self, pool: PagePool, window: int = 0) -> None:
        self._pool = pool
        self._window = window
        self._page_size = pool.page_size
        self._start = 0
        self._pages: list[int] = []
        self._read: tuple[int, ...] | None = ()
        """The pages as they were last asked for, unless they have changed since: most tokens that decode change none."""

    @property
    def pages(self) -> tuple[int, ...]:
        if self._read is None:
            self._read = tuple(self._pages)
        return self._read

    @property
    def start(self) -> int:
        """The first position of the first page."""
        return self._start

    @property
    def stop(self) -> int:
        """Slots are held for positions [start, stop)."""
        return self._start + len(self._pages) * self._pool.page_size

    def slot(self, position: int) -> int:
        """Of a position that is held."""
        page, row = divmod(position - self._start, self._page_size)
        return self._pages[page] * self._page_size + row

    def place(self, position: int, stop: int) -> int | None:
        """Hold slots for rows at [position, stop); what was held from ``position`` on is stale.

        Returns:
            The page whose rows must first be copied into the page of ``position``, as others hold it too; None for no copy.

        Raises:
            PoolExhausted: too few are free; positions before ``position`` are held as they were.
            LocalProtocolError: rows before ``position`` that are seen from there are not held; nothing changed.
        """
        size, pages = self._page_size, self._pages
        end = self._start + len(pages) * size
        is_in_last = end - size < position < stop <= end and self._pool.sharers(pages[-1]) == 1
        if is_in_last and (not self._start or self._start <= position - self._window + 1):
            return None  # most tokens that decode: into the last page, and nothing else changes
        self.truncate(position)
        shared = position % self._pool.page_size > 0 and self._pool.sharers(self._pages[-1]) > 1
        missing = pages_for(stop, self._pool.page_size) - self.stop // self._pool.page_size
        taken = self._pool.take(max(0, missing) + shared)
        source = None
        if shared:
            source = self._pages.pop()
            self._pool.give([source])
        self._pages += taken
        self._read = None
        return source

    def slide(self, stop: int) -> None:
        """Give back the pages that no row after positions [0, stop) will see. Not before all of a work is placed."""
        if self._window:
            oldest = max(0, stop - MAX_ROLLBACK - self._window + 1)
            count = min(max(0, oldest - self._start) // self._pool.page_size, len(self._pages))
            self._pool.give(self._pages[:count])
            del self._pages[:count]
            self._start += count * self._pool.page_size
            self._read = None

    def truncate(self, num_tokens: int) -> None:
        """Forget positions from ``num_tokens`` on, and give back the pages wholly beyond; 0 gives back all.

        Raises:
            LocalProtocolError: rows before ``num_tokens`` that are seen from there are not held; nothing changed.
        """
        self._check(num_tokens)
        keep = max(0, pages_for(num_tokens, self._pool.page_size) - self._start // self._pool.page_size)
        if keep < len(self._pages):
            self._pool.give(self._pages[keep:])
            del self._pages[keep:]
            self._read = None
        if num_tokens == 0:
            self._start = 0

    def fork(self, num_tokens: int) -> PageTable:
        """A table of the same positions [0, num_tokens), as far as they are held; its pages are shared until written to.

        Raises:
            LocalProtocolError: as :meth:`truncate`.
        """
        twin = PageTable(self._pool, self._window)
        twin.begin_on(*self.part(num_tokens))
        return twin

    def part(self, num_tokens: int) -> tuple[int, tuple[int, ...]]:
        """The first position and the pages of [0, num_tokens), as far as they are held.

        Raises:
            LocalProtocolError: as :meth:`truncate`.
        """
        self._check(num_tokens)
        count = pages_for(num_tokens - self._start, self._pool.page_size) if num_tokens else 0
        return (self._start, tuple(self._pages[:count])) if count else (0, ())

    def begin_on(self, start: int, pages: Sequence[int]) -> None:
        """Of a table without pages: hold these, which begin at position ``start`` and are shared until written to."""
        self._pool.share(pages)
        self._start, self._pages, self._read = start, list(pages), None

    def _check(self, position: int) -> None:
        seen = max(0, position - self._window + 1) if self._window else 0
        if position and not self._start <= seen <= position <= self.stop:
            raise LocalProtocolError(
                f"position {position} sees [{seen}, {position}), pages are held for [{self._start}, {self.stop})",
                position=position,
            )
