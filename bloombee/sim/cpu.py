"""Cores that everything on one machine takes turns on: first come, first served, each turn to its end. And what other programs
do to those who sleep and wait on it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(slots=True)
class Crowd:
    """Other programs on the machines: who wakes up there is given a core late.

    Args:
        share: of the times; mean_s: by so much on average, exponentially distributed. Both may be changed at any time.
    """

    rng: random.Random
    share: float = 0.0
    mean_s: float = 0.0

    def late_s(self) -> float:
        """Of one who wakes up now."""
        return self.rng.expovariate(1 / self.mean_s) if self.share and self.rng.random() < self.share else 0.0
