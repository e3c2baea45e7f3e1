"""Which of the rows that wait for a device can go there: those whose sequences have all that they begin on. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bloombee.kv.pool import pages_for
from bloombee.pipeline.sequences import SequenceStore
from bloombee.types import SequenceId
from bloombee.wire.messages import Item


def is_here(store: SequenceStore, sequence: SequenceId) -> bool:
    """Nothing that it has begun on is still on its way to the device."""
    held = store.get(sequence)
    return held is None or held.arrive(store.kv.prefixes)


def has_room(store: SequenceStore, items: Sequence[Item]) -> bool:
    """Whether there are pages for them now: some may be free only once copies have ended."""
    pools = store.kv.pools
    return all(pool.can_take(count) for pool, count in zip(pools, _missing_pages(store, items), strict=True))


def _missing_pages(store: SequenceStore, items: Sequence[Item]) -> list[int]:
    """How many pages of each group they need at most, beyond what their sequences hold."""
    size = store.kv.pools[0].page_size
    counts = [0] * len(store.kv.pools)
    for item in items:
        if (held := store.get(item.sequence)) is None:
            continue
        start = item.position if item.tree is None else item.position + item.tree.first - 1
        for group, table in enumerate(held.tables):
            there = pages_for(min(start, table.stop), size)
            counts[group] += pages_for(start + item.num_rows, size) - there + (start % size > 0)
    return counts
