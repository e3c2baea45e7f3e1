"""Memory in huge pages, where Linux has them: what is read from end to end on every step then costs no page walks.

Weights are allocated and filled by others, in small pages; ``madvise(MADV_COLLAPSE)`` (Linux 6.1) turns what is there into
huge ones at once. Everywhere else, and where ``transparent_hugepage/enabled`` says ``never``, nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
MADV_COLLAPSE = 25
LEAST_COVERED = 0.5
"""Of a huge page, the least that must be ours: the rest becomes resident with it."""
MOST_AT_ONCE = 16
"""Huge pages of one call, which costs milliseconds besides the copy and holds up whoever asks for memory."""


def collapse(ranges: Iterable[tuple[int, int]], on_backed: Callable[[], None] = lambda: None) -> int:
    """Back memory by huge pages as far as it goes; its contents and addresses stay.

    Args:
        ranges: (address, bytes), of memory that is in use.
        on_backed: called after every ``MOST_AT_ONCE`` pages or fewer.

    Returns:
        Huge pages in the runs of memory that could be backed throughout; 0 where there cannot be any.

    Time: one copy of the memory. Memory: one huge page more, for the length of the call.
    """
    size = _page_size()
    if not size:
        return 0
    covered: Counter[int] = Counter()
    for address, count in ranges:
        for page in range(address // size, (address + count - 1) // size + 1):
            covered[page] += min(address + count, (page + 1) * size) - max(address, page * size)
    madvise = _madvise()
    done = 0
    for first, stop in _runs(page for page, count in covered.items() if count >= LEAST_COVERED * size):
        # Refused as a whole where the memory's mapping ends within a page of the run; the pages before are done all the same.
        if madvise(first * size, (stop - first) * size, MADV_COLLAPSE) == 0:
            done += stop - first
        on_backed()
    return done


def forget(address: int, count: int) -> None:
    """Give whole pages of ``count`` bytes of allocated memory back to Linux: they read as zeros and are resident no more.

    For memory that will not be read again before it is freed. Other systems keep it until then.
    """
    if sys.platform.startswith("linux"):
        size = mmap.PAGESIZE
        first, stop = -(-address // size) * size, (address + count) // size * size
        if stop > first:
            _madvise()(first, stop - first, mmap.MADV_DONTNEED)


def let_go(tensor: Any) -> None:
    """Memory of a tensor on the CPU back to the system before its owner frees it: the allocator would keep it, in holes that the
    next may not fit. It reads as zeros from now on."""
    if tensor.device.type == "cpu":
        forget(tensor.data_ptr(), int(tensor.nbytes))


def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _runs(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Adjacent numbers as [first, stop), at most ``MOST_AT_ONCE`` together."""
    runs: list[tuple[int, int]] = []
    for page in sorted(pages):
        if runs and runs[-1][1] == page and page - runs[-1][0] < MOST_AT_ONCE:
            runs[-1] = (runs[-1][0], page + 1)
        else:
            runs.append((page, page + 1))
    return runs


def _page_size() -> int:
    """Bytes of a huge page; 0 if there are none to be had."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        if "[never]" in (SETTINGS / "enabled").read_text():
            return 0
        return int((SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0
