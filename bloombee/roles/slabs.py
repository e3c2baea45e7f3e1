"""Memory for frames that are kept for long: written once, one behind the other, given back to the system by the slab.

Frames come and go in about the same order, while what a forward needs comes and goes between them. From one heap the two together
would leave holes that nobody can use, up to the size of the log again; so frames have pages of their own. A slab is unmapped
when nothing refers to any of its bytes any more, which Python's own counting sees to.
"""

from __future__ import annotations

import mmap

SLAB_BYTES = 4 << 20
ALIGNMENT = 64


class Slabs:
    """For one thread."""

    def __init__(self) -> None:
        self._slab = memoryview(b"")
        self._used = 0

    def room(self, num_bytes: int) -> memoryview:
        """[num_bytes] to write to, whose beginning is then to be :meth:`keep`-ed, or nothing of it."""
        if self._used + num_bytes > len(self._slab):
            self._slab, self._used = memoryview(mmap.mmap(-1, max(SLAB_BYTES, num_bytes))), 0
        return self._slab[self._used : self._used + num_bytes]

    def keep(self, num_bytes: int) -> memoryview:
        """The first ``num_bytes`` of the room that was given last; they are the caller's from now on."""
        kept = self._slab[self._used : self._used + num_bytes]
        self._used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return kept
