"""Memory for frames that are kept for long.

Frames come and go in about the same order, while what a forward needs comes and goes between them. From one heap the two
together would leave holes that nobody can use, up to the size of the log again. So a large frame has pages of its own, which go
back to the system with it, whatever becomes of its neighbours; small ones fit the holes that small ones leave.
"""

from __future__ import annotations

import mmap

OWN_PAGES_BYTES = 32 << 10
"""From here on; a process may have some 65,000 mappings."""


def kept(data: memoryview) -> memoryview:
    """A copy of ``data``, contiguous bytes."""
    if data.nbytes < OWN_PAGES_BYTES:
        return memoryview(bytes(data))
    pages = memoryview(mmap.mmap(-1, data.nbytes))
    pages[:] = data
    return pages
