"""What happened in the swarm, told to whoever listens."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from bloombee.control.events import Decision
from bloombee.errors import BloomBeeError
from bloombee.types import SwarmEvent, SwarmEventKind, WorkerId

log = logging.getLogger(__name__)
KEPT = 1000
"""Latest events, for those who begin to listen later."""


class Bulletin:
    """Belongs to the head's loop."""

    def __init__(self) -> None:
        self._kept: deque[SwarmEvent] = deque(maxlen=KEPT)
        self._listeners: set[Callable[[SwarmEvent | None], None]] = set()
        self.recoveries = 0
        """How often a plan has come up again after it had lost a stage."""
        self._has_run = False
        self._is_broken = False
        """The plan that ran has lost a stage."""
        self._is_closed = False

    def tell(
        self,
        kind: SwarmEventKind,
        *,
        epoch: int = 0,
        worker: WorkerId | None = None,
        name: str = "",
        reason: str = "",
        stage: int | None = None,
    ) -> None:
        """As :class:`~bloombee.types.SwarmEvent`; it happened now."""
        if kind is SwarmEventKind.UP:
            self._has_run = True
            self.recoveries += self._is_broken
            self._is_broken = False
        self._tell(SwarmEvent(kind, time.monotonic(), epoch, worker, name, reason, stage=stage))

    def lost(self, worker: WorkerId, name: str, stage: int | None, reason: str) -> None:
        """A worker is gone, and its stage. A spare's loss changes nothing now, but whoever counts on it should know."""
        self._tell(SwarmEvent(SwarmEventKind.LOST, time.monotonic(), 0, worker, name, reason, stage=stage))
        self._is_broken = self._is_broken or (self._has_run and stage is not None)
        if stage is None and self._has_run:
            log.warning("worker %s, a spare, is lost (%s)", name, reason)

    def dismissed(self, worker: WorkerId, name: str, stage: int | None, error: BloomBeeError | None) -> None:
        """The head hangs up on a worker, for an error of its or since it was to leave."""
        if error is not None:
            self.lost(worker, name, stage, error.message)
            return
        log.warning("worker %s leaves, and nothing is missing", name)
        self.tell(SwarmEventKind.LEFT, worker=worker, name=name)

    def decided(self, decision: Decision, line: str) -> None:
        """Something was chosen, and ``line`` of the log says so."""
        self._tell(SwarmEvent(SwarmEventKind.DECIDED, decision.at_s, decision.epoch, reason=decision.why, decision=line))

    def state(self, what: str) -> None:
        """Something was not kept for a head after this one, or everything is again."""
        log.warning("%s", what)
        self.tell(SwarmEventKind.STATE, reason=what)

    def _tell(self, event: SwarmEvent) -> None:
        self._kept.append(event)
        for listener in list(self._listeners):
            listener(event)

    def listen(self, listener: Callable[[SwarmEvent | None], None]) -> None:
        """``listener`` gets what is kept at once, everything from now on, and None at the end; it must not raise or block."""
        for event in self._kept:
            listener(event)
        if self._is_closed:
            listener(None)
        self._listeners.add(listener)

    def close(self) -> None:
        """Nothing more happens."""
        self._is_closed = True
        for listener in list(self._listeners):
            listener(None)

    def leave(self, listener: Callable[[SwarmEvent | None], None]) -> None:
        self._listeners.discard(listener)
