"""What may be lost, when, and what there is to go on with: the cells that faults are counted by."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum

TYPED_S = 2.0
"""With nobody to take a lost worker's place each request ends so soon, with an error that says why."""


class Who(StrEnum):
    """Who is killed. Successor: the new worker in the middle of a hand-over."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"
    ADJACENT = "two adjacent"
    SUCCESSOR = "new one"
    HEAD = "head"


class Moment(StrEnum):
    """While prompts are read; while all decode; while nothing runs; while a worker loads, for the sake of one that was lost
    before, or, where nobody could take that one's place, as the swarm starts. The new one of a hand-over is killed while it
    loads."""

    PREFILL = "prefill"
    DECODE = "decode"
    IDLE = "idle"
    LOADING = "loading"


class Way(StrEnum):
    """What there is to go on with: a spare; the others, who share its layers out; nobody; whoever joins later."""

    SPARE = "spare"
    SHARE = "re-split"
    NEITHER = "neither"
    WAITS = "waits"


@dataclass(frozen=True, slots=True)
class Cell:
    who: Who
    moment: Moment
    way: Way

    @property
    def ends_typed(self) -> bool:
        """Requests end with an error; else none is lost."""
        return self.way is Way.NEITHER and self.who not in (Who.SUCCESSOR, Who.HEAD)

    @property
    def num_killed(self) -> int:
        """Of workers; a first one, for whose sake another loads, is not counted."""
        return {Who.ADJACENT: 2, Who.HEAD: 0}.get(self.who, 1)

    @property
    def has_a_loss_before(self) -> bool:
        """For whose sake a worker loads when the kill comes."""
        return self.moment is Moment.LOADING and self.who is not Who.SUCCESSOR and self.way is not Way.NEITHER

    def __str__(self) -> str:
        return f"{self.who}, {self.moment}, {self.way}"


CELLS = tuple(itertools.starmap(Cell, itertools.product(Who, Moment, Way)))
