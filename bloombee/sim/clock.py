"""Virtual time: a heap of things to do, each at its moment; ties go in the order they were asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualClock:
    """``now`` moves only inside :meth:`run`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def call_at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(moment, self.now), self._count, action))
        self._count += 1

    def call_later(self, delay_s: float, action: Callable[[], None]) -> None:
        self.call_at(self.now + delay_s, action)

    def run(self, until: Callable[[], bool], *, deadline_s: float) -> bool:
        """Act until ``until()`` holds (True) or ``deadline_s`` has passed or nothing is left (False)."""
        while not until():
            if not self._heap or self._heap[0][0] > deadline_s:
                return False
            self.now, _, action = heapq.heappop(self._heap)
            action()
        return True
