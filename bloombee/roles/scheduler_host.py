"""A pipeline's scheduler in the process of the worker with its first stage: its core, and what that says to stages and head."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

from bloombee.errors import LinkDown, LocalProtocolError, QueueFull, RemoteProtocolError, StalePlan
from bloombee.pipeline.acting import each
from bloombee.pipeline.commands import Command, Send
from bloombee.pipeline.events import FromHead, FromStage, HeadRestored, Moved, PlanWired, Port, StageRestored, Tick
from bloombee.pipeline.scheduler import SchedulerService, ring_of
from bloombee.pipeline.scheduler.service import Event
from bloombee.roles.seat_host import HERE, Seating
from bloombee.spec.speculator import Speculator
from bloombee.transport.endpoint import Endpoint
from bloombee.types import Lane
from bloombee.wire.messages import Ack, AnyMessage, Ask, Closed, Committed, Have, Kept, Lost, Resumed, Schedule, Verdict, Wire

log = logging.getLogger(__name__)
_FROM_HEAD = (Ask, Ack)
_FROM_STAGES = (Verdict, Resumed, Closed, Committed, Have, Kept, Lost)
"""Over links; the first stage says everything to it in this process."""


class Stage(Protocol):
    """The first stage, beside it."""

    def received(self, link: bytes, message: AnyMessage, payload: Any) -> None: ...


class SchedulerHost:
    """Runs until :meth:`close`. Belongs to the event loop that runs when it is made.

    Args:
        resend_after_s: as of SchedulerService.
    """

    def __init__(
        self,
        wire: Wire,
        schedule: Schedule,
        *,
        endpoint: Endpoint,
        head_link: bytes,
        resend_after_s: float,
        now: Callable[[], float],
    ) -> None:
        self.since = schedule.since
        self.stage: Stage
        """Beside it; set by whoever brings the two together."""
        self._core = SchedulerService(
            wire.pipeline,
            schedule.since,
            max_rows=wire.max_rows,
            resend_after_s=resend_after_s,
            step_deadline_s=schedule.step_deadline_s,
            speculator=Speculator() if schedule.drafts else None,
            prefix_cache=schedule.prefix_cache,
        )
        self._endpoint = endpoint
        self._head_link = head_link
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._seating: Seating | None = None
        self._is_over = False

    def close(self) -> None:
        """Nothing is said any more."""
        self._is_over = True

    # -- what comes ------------------------------------------------------------------------

    def wired(self, seating: Seating) -> None:
        """All stages of an epoch have been greeted. Said again it changes nothing."""
        schedule = seating.wire.schedule
        is_new = self._seating is None or seating.wire.epoch != self._seating.wire.epoch
        if is_new and schedule is not None:
            self._seating = seating
            self._handle(PlanWired(ring_of(seating.wire, schedule), self._now()))

    def hears(self, link: bytes, message: Any) -> bool:
        """A message over a link; False: it is none for a scheduler.

        Raises:
            RemoteProtocolError: its sender must not say it. StalePlan: it is of another epoch, or for another scheduler.
        """
        if link == self._head_link:
            if isinstance(message, _FROM_HEAD):
                self._handle(FromHead(message, self._now()))
            return isinstance(message, _FROM_HEAD)
        if not isinstance(message, _FROM_STAGES):
            return False
        seating = self._seating
        if seating is None or message.epoch != seating.wire.epoch:
            raise StalePlan(f"epoch {message.epoch} is not scheduled here", epoch=message.epoch)
        if link not in seating.stages:
            raise RemoteProtocolError(f"{type(message).__name__} came over a link of no stage", path="message.tag")
        self._handle(FromStage(seating.stages.index(link), message, self._now()))
        return True

    def said_here(self, message: AnyMessage) -> None:
        """By the stage beside it; taken in its turn, as if it had come over a link."""
        self._loop.call_soon(self._heard_here, message)

    def _heard_here(self, message: AnyMessage) -> None:
        with contextlib.suppress(StalePlan):
            self._handle(FromStage(0, message, self._now()))

    def restored(self, link: bytes) -> None:
        """Both connections of a link stand again."""
        if link == self._head_link:
            self._handle(HeadRestored(self._now()))
        elif self._seating is not None and link in self._seating.stages:
            self._handle(StageRestored(self._seating.stages.index(link), self._now()))

    def moved(self, now: float) -> None:
        """Pieces of a frame have come on over a link."""
        self._handle(Moved(now))

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._handle(Tick(now))

    # -- what the core asks for ------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if not self._is_over:
            each(self._do, self._core.handle(event))

    def _do(self, command: Command) -> None:
        match command:
            case Send(to=Port.HEAD, lane=lane, message=message):
                self._send(self._head_link, lane, message)
            case Send(to=int(stage), lane=lane, message=message) if self._seating is not None:
                link = self._seating.stages[stage]
                if link == HERE:
                    self._loop.call_soon(self._say_here, message)
                else:
                    self._send(link, lane, message)
            case _:
                raise LocalProtocolError(f"the scheduler asks for {command!r}")

    def _send(self, link: bytes, lane: Lane, message: AnyMessage) -> None:
        """What does not get away is kept and said again."""
        try:
            self._endpoint.send(link, lane, message)
        except (LinkDown, QueueFull) as error:
            log.debug("not sent: %s", error.message)

    def _say_here(self, message: AnyMessage) -> None:
        if not self._is_over:
            with contextlib.suppress(StalePlan):
                self.stage.received(HERE, message, None)
