"""Cores that everything on one machine takes turns on: first come, first served, each turn to its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bloombee.sim.clock import VirtualClock


class CorePool:
    """``count`` cores; None: one for everything that wants one."""

    def __init__(self, clock: VirtualClock, count: int | None) -> None:
        self.busy_s = 0.0
        self._clock = clock
        self._free = count
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()

    def take(self, seconds: float, then: Callable[[], None]) -> None:
        """Hold a core for ``seconds`` as soon as one is free, then act."""
        self.busy_s += seconds
        if self._free is None or seconds <= 0:
            self._clock.call_later(seconds, then)
        elif self._free > 0:
            self._free -= 1
            self._clock.call_later(seconds, lambda: self._end(then))
        else:
            self._waiting.append((seconds, then))

    def _end(self, then: Callable[[], None]) -> None:
        if self._waiting:
            seconds, later = self._waiting.popleft()
            self._clock.call_later(seconds, lambda: self._end(later))
        else:
            assert self._free is not None
            self._free += 1
        then()
