"""A link under a clock of its own, for the window of bulk: one wire, one queue, delays that wander, other traffic."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from bloombee.links.window import BulkWindow


@dataclass
class SimulatedLink:
    """
    Args:
        bytes_per_s: of the wire, at a time.
        delay_s: each way, without wire and queue. longer: (from when on, how many times that).
        jitter_s: what each way's delay wanders up from there, along straight lines.
        noise_s: mean of what an acknowledgement is late by itself.
        other: (bytes, every so many seconds) that share the wire and overtake nothing.
        has_data: whether the sender has something to send, at a time.
    """

    bytes_per_s: Callable[[float], float]
    delay_s: float
    jitter_s: float = 0.0
    noise_s: float = 0.0
    other: tuple[int, float] | None = None
    has_data: Callable[[float], bool] = lambda now: True
    longer: tuple[float, float] = (math.inf, 1.0)
    seed: int = 0
    window: BulkWindow = field(default_factory=BulkWindow)
    delivered: int = 0
    delivered_at: list[tuple[float, int]] = field(default_factory=list)
    queue: list[tuple[float, float]] = field(default_factory=list)
    """(time, seconds that a frame would wait for the wire), each millisecond."""
    over_bytes: int = 0
    """Most that was on its way beyond the window when a piece left."""

    def run(self, seconds: float) -> SimulatedLink:
        self._random = random.Random(self.seed)
        self._points: list[dict[int, float]] = [{}, {}]
        self._events: list[tuple[float, int, str, tuple[int, int]]] = []
        self._busy_until = self._last_arrival = self._last_ack = 0.0
        self._timer = 0
        self._push(0.0, "sample")
        self._push(0.0, "timer")
        if self.other is not None:
            self._push(0.0, "other")
        while self._events[0][0] <= seconds:
            now, _, kind, what = heapq.heappop(self._events)
            if kind == "sample":
                self.queue.append((now, max(0.0, self._busy_until - now)))
                self._push(now + 0.001, "sample")
            elif kind == "other" and self.other is not None:
                self._wire(now, self.other[0])
                self._push(now + self.other[1], "other")
            elif kind == "piece":
                late = self._random.expovariate(1 / self.noise_s) if self.noise_s else 0.0
                self._last_ack = max(self._last_ack, now + self._delay_s(now) + self._wander(1, now) + late)
                self._push(self._last_ack, "ack", what)
            elif kind == "ack":
                self.delivered += what[1]
                self.delivered_at.append((now, self.delivered))
                self.window.acked(what[0] + 1, now)
                self._send(now)
            elif what[0] == self._timer:
                self._send(now)
        return self

    def waits_s(self, share: float, since: float = 0.0, until: float = 1e9) -> float:
        """Quantile of what a frame would have waited for the wire."""
        waits = sorted(wait for at, wait in self.queue if since <= at < until)
        return waits[int(share * (len(waits) - 1))]

    def share(self, since: float, until: float) -> float:
        """Bytes acknowledged meanwhile over those that the wire might have carried."""
        counts = [count for at, count in self.delivered_at if since <= at < until]
        return (counts[-1] - counts[0]) / (self.bytes_per_s(since) * (until - since)) if counts else 0.0

    def _delay_s(self, now: float) -> float:
        since, factor = self.longer
        return self.delay_s * (factor if now >= since else 1.0)

    def _send(self, now: float) -> None:
        window = self.window
        while self.has_data(now):
            size = window.piece_bytes
            wait_s = window.wait_s(now, size)
            if wait_s > 0:
                break
            number = window.sent(size, now)
            self.over_bytes = max(self.over_bytes, window.unacked_bytes - window.window_bytes)
            self._wire(now, size)
            self._last_arrival = max(
                self._last_arrival, self._busy_until + self._delay_s(now) + self._wander(0, self._busy_until)
            )
            self._push(self._last_arrival, "piece", (number, size))
        else:
            window.ran_dry()
            wait_s = 0.005
        self._timer += 1
        self._push(now + wait_s, "timer", (self._timer, 0))

    def _wire(self, now: float, num_bytes: int) -> None:
        self._busy_until = max(self._busy_until, now) + num_bytes / self.bytes_per_s(now)

    def _wander(self, way: int, now: float) -> float:
        step = int(now / 0.02)
        points = self._points[way]
        for number in (step, step + 1):
            if number not in points:
                points[number] = self._random.uniform(0.0, 2 * self.jitter_s)
        share = now / 0.02 - step
        return points[step] * (1 - share) + points[step + 1] * share

    def _push(self, at: float, kind: str, what: tuple[int, int] = (0, 0)) -> None:
        self._count = getattr(self, "_count", 0) + 1
        heapq.heappush(self._events, (at, self._count, kind, what))
