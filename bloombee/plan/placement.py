"""Which layers of a span stay on the device, and which stream to it on every pass. Pure.

Layers that stream go through a ring of slots (``engine/streams.py``). So what is given up of the device's memory by streaming
``n`` layers is ``n`` layers less the slots and the staging; fewer than three save nothing.
"""

from __future__ import annotations

from bloombee.types import Span

SLOTS = 2
"""Layers' worth of memory that layers that stream share: one computes while the next one comes."""
READS = 3
"""Of a disk that are under way at once, each into memory of its own."""
READ_BYTES = 4 << 20
"""Of each: two of these keep a fast disk busy."""
BLOCK_BYTES = 4096
"""What reads are aligned to, in files and in memory."""
DEVICE, DISK = 0, 2
"""Tiers of ``wire.messages.Load.placement``."""


def num_slots(num_streamed: int) -> int:
    """Of a span of which so many layers stream."""
    return min(SLOTS, num_streamed)


def spread(span: Span, count: int) -> tuple[int, ...]:
    """``count`` layers of ``span``, as far from each other as can be: while those between them run, the next one comes. The first
    and the last are among them, so that what comes first for the next pass comes while the rest of this one runs."""
    if count <= 1:
        return (span.start,) * count
    return tuple(span.start + round(place * (len(span) - 1) / (count - 1)) for place in range(count))


def streamed_memory(layer_bytes: int, num_streamed: int) -> int:
    """Bytes of the device for ``num_streamed`` layers of ``layer_bytes`` that stream: slots, and what is read into first."""
    if not num_streamed:
        return 0
    return num_slots(num_streamed) * layer_bytes + READS * (min(READ_BYTES, layer_bytes) + 2 * BLOCK_BYTES)


def placement_of(span: Span, streamed: tuple[int, ...]) -> tuple[int, ...]:
    """As ``wire.messages.Load`` has it; empty: all layers stay."""
    return tuple(DISK if layer in streamed else DEVICE for layer in range(span.start, span.stop)) if streamed else ()


def streamed_of(start: int, placement: tuple[int, ...]) -> tuple[int, ...]:
    """The layers, counted from ``start`` of the span, that :func:`placement_of` says stream."""
    return tuple(layer for layer, tier in enumerate(placement, start) if tier == DISK)
