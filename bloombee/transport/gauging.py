"""Measurements of links under way: what a gauge (links/gauge.py) wants sent goes out on the link's bulk lane."""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import TYPE_CHECKING

from bloombee.links.gauge import Gauge, Train
from bloombee.transport.bulk import Bulk
from bloombee.transport.lanes import LanePort, Unreachable
from bloombee.wire.envelope import encode_envelope
from bloombee.wire.messages import Probe

if TYPE_CHECKING:
    from bloombee.transport.outbox import Outbox


class Gauging:
    """Of one link and direction, from when it is made until ``done`` is called: once, whatever came of it."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        outbox: Outbox,
        port: LanePort,
        bulk: Bulk,
        *,
        fills: bool,
        done: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._port = port
        self._bulk = bulk
        self._gauge = Gauge(bulk.estimator, time.monotonic(), fills=fills)
        self._done = done
        self._timer: TimerHandle | None = None

    def go_on(self) -> None:
        """Send what is due, or end."""
        self._cancel()
        gauge, now = self._gauge, time.monotonic()
        while (train := gauge.next(now)) is not None:
            if not self._send(train, now):
                self.end()
                return
        if gauge.is_over:
            self.end()
            return
        self._timer = self._loop.call_later(max(0.0, gauge.wake_at - now), self.go_on)

    def _send(self, train: Train, now: float) -> bool:
        """False: the link is not there."""
        window, padding = self._bulk.window, bytes(train.probe_bytes)
        first = window.next_number
        for _ in range(train.num_probes):
            header = encode_envelope(self._outbox.swarm, Probe(window.skip(), padding))
            try:
                self._outbox.send(self._port, header)
            except Unreachable:
                return False
        self._gauge.sent(first, train, len(header) - train.probe_bytes, now)
        return True

    def acked(self, upto: int, read_us: int) -> None:
        """Probes have been read."""
        self._gauge.acked(upto, read_us / 1e6, time.monotonic())
        self.go_on()

    def end(self) -> None:
        """It is over, as far as it came."""
        self._cancel()
        if self._bulk.gauging is self:
            self._bulk.gauging = None
            self._loop.call_soon(self._done)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
