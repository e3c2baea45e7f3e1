"""What a link carries and how long it is, from its own frames. Pure: time is passed in, in seconds.

Theory of operation. A sender knows when it handed over n bytes and, from the acknowledgement and what that says
about its own waiting, when they had arrived, plus the way back. Less the time that the way takes by itself, that is when
their last byte left the link's bottleneck::

    departure = acknowledged - waited - delay

What was handed over before its predecessor had departed found the wire busy. As long as that goes on it is a train: the wire
is busy with nothing else, its bytes over its time are the bandwidth, and the delay cancels out. Bytes over busy time,
only while a queue stood.

A link has two lanes that share the wire. Each keeps its order, between them there is none: decode frames leave while a
prompt still waits here. So each lane has trains of its own:

- *control*: whole frames, with their acknowledgements. What was on its way together with bulk is not timed. A link that
  has become longer looks like one whose wire was never idle, but then frames come out at the pace at which they go in; so a
  train of frames counts if its queue grew or shrank, frame by frame, or if it agrees with what is known.
- *bulk*: pieces (links/window.py), acknowledged as they come, and what the control lane sent between them, for it is
  between them on the wire as well. Probes are pieces too.

Round trips vary, for reasons that are no queue: a train says something once it has lasted many times as long. A single
frame that found the link idle is a train by itself if it takes that long. Shorter ones say nothing, and a link that
carries nothing else has no known bandwidth. Machines stall for longer than any link, so how much round trips vary is told by
the middle half of them, and what is far off the mean waits for a second that agrees. Bytes are those on the wire:
:func:`wire_bytes`.

The least round trip of a minute is the link's, unless all have been longer for seconds: a queue drains now and then, a
longer way does not become shorter. Such round trips are of frames that found no queue of ours: even at half the bandwidth
that is known those before them had left. A frame that takes longer than its size ever explained is of a longer link too, until a
queue says otherwise.

Averages forget exponentially; a step (two such samples, or Page-Hinkley on the logarithm) makes them forget at once. A
plan that stays counts on :attr:`LinkFacts.bandwidth_low_bytes_per_s`, a one-sided 95 % bound; what can be changed again in
a moment is better led by the mean.

Sources: docs/design.md (planning). Page-Hinkley: E. S. Page, Continuous inspection schemes, Biometrika 41 (1954);
D. Hinkley (1971). Not timing what was sent twice: P. Karn, C. Partridge, SIGCOMM 1987 (the caller's part).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from bloombee.plan.topology import Link

FAST_S, SLOW_S = 5.0, 60.0
"""Of the two averages: in so long a sample's weight falls to 1/e."""
Z = 1.645
"""One-sided 95 % of a normal distribution."""
BASE_WINDOW_S = 30.0
LARGE_FACTOR = 8
"""A frame that found the link idle is no round trip but a load if it is so many times the size of the least one's."""
SURPLUS_FACTOR = 3
"""While no bandwidth is known: of so much larger a frame the time that it takes longer is that of its surplus."""
JITTER_FACTOR = 20
"""A train counts once it has lasted so many times as long as round trips vary (as a standard deviation), and ..."""
MIN_TRAIN_S = 0.01
"""... this long: schedulers of operating systems are no links."""
MAX_PIECES = 1 << 14
"""On their way and timed; older ones are forgotten."""
FEW_TRIPS = 5
UNKNOWN_JITTER_S, UNKNOWN_JITTER_SHARE = 0.0005, 0.01
"""Until so many round trips were seen, they are taken to vary by this, and by this share of themselves."""
MANY_TRIPS = 32
"""How much they vary is told by so many of the last."""
QUARTILES_OF_NORMAL = 1.349
"""Standard deviations between the quartiles of a normal distribution."""
SAMPLE_S = 0.05
"""A train that has lasted so long, and long enough, is a sample; it goes on as the next."""
RTT_FLOOR_S = 0.005
"""Added to a round trip before it is compared with others: below it even a factor is no change of the link."""
MIN_TRAIN_BYTES = 4096
"""Frames of a few bytes are no load for any link; what keeps them is something else."""
QUEUE_FACTOR = 3
"""A piece found a queue if it was sent before the one ahead had left by so many times as round trips vary."""
PART_BYTES = 43
"""What ZeroMQ and CURVE add to each part of a message."""
FAR = math.log(3.0)
"""A sample so far off the mean (logarithm) needs a second one that agrees."""
GROWN_S = 0.001
"""A queue has grown by no less, besides the largest jump ..."""
AGREE = math.log(1.15)
"""... or its train agrees so well (logarithm) with what is known, or with the last that had one."""
UNPROVED_S = 1.0
"""A train that shows no queue for so long says nothing."""
RISE_TRIPS, RISE_S = 8, 2.0
"""So many round trips in so many seconds, all above the least one by ..."""
RISE_FACTOR, RISE_SHARE = 4, 0.1
"""... so many times as they vary, this share of it and RTT_FLOOR_S: the link has become longer."""
LONGER = 3
"""A frame that took longer, besides the least round trip, by so many times what one as large once took: not for its size."""
SUSPICIOUS_TRIPS = 3
"""After so many it may have, and a single large frame is not timed."""
CAREFUL = 0.5
"""Of the bandwidth that is known: whether a frame found a queue of ours is reckoned with that."""
SLOWEST_BYTES_PER_S = 125_000.0
"""The same while no bandwidth is known."""
QUICK = 3
"""So many frames that took less than a third of what the wire is thought to need: it has become wider."""
PRIOR_SPREAD, PRIOR_SAMPLES = 0.25, 2.0
"""What samples are taken to vary by (of their mean) before they have shown it, and how many of them that is worth."""


def wire_bytes(num_bytes: int, num_parts: int) -> int:
    """``num_bytes`` in ``num_parts`` parts as they are on the wire; the same that plan/cost.py charges a frame."""
    return num_bytes + num_parts * PART_BYTES


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
        """One-sided 95 % lower bound of the mean, at least half of it; a few samples' spread counts beside the prior's."""
        mean, count = self.mean, self.num_samples
        if mean is None:
            return None
        variance = (count * self.std**2 + PRIOR_SAMPLES * (PRIOR_SPREAD * mean) ** 2) / (count + PRIOR_SAMPLES)
        return max(mean / 2, mean - Z * math.sqrt(variance / count))


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
            self.forget()
            self._take(*before, now)
            self._take(value, weight, now)
            return True
        self._suspect = None
        if self._steps is not None and self._steps.add(math.log(value)):
            self.forget()
            self._take(value, weight, now)
            return True
        self._take(value, weight, now)
        return False

    def forget(self) -> None:
        """It has jumped: what is known is of no use."""
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
        """For a plan that stays: the lower bound, half the least round trip. None while no round trip is known."""
        return self._link(self.bandwidth_low_bytes_per_s)

    def as_expected(self) -> Link | None:
        """For a choice that errs as badly either way and is soon taken back: the mean instead of the bound."""
        return self._link(self.bandwidth_bytes_per_s)

    def _link(self, bandwidth: float | None) -> Link | None:
        return None if self.base_rtt_s is None else Link(bandwidth or math.inf, self.base_rtt_s / 2)


@dataclass(slots=True)
class _Least:
    """The least of this window and the one before."""

    since: float = -math.inf
    now: float = math.inf
    before: float = math.inf

    def add(self, value: float, at: float) -> None:
        if at - self.since > BASE_WINDOW_S:
            self.since, self.before, self.now = at, self.now, math.inf
        self.now = min(self.now, value)

    def lower(self, by: float) -> None:
        self.now, self.before = max(1e-6, self.now - by), max(1e-6, self.before - by)

    @property
    def value(self) -> float:
        return min(self.now, self.before)


@dataclass(slots=True)
class _Trips:
    """The last round trips, whatever a few of them that met a stall do.

    Attributes:
        median_s: of them. std_s: how much they vary, as a standard deviation. Both once they are known.
    """

    median_s: float = 0.0
    std_s: float = 0.0
    last: deque[float] = field(default_factory=lambda: deque(maxlen=MANY_TRIPS))

    def add(self, rtt_s: float) -> None:
        self.last.append(rtt_s)
        if self.is_known:
            ordered, count = sorted(self.last), len(self.last)
            self.median_s = ordered[count // 2]
            self.std_s = (ordered[3 * count // 4] - ordered[count // 4]) / QUARTILES_OF_NORMAL

    @property
    def is_known(self) -> bool:
        return len(self.last) >= FEW_TRIPS


@dataclass(slots=True)
class _Rise:
    """Round trips without exception longer than the least one has been."""

    trips: list[float] = field(default_factory=list)
    _since: float = math.inf
    _last: float = -math.inf

    def add(self, rtt_s: float, now: float) -> bool:
        """Another one; True: there are enough."""
        if not self.trips:
            self._since = now
        self.trips.append(rtt_s)
        self._last = now
        return len(self.trips) >= RISE_TRIPS and now - self._since >= RISE_S

    def is_likely(self, now: float) -> bool:
        """More than a stall, and of late."""
        return len(self.trips) >= SUSPICIOUS_TRIPS and now - self._last < RISE_S


@dataclass(slots=True)
class _Train:
    """Of one lane: what left the wire without a pause between.

    Args:
        since: departure of what came before it. departed: of its last. num_bytes: that left between the two.
    """

    since: float = -math.inf
    departed: float = -math.inf
    num_bytes: int = 0
    _is_alone: bool = False
    _wait_s: float = 0.0
    """How long the last took to depart; the least and the longest of the train, and the largest step between two."""
    _least_s: float = 0.0
    _most_s: float = 0.0
    _jump_s: float = 0.0

    def take(self, num_bytes: int, sent: float, departed: float, margin_s: float) -> bool:
        """The next to have departed, all of it handed over by ``sent``; False: the wire may have been idle before it."""
        if sent + margin_s > self.departed:
            return False
        self.num_bytes += num_bytes
        self.departed = max(self.departed, departed)
        wait_s = self.departed - sent
        self._jump_s = max(self._jump_s, abs(wait_s - self._wait_s))
        self._least_s, self._most_s = min(self._least_s, wait_s), max(self._most_s, wait_s)
        self._wait_s = wait_s
        return True

    def begin(self, sent: float, departed: float, alone_bytes: int = 0) -> None:
        """After a pause, with what was handed over at ``sent``: by itself a train if it is ``alone_bytes``."""
        self._is_alone = alone_bytes > 0
        departed = max(departed, sent) if alone_bytes else departed  # a trip quicker than most, not a wire of negative time
        self.since, self.departed, self.num_bytes = sent if alone_bytes else departed, departed, alone_bytes
        self._wait_s = departed - sent
        self._forget()

    def go_on(self) -> None:
        """What comes next is another train, if there was no pause."""
        self.since, self.num_bytes, self._is_alone = self.departed, 0, False
        self._forget()

    def reset(self) -> None:
        """Nothing is known of what went before."""
        self.since = self.departed = -math.inf
        self.num_bytes = 0

    def _forget(self) -> None:
        self._least_s = self._most_s = self._wait_s
        self._jump_s = 0.0

    def has_queue(self, least_s: float) -> bool:
        """Whether frames waited: a queue grew or shrank by more than ``least_s`` besides the largest step, which a stall or
        a change of the link's length makes by itself."""
        return self._is_alone or self._most_s - self._least_s - self._jump_s > least_s

    @property
    def lasts_s(self) -> float:
        return self.departed - self.since if self.num_bytes else 0.0


@dataclass(frozen=True, slots=True)
class _Piece:
    number: int
    num_bytes: int
    sent: float
    other_bytes: int


@dataclass(slots=True)
class LinkEstimator:
    """Of one directed link: feed it acknowledged frames and pieces; ask for :meth:`facts` at any time."""

    _rate: Tracked = field(default_factory=lambda: Tracked(slack=0.25, threshold=3.0))
    _rtt: Tracked = field(default_factory=lambda: Tracked(slack=0.5, threshold=5.0))
    _base: _Least = field(default_factory=_Least)
    _raw_bytes: int = 0
    """Of the frame of the least round trip, whose time on the wire is in it, since no bandwidth was known then."""
    _raw_since: float = -math.inf
    _proved_rate: float | None = None
    """Of the last train whose queue grew or shrank."""
    _trips: _Trips = field(default_factory=_Trips)
    _rise: _Rise = field(default_factory=_Rise)
    _shown_rate: float = 0.0
    """What the wire carries at least, since its link last became another: bytes of a frame over its whole round trip."""
    _free_at: float = -math.inf
    """The wire's, were it as slow as it is carefully taken to be."""
    _is_unqueued: bool = False
    """Frames come out at the pace at which they go in, and no queue was ever seen."""
    _num_quick: int = 0
    _small: float = math.inf
    _control: _Train = field(default_factory=_Train)
    _bulk: _Train = field(default_factory=_Train)
    _pieces: deque[_Piece] = field(default_factory=lambda: deque(maxlen=MAX_PIECES))
    _piece_delay: _Least = field(default_factory=_Least)
    _last_other: int = 0
    _bulk_idle_since: float = -math.inf
    _num_frames: int = 0
    _num_bytes: int = 0
    _busy_s: float = 0.0
    _sampled_at: float = -math.inf

    # -- control: whole frames -----------------------------------------------------------------

    def count(self, num_frames: int, num_bytes: int) -> None:
        """Frames arrived that are not timed: they came in pieces, or more than once."""
        self._num_frames += num_frames
        self._num_bytes += num_bytes

    def acknowledged(self, num_frames: int, num_bytes: int, sent: float, now: float, waited_s: float) -> None:
        """Frames of the control lane, ``num_bytes`` together, the last of them handed over at ``sent``, acknowledged ``now``.

        Args:
            waited_s: between the last one's arrival and its acknowledgement, by the receiver's clock.
        """
        self.count(num_frames, num_bytes)
        arrived = now - waited_s
        rtt_s = max(1e-6, arrived - sent)
        if self._pieces or sent <= self._bulk_idle_since:  # bulk was between them
            self._end_control(now)
            self._control.reset()
            return
        is_large = num_bytes >= LARGE_FACTOR * self._small
        has_left = sent > self._control.departed
        may_be_idle = has_left or sent >= self._free_at or self._is_unqueued
        rate = self._rate.slow.mean or max(SLOWEST_BYTES_PER_S, self._shown_rate)
        self._free_at = min(arrived, max(self._free_at, sent) + num_bytes / (CAREFUL * rate))  # by then it has left for sure
        is_longer = self._cannot_be_its_size(rtt_s, num_bytes)
        if may_be_idle and num_frames == 1:
            if not is_large or self._rate.slow.mean is not None or is_longer or rtt_s < self._base.value:
                self._idle(rtt_s, num_bytes, now, is_sure=has_left)
            else:
                self._rise = _Rise()
            self._shown_rate = max(self._shown_rate, num_bytes / rtt_s)
        if self._rtt.slow.mean is None:
            return
        departed = arrived - self._delay_s
        if not self._control.take(num_bytes, sent, departed, self._jitter_s):
            self._end_control(now)
            is_alone = has_left and num_frames == 1 and not (is_longer or self._rise.is_likely(now))
            self._control.begin(sent, departed, self._own_bytes(num_bytes) if is_alone else 0)
        elif self._control.lasts_s >= max(SAMPLE_S, self.least_train_s) and (
            self._says(self._control) or self._control.lasts_s > UNPROVED_S
        ):
            self._end_control(now)

    def _own_bytes(self, num_bytes: int) -> int:
        """Of a frame alone on an idle link: those whose time is not in the round trip that is known; 0: too few to tell.

        While nothing is known of the width a frame a few times the size of the smallest is enough, for its surplus.
        """
        if self._rate.slow.mean is not None:
            return num_bytes if num_bytes >= LARGE_FACTOR * self._small else 0
        return num_bytes - int(self._small) if num_bytes >= SURPLUS_FACTOR * self._small else 0

    def _cannot_be_its_size(self, rtt_s: float, num_bytes: int) -> bool:
        """Whether a frame that found the link idle took longer than the wire, as wide as it has been seen, explains.

        Then the link has become longer, or narrower: frames of one size do not tell. It is taken for longer. If that is wrong,
        more is soon under way, a queue stands and tells; one that is wrongly taken for narrow is given larger and fewer frames,
        among which no queue ever stands.
        """
        return self._shown_rate > 0 and rtt_s - self._base.value > LONGER * num_bytes / self._shown_rate

    @property
    def _delay_s(self) -> float:
        """Of a small frame and its acknowledgement."""
        return self._trips.median_s if self._trips.is_known else max(0.0, (self._rtt.slow.mean or 0.0) - RTT_FLOOR_S)

    def _says(self, train: _Train) -> bool:
        """Whether its bytes over its time are the wire's bandwidth, and not the pace of the sender."""
        if not train.lasts_s:
            return False
        rate = train.num_bytes / train.lasts_s
        if train.has_queue(max(GROWN_S, QUEUE_FACTOR * self._jitter_s)):
            self._proved_rate = rate
            return True
        return any(known and abs(math.log(rate / known)) < AGREE for known in (self._rate.slow.mean, self._proved_rate))

    def _end_control(self, now: float) -> None:
        train = self._control
        if self._says(train):
            self._is_unqueued = False
            self._end(train, now)
            return
        if train.lasts_s > UNPROVED_S and self._rate.slow.mean is None:
            self._is_unqueued = True
        train.go_on()

    def _idle(self, rtt_s: float, num_bytes: int, now: float, *, is_sure: bool) -> None:
        """A round trip of a frame that found the link idle, as it seems or (``is_sure``) as its length is known."""
        rate, base_s = self._rate.slow.mean, self._base.value
        own_s = num_bytes / rate if rate else 0.0
        known_s = base_s if math.isfinite(base_s) else 0.0
        margin_s = max(RISE_FACTOR * self._jitter_s, RISE_SHARE * known_s, RTT_FLOOR_S)
        if own_s > 2 * margin_s and rtt_s - known_s <= LONGER * own_s:
            if rtt_s < base_s - margin_s:  # shorter as a whole than an empty frame was
                self._another_length([rtt_s], now)
            self._compare(rtt_s - base_s, own_s)
            return
        rtt_s = max(1e-6, rtt_s - own_s)
        if is_sure and self._rtt.add(rtt_s + RTT_FLOOR_S, 1.0, now):
            self._base, self._trips, self._rise = _Least(), _Trips(), _Rise()
            self._piece_delay, self._small = _Least(), math.inf
            self._shown_rate = 0.0
        elif rtt_s <= base_s + margin_s + own_s / 2:
            waiting, self._rise = self._rise.trips, _Rise()
            for one in (*waiting[-MANY_TRIPS:], rtt_s):
                self._trips.add(one)
        elif self._rise.add(rtt_s, now):
            self._another_length(self._rise.trips, now)
        if rtt_s < self._base.value:
            self._raw_bytes, self._raw_since = num_bytes, -math.inf if rate else now
        self._base.add(rtt_s, now)
        self._small = min(self._small, num_bytes)

    def _compare(self, took_s: float, own_s: float) -> None:
        """A frame whose own time on the wire is too long to tell a round trip, and so short that the wire must be wider?"""
        self._num_quick = self._num_quick + 1 if took_s < own_s * math.exp(-FAR) else 0
        if self._num_quick >= QUICK:
            self._num_quick = 0
            self._rate.forget()

    def _another_length(self, trips: list[float], now: float) -> None:
        """The link has become longer or shorter, as ``trips`` show it; the earlier half of them may have met it half changed."""
        trips = trips[len(trips) // 2 :]
        self._base, self._trips, self._rise, self._piece_delay = _Least(), _Trips(), _Rise(), _Least()
        self._rtt.forget()
        self._shown_rate = 0.0
        self._control.reset()
        for one in trips[-MANY_TRIPS:]:
            self._rtt.add(one + RTT_FLOOR_S, 1.0, now)
            self._base.add(one, now)
            self._trips.add(one)

    # -- bulk: pieces --------------------------------------------------------------------------

    def piece_sent(self, number: int, num_bytes: int, other_bytes: int, now: float) -> None:
        """A piece, or a probe, goes out.

        Args:
            other_bytes: that the control lane has sent so far.
        """
        self._pieces.append(_Piece(number, num_bytes, now, other_bytes))

    def pieces_acked(self, upto: int, now: float) -> None:
        """All pieces < ``upto`` have arrived, the last of them just now."""
        num_bytes, newest = 0, None
        while self._pieces and self._pieces[0].number < upto:
            newest = self._pieces.popleft()
            num_bytes += newest.num_bytes
        if newest is None:
            return
        others, self._last_other = newest.other_bytes - self._last_other, newest.other_bytes
        self._piece_delay.add(max(0.0, now - newest.sent), now)
        departed = now - self._piece_delay.value
        if not self._bulk.take(num_bytes + others, newest.sent, departed, QUEUE_FACTOR * self._jitter_s):
            self._end(self._bulk, now)
            self._bulk.begin(newest.sent, departed)
        elif self._bulk.lasts_s >= max(SAMPLE_S, self.least_train_s):
            self._end(self._bulk, now)
        if not self._pieces:
            self._end(self._bulk, now)
            self._bulk_idle_since = now

    def pieces_lost(self) -> None:
        """The connection is gone with what was on its way."""
        self._pieces.clear()
        self._bulk.reset()

    # -- what was measured on purpose (links/gauge.py) ------------------------------------------

    def trip(self, rtt_s: float, num_bytes: int, now: float) -> None:
        """The round trip of a probe of ``num_bytes`` that found the link idle."""
        self._idle(rtt_s, num_bytes, now, is_sure=True)

    def filled(self, num_bytes: float, busy_s: float, now: float) -> None:
        """So many bytes kept the wire busy for so long."""
        self._take_rate(num_bytes, busy_s, now)

    # -- samples -------------------------------------------------------------------------------

    @property
    def _jitter_s(self) -> float:
        if self._trips.is_known:
            return self._trips.std_s
        trips = self._rtt.slow
        return max(trips.std, UNKNOWN_JITTER_S + UNKNOWN_JITTER_SHARE * (trips.mean or 0.0))

    @property
    def least_train_s(self) -> float:
        """A shorter train says nothing about this link."""
        return max(MIN_TRAIN_S, JITTER_FACTOR * self._jitter_s)

    def _end(self, train: _Train, now: float) -> None:
        busy_s, num_bytes = train.lasts_s, train.num_bytes
        train.go_on()
        if busy_s >= self.least_train_s and num_bytes >= MIN_TRAIN_BYTES:
            self._take_rate(num_bytes, busy_s, now)

    def _take_rate(self, num_bytes: float, busy_s: float, now: float) -> None:
        self._busy_s += busy_s
        self._sampled_at = now
        if self._rate.add(num_bytes / busy_s, busy_s, now):
            self._rise, self._shown_rate = _Rise(), 0.0  # it was the wire
        if self._rate.slow.mean and now - self._raw_since < FAST_S:
            self._base.lower(self._raw_bytes / self._rate.slow.mean)
        self._raw_since = -math.inf

    @property
    def sampled_at(self) -> float:
        """When bandwidth was last seen; -inf: never."""
        return self._sampled_at

    def facts(self) -> LinkFacts:
        mean = self._rtt.slow.mean
        return LinkFacts(
            rtt_s=None if mean is None else max(0.0, mean - RTT_FLOOR_S),
            rtt_std_s=self._rtt.slow.std,
            base_rtt_s=self._base.value if math.isfinite(self._base.value) else None,
            bandwidth_bytes_per_s=self._rate.slow.mean,
            bandwidth_low_bytes_per_s=self._rate.slow.low,
            bandwidth_std_bytes_per_s=self._rate.slow.std,
            fast_bytes_per_s=self._rate.fast.mean,
            num_frames=self._num_frames,
            num_bytes=self._num_bytes,
            busy_s=self._busy_s,
            num_changes=self._rate.num_changes + self._rtt.num_changes,
        )
