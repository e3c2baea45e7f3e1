"""What a link carries and how long it is, from its own frames. Pure: time is passed in, in seconds.

Theory of operation. A sender knows when it handed over a frame of n bytes and, from the acknowledgement and what that says
about its own waiting, when the frame had arrived, plus the way back. Less the shortest round trip seen, that is when
its last byte left the link's bottleneck::

    departure = acknowledged - waited - base             base: the least round trip, of a frame of base_bytes
    start     = max(handed over, departure of the frame before)
    busy      = departure - start

Frames that were handed over before their predecessor had departed are a train: while it lasts the link is busy with
nothing else, and base cancels out. A train that lasts much longer than round trips vary is a sample: its bytes over its
time, the frame apart that found the link idle, for it may have been late for other reasons. A frame on an idle link is one by
itself if it is much larger than the frame that base is of. Whatever is shorter says nothing: bytes over busy time, only
while a queue stood. Machines stall for longer than any link, so what is far off the mean waits for a second that agrees.

Averages forget exponentially; a step (two such samples, or Page-Hinkley on the logarithm) makes them forget at once. A
plan counts on :attr:`LinkFacts.bandwidth_low_bytes_per_s`, a one-sided 95 % bound.

Sources: docs/design.md (planning). Page-Hinkley: E. S. Page, Continuous inspection schemes, Biometrika 41 (1954);
D. Hinkley (1971). Not timing what was sent twice: P. Karn, C. Partridge, SIGCOMM 1987 (the caller's part).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bloombee.plan.topology import Link

FAST_S, SLOW_S = 5.0, 60.0
"""Of the two averages: in so long a sample's weight falls to 1/e."""
Z = 1.645
"""One-sided 95 % of a normal distribution."""
BASE_WINDOW_S = 30.0
LARGE_FACTOR = 8
"""A frame that found the link idle counts if it is so many times the size of the least round trip's."""
JITTER_FACTOR = 4
"""A train counts once it has lasted so many times as long as round trips vary (standard deviation), and ..."""
MIN_TRAIN_S = 0.002
"""... this long: schedulers of operating systems are no links."""
MAX_TRAIN_FRAMES, MAX_TRAIN_S = 16, 0.25
"""A longer train is more than one sample."""
RTT_FLOOR_S = 0.005
"""Added to a round trip before it is compared with others: below it even a factor is no change of the link."""
MIN_TRAIN_BYTES = 4096
"""Frames of a few bytes are no load for any link; what keeps them is something else."""
FAR = math.log(3.0)
"""A sample so far off the mean (logarithm) needs a second one that agrees."""
FEW = 3.0
"""Below so many samples their own spread is no guide: the bound is half the mean."""


@dataclass(slots=True)
class Ewma:
    """Mean and variance of weighted samples; weights decay with time constant ``tau_s``."""

    tau_s: float
    _at: float = -math.inf
    _w: float = 0.0
    _w2: float = 0.0
    _x: float = 0.0
    _xx: float = 0.0

    def add(self, value: float, weight: float, now: float) -> None:
        """``now`` must not fall."""
        decay = math.exp(-(now - self._at) / self.tau_s) if self._w else 0.0
        self._at = now
        self._w = self._w * decay + weight
        self._w2 = self._w2 * decay * decay + weight * weight
        self._x = self._x * decay + weight * value
        self._xx = self._xx * decay + weight * value * value

    def clear(self) -> None:
        self._w = self._w2 = self._x = self._xx = 0.0

    @property
    def mean(self) -> float | None:
        return self._x / self._w if self._w > 0 else None

    @property
    def std(self) -> float:
        if self._w <= 0:
            return 0.0
        mean = self._x / self._w
        return math.sqrt(max(0.0, self._xx / self._w - mean * mean))

    @property
    def num_samples(self) -> float:
        """As many samples of equal weight would know the mean as well (Kish)."""
        return self._w * self._w / self._w2 if self._w2 > 0 else 0.0

    @property
    def low(self) -> float | None:
        """One-sided 95 % lower bound of the mean, at least half of it."""
        mean = self.mean
        if mean is None or self.num_samples < FEW:
            return None if mean is None else mean / 2
        return max(mean / 2, mean - Z * self.std / math.sqrt(self.num_samples - 1))


@dataclass(slots=True)
class PageHinkley:
    """Says when the mean of what it is shown has moved, up or down.

    Args:
        slack: moves smaller than this are none.
        threshold: so much must have come together beyond the slack.
    """

    slack: float
    threshold: float
    _count: int = 0
    _mean: float = 0.0
    _up: float = 0.0
    _down: float = 0.0

    def add(self, value: float) -> bool:
        """True: it has moved; starts anew from ``value``."""
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._up = max(0.0, self._up + value - self._mean - self.slack)
        self._down = max(0.0, self._down + self._mean - value - self.slack)
        if max(self._up, self._down) <= self.threshold:
            return False
        self._count, self._mean, self._up, self._down = 1, value, 0.0, 0.0
        return True


@dataclass(slots=True)
class Tracked:
    """Averages of a positive quantity that jumps now and then, and whose samples now and then are wrong by far.

    Args:
        slack, threshold: of the Page-Hinkley test on logarithms.
    """

    slack: float
    threshold: float
    slow: Ewma = field(default_factory=lambda: Ewma(SLOW_S))
    fast: Ewma = field(default_factory=lambda: Ewma(FAST_S))
    num_changes: int = 0
    _steps: PageHinkley | None = None
    _suspect: tuple[float, float] | None = None

    def add(self, value: float, weight: float, now: float) -> bool:
        """Take a sample in, or put it aside; True: the quantity has jumped, and what was known is forgotten."""
        known = self.slow.mean
        if known is not None and abs(math.log(value / known)) > FAR:
            before, self._suspect = self._suspect, (value, weight)
            if before is None or abs(math.log(value / before[0])) > FAR:
                return False
            self._forget()
            self._take(*before, now)
            self._take(value, weight, now)
            return True
        self._suspect = None
        if self._steps is not None and self._steps.add(math.log(value)):
            self._forget()
            self._take(value, weight, now)
            return True
        self._take(value, weight, now)
        return False

    def _forget(self) -> None:
        self.num_changes += 1
        self.slow.clear()
        self.fast.clear()
        self._steps, self._suspect = None, None

    def _take(self, value: float, weight: float, now: float) -> None:
        if self._steps is None:
            self._steps = PageHinkley(self.slack, self.threshold)
            self._steps.add(math.log(value))
        self.slow.add(value, weight, now)
        self.fast.add(value, weight, now)


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """What is known of a directed link. None: not yet, or (bandwidth) no queue has stood.

    Args:
        rtt_s: mean of frames that found the link idle and are small, 60 s average; rtt_std_s: their spread.
        base_rtt_s: the least of the last minute.
        bandwidth_bytes_per_s: 60 s average; fast_bytes_per_s: 5 s.
        bandwidth_low_bytes_per_s: what to count on, 95 %.
        num_frames, num_bytes: acknowledged so far. busy_s: while a queue stood.
        num_changes: steps found.
    """

    rtt_s: float | None = None
    rtt_std_s: float = 0.0
    base_rtt_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    bandwidth_low_bytes_per_s: float | None = None
    bandwidth_std_bytes_per_s: float = 0.0
    fast_bytes_per_s: float | None = None
    num_frames: int = 0
    num_bytes: int = 0
    busy_s: float = 0.0
    num_changes: int = 0

    def as_link(self) -> Link | None:
        """For a topology: the lower bound, half the least round trip. None while no round trip is known."""
        if self.base_rtt_s is None:
            return None
        return Link(self.bandwidth_low_bytes_per_s or math.inf, self.base_rtt_s / 2)


@dataclass(slots=True)
class _Base:
    """The least round trip of this window and the one before, with its frame's size."""

    since: float = -math.inf
    now: tuple[float, int] | None = None
    before: tuple[float, int] | None = None

    def add(self, rtt: float, num_bytes: int, at: float) -> None:
        if at - self.since > BASE_WINDOW_S:
            self.since, self.before, self.now = at, self.now, None
        if self.now is None or rtt < self.now[0]:
            self.now = (rtt, num_bytes)

    @property
    def least(self) -> tuple[float, int] | None:
        return min((base for base in (self.now, self.before) if base is not None), default=None)


@dataclass(slots=True)
class LinkEstimator:
    """Feed it acknowledged frames in order; ask for :meth:`facts` at any time."""

    _rate: Tracked = field(default_factory=lambda: Tracked(slack=0.25, threshold=3.0))
    _rtt: Tracked = field(default_factory=lambda: Tracked(slack=0.5, threshold=5.0))
    _base: _Base = field(default_factory=_Base)
    _departed: float = -math.inf
    _train_since: float = 0.0
    _train_bytes: int = 0
    _train_frames: int = 0
    _num_frames: int = 0
    _num_bytes: int = 0
    _busy_s: float = 0.0

    def acknowledged(self, num_frames: int, num_bytes: int, sent: float, now: float, waited_s: float) -> None:
        """Frames handed over from ``sent`` on, ``num_bytes`` together, acknowledged ``now``.

        Args:
            waited_s: between the last one's arrival and its acknowledgement, by the receiver's clock.
        """
        self._num_frames += num_frames
        self._num_bytes += num_bytes
        rtt = max(1e-6, now - waited_s - sent)
        arrived = now - waited_s
        least = self._base.least
        # Where the last frame's departure is known and lies behind us, nothing was in the way of this one.
        queued = least is not None and sent < self._departed
        if not queued and (least is None or num_bytes < LARGE_FACTOR * least[1]):
            self._idle(rtt, num_bytes, now)
            least = self._base.least
        assert least is not None
        departed = arrived - least[0]
        if queued:
            self._train_bytes += num_bytes
            self._train_frames += num_frames
            lasts = departed - self._train_since
            if lasts >= MAX_TRAIN_S or (self._train_frames >= MAX_TRAIN_FRAMES and lasts >= self._least_train_s):
                self._end_train(departed, now)
        else:
            self._end_train(self._departed, now)
            if num_bytes >= LARGE_FACTOR * least[1]:
                self._sample(num_bytes - least[1], departed - sent, now)
            self._train_since = departed
        self._departed = max(self._departed, departed)

    @property
    def _least_train_s(self) -> float:
        return max(MIN_TRAIN_S, JITTER_FACTOR * self._rtt.slow.std)

    def _end_train(self, departed: float, now: float) -> None:
        self._sample(self._train_bytes, departed - self._train_since, now)
        self._train_since, self._train_bytes, self._train_frames = departed, 0, 0

    def _sample(self, num_bytes: int, busy_s: float, now: float) -> None:
        if busy_s >= self._least_train_s and num_bytes >= MIN_TRAIN_BYTES:
            self._busy_s += busy_s
            self._rate.add(num_bytes / busy_s, busy_s, now)

    def _idle(self, rtt: float, num_bytes: int, now: float) -> None:
        if self._rtt.add(rtt + RTT_FLOOR_S, 1.0, now):
            self._base = _Base()
        self._base.add(rtt, num_bytes, now)

    def facts(self) -> LinkFacts:
        least, mean = self._base.least, self._rtt.slow.mean
        return LinkFacts(
            rtt_s=None if mean is None else max(0.0, mean - RTT_FLOOR_S),
            rtt_std_s=self._rtt.slow.std,
            base_rtt_s=least[0] if least else None,
            bandwidth_bytes_per_s=self._rate.slow.mean,
            bandwidth_low_bytes_per_s=self._rate.slow.low,
            bandwidth_std_bytes_per_s=self._rate.slow.std,
            fast_bytes_per_s=self._rate.fast.mean,
            num_frames=self._num_frames,
            num_bytes=self._num_bytes,
            busy_s=self._busy_s,
            num_changes=self._rate.num_changes + self._rtt.num_changes,
        )
