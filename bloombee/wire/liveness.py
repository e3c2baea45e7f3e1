"""Whether a link whose connections broke is still coming back. Pure: time is passed in, in seconds.

Theory of operation. A broken connection is no lost peer: a NAT that forgot, a relay that restarted, a reset on the way. The
dialler dials again by itself, and until it is back takes what its link allows. How long that is follows from its round trip::

    ZeroMQ waits RECONNECT_S before it dials; then TCP, ZMTP's greeting, CURVE's two exchanges and Hello go once round each

So a link is lost once it has been away for that and as much again. Whoever judges must know the round trip: the dialler
knows it from Hello and Welcome, the head from its heartbeats, which workers give back. Between two workers the dialler judges:
it also sees a port that refuses, which is proof at once.

The two lanes are connections of their own: the link is whole when both are back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from bloombee.types import Lane

RECONNECT_S = 0.2
"""At most, between the end of a connection and ZeroMQ's first try of another (transport/sockets.py)."""
RECONNECT_TRIPS = 5
SPARE_TRIPS, SPARE_S = 5, 0.5
"""What a link may take besides: machines stall, and a packet may be lost on the way back."""
UNKNOWN_RTT_S = 0.5
"""Taken for the round trip until one was measured."""
TRIPS = 8
"""Round trips that are remembered; the least of them counts, for what they are longer by is no link."""


def grace_s(rtt_s: float) -> float:
    """How long a link of that round trip may be away."""
    return RECONNECT_S + SPARE_S + (RECONNECT_TRIPS + SPARE_TRIPS) * rtt_s


@dataclass(slots=True)
class Liveness:
    """Of one link, at one end."""

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
