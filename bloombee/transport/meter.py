"""Feeds a link's estimator with the frames that really went over it (plan/meter.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.plan.meter import LinkEstimator, LinkFacts
from bloombee.wire.messages import Ack

MAX_UNACKNOWLEDGED = 4096
"""Frames of a receiver that never acknowledges must not pile up."""


@dataclass(slots=True)
class LinkMeter:
    """Of one directed link, at its sender: :meth:`sent` after each Forward or Verdict, :meth:`acked` on each Ack.

    Frames sent twice are not timed: nobody knows which of the two was acknowledged.
    """

    _estimator: LinkEstimator = field(default_factory=LinkEstimator)
    _sent: dict[int, tuple[int, float]] = field(default_factory=dict)
    """frame -> bytes and when it was handed over; time < 0: more than once."""
    _upto: int = 0

    def sent(self, frame: int, num_bytes: int, now: float) -> None:
        """``now``: seconds of any monotonic clock, >= 0."""
        if frame in self._sent or frame < self._upto:
            if frame in self._sent:
                self._sent[frame] = (num_bytes, -1.0)
            return
        if len(self._sent) >= MAX_UNACKNOWLEDGED:
            self._sent.pop(next(iter(self._sent)))
        self._sent[frame] = (num_bytes, now)

    def acked(self, ack: Ack, now: float) -> None:
        """The receiver holds every frame < ``ack.upto`` and those in ``ack.extra``; the newest for ``ack.waited_us``."""
        held = [frame for frame in self._sent if frame < ack.upto or frame in ack.extra]
        self._upto = max(self._upto, ack.upto)
        if not held:
            return
        frames = [self._sent.pop(frame) for frame in sorted(held)]
        if all(at >= 0 for _, at in frames):
            num_bytes = sum(size for size, _ in frames)
            self._estimator.acknowledged(len(frames), num_bytes, frames[0][1], now, ack.waited_us / 1e6)

    def restart(self) -> None:
        """The connection came back: what is under way is not timed."""
        self._sent = {frame: (size, -1.0) for frame, (size, _) in self._sent.items()}

    def facts(self) -> LinkFacts:
        return self._estimator.facts()
