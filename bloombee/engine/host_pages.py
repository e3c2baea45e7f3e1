"""KV pages in the host's memory: kept rows that the device needs its own pages for.

A page has a run of bytes of its own there, layer by layer, keys before values, and a checksum, which is looked at
when it goes back. On a GPU the memory is pinned and copies go over a stream of their own, beside the device's works; on the CPU
the device's memory is this machine's too, under another budget, and a thread copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bloombee.codec.checksum import check_crc32c, crc32c
from bloombee.engine.cache import SlotCache

AT_ONCE = 64
"""Pages of a group that are copied together: what holds them meanwhile is bounded."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a page has what one layer stores of keys, or of values.

    Args:
        held: [k, num_pages, page_size * e] of the device.
        start, stop: bytes of a page.
    """

    held: torch.Tensor
    start: int
    stop: int


class HostPages:
    """Of one span; one thread at a time may copy in each direction.

    Args:
        num_pages: of each group of layers.
    """

    def __init__(self, cache: SlotCache, num_pages: Sequence[int]) -> None:
        self._device, self._dtype = cache.device, cache.dtype
        self._parts = [list(_parts(cache, group)) for group in range(len(cache.groups))]
        is_cuda = cache.device.type == "cuda"
        self._pages = [
            torch.empty((count, parts[-1].stop if parts else 0), dtype=torch.uint8, pin_memory=is_cuda)
            for count, parts in zip(num_pages, self._parts, strict=True)
        ]
        self._checksums = [[0] * count for count in num_pages]
        self._streams = [torch.cuda.Stream(cache.device) if is_cuda else None for _ in range(2)]
        """Out and in."""

    def take(self, moves: Sequence[tuple[int, int, int]]) -> None:
        """Copy pages out of the device: (group, its page, the page here) of each. Returns when they are here."""
        with self._on(0):
            for group, sources, targets in _batches(moves):
                index = torch.tensor(sources, device=self._device)
                places = torch.tensor(targets)
                for part in self._parts[group]:
                    rows = part.held.index_select(1, index).transpose(0, 1).reshape(len(sources), -1)
                    self._pages[group][places, part.start : part.stop] = rows.view(torch.uint8).cpu()
                for target in targets:
                    self.note(group, target)

    def give(self, moves: Sequence[tuple[int, int, int]]) -> None:
        """Copy pages to the device: (group, the page here, its page) of each. Returns when they are there.

        Raises:
            CorruptPayload: one of them is not what it was.
        """
        with self._on(1):
            for group, sources, targets in _batches(moves):
                for source in sources:
                    check_crc32c(self.read(group, source), self._checksums[group][source])
                index = torch.tensor(targets, device=self._device)
                places = torch.tensor(sources)
                for part in self._parts[group]:
                    rows = self._pages[group][places, part.start : part.stop].view(self._dtype)
                    shape = len(sources), part.held.shape[0], part.held.shape[2]
                    part.held[:, index] = rows.view(shape).transpose(0, 1).to(self._device)

    def note(self, group: int, page: int) -> None:
        """What it holds now is right."""
        self._checksums[group][page] = crc32c(self.read(group, page))

    def read(self, group: int, page: int) -> memoryview:
        """The bytes of a page here."""
        return memoryview(self._pages[group][page].numpy())

    @contextlib.contextmanager
    def _on(self, direction: int) -> Iterator[None]:
        stream = self._streams[direction]
        if stream is None:
            yield
            return
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            yield
            stream.synchronize()


def page_bytes(cache: SlotCache, group: int) -> int:
    """Of one page of a group."""
    return max((part.stop for part in _parts(cache, group)), default=0)


def num_host_pages(cache: SlotCache, num_bytes: int) -> tuple[int, ...]:
    """How many pages of each group ``num_bytes`` hold: of each the same part of those that the device has."""
    whole = sum(group.num_pages * page_bytes(cache, number) for number, group in enumerate(cache.groups))
    return tuple([group.num_pages * num_bytes // max(1, whole) for group in cache.groups])


def _parts(cache: SlotCache, group: int) -> Iterator[_Part]:
    stop = 0
    for layer in sorted(cache.layers):
        if cache.group_of[layer] != group:
            continue
        for held in cache.rows(layer):
            view: Any = held.view(held.shape[0], -1, cache.page_size * held.shape[2])
            start, stop = stop, stop + view.shape[0] * view.shape[2] * held.element_size()
            yield _Part(view, start, stop)


def _batches(moves: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, list[int], list[int]]]:
    """Group, sources and targets of some at a time."""
    for group in sorted({move[0] for move in moves}):
        own = [move[1:] for move in moves if move[0] == group]
        for start in range(0, len(own), AT_ONCE):
            some = own[start : start + AT_ONCE]
            yield group, [source for source, _ in some], [target for _, target in some]
