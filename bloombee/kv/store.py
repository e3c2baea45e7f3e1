"""Where a span's layers keep keys and values: a pool of pages for each group of layers, a table in each for every sequence. Pure;
the tensors, one pair a layer, live in ``engine/cache.py``, where a layer is added or dropped by itself."""

from __future__ import annotations

from collections.abc import Sequence

from bloombee.kv.pool import PagePool, PageTable, can_go_back
from bloombee.kv.prefix import PrefixStore
from bloombee.types import PageGroup


class KvStore:
    """Of one span; outlives every plan."""

    def __init__(self, groups: Sequence[PageGroup], page_size: int) -> None:
        self.groups = tuple(groups)
        self.pools = tuple(PagePool(group.num_pages, page_size) for group in groups)
        self.prefixes = PrefixStore(self.pools, [group.window for group in groups])

    @property
    def pages_free(self) -> int:
        """Of all groups; what is only kept, or being copied, is among them."""
        return sum(pool.num_free for pool in self.pools) + self.prefixes.tiers.num_held

    @property
    def is_empty(self) -> bool:
        """No sequence holds a page."""
        return all(pool.num_free == pool.num_pages for pool in self.pools)

    def open(self) -> tuple[PageTable, ...]:
        """A new sequence's tables, one a group, without pages."""
        return tuple([PageTable(pool, group.window) for pool, group in zip(self.pools, self.groups, strict=True)])

    def can_go_back(self, position: int, newest: int) -> bool:
        """Whether rows can follow at ``position`` once positions [0, newest) have been placed, in every group."""
        return all(can_go_back(position, newest, group.window) for group in self.groups)
