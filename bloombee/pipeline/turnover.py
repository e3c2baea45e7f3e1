"""How fast requests end while there are any, and so when there is a place for whoever is refused now. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

SEEN = 64
"""Ends of late that tell how fast they come."""
MOST_S = 60.0
"""Nobody is sent away for longer: by then everything may be different."""


@dataclass(slots=True)
class Turnover:
    """Of the requests of one head. Its clock stands still while there are none: idle times say nothing of how fast they end."""

    _num_open: int = 0
    _active_s: float = 0.0
    """Up to the last moment at which there was no request any more."""
    _active_since: float = 0.0
    _ends: deque[float] = field(default_factory=lambda: deque([0.0], maxlen=SEEN + 1))
    """By that clock, after one that stands for its beginning, as long as there were few."""
    _promised_at: float = 0.0
    """By that clock: the place that the last one who was refused may expect."""

    def began(self, now: float) -> None:
        if not self._num_open:
            self._active_since = now
        self._num_open += 1

    def ended(self, now: float, *, had_tokens: bool) -> None:
        """One that had none was taken back at once, perhaps: it tells nothing."""
        if had_tokens:
            self._ends.append(self._clock(now))
        self._num_open -= 1
        if not self._num_open:
            self._active_s += now - self._active_since

    def refused(self, now: float) -> float:
        """Seconds until there should be a place for one that is refused now, after all that were refused before it.

        As long as none has ended, as long again as they have taken so far.
        """
        clock = self._clock(now)
        each_s = (clock - self._ends[0]) / max(1, len(self._ends) - 1)
        self._promised_at = min(max(clock, self._promised_at) + each_s, clock + MOST_S)
        return self._promised_at - clock

    def _clock(self, now: float) -> float:
        return self._active_s + (now - self._active_since if self._num_open else 0.0)
