"""Links in memory: latency, bandwidth, and faults drawn from one seeded generator."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from bloombee.sim.clock import VirtualClock
from bloombee.types import Lane

PIECE_BYTES = 16 << 10
"""Of bulk that is committed to the wire at once: docs/wire.md section 9."""


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


@dataclass(slots=True)
class _Message:
    left: int
    deliver: Callable[[], None]
    reliable: bool


class SimLink:
    """One direction: one wire, two lanes. In order within a lane unless a fault delays a message past a later one; control
    goes between the pieces of bulk.

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
        self.num_pieces = 0
        """Of bulk, that have left the wire."""
        self._connection = 0
        self._is_cut = False
        self._held: list[tuple[int, Callable[[], None], Lane]] = []
        self._waiting: dict[Lane, deque[_Message]] = {lane: deque() for lane in Lane}
        self._is_busy = False

    def send(self, num_bytes: int, deliver: Callable[[], None], *, lane: Lane = Lane.CONTROL, reliable: bool = False) -> None:
        """Deliver after the wire time and the latency; ``reliable`` messages meet no fault."""
        if self._is_cut and not reliable:
            self._held.append((num_bytes, deliver, lane))
            return
        self.num_bytes += num_bytes
        message = _Message(num_bytes, deliver, reliable)
        if not self.shape.bandwidth_bytes_per_s:
            self._arrive(message)
            return
        self._waiting[lane].append(message)
        if not self._is_busy:
            self._begin_piece(self.shape.bandwidth_bytes_per_s)

    def cut(self) -> None:
        """Its connections are reset: what is on its way is lost, and what is said meanwhile waits."""
        self._connection += 1
        self._is_cut = True
        for waiting in self._waiting.values():
            kept = [message for message in waiting if message.reliable]
            waiting.clear()
            waiting.extend(kept)

    def mend(self, *, keeps: bool) -> None:
        """The connections are back. ``keeps``: this end dialled, and what waited goes now; else it is lost."""
        self._is_cut = False
        held, self._held = self._held, []
        for num_bytes, deliver, lane in held if keeps else ():
            self.send(num_bytes, deliver, lane=lane)

    def _begin_piece(self, rate: float) -> None:
        lane = next((lane for lane in Lane if self._waiting[lane]), None)
        self._is_busy = lane is not None
        if lane is None:
            return
        message = self._waiting[lane][0]
        size = min(message.left, PIECE_BYTES) if lane is Lane.BULK else message.left
        message.left -= size
        self.busy_s += size / rate

        def end() -> None:
            self.num_pieces += lane is Lane.BULK
            if message.left == 0 and self._waiting[lane] and self._waiting[lane][0] is message:
                self._waiting[lane].popleft()
                self._arrive(message)
            self._begin_piece(rate)

        self._clock.call_later(size / rate, end)

    def _arrive(self, message: _Message) -> None:
        """It has left the wire."""
        arrival, deliver = self._clock.now + self.shape.latency_s, message.deliver
        if message.reliable:
            self._clock.call_at(arrival, deliver)
            return
        connection = self._connection

        def land() -> None:
            if connection == self._connection:
                deliver()

        copies = 1 - (self._rng.random() < self._faults.lose) + (self._rng.random() < self._faults.duplicate)
        for _ in range(copies):
            extra = self._rng.uniform(0, self._faults.max_extra_delay_s) if self._rng.random() < self._faults.delay else 0.0
            self._clock.call_at(arrival + extra, land)
