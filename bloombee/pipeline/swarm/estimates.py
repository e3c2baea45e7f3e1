"""What follows, of links that were not measured, from those that were. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from bloombee.pipeline.swarm.figures import Figure
from bloombee.pipeline.swarm.questions import Link
from bloombee.types import WorkerId


class Estimates:
    """A round trip is at most the way over a third party. A bandwidth is what the narrower of the two ends has shown at best.

    Args:
        found: what was measured.
        tried: pairs of workers that were introduced: what was not found of them is not there.
        closed: workers that nobody gets through to when they are dialled.
    """

    def __init__(
        self, found: Mapping[Link, Figure], tried: Collection[frozenset[WorkerId]], closed: Collection[WorkerId]
    ) -> None:
        self._found = found
        self._tried = tried
        self._closed = closed
        self._near: dict[WorkerId, dict[WorkerId, float]] = defaultdict(dict)
        self._out: dict[WorkerId, Figure] = {}
        self._into: dict[WorkerId, Figure] = {}
        for (source, target), figure in found.items():
            self._near[source][target] = self._near[target][source] = figure.rtt_s
            for best, end in ((self._out, source), (self._into, target)):
                best[end] = max(best.get(end, figure), figure, key=_width)

    def rtt_s(self, one: WorkerId, other: WorkerId) -> float | None:
        """Measured, or at most; None: the two cannot be neighbours, or nothing is known."""
        near = self._near[one]
        if other in near:
            return near[other]
        if frozenset((one, other)) in self._tried or (one in self._closed and other in self._closed):
            return None
        ways = (rtt_s + near[third] for third, rtt_s in self._near[other].items() if third in near)
        return min(ways, default=None)

    def guess_s(self, one: WorkerId, other: WorkerId) -> float | None:
        """The round trip as is likely: between what it is at most and at least, for to a third party two can differ by no more
        than the way between them. None: as :meth:`rtt_s`."""
        most_s = self.rtt_s(one, other)
        if most_s is None or other in self._near[one]:
            return most_s
        near = self._near[one]
        return (most_s + max(abs(rtt_s - near[third]) for third, rtt_s in self._near[other].items() if third in near)) / 2

    def figure(self, source: WorkerId, target: WorkerId) -> Figure | None:
        """What is known of a link, or follows; None: as :meth:`rtt_s`."""
        figure = self._found.get((source, target))
        if figure is not None and figure.bandwidth_bytes_per_s is not None:
            return figure
        rtt_s = self.rtt_s(source, target)
        if rtt_s is None:
            return None
        rest = figure or self._found.get((target, source)) or Figure(rtt_s)
        unknown = Figure(rtt_s)
        widest = min(self._out.get(source, unknown), self._into.get(target, unknown), key=_width)
        return replace(
            rest,
            bandwidth_bytes_per_s=widest.bandwidth_bytes_per_s,
            low_bytes_per_s=widest.low_bytes_per_s,
            is_estimated=True,
        )


def _width(figure: Figure) -> float:
    return figure.low_bytes_per_s or 0.0
