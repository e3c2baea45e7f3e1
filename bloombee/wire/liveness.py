"""Whether who is at the other end of a link is still there. Pure: time is passed in, in seconds.

Theory of operation. Two things say that a peer is lost, and one end of each link judges by them (docs/adr/0032, 0033).

*Its connections broke and do not come back.* A broken connection is no lost peer: a NAT that forgot, a relay that restarted, a
reset on the way. The dialler dials again by itself, and until it is back takes what its link allows::

    ZeroMQ waits RECONNECT_S before it dials; then TCP, ZMTP's greeting, CURVE's two exchanges and Hello go once round each

So a link is lost once it has been away for five round trips and half a second. The two lanes are connections of their own: the
link is whole when both are back. A port that refuses is proof at once.

*Its connections stand and nothing comes.* Whoever judges asks every ``heartbeat_s`` and the other end gives the question back, so
a wire that is dark one way is found as one that is dark both ways. Silence counts from the last word of any kind, and may last
``silence_s``; longer where the round trip is long, where this process's own loop is late, or where much is on its way: a decode
frame of a wide model may cross a slow wire for seconds, and the question waits behind it. What is on its way is known, since
what went before a question that was answered has arrived.

Only time in which this process was awake counts. One that stood still, whole or for want of the interpreter's lock, has yet to
read what came meanwhile.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bloombee.types import Lane

RECONNECT_S = 0.04
"""At most, between the end of a connection and ZeroMQ's first try of another (transport/sockets.py)."""
RECONNECT_TRIPS, SPARE_S = 5, 0.5
"""What coming back takes, and RECONNECT_S with what a machine may stall."""
UNKNOWN_RTT_S = 0.5
"""Taken for the round trip until one was measured."""
TRIPS = 40
"""Round trips that are remembered; the least of them counts, for what they are longer by is no link."""
SILENT_TRIPS = 6
"""TCP sends a lost packet again after a round trip or two, and one that is lost again after as many more."""
LATE_FACTOR = 1.5
LATE_QUANTILE = 0.999
TICKS = 4096
"""That are remembered."""
AWAKE_TICKS = 2
"""A tick that comes later than this was not this process's time."""
ON_WAY_FACTOR = 2
"""What is on its way may take so many times as long as the link says."""
SLOWEST_BYTES_PER_S = 125_000.0
"""A link is taken for no slower while its bandwidth is not known."""
MOST_UNANSWERED = 256


def grace_s(rtt_s: float) -> float:
    """How long a link of that round trip may be away."""
    return SPARE_S + RECONNECT_TRIPS * rtt_s


class LoopClock:
    """How long this process's event loop has been awake, and how late it gets.

    Args:
        every_s: how often it is meant to tick.
    """

    __slots__ = ("_awake_s", "_every_s", "_late", "_ticked_at")

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._awake_s = 0.0
        self._ticked_at: float | None = None
        self._late: deque[float] = deque(maxlen=TICKS)

    def tick(self, now: float) -> None:
        if self._ticked_at is not None:
            self._awake_s = self.awake_s(now)
            self._late.append(max(0.0, now - self._ticked_at - self._every_s))
        self._ticked_at = now

    def awake_s(self, now: float) -> float:
        """Since the first tick, less what this process stood still."""
        if self._ticked_at is None:
            return 0.0
        return self._awake_s + min(now - self._ticked_at, AWAKE_TICKS * self._every_s)

    @property
    def lateness_s(self) -> float:
        """What one tick in a thousand is late by, of late; one alone is no habit. Costs a sort."""
        late = sorted(self._late)
        return late[int(LATE_QUANTILE * (len(late) - 1))] if late else 0.0


@dataclass(slots=True)
class Liveness:
    """Of the connections of one link, at one end."""

    _broken_at: dict[Lane, float] = field(default_factory=dict)
    _trips: deque[float] = field(default_factory=lambda: deque(maxlen=TRIPS))

    @property
    def is_whole(self) -> bool:
        return not self._broken_at

    @property
    def rtt_s(self) -> float | None:
        """The least of late; None: none was measured."""
        return min(self._trips, default=None)

    @property
    def grace_s(self) -> float:
        rtt_s = self.rtt_s
        return grace_s(UNKNOWN_RTT_S if rtt_s is None else rtt_s)

    def timed(self, round_trip_s: float) -> None:
        """Something was answered at once after so long."""
        self._trips.append(round_trip_s)

    def broke(self, lane: Lane, now: float) -> None:
        """The lane's connection ended; said again while it is away it changes nothing."""
        self._broken_at.setdefault(lane, now)

    def back(self, lane: Lane) -> bool:
        """The lane's connection is there; True: with that the link is whole again."""
        return self._broken_at.pop(lane, None) is not None and not self._broken_at

    def away_s(self, now: float) -> float:
        """Since the first of the lanes that are away broke; 0 for a whole link."""
        return now - min(self._broken_at.values(), default=now)

    def is_lost(self, now: float) -> bool:
        """It has been away for longer than coming back can take."""
        return self.away_s(now) > self.grace_s


class LinkWatch:
    """The eye on a link of whoever judges it.

    Args:
        clock: this process's.
        heartbeat_s: how often it is asked whether the peer is there.
        silence_s: how long nothing may come over a link that is short and has nothing on its way.
        now: from when on silence counts.
    """

    __slots__ = ("_arrived", "_asked", "_asked_at", "_clock", "_count", "_heard_at", "_heartbeat_s", "_silence_s", "liveness")

    def __init__(self, clock: LoopClock, *, heartbeat_s: float, silence_s: float, now: float) -> None:
        self.liveness = Liveness()
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s
        self._count = 0
        self._asked: deque[tuple[int, float, int]] = deque(maxlen=MOST_UNANSWERED)
        """(count, when, bytes sent until then) of questions that are not answered, oldest first."""
        self._asked_at = -math.inf
        self._arrived = 0
        """Bytes sent that are known to have come."""
        self._heard_at = clock.awake_s(now)

    def broke(self, lane: Lane, now: float) -> None:
        self.liveness.broke(lane, self._clock.awake_s(now))

    def back(self, lane: Lane, now: float) -> bool:
        """True: the link is whole again, and what was under way on it may be lost."""
        is_whole = self.liveness.back(lane)
        if is_whole:
            self._asked.clear()
            self.heard(now)
        return is_whole

    def heard(self, now: float) -> None:
        """The peer said something, or is excused."""
        self._heard_at = self._clock.awake_s(now)

    def silent_s(self, now: float) -> float:
        """Since the peer said something."""
        return self._clock.awake_s(now) - self._heard_at

    def is_due(self, now: float) -> bool:
        """It is time to :meth:`ask`."""
        return now - self._asked_at >= self._heartbeat_s

    def ask(self, now: float, sent_bytes: int) -> int | None:
        """The count of the question to be said now; None: the link is broken.

        Args:
            sent_bytes: over the link, by this end, so far, with what waits to be sent.
        """
        if not self.liveness.is_whole:
            self._arrived = sent_bytes  # or it is lost, and will be sent again
            return None
        self._asked_at = now
        self._count += 1
        self._asked.append((self._count, now, sent_bytes))
        return self._count

    def answered(self, count: int, now: float) -> None:
        """A question came back; one that is unknown says only that the peer is there."""
        self.heard(now)
        while self._asked and self._asked[0][0] <= count:
            asked, then, self._arrived = self._asked.popleft()
            if asked == count:
                self.liveness.timed(now - then)

    def why_lost(self, now: float, bandwidth: Callable[[], float | None], patience_s: float = 0.0) -> str | None:
        """Why the peer must be taken for lost; None: it need not be.

        Args:
            bandwidth: bytes a second that the link carries; None: nobody knows.
            patience_s: it may be silent for so long at least.
        """
        awake_s = self._clock.awake_s(now)
        if self.liveness.is_lost(awake_s):
            return f"its connection is broken and has not come back for {self.liveness.away_s(awake_s):.1f} s"
        silent_s = self.silent_s(now)
        if silent_s <= max(self._silence_s, patience_s) or not self.liveness.is_whole:
            return None
        on_way_s = self._on_way_s(bandwidth() or SLOWEST_BYTES_PER_S)
        limit_s = max(self._silence_s, SILENT_TRIPS * (self.liveness.rtt_s or 0.0), LATE_FACTOR * self._clock.lateness_s)
        return f"nothing has come from it for {silent_s:.1f} s" if silent_s > limit_s + on_way_s else None

    def _on_way_s(self, bandwidth_bytes_per_s: float) -> float:
        """What the answer that is due may be held up by, besides what crosses between two questions on a wire that is full."""
        num_bytes = self._asked[0][2] - self._arrived if self._asked else 0
        return ON_WAY_FACTOR * max(0.0, num_bytes / bandwidth_bytes_per_s - self._heartbeat_s)
