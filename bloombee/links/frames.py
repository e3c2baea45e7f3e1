"""Feeds a link's estimator with the frames that really went over it (links/estimator.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.links.estimator import LinkEstimator, LinkFacts, wire_bytes
from bloombee.types import Lane
from bloombee.wire.messages import Ack

MAX_UNACKNOWLEDGED = 4096
"""Frames of a receiver that never acknowledges must not pile up."""


@dataclass(slots=True)
class LinkMeter:
    """Of one directed link, at its sender: :meth:`sent` after each Forward or Verdict, :meth:`acked` on each Ack.

    Frames sent twice are not timed: nobody knows which of the two was acknowledged. Nor are those of the bulk lane: they go
    in pieces, which the endpoint shows the estimator.

    Args:
        estimator: of the link; the endpoint's, so that it sees pieces as well.
    """

    estimator: LinkEstimator = field(default_factory=LinkEstimator)
    _sent: dict[Lane, dict[int, tuple[int, float]]] = field(default_factory=lambda: {lane: {} for lane in Lane})
    """lane -> frame -> bytes on the wire and when it was handed over; time < 0: not to be timed."""
    _upto: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))

    def sent(self, lane: Lane, frame: int, num_bytes: int, num_parts: int, now: float) -> None:
        """``now``: seconds of any monotonic clock, >= 0. ``num_parts``: of the multipart, its header counted."""
        sent = self._sent[lane]
        if frame in sent or frame < self._upto[lane]:
            if frame in sent:
                sent[frame] = (sent[frame][0], -1.0)
            return
        if len(sent) >= MAX_UNACKNOWLEDGED:
            sent.pop(next(iter(sent)))
        sent[frame] = (wire_bytes(num_bytes, num_parts), now if lane is Lane.CONTROL else -1.0)

    def acked(self, ack: Ack, now: float) -> None:
        """The receiver holds every frame < ``ack.upto`` and those in ``ack.extra``; the newest for ``ack.waited_us``."""
        lane = Lane(ack.lane)
        sent = self._sent[lane]
        held = [frame for frame in sent if frame < ack.upto or frame in ack.extra]
        self._upto[lane] = max(self._upto[lane], ack.upto)
        if not held:
            return
        frames = [sent.pop(frame) for frame in sorted(held)]
        num_bytes = sum(size for size, _ in frames)
        if all(at >= 0 for _, at in frames):
            self.estimator.acknowledged(len(frames), num_bytes, frames[-1][1], now, ack.waited_us / 1e6)
        else:
            self.estimator.count(len(frames), num_bytes)

    def restart(self) -> None:
        """The connection came back: what is under way is not timed."""
        for lane, sent in self._sent.items():
            self._sent[lane] = {frame: (size, -1.0) for frame, (size, _) in sent.items()}

    @property
    def num_unacknowledged(self) -> int:
        return sum(map(len, self._sent.values()))

    def facts(self) -> LinkFacts:
        return self.estimator.facts()
