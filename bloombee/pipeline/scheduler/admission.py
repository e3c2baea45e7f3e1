"""Who may come in: sequences wait in fair turns until every stage has pages for what they will probably need. Pure."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator

from bloombee.pipeline.fair import FairQueue
from bloombee.pipeline.scheduler.pages import PageLedger
from bloombee.pipeline.scheduler.prefixes import Prefixes
from bloombee.pipeline.scheduler.room import Room
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.types import SequenceId

MOST_PASSING_ROWS = 128
"""Of a prompt that passes others; see :meth:`Admission._may_pass`."""


class Way(enum.Enum):
    """How a sequence goes on from the queue."""

    IN_TURN = enum.auto()
    """With the prompts of others."""
    PAST_OTHERS = enum.auto()
    LATER = enum.auto()
    """Once rows have come that another computes."""
    REFUSED = enum.auto()
    """It can never fit."""


class Admission:
    """The queue of those that wait, and how many are open by client.

    Args:
        max_rows: most rows of one microbatch.
    """

    def __init__(self, *, max_rows: int) -> None:
        self.max_open: int | None = None
        """No sequence is admitted while so many are open, unless its client has none."""
        self.num_open = 0
        self._max_rows = max_rows
        self._waiting: FairQueue[SequenceState] = FairQueue()
        self._by_number: dict[SequenceId, SequenceState] = {}
        """Those that wait."""
        self._num_open_of: Counter[str] = Counter()
        self._is_shared = False
        """Some request has named its client: there may be others."""

    def __len__(self) -> int:
        """Those that wait."""
        return len(self._by_number)

    def __iter__(self) -> Iterator[SequenceState]:
        return iter(self._waiting)

    def wait(self, sequence: SequenceState) -> None:
        self._waiting.push(sequence)
        self._by_number[sequence.id] = sequence
        self._is_shared = self._is_shared or bool(sequence.client)

    def withdraw(self, sequence_id: SequenceId) -> bool:
        """False if it does not wait."""
        sequence = self._by_number.pop(sequence_id, None)
        return sequence is not None and self._waiting.remove(sequence)

    def admit(self, pages: PageLedger, prefixes: Prefixes, room: Room, now: float) -> Iterator[tuple[SequenceState, Way]]:
        """Those that come in now, one after the other, with pages taken for as many tokens as each probably has; it begins on
        what others have computed."""
        full: set[str] = set()
        while not room.is_changing and (sequence := self._waiting.first(without=full)) is not None:
            if not pages.can_ever(pages.need(sequence.num_slots)):
                self.withdraw(sequence.id)
                yield sequence, Way.REFUSED
                continue
            covered = room.expected(sequence)
            need = pages.need(covered)
            passes = not room.is_short or (not self._num_open_of[sequence.client] and room.lets_pass(need, pages))
            if not passes or not self._leaves_room(pages, sequence.client, need):
                full.add(sequence.client)
                continue
            if not pages.can_take(need):
                break
            pages.take(need)
            sequence.num_pages, sequence.num_covered = need, covered
            sequence.waits_since = now
            self._waiting.charge(sequence, sequence.num_prompt_tokens + sequence.max_new_tokens)
            self.withdraw(sequence.id)
            way = Way.LATER
            if prefixes.begin(sequence):
                way = Way.PAST_OTHERS if self._may_pass(sequence) else Way.IN_TURN
            self.num_open += 1
            self._num_open_of[sequence.client] += 1
            yield sequence, way

    def _may_pass(self, sequence: SequenceState) -> bool:
        """Whether a prompt goes at once and as decode does, past the chunks of others that wait and are under way.

        A short one of a client that has nothing open, while others have: whoever asks for one thing at a time waits for no
        burst of somebody else's, and costs their decode a few works of a size that it meets anyway.
        """
        is_short = sequence.num_to_fill - sequence.num_sent <= min(MOST_PASSING_ROWS, self._max_rows)
        return is_short and bool(self.num_open) and not self._num_open_of[sequence.client]

    def _leaves_room(self, pages: PageLedger, client: str, need: tuple[int, ...]) -> bool:
        """Whether ``client`` may open a sequence of ``need`` pages and a newcomer still finds a place.

        A client with nothing open always may. One that has must leave pages for a sequence as large, and stays within
        ``max_open``; else whoever comes after a burst that fills the pool would wait until somebody's text has ended. Where no
        request ever names its client nothing is left over.
        """
        if not self._num_open_of[client]:
            return True
        if self.max_open is not None and self.num_open >= self.max_open:
            return False
        return not self._is_shared or pages.leaves_room(need)

    def closed(self, sequence: SequenceState) -> None:
        """One that was open is not any more."""
        self.num_open -= 1
        self._num_open_of[sequence.client] -= 1
        if not self._num_open_of[sequence.client]:
            del self._num_open_of[sequence.client]

    def clear(self) -> None:
        """Nobody waits, nothing is open."""
        self._waiting.clear()
        self._by_number.clear()
        self._num_open_of.clear()
        self.num_open = 0
