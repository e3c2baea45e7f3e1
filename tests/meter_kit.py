"""Links under a clock of their own, for the meter: one wire, first in first out, delays that vary, two lanes."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import Any

from bloombee.links.estimator import LinkEstimator, LinkFacts
from bloombee.links.window import BulkWindow
from bloombee.types import Lane

MBIT = 1e6 / 8


@dataclass
class FakeLink:
    """First in, first out: serialisation at ``rate`` bytes/s, then half the round trip; the receiver waits before it answers."""

    rate: float
    rtt_s: float
    jitter_s: float = 0.0
    wait_s: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    free_at: float = 0.0

    def carry(self, num_bytes: int, now: float) -> tuple[float, float]:
        """(when its acknowledgement is back, how long it lay at the receiver)."""
        self.free_at = max(self.free_at, now) + num_bytes / self.rate
        waited = self.wait_s * self.rng.random()
        return self.free_at + self.rtt_s + self.jitter_s * self.rng.random() + waited, waited


def feed(estimator: LinkEstimator, link: FakeLink, sizes: list[int], *, start: float, every_s: float) -> float:
    """Frames handed over ``every_s`` apart; acknowledgements in order. Returns when the last was sent."""
    acks = []
    now = start
    for size in sizes:
        back, waited = link.carry(size, now)
        acks.append((back, size, now, waited))
        now += every_s
    last = 0.0
    for back, size, sent, waited in acks:
        last = max(last, back)
        estimator.acknowledged(1, size, sent, last, waited + last - back)
    return now


def circulate(
    estimator: LinkEstimator, link: FakeLink, count: int, size: int, *, others_s: float, start: float, seconds: float
) -> float:
    """``count`` frames go round a ring: over the link, then ``others_s`` of others (it scatters by a hundredth), and again.

    Returns when the last was acknowledged.
    """
    # When, what (0: send, 1: acknowledge), when it was sent, how long it lay at the receiver.
    ready = [(start + number * 0.002, 0, 0.0, 0.0) for number in range(count)]
    last = start
    while ready:
        now, kind, sent, waited = heapq.heappop(ready)
        if kind:
            last = max(last, now)
            estimator.acknowledged(1, size, sent, last, waited + last - now)
        elif now < start + seconds:
            back, waited = link.carry(size, now)
            heapq.heappush(ready, (back, 1, now, waited))
            heapq.heappush(ready, (back - waited - link.rtt_s / 2 + others_s * link.rng.uniform(0.99, 1.01), 0, 0.0, 0.0))
    return last


class TwoLanes:
    """A link with real windows of bulk and frames beside them: what its estimator makes of it.

    Args:
        jitter_s: each way, evenly from none to this; a lane keeps its order.
    """

    def __init__(self, rate: float, rtt_s: float, jitter_s: float = 0.0, seed: int = 1) -> None:
        self._rate, self._rtt_s, self._jitter_s = rate, rtt_s, jitter_s
        self._random = random.Random(seed)
        self._free_at = 0.0
        self._arrived = dict.fromkeys(Lane, 0.0)
        self._back_at = 0.0
        self._events: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self._window = BulkWindow()
        self._control_bytes = 0
        self._timer = 0
        self.estimator = LinkEstimator()

    def run(
        self,
        seconds: float,
        *,
        control: tuple[int, float] | None = None,
        bulk: bool = False,
        longer: tuple[float, float] | None = None,
    ) -> LinkFacts:
        """Eight small frames, then for ``seconds``: frames of (bytes, every so many seconds), and bulk without an end.

        Args:
            longer: (after how many of the seconds, what the round trip is then).
        """
        pause_s = self._rtt_s + 0.1
        for index in range(8):
            self._push(index * pause_s, "frame", 200, 0.0)
        start = 8 * pause_s
        if control is not None:
            self._push(start, "frame", *control)
        if bulk:
            self._push(start, "timer", 0)
        if longer is not None:
            self._push(start + longer[0], "longer", longer[1])
        while self._events and self._events[0][0] < start + seconds:
            now, _, kind, what = heapq.heappop(self._events)
            getattr(self, f"_on_{kind}")(now, *what)
        return self.estimator.facts()

    def _on_frame(self, now: float, num_bytes: int, period_s: float) -> None:
        self._control_bytes += num_bytes
        waited_s = self._random.choice((0.0, 0.02)) * self._random.random()  # some lie at the receiver for long
        at = self._carry(num_bytes, now, Lane.CONTROL)
        self._push(at + waited_s + self._way_s(), "ack", num_bytes, now, waited_s)
        if period_s:
            self._push(now + period_s, "frame", num_bytes, period_s)

    def _on_longer(self, _: float, rtt_s: float) -> None:
        self._rtt_s = rtt_s

    def _on_ack(self, now: float, num_bytes: int, sent: float, waited_s: float) -> None:
        self.estimator.acknowledged(1, num_bytes, sent, now, waited_s)

    def _on_pieces(self, now: float, upto: int) -> None:
        self._window.acked(upto, now)
        self.estimator.pieces_acked(upto, now)
        self._send(now)

    def _on_timer(self, now: float, number: int) -> None:
        if number == self._timer:
            self._send(now)

    def _send(self, now: float) -> None:
        while (wait_s := self._window.wait_s(now, self._window.piece_bytes)) <= 0:
            size = self._window.piece_bytes
            number = self._window.sent(size, now)
            self.estimator.piece_sent(number, size, self._control_bytes, now)
            self._back_at = max(self._back_at, self._carry(size, now, Lane.BULK) + self._way_s())
            self._push(self._back_at, "pieces", number + 1)
        self._timer += 1
        self._push(now + wait_s, "timer", self._timer)

    def _carry(self, num_bytes: int, now: float, lane: Lane) -> float:
        self._free_at = max(self._free_at, now) + num_bytes / self._rate
        self._arrived[lane] = max(self._arrived[lane], self._free_at + self._way_s())
        return self._arrived[lane]

    def _way_s(self) -> float:
        return self._rtt_s / 2 + self._random.uniform(0, self._jitter_s)

    def _push(self, at: float, kind: str, *what: Any) -> None:
        self._count = getattr(self, "_count", 0) + 1
        heapq.heappush(self._events, (at, self._count, kind, what))
