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
STAGING_BYTES = READS * (READ_BYTES + 4096)
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
    """Bytes of the device for ``num_streamed`` layers of ``layer_bytes`` that stream."""
    return num_slots(num_streamed) * layer_bytes + STAGING_BYTES * (num_streamed > 0)
