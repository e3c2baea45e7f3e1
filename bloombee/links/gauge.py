"""Measuring a link because somebody asked: how long it is, or how wide, with padding and within a few seconds. Pure.

Theory of operation. *How long*: a few probes of next to nothing, apart from each other, each acknowledged by itself; the
estimator takes the least of them, and what they vary by. *How wide*: trains of padding, each handed over at once, so that a
queue stands at the link's narrowest wire for as long as the train lasts. What it lasts is seen where it arrives, by the
reader's own clock that comes back with each acknowledgement: whatever the way back does, two arrivals are as far apart as
they were. The first train is small; the next is made for the time that one should last by what the last has shown, at most
GROWTH times as large. The first that lasts long enough counts, less its beginning: what a window of TCP or a bucket of
tokens lets through at once is not the wire's. So a link of any width is known after a handful of round trips and a second of
padding.

A link so wide that MOST_BYTES pass before a train should end is as wide as those show, at least. Nothing that is
under way is measured with: other traffic of one's own must rest meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from bloombee.links.estimator import LinkEstimator, LinkFacts, wire_bytes
from bloombee.wire.messages import LinkReport, MeasureLink

TRIPS, TRIP_GAP_S, GAP_FACTOR = 8, 0.02, 1.3
"""Round trips that are measured, how far apart the first two begin, and by what that grows: links that are measured at the same
time do not meet again and again."""
TRIP_BYTES = 1
FIRST_BYTES = 32 << 10
GROWTH = 32
TRAIN_S = 0.5
"""A train should last so long ..."""
FULL = 0.6
"""... and counts if it has lasted such a part of that."""
PROBES = 16
"""Of a train, so that its arrival is seen in parts; more would fill the way back with what acknowledges them."""
LEAST_PROBE_BYTES, MOST_PROBE_BYTES = 256, 1 << 17
MOST_BYTES = 4 << 20
SKIPPED = 0.4
"""Of a train, before it counts."""
LEAST_S = 0.001
"""A train that seems shorter is taken for one of so long."""
LIMIT_S = 4.0
"""What has not been seen by then is not waited for."""


@dataclass(frozen=True, slots=True)
class Train:
    """To be sent at once: so many probes with so much padding each."""

    num_probes: int
    probe_bytes: int


@dataclass(slots=True)
class _Sent:
    """A train on its way. ``marks``: (bytes read by then, seconds of the reader's clock)."""

    first: int
    num_probes: int
    probe_bytes: int
    marks: list[tuple[int, float]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return self.num_probes * self.probe_bytes

    @property
    def lasted_s(self) -> float:
        """Of all of it, by those parts that were seen apart."""
        num_bytes, seconds = self.marks[-1][0] - self.marks[0][0], self.marks[-1][1] - self.marks[0][1]
        return max(LEAST_S, seconds * self.num_bytes / num_bytes) if num_bytes else LEAST_S

    @property
    def rates(self) -> list[float]:
        """What marks half a train apart say, less its beginning; in order: a process that stalls reads late, so the middle one
        counts."""
        marks = [mark for mark in self.marks if mark[0] >= SKIPPED * self.num_bytes]
        half = len(marks) // 2
        apart = [(one[0] - other[0], one[1] - other[1]) for one, other in zip(marks[half:], marks, strict=False)]
        return sorted(num_bytes / seconds for num_bytes, seconds in apart if seconds > 0) or [self.num_bytes / self.lasted_s]


def link_report(order: MeasureLink, facts: LinkFacts) -> LinkReport:
    """The answer to an order to measure."""
    return LinkReport(target=order.target, codec="", number=order.number, **asdict(facts))


class Gauge:
    """Of one directed link, at its sender. Ask :meth:`next` at the beginning, after each acknowledgement and at ``wake_at``; say
    what was :meth:`sent` and :meth:`acked`.

    Args:
        estimator: of the link; learns what is seen.
        fills: how wide it is, else how long.
    """

    def __init__(self, estimator: LinkEstimator, now: float, *, fills: bool) -> None:
        self.is_over = False
        self.wake_at = now
        self._estimator = estimator
        self._fills = fills
        self._give_up_at = now + LIMIT_S
        self._trips: dict[int, float] = {}
        """Number of a probe on its way -> when it was sent."""
        self._trips_left = 0 if fills else TRIPS
        self._train: _Sent | None = None
        self._wanted = FIRST_BYTES

    def next(self, now: float) -> Train | None:
        """What to send now; None: nothing, until ``wake_at`` or an acknowledgement."""
        if now >= self._give_up_at:
            self.is_over = True
        if self.is_over:
            return None
        return self._next_train() if self._fills else self._next_trip(now)

    def _next_trip(self, now: float) -> Train | None:
        if not self._trips_left:
            self.wake_at = self._give_up_at
            return None
        if now < self.wake_at:
            return None
        self.wake_at = now + TRIP_GAP_S * GAP_FACTOR ** (TRIPS - self._trips_left)
        self._trips_left -= 1
        return Train(1, TRIP_BYTES)

    def _next_train(self) -> Train | None:
        self.wake_at = self._give_up_at
        if self._train is not None:
            return None
        size = min(max(math.ceil(self._wanted / PROBES), LEAST_PROBE_BYTES), MOST_PROBE_BYTES)
        return Train(math.ceil(self._wanted / size), size)

    def sent(self, first: int, train: Train, header_bytes: int, now: float) -> None:
        """A train went out, its probes numbered from ``first`` on; each with so much besides its padding."""
        if self._fills:
            self._train = _Sent(first, train.num_probes, wire_bytes(train.probe_bytes + header_bytes, 1))
        else:
            self._trips[first] = now

    def acked(self, upto: int, read_s: float, now: float) -> None:
        """All probes < ``upto`` have been read, the last of them at ``read_s`` by the reader's clock."""
        if self._fills:
            self._train_acked(upto, read_s, now)
        else:
            self._trip_acked(upto, now)

    def _trip_acked(self, upto: int, now: float) -> None:
        done = sorted(number for number in self._trips if number < upto)
        if done:
            self._estimator.trip(now - self._trips[done[-1]], wire_bytes(TRIP_BYTES, 1), now)
        for number in done:
            del self._trips[number]
        self.is_over = not self._trips and not self._trips_left

    def _train_acked(self, upto: int, read_s: float, now: float) -> None:
        train = self._train
        if train is None or upto <= train.first:
            return
        train.marks.append(((min(upto - train.first, train.num_probes)) * train.probe_bytes, read_s))
        if upto >= train.first + train.num_probes:
            self._train = None
            self._arrived(train, now)

    def _arrived(self, train: _Sent, now: float) -> None:
        lasted_s = train.lasted_s
        larger = min(GROWTH * train.num_bytes, int(train.num_bytes * TRAIN_S / lasted_s), MOST_BYTES)
        is_full = lasted_s >= FULL * TRAIN_S or larger <= train.num_bytes
        self._wanted = max(FIRST_BYTES, larger)
        if is_full:
            self._count(train, now)
            self.is_over = True

    def _count(self, train: _Sent, now: float) -> None:
        """Show the estimator how fast it came: as so many samples as there are parts that say so, all alike."""
        rates = train.rates
        seconds = (1 - SKIPPED) * train.lasted_s / len(rates)
        for _ in rates:
            self._estimator.filled(rates[len(rates) // 2] * seconds, seconds, now)
