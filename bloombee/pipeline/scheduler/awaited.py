"""Sequences whose next rows wait for a drafter in another process. Pure.

What comes home together is asked for together. Where microbatches are better large it goes on together: with the last answer, or
once waiting for it has lasted too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.types import SequenceId


@dataclass(slots=True)
class _Group:
    sequences: list[SequenceState]
    missing: set[SequenceId]
    """That have no answer yet."""
    until_s: float


@dataclass(slots=True)
class Awaited:
    """Of one scheduler."""

    _groups: list[_Group] = field(default_factory=list)

    def hold(self, sequences: Sequence[SequenceState], until_s: Mapping[SequenceId, float]) -> None:
        """They have come home, and go on together; ``until_s``: how long the answer for one is worth waiting for, if it was asked
        for."""
        missing = {sequence.id for sequence in sequences} & until_s.keys()
        self._groups.append(_Group(list(sequences), missing, max([until_s[one] for one in missing], default=0.0)))

    def answered(self, sequence: SequenceId) -> None:
        for group in self._groups:
            group.missing.discard(sequence)

    def ready(self, now: float) -> list[SequenceState]:
        """Those that wait no longer."""
        groups, self._groups = self._groups, []
        found: list[SequenceState] = []
        for group in groups:
            if group.missing and now < group.until_s:
                self._groups.append(group)
            else:
                found += group.sequences
        return found

    def remove(self, sequence: SequenceState) -> bool:
        """It goes on otherwise, or has ended; False if it is not here."""
        for group in self._groups:
            if sequence in group.sequences:
                group.sequences.remove(sequence)
                group.missing.discard(sequence.id)
                return True
        return False

    def clear(self) -> None:
        self._groups.clear()
