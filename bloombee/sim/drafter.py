"""A drafter in a process of its own, as the scheduler sees one: asked, it answers later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bloombee.pipeline.commands import AskDraft
from bloombee.pipeline.events import Drafted, DrafterSeen
from bloombee.sim.clock import VirtualClock
from bloombee.sim.cpu import CorePool
from bloombee.spec.tree import Draft
from bloombee.types import SequenceId


class Oracle(Protocol):
    """What the process drafts with."""

    def answer(self, asked: AskDraft) -> tuple[Draft, float]:
        """The draft, and the seconds that it takes."""
        ...

    def closed(self, sequence: SequenceId) -> None: ...


class SimDrafter:
    """One question after the other.

    Args:
        tell: brings what it says to the scheduler. pool: the cores that it computes on.
    """

    def __init__(
        self, clock: VirtualClock, oracle: Oracle, tell: Callable[[Drafted | DrafterSeen], None], pool: CorePool | None = None
    ) -> None:
        self.num_asked = 0
        self._clock, self._oracle, self._tell = clock, oracle, tell
        self._pool = pool or CorePool(clock, 1)
        self._is_busy = False
        self._waiting: list[AskDraft] = []

    def start(self) -> None:
        """It can be asked from now on."""
        self._tell(DrafterSeen(True, self._clock.now))

    def ask(self, asked: AskDraft) -> None:
        self.num_asked += 1
        self._waiting.append(asked)
        if not self._is_busy:
            self._next()

    def closed(self, sequence: SequenceId) -> None:
        self._oracle.closed(sequence)

    def _next(self) -> None:
        self._is_busy = bool(self._waiting)
        if not self._waiting:
            return
        query = self._waiting[0].query
        draft, seconds = self._oracle.answer(self._waiting.pop(0))

        def end() -> None:
            self._tell(Drafted(query.sequence, query.first + len(query.tokens), draft, self._clock.now))
            self._next()

        self._pool.take(seconds, end)
