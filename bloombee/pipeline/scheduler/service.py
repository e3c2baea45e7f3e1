"""A scheduler that is not with the head: a :class:`SchedulerCore` for whom requests come as messages, and what becomes of them
goes as messages (``proxy.py`` is the other end). Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from bloombee.control.chunks import Chunks
from bloombee.errors import LocalProtocolError, RemoteProtocolError, StalePlan, to_wire
from bloombee.pipeline.commands import Command, Send, TellHead
from bloombee.pipeline.events import (
    Cancel,
    Emitted,
    Ended,
    FromHead,
    FromStage,
    HeadRestored,
    Moved,
    Open,
    PlanWired,
    Port,
    StageRestored,
    Tick,
    Tune,
)
from bloombee.pipeline.frames import FrameSender, OrderedReceiver
from bloombee.pipeline.scheduler.core import SchedulerCore
from bloombee.pipeline.scheduler.proxy import STREAM_WINDOW
from bloombee.plan.plan import Ring
from bloombee.spec.speculator import Speculator
from bloombee.types import Epoch, Lane, PageGroup, PipelineId, SequenceId
from bloombee.wire.messages import Ack, Ask, Given, Over, Request, Schedule, Standing, Told, Tuning, Wire

STANDING_EVERY_S = 0.5
MOST_TOLD = 512
"""Ends in one message: each may have a sentence."""
Event = PlanWired | FromHead | FromStage | StageRestored | HeadRestored | Moved | Tick
T = TypeVar("T")


class SchedulerService:
    """events: see ``Event``. commands: Send (to a stage index, or Port.HEAD).

    Args:
        since: the epoch in which it begins; in any but the first it takes over from one that is gone.
        max_rows, resend_after_s, step_deadline_s, speculator, prefix_cache: as of SchedulerCore.
    """

    def __init__(
        self,
        pipeline: PipelineId,
        since: Epoch,
        *,
        max_rows: int,
        resend_after_s: float,
        step_deadline_s: float,
        speculator: Speculator | None = None,
        prefix_cache: bool = True,
    ) -> None:
        self.since = since
        self.core = SchedulerCore(
            max_rows=max_rows,
            resend_after_s=resend_after_s,
            step_deadline_s=step_deadline_s,
            takes_over=since > 1,
            speculator=speculator,
            prefix_cache=prefix_cache,
        )
        self._pipeline = pipeline
        self._asks: OrderedReceiver[Ask] = OrderedReceiver(STREAM_WINDOW)
        self._tolds = FrameSender(STREAM_WINDOW, resend_after_s)
        self._next: SequenceId = 0
        """No sequence below may be asked for any more."""
        self._coming: tuple[SequenceId, bytearray] | None = None
        """The sequence of which more tokens are to come."""
        self._stood_at = -math.inf

    def handle(self, event: Event) -> list[Command]:
        """Raises RemoteProtocolError or StalePlan for a message that its sender must not send; the state is as it was, but that
        an Ask is not taken twice."""
        match event:
            case FromHead(message=message, now=now):
                return self._from_head(message, now)
            case HeadRestored(now=now):
                return [*self._tolds.resend(now, lambda *_: True)]
            case Tick(now=now):
                return [*self._pass_on(self.core.handle(event), now), *self._tolds.tick(now), *self._stand(now)]
            case PlanWired() | FromStage() | StageRestored() | Moved():
                return self._pass_on(self.core.handle(event), event.now)
        raise LocalProtocolError(f"{event!r} is not an event of the scheduler")

    @property
    def is_idle(self) -> bool:
        return self.core.is_idle and not (self._tolds.num_kept or self._tolds.num_backlog)

    # -- what the head asks ----------------------------------------------------------------

    def _from_head(self, message: object, now: float) -> list[Command]:
        if not isinstance(message, Ask | Ack):
            raise RemoteProtocolError(f"{type(message).__name__} is not for a scheduler", path="message.tag")
        if (message.pipeline, message.epoch) != (self._pipeline, self.since):
            raise StalePlan(f"this scheduler of pipeline {self._pipeline} is since epoch {self.since}", epoch=message.epoch)
        if isinstance(message, Ack):
            return [*self._tolds.acknowledge(message, now)]
        due = self._asks.take(message.frame, message, now)
        answer = Send(Port.HEAD, Lane.CONTROL, self._asks.acknowledgement(self._pipeline, self.since, now))
        return [answer, *self._pass_on([command for ask in due for command in self._asked(ask, now)], now)]

    def _asked(self, ask: Ask, now: float) -> list[Command]:
        commands: list[Command] = []
        for request in ask.requests:
            commands += self._request(request, now)
        for sequence in ask.cancelled:
            commands += self.core.handle(Cancel(sequence, now))
        for sequence in ask.finished:
            commands += self.core.handle(Cancel(sequence, now, is_finished=True))
        if ask.tuning is not None:
            commands += self.core.handle(_tune(ask.tuning, now))
        elif not (ask.requests or ask.cancelled or ask.finished):
            commands += self.core.handle(Moved(now))
        return commands

    def _request(self, request: Request, now: float) -> list[Command]:
        sequence, tokens = self._coming or (request.sequence, bytearray())
        if request.sequence != sequence or sequence < self._next or request.position != len(tokens) // 4:
            raise RemoteProtocolError(
                f"sequence {request.sequence} from position {request.position}: {sequence} from {len(tokens) // 4} is expected,"
                f" or, of none that has begun, one from {self._next} on",
                path="Ask.requests",
            )
        tokens += request.tokens
        if len(tokens) < 4 * request.num_tokens:
            self._coming = sequence, tokens
            return []
        self._coming, self._next = None, sequence + 1
        opening, split = request.opening, 4 * request.opening.num_prompt_tokens
        return self.core.handle(
            Open(
                sequence=sequence,
                prompt=bytes(tokens[:split]),
                sampling=opening.sampling,
                max_new_tokens=opening.max_new_tokens,
                end_tokens=frozenset(opening.end_tokens),
                now=now,
                client=request.client,
                priority=request.priority,
                max_time_s=request.max_time_s,
                output=bytes(tokens[split:]),
                biases=opening.biases,
                grammar=opening.grammar,
            )
        )

    # -- what the head is told -------------------------------------------------------------

    def _pass_on(self, commands: list[Command], now: float) -> list[Command]:
        """The core's own, with what it tells the head as messages, after what it says to stages."""
        told = [command.message for command in commands if isinstance(command, TellHead)]
        if not told:
            return commands
        given = [_given(one) for one in told if isinstance(one, Emitted)]
        over = [_over(one) for one in told if isinstance(one, Ended)]
        rest: list[Command] = [command for command in commands if not isinstance(command, TellHead)]
        for some in _parts(given, MOST_TOLD * 4):
            rest += self._tell(some, (), now)
        for ended in _parts(over, MOST_TOLD):
            rest += self._tell((), ended, now)
        return rest

    def _tell(self, given: tuple[Given, ...], over: tuple[Over, ...], now: float) -> list[Send]:
        def make(number: int) -> Send:
            return Send(Port.HEAD, Lane.CONTROL, Told(self._pipeline, self.since, number, given, over))

        return self._tolds.push(make, now)

    def _stand(self, now: float) -> list[Send]:
        if now < self._stood_at + STANDING_EVERY_S:
            return []
        self._stood_at = now
        core, (num_decoded, decoded_at) = self.core, self.core.decoded
        loop_s, loop_rows = core.quickest_loop or (None, 0)
        said = Standing(
            pipeline=self._pipeline,
            epoch=self.since,
            num_open=core.num_open,
            num_waiting=core.num_sequences - core.num_open,
            loop_s=loop_s,
            loop_rows=loop_rows,
            num_decoded=num_decoded,
            decoded_ago_s=max(0.0, now - decoded_at) if num_decoded else 0.0,
        )
        return [Send(Port.HEAD, Lane.CONTROL, said)]


def ring_of(wire: Wire, schedule: Schedule) -> Ring:
    """What the first stage's Wire says of the ring."""
    groups = tuple(PageGroup(group.window, group.num_pages) for group in schedule.groups)
    return Ring(wire.pipeline, wire.epoch, wire.num_stages, wire.num_microbatches, groups, schedule.page_size)


def _given(emitted: Emitted) -> Given:
    finish = None if emitted.finish is None else str(emitted.finish)
    return Given(emitted.pick, finish, emitted.drafted, emitted.was_drafted, emitted.num_cached)


def _over(ended: Ended) -> Over:
    code, fields = ("", {}) if ended.error is None else to_wire(ended.error)
    return Over(ended.sequence, code, fields)


def _tune(tuning: Tuning, now: float) -> Tune:
    chunks = tuple(
        Chunks(one.position, one.fast, one.gentle, math.inf if one.under_way is None else one.under_way) for one in tuning.chunks
    )
    return Tune(tuning.num_microbatches, chunks, tuning.max_sequences, now, tuning.sizes_apart)


def _parts(items: Sequence[T], most: int) -> Iterable[tuple[T, ...]]:
    return (tuple(items[at : at + most]) for at in range(0, len(items), most))
