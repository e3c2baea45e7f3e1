"""Cuts that some stage has yet to confirm. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from bloombee.pipeline.scheduler.closing import Place
from bloombee.types import SequenceId
from bloombee.wire.messages import Cut, Done


@dataclass(slots=True)
class _Cut:
    cut: Cut
    waiting: set[Place]
    """Stages that have not confirmed."""
    asked_at: float


class Commits:
    """From a cut until every stage has confirmed it, or its sequence is closed."""

    def __init__(self) -> None:
        self._cuts: dict[SequenceId, dict[int, _Cut]] = {}
        """By generation."""

    def __len__(self) -> int:
        """Sequences with cuts that some stage has yet to confirm."""
        return len(self._cuts)

    def __contains__(self, sequence: SequenceId) -> bool:
        """Some stage has yet to confirm a cut of it."""
        return sequence in self._cuts

    def begin(self, cuts: Iterable[Cut], stages: Collection[Place], now: float) -> None:
        """They are told ``now``."""
        for cut in cuts:
            self._cuts.setdefault(cut.sequence, {})[cut.generation] = _Cut(cut, set(stages), now)

    def confirm(self, stage: Place, cuts: Iterable[Done]) -> None:
        """``stage`` knows of these."""
        for done in cuts:
            known = self._cuts.get(done.sequence, {})
            one = known.get(done.generation)
            if one is not None:
                one.waiting.discard(stage)
                self._drop_done(done.sequence)

    def rewire(self, stages: Collection[Place]) -> None:
        """Other workers may be at the stages: all have to confirm."""
        for one in self._all():
            one.waiting = set(stages)

    def join(self, stages: Collection[Place]) -> None:
        """These are there as well."""
        for one in self._all():
            one.waiting |= set(stages)

    def leave(self, stages: Collection[Place]) -> None:
        """These are none any more."""
        for one in self._all():
            one.waiting -= set(stages)
        for sequence in list(self._cuts):
            self._drop_done(sequence)

    def ask_again(self, stages: Iterable[Place], now: float, *, older_than_s: float) -> list[tuple[Place, tuple[Cut, ...]]]:
        """Who of ``stages`` is to be told again, and of which."""
        overdue = [one for one in self._all() if now - one.asked_at >= older_than_s]
        for one in overdue:
            one.asked_at = now
        asked = [(stage, tuple([one.cut for one in overdue if stage in one.waiting])) for stage in sorted(stages)]
        return [(stage, cuts) for stage, cuts in asked if cuts]

    def forget(self, sequence: SequenceId) -> None:
        """It is closed."""
        self._cuts.pop(sequence, None)

    def clear(self) -> None:
        self._cuts.clear()

    def _all(self) -> Sequence[_Cut]:
        return [one for known in self._cuts.values() for one in known.values()]

    def _drop_done(self, sequence: SequenceId) -> None:
        left = {generation: one for generation, one in self._cuts[sequence].items() if one.waiting}
        if left:
            self._cuts[sequence] = left
        else:
            del self._cuts[sequence]
