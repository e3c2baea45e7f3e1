"""How two workers come to have a link: who of them dials, for how long, and then. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bloombee.pipeline.swarm.figures import Figure
from bloombee.pipeline.swarm.pairs import Pair
from bloombee.types import HEAD, WorkerId

MEET_S = 4.0
"""To make a link from one end, at most."""
SOON_S, SOON_TRIPS = 0.5, 3
"""To make one at first: so long, and so many round trips by way of the head. Whoever can only dial out answers nothing when it is
dialled, so the other end tries before it is certain that nobody will."""
SOON_TURNS, TURNS = 2, 4
"""The two ends by turns, each soon and then with patience."""


@dataclass(slots=True)
class Meeting:
    """One end dials the other.

    Args:
        turn: how often one of the two has dialled before. is_only: the dialler has no address, so the other end never does.
        greeted: who of them has been.
    """

    pair: Pair
    began: float
    turn: int
    is_only: bool
    greeted: set[WorkerId] = field(default_factory=set)

    def is_vain(self, now: float, found: Mapping[tuple[WorkerId, WorkerId], Figure]) -> bool:
        """Nobody has been greeted so far, and the other end may try.

        Args:
            found: what is known of links, those of both from the head too.
        """
        if self.greeted or self.is_only or self.turn >= SOON_TURNS:
            return False
        to_head = [found.get((HEAD, end)) for end in self.pair.ends]
        trips_s = sum(MEET_S if figure is None else figure.rtt_s for figure in to_head)
        return now - self.began >= min(MEET_S, SOON_S + SOON_TRIPS * trips_s)

    def next(self) -> Iterator[tuple[int, WorkerId, WorkerId]]:
        """(turn, who dials, whom) of the turns that are left."""
        for turn in range(self.turn + 1, 0 if self.is_only else TURNS):
            dialler, listener = self.pair.ends if turn % 2 == self.turn % 2 else self.pair.ends[::-1]
            yield turn, dialler, listener
