"""KV memory as pages: who holds which. Pure bookkeeping; the tensors live in ``engine/cache.py``."""

from __future__ import annotations

from bloombee.errors import LocalProtocolError, PoolExhausted


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that ``num_tokens`` slots need."""
    return -(-num_tokens // page_size)


class PagePool:
    """``num_pages`` pages of ``page_size`` token slots, each free or held once.

    Low page ids are handed out first, so that memory that was never needed is never touched.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"num_pages = {num_pages}, page_size = {page_size}: both must be >= 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._held = bytearray(num_pages)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def can_take(self, count: int) -> bool:
        return count <= len(self._free)

    def take(self, count: int) -> list[int]:
        """``count`` pages, now held.

        Raises:
            PoolExhausted: fewer are free; nothing was taken.
        """
        if not self.can_take(count):
            raise PoolExhausted(
                f"{count} KV pages wanted, {len(self._free)} of {self.num_pages} free", wanted=count, free=len(self._free)
            )
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._held[page] = 1
        return pages

    def give(self, pages: list[int]) -> None:
        """Free ``pages``.

        Raises:
            LocalProtocolError: one of them is free already; the pool is as it was.
        """
        if len(set(pages)) != len(pages) or not all(self._held[page] for page in pages):
            raise LocalProtocolError(f"pages {pages} freed that are not all held")
        for page in pages:
            self._held[page] = 0
        self._free.extend(reversed(pages))


class PageTable:
    """The pages of one sequence in one layer group, in order of position."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._pages: list[int] = []

    @property
    def pages(self) -> tuple[int, ...]:
        return tuple(self._pages)

    @property
    def num_slots(self) -> int:
        return len(self._pages) * self._pool.page_size

    def pages_missing(self, num_tokens: int) -> int:
        return max(0, pages_for(num_tokens, self._pool.page_size) - len(self._pages))

    def grow(self, num_tokens: int) -> None:
        """Hold slots for positions [0, num_tokens). Raises PoolExhausted, holding what it held."""
        missing = self.pages_missing(num_tokens)
        if missing:
            self._pages += self._pool.take(missing)

    def first(self, num_tokens: int) -> tuple[int, ...]:
        """Ids of the pages of positions [0, num_tokens)."""
        return tuple(self._pages[: pages_for(num_tokens, self._pool.page_size)])

    def truncate(self, num_tokens: int) -> None:
        """Give back the pages wholly beyond position ``num_tokens``."""
        keep = pages_for(num_tokens, self._pool.page_size)
        self._pool.give(self._pages[keep:])
        del self._pages[keep:]
