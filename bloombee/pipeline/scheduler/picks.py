"""What comes of verdicts: tokens, and which rows of drafts stay. Pure.

A token is believed once: a pick counts iff its sequence is open, its generation is the current one, its position is the next and
all before it has been sent. So repeated, late, stale or made up verdicts change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bloombee.pipeline.commands import Command, TellHead
from bloombee.pipeline.events import Emitted, Ended
from bloombee.pipeline.scheduler.batching import Batcher
from bloombee.pipeline.scheduler.prefixes import Prefixes
from bloombee.pipeline.scheduler.sequence import SequenceState, not_finite, not_obeyed
from bloombee.types import FinishReason, SequenceId
from bloombee.wire.messages import NO_GRAMMAR, NO_TOKEN, Cut, Pick, Verdict

_NONE = (NO_TOKEN, NO_GRAMMAR)
"""Instead of a token, where there can be none."""


class Picks:
    """Of one scheduler.

    Args:
        open_sequences: all that are open, kept by the owner. batcher: gets those that go on.
        prefixes: is told what is home.
        close: ends a sequence, which is not open then.
    """

    def __init__(
        self,
        open_sequences: Mapping[SequenceId, SequenceState],
        batcher: Batcher,
        prefixes: Prefixes,
        close: Callable[[SequenceState, float], list[Command]],
    ) -> None:
        self._open = open_sequences
        self._batcher = batcher
        self._prefixes = prefixes
        self._close = close

    def take(self, verdict: Verdict, now: float) -> tuple[list[Command], list[Cut]]:
        """What comes of its picks, and which rows of drafts stay."""
        told: list[Command] = []
        if verdict.nodes is None:
            for pick in verdict.picks:
                told += self._pick(pick, now)
            return told, []
        cuts: list[Cut] = []
        drafted: dict[SequenceId, SequenceState] = {}
        for pick, node in zip(verdict.picks, verdict.nodes, strict=True):
            sequence = self._open.get(pick.sequence)
            if not node:
                told += self._pick(pick, now)
            elif sequence is not None and sequence.round is not None and pick.generation == sequence.generation:
                sequence.round.note(node, pick)
                drafted[sequence.id] = sequence
        for sequence in drafted.values():
            told += self._round(sequence, cuts, now)
        return told, cuts

    def _round(self, sequence: SequenceState, cuts: list[Cut], now: float) -> list[Command]:
        """What follows as far as it is known."""
        told: list[Command] = []
        current = sequence.round
        assert current is not None
        while (pick := current.next()) is not None:
            was_drafted = pick.token not in _NONE and current.accept(pick.token)
            told += self._give(sequence, pick, now, drafted=current.newly_drafted(), was_drafted=was_drafted)
            if sequence.id not in self._open:
                return told
        if current.is_over:
            cuts.append(sequence.end_round())
            self._batcher.picked(sequence)
        return told

    def _pick(self, pick: Pick, now: float) -> list[Command]:
        sequence = self._open.get(pick.sequence)
        if sequence is None or pick.generation != sequence.generation or pick.position != sequence.num_tokens:
            return []
        if sequence.most_sent < sequence.num_tokens:
            return []  # nobody can know it yet
        told = self._give(sequence, pick, now)
        if sequence.id in self._open:
            self._batcher.picked(sequence)
        return told

    def _give(
        self, sequence: SequenceState, pick: Pick, now: float, *, drafted: int = 0, was_drafted: bool = False
    ) -> list[Command]:
        """The sequence's next token, which may be its last. Arguments as of Emitted."""
        if pick.token in _NONE:
            error = not_finite(sequence) if pick.token == NO_TOKEN else not_obeyed(sequence)
            return [TellHead(Ended(sequence.id, error)), *self._close(sequence, now)]
        sequence.waits_since = now
        sequence.tokens += pick.token.to_bytes(4, "little")
        finish = None
        if pick.token in sequence.end_tokens:
            finish = FinishReason.STOP
        elif sequence.num_output >= sequence.max_new_tokens or now > sequence.late_at:
            finish = FinishReason.LENGTH
        self._prefixes.came_home(sequence)
        cached = sequence.num_cached if sequence.num_output == 1 else 0
        told: list[Command] = [TellHead(Emitted(pick, finish, drafted, was_drafted, cached))]
        return told if finish is None else [*told, *self._close(sequence, now)]
