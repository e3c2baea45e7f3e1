"""The head's end of a scheduler in another process: takes the events of a :class:`SchedulerCore` and gives its commands, but for
what that one says to stages. Pure.

Requests go there as Asks, what comes of them comes back as Tolds (``service.py``); both are numbered, kept until they are
acknowledged and taken in order, so that each counts once through lost, doubled and late messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from bloombee.control.chunks import Chunks
from bloombee.errors import LocalProtocolError, RemoteProtocolError, StalePlan, from_wire
from bloombee.pipeline.commands import Command, Send, TellHead
from bloombee.pipeline.events import (
    Cancel,
    Drafted,
    DrafterSeen,
    Emitted,
    Ended,
    FromStage,
    Moved,
    Open,
    PipelineLost,
    PlanBroken,
    PlanWired,
    Priced,
    StageRestored,
    Tick,
    Tune,
)
from bloombee.pipeline.frames import FrameSender, OrderedReceiver
from bloombee.pipeline.scheduler.core import Event
from bloombee.types import Epoch, FinishReason, Lane, PipelineId, SequenceId
from bloombee.wire.messages import Ack, Ask, ChunkSizes, Opening, Request, Standing, Told, Tuning

STREAM_WINDOW = 1024
"""Asks, or Tolds, that may be held back because one before them is missing."""
MOVED_EVERY_S = 0.5
TOKENS_PER_ASK = 4096
"""Longer sequences go in several: nothing waits long behind one."""


@dataclass(slots=True)
class _Asked:
    """A sequence that is not over as far as is known here: where its next token stands, and where there can be none."""

    position: int
    stop: int
    is_cancelled: bool = False


class SchedulerProxy:
    """events: those of a SchedulerCore. commands: Send (to stage 0, whose worker has the scheduler), TellHead.

    Args:
        since: the epoch in which the scheduler begins.
        resend_after_s: silence after which an Ask is repeated.
    """

    def __init__(self, pipeline: PipelineId, since: Epoch, *, resend_after_s: float) -> None:
        self._pipeline, self._since = pipeline, since
        self._asks = FrameSender(STREAM_WINDOW, resend_after_s)
        self._told: OrderedReceiver[Told] = OrderedReceiver(STREAM_WINDOW)
        self._early: list[Ask] | None = []
        """Asks from before its worker was told that it has the scheduler; None: it has been."""
        self._sequences: dict[SequenceId, _Asked] = {}
        self._standing = Standing(pipeline, since, 0, 0, None, 0, 0, 0.0)
        self._stood_at = 0.0
        self._moved_at = -math.inf

    def handle(self, event: Event) -> list[Command]:
        """Raises RemoteProtocolError for a message that its sender must not send, StalePlan for one that is of another
        scheduler; the state is as it was, but that a Told is not taken twice."""
        match event:
            case FromStage(stage=stage, message=message, now=now):
                return self._from_stage(stage, message, now)
            case Open():
                return self._open(event)
            case Cancel():
                return self._cancel(event)
            case Tune(now=now):
                return self._ask(self._new_ask(tuning=_tuning(event)), now)
            case PlanWired(now=now):
                early, self._early = self._early or [], None
                return [command for ask in early for command in self._ask(ask, now)]
            case PipelineLost(error=error):
                over, self._sequences = self._sequences, {}
                return [TellHead(Ended(sequence, error)) for sequence in over]
            case StageRestored(stage=stage, now=now):
                return [*self._asks.resend(now, lambda *_: True)] if stage == 0 else []
            case Tick(now=now):
                return [*self._asks.tick(now)]
            case Moved(now=now):
                return self._moved(now)
            case PlanBroken() | Priced() | DrafterSeen() | Drafted():
                return []  # a scheduler that is elsewhere has drafters of its own, and takes a round for what it seems
        raise LocalProtocolError(f"{event!r} is not an event of the scheduler")

    # -- what people ask -------------------------------------------------------------------

    @property
    def num_sequences(self) -> int:
        """Open or waiting."""
        return len(self._sequences)

    @property
    def num_open(self) -> int:
        """Admitted, when the scheduler said so last."""
        return min(self._standing.num_open, self.num_sequences)

    def is_admitted(self, sequence: SequenceId) -> bool:
        """As far as is known here: what is asked for there may wait."""
        return sequence in self._sequences

    @property
    def quickest_loop(self) -> tuple[float, int] | None:
        """As of SchedulerCore."""
        said = self._standing
        return None if said.loop_s is None else (said.loop_s, said.loop_rows)

    @property
    def decoded(self) -> tuple[int, float]:
        """As of SchedulerCore, by the clock here: late by the time that the word took."""
        return self._standing.num_decoded, self._stood_at - self._standing.decoded_ago_s

    @property
    def is_idle(self) -> bool:
        return not (self._sequences or self._early or self._asks.num_kept or self._asks.num_backlog)

    # -- there -----------------------------------------------------------------------------

    def _open(self, event: Open) -> list[Command]:
        num_prompt_tokens = len(event.prompt) // 4
        self._sequences[event.sequence] = _Asked(
            num_prompt_tokens + len(event.output) // 4, num_prompt_tokens + event.max_new_tokens
        )
        return [command for part in _requests(event) for command in self._ask(self._new_ask(requests=(part,)), event.now)]

    def _cancel(self, event: Cancel) -> list[Command]:
        asked = self._sequences.get(event.sequence)
        if asked is None:
            return []
        asked.is_cancelled = True
        meant = (event.sequence,)
        return self._ask(self._new_ask(finished=meant) if event.is_finished else self._new_ask(cancelled=meant), event.now)

    def _new_ask(
        self,
        requests: tuple[Request, ...] = (),
        cancelled: tuple[SequenceId, ...] = (),
        finished: tuple[SequenceId, ...] = (),
        tuning: Tuning | None = None,
    ) -> Ask:
        return Ask(self._pipeline, self._since, 0, requests, cancelled, finished, tuning)

    def _ask(self, ask: Ask, now: float) -> list[Command]:
        """Numbered when it goes."""
        if self._early is not None:
            self._early.append(ask)
            return []

        def make(number: int) -> Send:
            return Send(0, Lane.CONTROL, replace(ask, frame=number))

        return [*self._asks.push(make, now)]

    def _moved(self, now: float) -> list[Command]:
        """Say so now and then."""
        if not self._sequences or now < self._moved_at + MOVED_EVERY_S:
            return []
        self._moved_at = now
        return self._ask(self._new_ask(), now)

    # -- and back --------------------------------------------------------------------------

    def _from_stage(self, stage: int, message: object, now: float) -> list[Command]:
        if stage != 0 or not isinstance(message, Told | Ack | Standing):
            raise RemoteProtocolError(f"{type(message).__name__} from stage {stage} is not expected: the scheduler is elsewhere")
        if (message.pipeline, message.epoch) != (self._pipeline, self._since):
            raise StalePlan(
                f"the scheduler of pipeline {message.pipeline} since epoch {message.epoch} is gone", epoch=message.epoch
            )
        match message:
            case Ack():
                return [*self._asks.acknowledge(message, now)]
            case Standing():
                self._standing, self._stood_at = message, now
                return []
        told = [command for one in self._told.take(message.frame, message, now) for command in self._tell(one)]
        return [*told, Send(0, Lane.CONTROL, self._told.acknowledgement(self._pipeline, self._since, now))]

    def _tell(self, told: Told) -> Iterator[Command]:
        """Of sequences that are over nothing more is told. Raises RemoteProtocolError for what no scheduler comes to."""
        for given in told.given:
            asked = self._sequences.get(given.pick.sequence)
            if asked is None:
                continue
            if not asked.position == given.pick.position < asked.stop:
                raise RemoteProtocolError(
                    f"sequence {given.pick.sequence} has a token at {given.pick.position}, not at {asked.position} of"
                    f" {asked.stop}",
                    path="Told.given",
                )
            asked.position += 1
            finish = None if given.finish is None else FinishReason(given.finish)
            if finish is not None:
                del self._sequences[given.pick.sequence]
            yield TellHead(Emitted(given.pick, finish, given.drafted, given.was_drafted, given.num_cached))
        for over in told.over:
            asked = self._sequences.pop(over.sequence, None)
            if asked is None:
                continue
            if not over.code and not asked.is_cancelled:
                raise RemoteProtocolError(f"sequence {over.sequence} is over, and nobody has ended it", path="Told.over")
            yield TellHead(Ended(over.sequence, from_wire(over.code, over.fields) if over.code else None))


def _requests(event: Open) -> Iterator[Request]:
    """A sequence in parts of bounded size."""
    tokens = event.prompt + event.output
    opening = Opening(
        num_prompt_tokens=len(event.prompt) // 4,
        sampling=event.sampling,
        max_new_tokens=event.max_new_tokens,
        end_tokens=tuple(sorted(event.end_tokens)),
        biases=event.biases,
        grammar=event.grammar,
        prefix=None,
    )
    for at in range(0, len(tokens), 4 * TOKENS_PER_ASK):
        yield Request(
            sequence=event.sequence,
            num_tokens=len(tokens) // 4,
            position=at // 4,
            tokens=tokens[at : at + 4 * TOKENS_PER_ASK],
            opening=opening,
            client=event.client,
            priority=event.priority,
            max_time_s=event.max_time_s,
        )


def _tuning(event: Tune) -> Tuning:
    chunks = tuple(ChunkSizes(one.position, one.fast, one.gentle, _finite(one)) for one in event.chunks)
    return Tuning(event.num_microbatches, chunks, event.max_sequences, event.sizes_apart)


def _finite(chunks: Chunks) -> float | None:
    return chunks.under_way if math.isfinite(chunks.under_way) else None
