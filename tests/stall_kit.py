"""A watch on this machine for tests that bound a time: what it stood still is nobody's fault but its own."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

EVERY_S = 0.005
STALL_S = 0.05
"""Shorter stalls are part of what is bounded."""


class StallWatch:
    """A thread that does nothing but look at the clock; ``stalled_s`` is what was longer than STALL_S."""

    def __init__(self) -> None:
        self._lost: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def stalled_s(self, since: float) -> float:
        """All stalls that ended after ``since`` (by the monotonic clock), together."""
        return sum(seconds for ended, seconds in self._lost if ended > since)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(EVERY_S):
            now = time.monotonic()
            if now - last > STALL_S:
                self._lost.append((now, now - last))
            last = now
