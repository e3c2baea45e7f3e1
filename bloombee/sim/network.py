"""Links in memory: latency, bandwidth, and faults drawn from one seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from bloombee.sim.clock import VirtualClock


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to a message on a link. Probabilities in [0, 1); delays uniform in [0, max_extra_delay_s]."""

    lose: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    max_extra_delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LinkShape:
    """One direction of a link. ``bandwidth_bytes_per_s`` None: unlimited."""

    latency_s: float = 0.0005
    bandwidth_bytes_per_s: float | None = None


class SimLink:
    """One direction. In order unless a fault delays a message past a later one.

    Args:
        rng: shared by all links of a cluster, so that one seed gives one trace.
    """

    def __init__(self, clock: VirtualClock, rng: random.Random, shape: LinkShape, faults: Faults) -> None:
        self._clock = clock
        self._rng = rng
        self._faults = faults
        self.shape = shape
        self.busy_s = 0.0
        self.num_bytes = 0
        self._free_at = 0.0

    def send(self, num_bytes: int, deliver: Callable[[], None], *, reliable: bool = False) -> None:
        """Deliver after the wire time and the latency; ``reliable`` messages meet no fault."""
        wire_s = num_bytes / self.shape.bandwidth_bytes_per_s if self.shape.bandwidth_bytes_per_s else 0.0
        self.busy_s += wire_s
        self.num_bytes += num_bytes
        self._free_at = max(self._free_at, self._clock.now) + wire_s
        arrival = self._free_at + self.shape.latency_s
        if reliable:
            self._clock.call_at(arrival, deliver)
            return
        copies = 1 - (self._rng.random() < self._faults.lose) + (self._rng.random() < self._faults.duplicate)
        for _ in range(copies):
            extra = self._rng.uniform(0, self._faults.max_extra_delay_s) if self._rng.random() < self._faults.delay else 0.0
            self._clock.call_at(arrival + extra, deliver)
