"""What a running pipeline has shown about itself, as figures for the cost model.

Stages report sums over their forwards (works, rows, seconds, and the second moments that a line needs); differences of
two reports are the forwards between them. Older ones fade, so that a device that slows down is believed after a few
seconds. The line ``seconds = fixed + rows * per_row`` is fitted per stage and phase: it goes through the mean, its slope is
the least-squares one *within* reports (so a device that changed between two of them does not look like a slope), held towards
what was believed before with the weight of PRIOR_SPREAD. Before anything is known a row of decode is taken to cost what one
of a prompt does, for chunks are larger than microbatches; and without any chunk half of a forward's time is taken to be
fixed: whichever is wrong, sizes that follow from it differ from those measured, and the next report tells. Microbatches of
one size say nothing of the slope: LiveCosts says when some of different sizes are wanted.

Times vary for reasons that are not rows: a process is given a core late, and a few microbatches of hardly different sizes then
show any slope. By how much they vary is told by how far reports lie off each other, as most of the last do; the more, the
longer it takes until a slope is believed, and known.

What attention adds to the chunks of prompts shows between reports: a long prompt goes on for many, each further on. Short
prompts say nothing of it; then it is taken to be nothing, and the next long one shows it while it is still near its start.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bloombee.plan.topology import LOCAL, Device, Link, RowTime, Topology
from bloombee.types import DeviceUse, StageUse

FADE = 0.7
"""What is left of the weight of older forwards with each further report."""
LEAST_WORKS = 4
"""Forwards that make a report; fewer wait for the next."""
PRIOR_SPREAD = 0.03
"""What is believed already counts as much as forwards whose rows' relative variances add up to this."""
SURE_SPREAD, STALE_SPREAD = 0.3, 0.05
"""Once so much has been seen a slope is known; it is stale when, fading by SURE_FADE a report, no more than that is left."""
MOST_SPREAD, SURE_FADE = 1.0, 0.97
USUAL_NOISE = 0.05
"""Standard deviation of a forward's time, as a share of it, up to which these hold; beyond it they grow with its square."""
MANY_REPORTS, FEW_REPORTS = 9, 5
"""By so many of the last is told how much times vary, and by no fewer."""
NORMAL = 1.483
"""Standard deviations of a normal distribution in the median of how far off its mean it is."""
FIRST_ROW_SHARE = 0.5
"""Of a forward's time that grows with its rows, while nothing is known of it."""
CONTEXT_FADE = 0.95
LEAST_CONTEXT = 500
"""Tokens by which positions must differ (standard deviation) for half of what their times show of attention to be believed."""


@dataclass(slots=True)
class _Line:
    """Faded sums of one phase on one stage."""

    slope_s: float | None = None
    """Seconds a row; None while no two forwards of one report differed."""
    _works: float = 0.0
    _rows: float = 0.0
    _seconds: float = 0.0
    _attended: float = 0.0
    _spread: float = 0.0
    """Sum of squared distances of rows from the mean of their report, and of these times those of the seconds."""
    _slant_s: float = 0.0
    _seen: float = 0.0
    is_sure: bool = False
    """Of the slope."""
    _pending: DeviceUse = field(default_factory=DeviceUse)
    _off: deque[float] = field(default_factory=lambda: deque(maxlen=MANY_REPORTS))
    """Of the last reports: how far off a forward of theirs is, as a share of its time."""
    _before: DeviceUse = field(default_factory=DeviceUse)
    """The last report."""

    def add(self, use: DeviceUse) -> None:
        """Forwards since the last call. Those without a row say nothing: what they were for had ended meanwhile."""
        self._pending = use = self._pending + use
        if use.num_works < (LEAST_WORKS if self.is_known else 1) or not use.num_rows:
            return
        self._pending = DeviceUse()
        self._compare(use)
        self._works = FADE * self._works + use.num_works
        self._rows = FADE * self._rows + use.num_rows
        self._seconds = FADE * self._seconds + use.busy_s
        self._attended = FADE * self._attended + use.num_attended
        spread = max(0.0, use.rows_squared - use.num_rows**2 / use.num_works)
        seen = SURE_FADE * self._seen + spread * (use.num_works / use.num_rows) ** 2 / self._caution
        self._seen = min(seen, MOST_SPREAD / self._caution)  # what was known may be wrong by now
        self.is_sure = self._seen > (STALE_SPREAD if self.is_sure else SURE_SPREAD)
        self._spread = FADE * self._spread + spread
        self._slant_s = FADE * self._slant_s + use.row_s - use.num_rows * use.busy_s / use.num_works
        self._learn()

    def _compare(self, use: DeviceUse) -> None:
        """How far a report lies off the one before it, less what its rows account for. A device that has changed is off once.
        Means of n and m times differ by less than two of them."""
        before, self._before = self._before, use
        if not before.num_works:
            return
        expected_s = before.mean_s + self._believed_s * (use.num_rows / use.num_works - before.num_rows / before.num_works)
        if expected_s > 0:
            self._off.append(abs(use.mean_s / expected_s - 1) / math.sqrt(1 / use.num_works + 1 / before.num_works))

    @property
    def _caution(self) -> float:
        """How many times as much must be seen as where times vary no more than usual."""
        if len(self._off) < FEW_REPORTS:
            return 1.0
        return max(1.0, NORMAL * statistics.median(self._off) / USUAL_NOISE) ** 2

    def _learn(self) -> None:
        mean_rows = self._rows / self._works
        if self._spread <= 1e-9 * mean_rows**2:
            return
        weight = PRIOR_SPREAD * mean_rows**2 * self._caution
        slope = (self._slant_s + weight * self._believed_s) / (self._spread + weight)
        self.slope_s = min(max(0.0, slope), self._seconds / self._rows)

    @property
    def is_known(self) -> bool:
        return self._works > 0

    def mean(self) -> tuple[float, float, float]:
        """(rows, tokens before each, seconds) of a forward, of late."""
        return self._rows / self._works, self._attended / self._rows, self._seconds / self._works

    @property
    def _believed_s(self) -> float:
        """Neither part of a time can be negative."""
        most = self._seconds / self._rows
        return FIRST_ROW_SHARE * most if self.slope_s is None else min(self.slope_s, most)

    def fit(self, larger: _Line, pair_s: float = 0.0) -> tuple[float, float]:
        """(fixed seconds, seconds a row), both >= 0; while no sizes differed, on the line to the forwards of ``larger``, less
        what these took for each token that they attended to."""
        slope = self._believed_s
        if self.slope_s is None and larger.is_known:
            slope = self._slope_towards(larger, pair_s, slope)
        return max(0.0, (self._seconds - slope * self._rows) / self._works), slope

    def _slope_towards(self, other: _Line, pair_s: float, otherwise_s: float) -> float:
        mean_rows, mean_s = self._rows / self._works, self._seconds / self._works
        more_rows = other._rows / other._works - mean_rows
        if more_rows < mean_rows:
            return otherwise_s  # too near each other to tell
        other_s = (other._seconds - pair_s * other._attended) / other._works
        return min(max(0.0, (other_s - mean_s) / more_rows), mean_s / mean_rows)

    def row_and_pair_s(self, fixed_s: float, pair_s: float) -> tuple[float, float]:
        """Seconds a row, and for each token it attends to, where a forward takes ``fixed_s`` besides and attention is thought to
        take ``pair_s``: known even if all had the same number of rows. Attention cannot take longer than everything."""
        seconds = max(0.0, self._seconds - self._works * fixed_s)
        if self._attended:
            pair_s = min(pair_s, seconds / self._attended)
        return max(0.0, seconds - pair_s * self._attended) / self._rows, pair_s


@dataclass(slots=True)
class _Attention:
    """Faded sums over reports of chunks, weighted by rows, from which the time for each token that a row attends to follows."""

    _rows: float = 0.0
    _works: float = 0.0
    _seconds: float = 0.0
    _attended: float = 0.0
    _attended_squared: float = 0.0
    _attended_works: float = 0.0
    _attended_s: float = 0.0
    """Products of what a row of a report attended to, and of the works and seconds it took."""

    def add(self, use: DeviceUse) -> None:
        """Forwards since the last call."""
        if not use.num_rows:
            return
        context = use.num_attended / use.num_rows
        self._rows = CONTEXT_FADE * self._rows + use.num_rows
        self._works = CONTEXT_FADE * self._works + use.num_works
        self._seconds = CONTEXT_FADE * self._seconds + use.busy_s
        self._attended = CONTEXT_FADE * self._attended + use.num_attended
        self._attended_squared = CONTEXT_FADE * self._attended_squared + context * use.num_attended
        self._attended_works = CONTEXT_FADE * self._attended_works + context * use.num_works
        self._attended_s = CONTEXT_FADE * self._attended_s + context * use.busy_s

    def pair_s(self, fixed_s: float) -> float:
        """Seconds for each pair of a row and a token, where a forward takes ``fixed_s`` besides; 0 while nothing is known."""
        if not self._rows:
            return 0.0
        context = self._attended / self._rows
        spread = self._attended_squared - context * self._attended
        slant = self._attended_s - fixed_s * self._attended_works - context * (self._seconds - fixed_s * self._works)
        return max(0.0, slant) / (max(0.0, spread) + self._rows * LEAST_CONTEXT**2)


@dataclass(frozen=True, slots=True)
class Shown:
    """What decode passes of a stage have taken, whatever its worker claims: it holds for a later plan.

    Args:
        counts: of its layers, by kind (``ModelShape.counts``). is_last: norm, LM head and sampler were its own.
        rows, context, seconds: of a pass, on average.
    """

    counts: tuple[int, ...]
    is_last: bool
    rows: float
    context: float
    seconds: float

    def correct(self, claimed: Device) -> Device:
        """Every figure of a device in the measure in which such a pass took longer than it claims, or less. Where it claims to
        take no time at all, what it took counts for every pass."""
        claimed_s = claimed.stage.decode_s(self.rows, self.context)
        claimed_s += sum(
            count * claimed.layer_of(kind).decode_s(self.rows, self.context) for kind, count in enumerate(self.counts) if count
        )
        claimed_s += claimed.output.decode_s(self.rows) if self.is_last else 0.0
        if claimed_s <= 0:
            return replace(claimed, stage=RowTime(fixed_s=self.seconds))
        return claimed.scaled(self.seconds / claimed_s)


@dataclass(slots=True)
class LiveCosts:
    """Reports of all stages of one plan.

    Args:
        names: of the workers, in ring order.
    """

    names: tuple[str, ...]
    _last: list[StageUse] = field(default_factory=list)
    _decode: list[_Line] = field(default_factory=list)
    _prefill: list[_Line] = field(default_factory=list)
    _attention: list[_Attention] = field(default_factory=list)
    _ratios: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._last = [StageUse() for _ in self.names]
        self._decode = [_Line() for _ in self.names]
        self._prefill = [_Line() for _ in self.names]
        self._attention = [_Attention() for _ in self.names]
        self._ratios = [None] * len(self.names)

    def report(self, uses: Sequence[StageUse]) -> None:
        """Sums since each stage was loaded, one a stage. Of one that has begun to count anew only the next report tells."""
        for index, use in enumerate(uses):
            since = use - self._last[index]
            self._last[index] = use
            if min(since.decode.num_works, since.prefill.num_works, since.raw_bytes) < 0:
                continue
            self._decode[index].add(since.decode)
            self._prefill[index].add(since.prefill)
            self._attention[index].add(since.prefill)
            if since.raw_bytes > 0:
                self._ratios[index] = since.sent_bytes / since.raw_bytes if since.encoded_frames else None

    @property
    def is_known(self) -> bool:
        """Every stage has decoded something."""
        return all(line.is_known for line in self._decode)

    def shown(self, counts: Sequence[tuple[int, ...]]) -> tuple[Shown, ...]:
        """Of each stage, once all are known.

        Args:
            counts: of each stage's layers, by kind.
        """
        last = len(self.names) - 1
        stages = enumerate(zip(counts, self._decode, strict=True))
        return tuple(Shown(count, index == last, *line.mean()) for index, (count, line) in stages)

    @property
    def wants_spread(self) -> bool:
        """Some stage has not met decode microbatches of different sizes, or not for long."""
        return not all(line.is_sure for line in self._decode)

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Encoded over raw bytes of each activation link of late; None where nothing is coded."""
        return tuple(self._ratios[:-1])

    def topology(self, links: Sequence[Link], first: Link = LOCAL) -> Topology:
        """The ring as the reports show it.

        Args:
            links: leaving each stage, the last one for the head. first: from the head to the first stage.
        """
        devices = []
        for name, decode, prefill, attention in zip(self.names, self._decode, self._prefill, self._attention, strict=True):
            fixed, row = decode.fit(prefill, attention.pair_s(0.0))
            prefill_row, pair = prefill.row_and_pair_s(fixed, attention.pair_s(fixed)) if prefill.is_known else (row, 0.0)
            devices.append(Device(name, stage=RowTime(fixed, row, prefill_row, pair)))
        return Topology.ring(devices, links, first=first)
