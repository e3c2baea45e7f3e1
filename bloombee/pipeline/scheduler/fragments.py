"""Drafts in several frames, one after the other. Pure.

A frame of many rows is under way on one hop at a time; in parts they are on several at once, at the price of what each frame
costs by itself. So one row more takes what the slowest hop takes for it, not what all do together, and drafts may be larger. And
the verdict on the first part is there before that on the last: if that ends the round, the next one goes at once, and a Commit
overtakes what is left of this one.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass, field

from bloombee.pipeline.scheduler.epoch import Epoch
from bloombee.pipeline.scheduler.round import Round
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.spec.controller import Load
from bloombee.types import SequenceId
from bloombee.wire.messages import Item


@dataclass(slots=True)
class Parts:
    """What is left to send of drafts under way."""

    _left: dict[SequenceId, tuple[SequenceState, int]] = field(default_factory=dict)
    """With the rows of a part."""

    def first(self, sequence: SequenceState, current: Round, load: Load) -> Item:
        """Of a new round; the rest follows."""
        size = part_rows(len(current), load)
        item = current.part(sequence.id, sequence.generation, size)
        if current.num_sent < len(current):
            self._left[sequence.id] = sequence, size
        return item

    def next(self, prompts: Sized = (), epoch: Epoch | None = None) -> Item | None:
        """The next part of any. While prompts wait or are under way what has been sent is all there is of each: more would hold
        up somebody's first token."""
        while self._left:
            number, (sequence, size) = next(iter(self._left.items()))
            current = sequence.round
            if current is not None and (prompts or (epoch is not None and epoch.prefill_share)):
                current.stop()
            if current is None or current.is_over or current.num_sent >= len(current):
                del self._left[number]
                continue
            return current.part(number, sequence.generation, size)
        return None

    def drop(self, sequence: SequenceId) -> None:
        """It has ended."""
        self._left.pop(sequence, None)


def part_rows(num_rows: int, load: Load) -> int:
    """Rows of each part in which ``num_rows`` go."""
    return math.ceil(load.parts(num_rows)[0]) if load.is_idle else num_rows
