"""Which links share an access line, as their lengths tell. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from bloombee.pipeline.swarm.figures import Figure
from bloombee.pipeline.swarm.questions import Link
from bloombee.plan.topology import Site
from bloombee.types import HEAD, WorkerId

NEAR_S = 0.002
"""Of so short a round trip are workers of one site."""


class Lines:
    """Each worker (and the head) is behind a line of its own; those that are next to each other are behind one, for all that
    leaves and enters their site.

    Args:
        found: what is known of links when this is made.
    """

    def __init__(self, found: Mapping[Link, Figure]) -> None:
        self._site: dict[WorkerId, WorkerId] = {}
        for (one, other), figure in found.items():
            if figure.rtt_s < NEAR_S:
                self._join(self.site(one), self.site(other))

    def _join(self, one: WorkerId, other: WorkerId) -> None:
        kept, given_up = min(one, other), max(one, other)
        self._site = {worker: kept if site == given_up else site for worker, site in self._site.items()}
        self._site |= {one: kept, other: kept}

    def site(self, worker: WorkerId) -> WorkerId:
        """By the first of its workers."""
        return self._site.get(worker, worker)

    def of(self, link: Link) -> set[tuple[str, WorkerId]]:
        """Those that a link takes; within a site it takes its ends' own."""
        source, target = map(self.site, link)
        if source == target:
            return {("out", link[0]), ("in", link[1])}
        return {("up", source), ("down", target)}

    def sites(self, parties: Sequence[WorkerId], found: Mapping[Link, Figure]) -> dict[WorkerId, Site]:
        """Lines that several of ``parties`` share, each as wide as the widest link through it; who shares with nobody has its
        links for itself."""
        shared: dict[WorkerId, Site] = {}
        for party in parties:
            site = self.site(party)
            if sum(self.site(one) == site for one in parties) > 1:
                up = _widest(figure for link, figure in found.items() if ("up", site) in self.of(link))
                down = _widest(figure for link, figure in found.items() if ("down", site) in self.of(link))
                shared[party] = Site("the head's site" if site == HEAD else f"the site of worker {site}", up, down)
        return shared


def _widest(figures: Iterable[Figure]) -> float:
    return max((figure.low_bytes_per_s or math.inf for figure in figures), default=math.inf)
