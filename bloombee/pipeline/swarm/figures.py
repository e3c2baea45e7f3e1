"""What has been found out about links, by who is at their ends: outlives a swarm, if its owner keeps it. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field

from bloombee.errors import ConfigError
from bloombee.pipeline.swarm.member import Member
from bloombee.plan.topology import Link
from bloombee.wire.messages import LinkReport

FORMAT = 2
MOST = 20_000
"""Links that are remembered, those that were measured last."""
SAME_SHARE, SAME_S = 0.1, 0.002
"""A round trip is what it was if it is so much longer or shorter at most."""
HERE = "head"
"""Who the head is, to itself."""


def party(member: Member | None) -> str:
    """Who somebody is for good: a worker's key and where it is dialled. None: the head."""
    return HERE if member is None else f"{member.key.hex()} {member.endpoint}"


@dataclass(frozen=True, slots=True)
class Figure:
    """Of a directed link.

    Args:
        rtt_s: the least round trip; rtt_std_s: what they vary by.
        bandwidth_bytes_per_s: the mean; low_bytes_per_s: what to count on, 95 %. None, both: not known.
        is_estimated: the bandwidth, or all of it, was not measured but follows from others.
    """

    rtt_s: float
    rtt_std_s: float = 0.0
    bandwidth_bytes_per_s: float | None = None
    low_bytes_per_s: float | None = None
    is_estimated: bool = False

    def __post_init__(self) -> None:
        for value in (self.rtt_s, self.rtt_std_s, self.bandwidth_bytes_per_s, self.low_bytes_per_s):
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise ConfigError(f"{value!r} is no figure of a link", field="figures")

    @classmethod
    def of(cls, report: LinkReport) -> Figure | None:
        """As a worker says; None: not even the round trip."""
        if report.base_rtt_s is None:
            return None
        mean, low = report.bandwidth_bytes_per_s or None, report.bandwidth_low_bytes_per_s or None
        return cls(report.base_rtt_s, report.rtt_std_s, mean, low if mean is not None else None)

    def is_like(self, other: Figure) -> bool:
        """Whether the two are of a link that is as long as it was."""
        return abs(self.rtt_s - other.rtt_s) <= SAME_SHARE * max(self.rtt_s, other.rtt_s) + SAME_S

    def as_link(self) -> Link:
        """For a plan that stays: the lower bound."""
        return Link(self.low_bytes_per_s or math.inf, self.rtt_s / 2)


@dataclass(slots=True)
class Figures:
    """By (from, to); and who can only dial out."""

    _of: dict[tuple[str, str], Figure] = field(default_factory=dict)
    _closed: dict[str, None] = field(default_factory=dict)
    """In the order in which they were found so."""

    def __len__(self) -> int:
        return len(self._of)

    def get(self, source: str, target: str) -> Figure | None:
        return self._of.get((source, target))

    def put(self, source: str, target: str, figure: Figure) -> None:
        self._of.pop((source, target), None)
        self._of[source, target] = figure
        while len(self._of) > MOST:
            del self._of[next(iter(self._of))]

    def is_closed(self, party: str) -> bool:
        """Whether nobody got through to it."""
        return party in self._closed

    def dialled(self, party: str, *, in_vain: bool) -> None:
        """By somebody who got through, or by all who tried in vain."""
        self._closed.pop(party, None)
        if in_vain:
            self._closed[party] = None
        while len(self._closed) > MOST:
            del self._closed[next(iter(self._closed))]

    def to_json(self) -> str:
        links = [{"from": source, "to": target, **asdict(figure)} for (source, target), figure in self._of.items()]
        return json.dumps({"format": FORMAT, "links": links, "closed": list(self._closed)})

    @classmethod
    def from_json(cls, text: str) -> Figures:
        """Raises ConfigError if ``text`` is none of ours, or of another format."""
        figures = cls()
        try:
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise ValueError("another format")
            for link in record["links"]:
                figures.put(str(link.pop("from")), str(link.pop("to")), Figure(**link))
            for party in record["closed"]:
                figures.dialled(str(party), in_vain=True)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"not figures of links: {error}") from error
        return figures
