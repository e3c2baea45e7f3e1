"""Drafts in several frames, one after the other, and those that grow while verdicts are under way. Pure.

A frame of many rows is under way on one hop at a time; in parts they are on several at once, at the price of what each frame
costs by itself. And the verdict on the first part is there before that on the last: what it says lets the next rows be chosen
better, or the round end sooner.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.pipeline.scheduler.round import Round
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.spec.controller import Load
from bloombee.types import SequenceId
from bloombee.wire.messages import Item

MOST_PARTS = 16
IDLE = 0.5
"""Of a loop, that the busiest stage or wire may have to do, for frames to go that are not needed."""
WORTH = 0.99
"""Of what fewer parts would take, that more must."""


@dataclass(slots=True)
class Parts:
    """What is left to send of drafts under way.

    Args:
        max_rows: of a frame, and of a tree.
    """

    max_rows: int
    _left: dict[SequenceId, tuple[SequenceState, int]] = field(default_factory=dict)
    """With the rows of a part."""

    def first(self, sequence: SequenceState, current: Round, load: Load) -> Item:
        """Of a new round."""
        size = part_rows(len(current), load)
        item = current.part(sequence.id, sequence.generation, size)
        self.left(sequence, current, size)
        return item

    def left(self, sequence: SequenceState, current: Round, size: int | None = None) -> None:
        """What has not been sent of a round is to be, in parts of ``size`` or as large as may be."""
        if current.num_sent < len(current):
            self._left[sequence.id] = sequence, size or self.max_rows

    def next(self) -> Item | None:
        """The next part of any."""
        while self._left:
            number, (sequence, size) = next(iter(self._left.items()))
            current = sequence.round
            if current is None or current.is_over or current.num_sent >= len(current):
                del self._left[number]
                continue
            return current.part(number, sequence.generation, size)
        return None

    def drop(self, sequence: SequenceId) -> None:
        """It has ended."""
        self._left.pop(sequence, None)


def is_idle(load: Load) -> bool:
    """Whether the ring could do more than goes round: as long as one sequence alone, or few, wait for it."""
    rows = load.rows + 1
    longest = max((line.at(rows) for line in load.busy), default=0.0)
    return 0.0 < load.num_microbatches * longest <= IDLE * load.loop.at(rows)


def part_rows(num_rows: int, load: Load) -> int:
    """Rows of each part that bring ``num_rows`` home soonest: the last goes round when all before it have left the slowest
    hop."""
    if not is_idle(load):
        return num_rows
    best, least = num_rows, load.loop.at(num_rows)
    for count in range(2, min(num_rows, MOST_PARTS) + 1):
        rows = -(-num_rows // count)
        seconds = load.loop.at(rows) + (count - 1) * max(line.at(rows) for line in load.busy)
        if seconds < WORTH * least:
            best, least = rows, seconds
    return best
