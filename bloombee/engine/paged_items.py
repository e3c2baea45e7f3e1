"""What the attention kernels are told of a step: which rows make a tile, and which splits of their keys there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from bloombee.engine.cache import SlotCache, held_pages, require_held
from bloombee.pipeline.work import Segment

SPLIT = 512
"""Keys that one block of the kernel takes for a narrow tile, as in ``csrc/attention/layout.h``."""
NARROW_ROWS = 16
"""Most new rows of a sequence whose splits are worked on side by side. Of more there are tiles enough, which take their keys from
first to last and need no memory for parts of sums."""
MOST_KNOWN = 1 << 11
"""Page tables that are remembered as numbers."""
HEADER, ITEM = 64, 8
"""Words (int32) of the buffer's head, which says where the lists of items are, and of one item."""

Words: TypeAlias = np.ndarray[Any, np.dtype[np.int32]]
Known: TypeAlias = dict[tuple[int, int], tuple[tuple[int, ...], Words]]
"""Pages of (sequence, group) as numbers, with the tuple that they came in: most tokens that decode change none."""


@dataclass(frozen=True, slots=True)
class Views:
    """Args:
    head: [lists, 2] where a list begins and how many items it has: narrow and wide ones of each group in turn.
    positions, tokens: [max_rows] int64.
    slots: [groups, max_rows].
    """

    head: torch.Tensor
    positions: torch.Tensor
    tokens: torch.Tensor
    slots: torch.Tensor


class StepItems:
    """One step as arrays: its lists of items, by groups, and the pages of its sequences.

    Args:
        num_rows: padding included; None: without.
        tile_rows: of a narrow and a wide tile.
        known: what is remembered from one step to the next.

    Raises:
        LocalProtocolError: pages that do not hold the rows.
    """

    def __init__(
        self, cache: SlotCache, segments: Sequence[Segment], num_rows: int | None, tile_rows: tuple[int, int], known: Known
    ) -> None:
        self._cache, self._segments, self._known = cache, segments, known
        self._counts = np.array([segment.num_rows for segment in segments], dtype=np.int64)
        self._positions = np.array([segment.position for segment in segments], dtype=np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts
        self._total = int(self._counts.sum())
        self.num_rows = self._total if num_rows is None else num_rows
        self._pages = [[self._ids(segment, group) for segment in segments] for group in range(len(self._cache.groups))]
        is_narrow = self._counts <= NARROW_ROWS
        self._tiles = (self._cut(is_narrow, tile_rows[0]), self._cut(~is_narrow, tile_rows[1]))
        self._narrow = np.concatenate([self._tiles[0], self._padding(tile_rows[0])])
        self._lists = [(self._split(group), self._items(group, self._tiles[1])) for group in range(len(self._cache.groups))]
        self.bounds = [(len(narrow), len(wide)) for narrow, wide in self._lists]
        self.num_kept = max(_num_kept(narrow) for narrow, _ in self._lists)
        self.num_words = sum(ITEM * sum(bounds) for bounds in self.bounds) + sum(len(ids) for held in self._pages for ids in held)

    def write(self, words: Words, views: Views, tail_at: int) -> None:
        """Into a buffer whose parts of variable length begin at word ``tail_at``."""
        words[:tail_at] = 0
        rows = np.arange(self._total) - np.repeat(self._firsts, self._counts) + np.repeat(self._positions, self._counts)
        views.positions.numpy()[: self._total] = rows
        views.tokens.numpy()[: self._total] = np.frombuffer(b"".join(one.tokens for one in self._segments), dtype="<u4")
        for group, held in enumerate(self._pages):
            slots = views.slots.numpy()[group]
            slots[self._total : self.num_rows] = -1
            slots[: self._total] = self._slots(group, held, rows)
        at = tail_at + sum(ITEM * sum(bounds) for bounds in self.bounds)
        heads, item_at = views.head.numpy(), tail_at
        for group, held in enumerate(self._pages):
            lengths = [len(ids) for ids in held]
            pages_at = np.cumsum([at, *lengths])
            words[at : pages_at[-1]] = _joined(held)
            for which, items in enumerate(self._lists[group]):
                owners = items[:, 4]
                items[:, 4] = np.where(owners < 0, -1, pages_at[owners])
                heads[2 * group + which] = (item_at, len(items))
                words[item_at : item_at + items.size] = items.reshape(-1)
                item_at += items.size
            at = int(pages_at[-1])

    def _ids(self, segment: Segment, group: int) -> Words:
        ids = segment.pages[group].ids if group < len(segment.pages) else ()
        known = self._known.get((segment.sequence, group))
        if known is not None and known[0] is ids:
            require_held(segment, self._cache, group)
            return known[1]
        pages = held_pages(segment, self._cache, group).astype(np.int32)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[segment.sequence, group] = (ids, pages)
        return pages

    def _slots(self, group: int, held: list[Words], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of each row."""
        size = self._cache.page_size
        starts = np.array([segment.pages[group].start for segment in self._segments], dtype=np.int64)
        lengths = np.array([len(ids) for ids in held], dtype=np.int64)
        flat = (rows - np.repeat(starts, self._counts)) // size + np.repeat(np.cumsum(lengths) - lengths, self._counts)
        slots: np.ndarray[Any, Any] = _joined(held)[flat] * size + rows % size
        return slots

    def _cut(self, chosen: np.ndarray[Any, np.dtype[np.bool_]], size: int) -> np.ndarray[Any, Any]:
        """The segments that are ``chosen`` in tiles of ``size`` rows: [tiles, 4] first row, rows, its position, segment."""
        owners = np.flatnonzero(chosen)
        tiles = -(-self._counts[owners] // size)
        within = np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        owners, first = np.repeat(owners, tiles), within * size
        rows = np.minimum(size, self._counts[owners] - first)
        return np.stack([self._firsts[owners] + first, rows, self._positions[owners] + first, owners], axis=1)

    def _padding(self, size: int) -> np.ndarray[Any, Any]:
        """Rows that belong to nobody, as tiles."""
        first = np.arange(self._total, self.num_rows, size)
        rows = np.minimum(size, self.num_rows - first)
        return np.stack([first, rows, np.zeros_like(first), np.full_like(first, -1)], axis=1)

    def _split(self, group: int) -> Words:
        """Items of the narrow tiles: one for each split of the keys that layers of ``group`` see. Tiles of many splits come
        first: short ones fill the gaps in the end, and sums of splits are kept of the first items only."""
        window, (_, rows, positions, owners) = self._cache.groups[group].window, self._narrow.T
        oldest = np.maximum(0, positions + 1 - window) // SPLIT if window else np.zeros_like(positions)
        counts = np.where(owners < 0, 1, (positions + rows - 1) // SPLIT - oldest + 1)
        order = np.argsort(-counts, kind="stable")
        tiles, counts, oldest = self._narrow[order], counts[order], oldest[order]
        items = self._items(group, np.repeat(tiles, counts, axis=0))
        items[:, 3] = np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts - oldest, counts)
        items[:, 6] = np.repeat(np.arange(len(counts)), counts)
        return items

    def _items(self, group: int, tiles: np.ndarray[Any, Any]) -> Words:
        """[tiles, ITEM], with the number of the segment where the place of its pages will be."""
        starts = np.array([segment.pages[group].start for segment in self._segments] + [0], dtype=np.int64)
        items = np.zeros((len(tiles), ITEM), dtype=np.int32)
        items[:, :3], items[:, 4], items[:, 5] = tiles[:, :3], tiles[:, 3], starts[tiles[:, 3]]
        return items


def _num_kept(items: Words) -> int:
    """Items of tiles that have several."""
    counts = np.bincount(items[:, 6])
    return int(counts[counts > 1].sum())


def _joined(parts: list[Words]) -> Words:
    return np.concatenate([*parts, np.empty(0, dtype=np.int32)])
