"""Pages for sequences as they grow: who has room for how many tokens, who waits for more, and who makes way. Pure.

Theory of operation. Most answers end long before they may, so a sequence is admitted with pages for what it has and for as much
more as answers of late have had, and takes further ones while it grows. If none is free the youngest sequence makes way: it gives
up all of its rows on every stage (a Commit of length 0), and once all have confirmed that its pages are free. It comes back,
before anybody new of its client, when there is room again: from its tokens, or from those of its rows that stages have kept
meanwhile (``prefixes.py``). Tokens depend on position and seed alone, so nobody notices but by the time that it takes.

The oldest never makes way for another, and every sequence fits in by itself, so all of them end. Clients that have nothing open
may pass those that wait to come back, as far as that never keeps the first of these from fitting in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bloombee.pipeline.commands import Command
from bloombee.pipeline.scheduler.batching import Batcher
from bloombee.pipeline.scheduler.closing import Closings
from bloombee.pipeline.scheduler.epoch import Epoch
from bloombee.pipeline.scheduler.pages import PageLedger
from bloombee.pipeline.scheduler.prefixes import Prefixes
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.pipeline.scheduler.succession import Succession
from bloombee.types import SequenceId
from bloombee.wire.messages import Cut

STEP_TOKENS = 64
"""By so many a sequence grows at once, where there is room."""
SLACK = 1.25
"""More than answers have had of late, relatively."""
FORGETS = 1 / 8


class Room:
    """Of one scheduler.

    Args:
        open_sequences: all that are open, kept by the owner.
        batcher: has those that wait for pages; gets those that go on.
    """

    def __init__(
        self,
        open_sequences: Mapping[SequenceId, SequenceState],
        batcher: Batcher,
        prefixes: Prefixes,
        closings: Closings,
        succession: Succession,
    ) -> None:
        self._open = open_sequences
        self._batcher = batcher
        self._prefixes = prefixes
        self._closings = closings
        self._succession = succession
        self._share = 1.0
        """Of the tokens that they may have, those that answers have had of late."""
        self._going: dict[SequenceId, SequenceState] = {}
        """Those that make way: some stage may still have pages of them."""
        self._away: dict[SequenceId, SequenceState] = {}
        """Those that have, in the order in which that was confirmed."""

    @property
    def is_short(self) -> bool:
        """Somebody waits for pages who was here before."""
        return bool(self._batcher.hungry or self._going or self._away)

    @property
    def is_changing(self) -> bool:
        """Somebody who runs waits for pages, or makes way for one who does."""
        return bool(self._batcher.hungry or self._going)

    def lets_pass(self, need: Sequence[int], pages: PageLedger) -> bool:
        """Whether one more may have ``need`` pages though somebody has made way and waits: if the one that comes back first fits
        in beside it and all that are younger and run, however long they do."""
        if not self._away:
            return True
        first = self._first_back()
        younger = [one.num_pages for one in self._open.values() if one.id > first.id and one.id not in self._away]
        wanted = [sum(counts) for counts in zip(need, pages.need(first.num_slots), *younger, strict=True)]
        return pages.can_ever(wanted)

    def _first_back(self) -> SequenceState:
        return min(self._away.values(), key=lambda one: one.id)

    def expected(self, sequence: SequenceState) -> int:
        """Slots of KV that it will probably need, no fewer than for what it has."""
        rest = sequence.max_new_tokens - sequence.num_output
        more = min(rest, math.ceil(SLACK * self._share * sequence.max_new_tokens))
        return min(sequence.num_slots, sequence.num_tokens + more)

    def ended(self, sequence: SequenceState) -> None:
        """It is closed; what it had is the closing's to give back."""
        if sequence.has_finished:  # what was cut short says nothing of how long answers are
            self._share += FORGETS * (sequence.num_output / sequence.max_new_tokens - self._share)
        self._going.pop(sequence.id, None)
        self._away.pop(sequence.id, None)

    def clear(self) -> None:
        self._going.clear()
        self._away.clear()

    def make(self, epoch: Epoch, now: float) -> list[Command]:
        """Give pages to those that wait for them, and have somebody make way if there are none."""
        if not self.is_short:
            return []
        for sequence in [one for one in self._going.values() if one.id not in self._succession.commits]:
            self._gone(sequence, epoch.pages)
        commands: list[Command] = []
        while self._batcher.hungry:
            sequence = min(self._batcher.hungry.values(), key=lambda one: one.id)
            if self._grow(sequence, epoch.pages):
                del self._batcher.hungry[sequence.id]
                self._batcher.go_on(sequence)
            elif self._going or self._closings:
                break  # pages are to come
            else:
                commands += self._preempt(self._youngest(), epoch, now)
        while self._away and not (self._batcher.hungry or self._going):
            oldest = self._first_back()
            if not self._take(oldest, self.expected(oldest), epoch.pages):
                break
            del self._away[oldest.id]
            if self._prefixes.begin(oldest):
                self._batcher.go_on(oldest)
        return commands

    def _grow(self, sequence: SequenceState, pages: PageLedger) -> bool:
        wanted = min(sequence.num_slots, sequence.num_tokens + STEP_TOKENS)
        return self._take(sequence, wanted, pages) or self._take(sequence, sequence.num_tokens, pages)

    def _take(self, sequence: SequenceState, num_slots: int, pages: PageLedger) -> bool:
        """Room for so many tokens, if there are pages."""
        need = pages.need(num_slots)
        more = [count - had for count, had in zip(need, sequence.num_pages, strict=True)]
        if not pages.can_take(more):
            return False
        pages.take(more)
        sequence.num_pages, sequence.num_covered = need, num_slots
        return True

    def _youngest(self) -> SequenceState:
        """Of those that have pages."""
        return max((one for one in self._open.values() if one.id not in self._away), key=lambda one: one.id)

    def _preempt(self, sequence: SequenceState, epoch: Epoch, now: float) -> list[Command]:
        kept = self._prefixes.ended(sequence, epoch, now)
        self._batcher.remove(sequence)
        sequence.begin_again()
        sequence.go_back(0)
        self._going[sequence.id] = sequence
        return [*kept, *self._succession.cut([Cut(sequence.id, sequence.generation, 0, ())], now)]

    def _gone(self, sequence: SequenceState, pages: PageLedger) -> None:
        """No stage has anything of it any more."""
        pages.give(sequence.num_pages)
        sequence.num_pages, sequence.num_covered = (0,) * len(sequence.num_pages), 0
        self._away[sequence.id] = self._going.pop(sequence.id)
