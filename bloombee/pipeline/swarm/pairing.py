"""Which pairs of workers are worth a measurement, where there are too many for all. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from bloombee.pipeline.swarm.estimates import Estimates
from bloombee.pipeline.swarm.questions import Link
from bloombee.types import WorkerId

MOST_OF_ALL = 32
"""Of so many workers all pairs are measured."""
LANDMARKS = 6
"""Of more, everybody's distance to so many (and to the head) tells first who is near whom."""
NEAREST, OTHERS = 6, 2
"""Then everybody's links to so many near ones are measured, and to so many others, wherever they are."""


def first_pairs(workers: Sequence[WorkerId]) -> Iterator[Link]:
    """To be introduced before anything is known."""
    if len(workers) <= MOST_OF_ALL:
        return itertools.combinations(workers, 2)
    landmarks = workers[:: -(-len(workers) // LANDMARKS)]
    return ((one, other) for one, other in itertools.combinations(workers, 2) if one in landmarks or other in landmarks)


def promising(parties: Sequence[WorkerId], estimates: Estimates) -> set[frozenset[WorkerId]]:
    """Pairs that a plan could use: next to each other, and some that are not."""
    pairs: set[frozenset[WorkerId]] = set()
    for index, party in enumerate(parties):
        known = {other: estimates.guess_s(party, other) for other in parties if other != party}
        near = sorted((other for other, rtt_s in known.items() if rtt_s is not None), key=lambda other: known[other] or 0.0)
        steps = (1 + number * (len(parties) - 1) // OTHERS for number in range(OTHERS))
        others = (parties[(index + step) % len(parties)] for step in steps)
        pairs |= {frozenset((party, other)) for other in (*near[:NEAREST], *others)}
    return pairs
