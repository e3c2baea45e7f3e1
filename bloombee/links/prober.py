"""When a link that carries nothing is worth a few bytes to learn its bandwidth, and how many. Pure.

A train of padding is sent at once. Too short a train says nothing (links/estimator.py), but from how long it took at most follows
how much larger the next may be. Its time on the wire is at most a hundredth of all time, by keeping still for a hundred times
as long after each; none is meant to last longer than LONGEST_S, for what comes meanwhile waits for it. Where real frames
have shown the bandwidth lately there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_BYTES = 6144
MAX_BYTES = 1 << 20
GROWTH = 4
MARGIN = 1.5
"""A train is made for so many times the least time that says something."""
LONGEST_S = 0.03
IDLE_S = 1.0
STALE_S = 60.0
SHARE = 0.01
LEAST_BUSY_S = 0.0005
"""A train counts for no less."""


@dataclass(slots=True)
class Prober:
    """Of one directed link. Ask :meth:`wants`; say what was :meth:`sent`, and when all of it was :meth:`answered`."""

    _num_bytes: int = FIRST_BYTES
    _not_before: float = -math.inf
    _under_way: tuple[int, float] | None = None

    def wants(self, now: float, *, idle_s: float, sampled_at: float, bandwidth: float | None, least_train_s: float) -> int:
        """Bytes to send now; 0: none.

        Args:
            idle_s: since anything else was on its way.
            sampled_at, bandwidth, least_train_s: of the link's estimator; bandwidth in bytes per second.
        """
        if self._under_way is not None or idle_s < IDLE_S or now < self._not_before or now - sampled_at < STALE_S:
            return 0
        if bandwidth:
            wanted = MARGIN * least_train_s * bandwidth
            self._num_bytes = max(FIRST_BYTES, math.ceil(wanted)) if MARGIN * least_train_s <= LONGEST_S else 0
        return min(self._num_bytes, MAX_BYTES)

    def sent(self, num_bytes: int, now: float) -> None:
        self._under_way = (num_bytes, now)

    def answered(self, now: float, *, base_rtt_s: float, least_train_s: float) -> None:
        """All of the train was acknowledged."""
        if self._under_way is None:
            return
        num_bytes, since = self._under_way
        busy_s = max(LEAST_BUSY_S, now - since - base_rtt_s)
        wanted_s = min(MARGIN * least_train_s, LONGEST_S)
        larger = min(GROWTH * num_bytes, int(num_bytes * wanted_s / busy_s))
        is_last = num_bytes >= MAX_BYTES or larger <= num_bytes
        self._under_way = None
        self._not_before = now + max(busy_s / SHARE, STALE_S if is_last else 0.0)
        self._num_bytes = FIRST_BYTES if is_last else larger

    def lost(self) -> None:
        """The connection is gone."""
        self._under_way = None
