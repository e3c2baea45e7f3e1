"""What a running pipeline has shown about itself, as figures for the cost model.

Stages report sums over their forwards (works, rows, seconds, and the second moments that a line needs); differences of
two reports are the forwards between them. Older ones fade, so that a device that slows down is believed after a few
seconds. The line ``seconds = fixed + rows * per_row`` is fitted per stage and phase by least squares; where all
forwards had the same number of rows it cannot be told apart, and the last slope that could be is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bloombee.plan.topology import Device, Link, RowTime, Topology
from bloombee.types import DeviceUse, StageUse

FADE = 0.7
"""What is left of the weight of older forwards with each further report."""
LEAST_SPREAD = 0.02
"""Relative variance of rows below which a slope is not to be had."""


@dataclass(slots=True)
class _Line:
    """Faded sums of one phase on one stage."""

    works: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_squared: float = 0.0
    row_seconds: float = 0.0
    slope_s: float | None = None

    def add(self, use: DeviceUse) -> None:
        if use.num_works <= 0:
            return
        self.works = FADE * self.works + use.num_works
        self.rows = FADE * self.rows + use.num_rows
        self.seconds = FADE * self.seconds + use.busy_s
        self.rows_squared = FADE * self.rows_squared + use.rows_squared
        self.row_seconds = FADE * self.row_seconds + use.row_s
        mean = self.rows / self.works
        variance = self.rows_squared / self.works - mean * mean
        if variance > LEAST_SPREAD * mean * mean:
            covariance = self.row_seconds / self.works - mean * self.seconds / self.works
            # Neither part of a time can be negative.
            self.slope_s = min(max(0.0, covariance / variance), self.seconds / self.rows)

    @property
    def is_known(self) -> bool:
        return self.works > 0

    def fit(self) -> tuple[float, float]:
        """(fixed seconds, seconds a row)."""
        mean_s, mean_rows = self.seconds / self.works, self.rows / self.works
        slope = min(self.slope_s or 0.0, mean_s / mean_rows)
        return mean_s - slope * mean_rows, slope


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
    _ratios: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._last = [StageUse() for _ in self.names]
        self._decode = [_Line() for _ in self.names]
        self._prefill = [_Line() for _ in self.names]
        self._ratios = [None] * len(self.names)

    def report(self, uses: Sequence[StageUse]) -> None:
        """Sums since each stage was loaded, one a stage."""
        for index, use in enumerate(uses):
            since = use - self._last[index]
            self._last[index] = use
            self._decode[index].add(since.decode)
            self._prefill[index].add(since.prefill)
            if since.raw_bytes > 0:
                self._ratios[index] = since.sent_bytes / since.raw_bytes if since.encoded_frames else None

    @property
    def is_known(self) -> bool:
        """Every stage has decoded something."""
        return all(line.is_known for line in self._decode)

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Encoded over raw bytes of each activation link of late; None where nothing is coded."""
        return tuple(self._ratios[:-1])

    def topology(self, links: Sequence[Link]) -> Topology:
        """The ring as the reports show it.

        Args:
            links: leaving each stage, the last one for the head.
        """
        devices = []
        for name, decode, prefill in zip(self.names, self._decode, self._prefill, strict=True):
            fixed, row = decode.fit()
            prefill_row = prefill.fit()[1] if prefill.is_known and prefill.slope_s is not None else row
            devices.append(Device(name, stage=RowTime(fixed, row, prefill_row)))
        return Topology.ring(devices, links)
