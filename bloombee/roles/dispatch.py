"""The scheduler as the head's process has it: its core, or the near end of one beside the first stage, and what those send to
stages and hear from them, with their times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bloombee.errors import RemoteProtocolError
from bloombee.links.frames import LinkMeter
from bloombee.models.card import ModelCard
from bloombee.pipeline.acting import InTurn
from bloombee.pipeline.commands import AskDraft, Command, DraftClosed, Send, TellHead, TellSwarm
from bloombee.pipeline.events import Drafted, DrafterSeen, FromStage, Tick
from bloombee.pipeline.scheduler import Event, SchedulerCore, SchedulerProxy
from bloombee.pipeline.swarm import PlanRequest
from bloombee.plan.plan import Plan
from bloombee.roles.desk import Desk
from bloombee.roles.drafter_client import DrafterClient, Program, program_for
from bloombee.roles.replanner import Replanner
from bloombee.roles.stage_host import RESEND_AFTER_S
from bloombee.roles.tracing import HeadTrace
from bloombee.spec.speculator import Speculator
from bloombee.types import Lane, SchedulerPlace, WorkerId
from bloombee.wire.messages import (
    NO_GRAMMAR,
    NO_TOKEN,
    Ack,
    AnyMessage,
    Closed,
    Committed,
    Forward,
    Gap,
    Have,
    Kept,
    Lost,
    Resume,
    Resumed,
    Standing,
    Told,
    Verdict,
)

OfTheRing = Verdict | Ack | Gap | Closed | Committed | Resume | Resumed | Lost | Have | Kept | Told | Standing


class Dispatch:
    """Belongs to one event loop.

    Args:
        request: what plans are asked for; of its model, beyond whose vocabulary there is no token.
        meter: of the link to the first stage. trace: None where nothing is traced.
        send: a message to a worker; its bytes, 0 if the worker is not in.
        desk: gets what the scheduler tells the head, and has the requests that another one is told of.
        replanner: knows the plan of each epoch that is wired, and is told when the scheduler moves over to another one.
    """

    def __init__(
        self,
        request: PlanRequest,
        *,
        meter: LinkMeter,
        trace: HeadTrace | None,
        send: Callable[[WorkerId, Lane, AnyMessage], int],
        desk: Desk,
        replanner: Replanner,
    ) -> None:
        self.scheduler: SchedulerCore | SchedulerProxy = SchedulerCore(
            max_rows=request.max_rows,
            resend_after_s=RESEND_AFTER_S,
            step_deadline_s=request.step_deadline_s,
            speculator=Speculator() if request.drafts else None,
            prefix_cache=request.prefix_cache,
        )
        self._act = InTurn(self._do)
        """What is told to the head and the swarm may come back as the next event."""
        self._plan: Plan | None = None
        """Whose stages are meant."""
        self._place = SchedulerPlace.HEAD, 1
        self._meter = meter
        self._trace = trace
        self._send = send
        self._desk = desk
        self._replanner = replanner
        self._vocab_size = request.card.vocab_size
        program = program_for(request.draft, request.card.model)
        self._drafter = self._start(program, request.card) if program is not None else None

    async def close(self) -> None:
        """Nothing drafts any more."""
        drafter, self._drafter = self._drafter, None
        if drafter is not None:
            await drafter.close()

    def _start(self, program: Program, card: ModelCard) -> DrafterClient:
        def told(event: Callable[..., Drafted | DrafterSeen]) -> Callable[..., None]:
            return lambda *said: self.handle(event(*said, time.monotonic()))

        self._loop = asyncio.get_running_loop()
        drafter = DrafterClient(
            program,
            tokenizer_json=card.tokenizer_json,
            num_tokens=card.vocab_size,
            on_draft=told(Drafted),
            on_up=told(DrafterSeen),
        )
        drafter.start()
        return drafter

    def planned(self, plan: Plan) -> None:
        """Stages are those of ``plan`` from now on, and the scheduler is where it says: another one begins with every request."""
        self._plan = plan
        self._meter.restart()
        place = plan.scheduler, plan.scheduler_since
        if place != self._place:
            self._place = place
            self.scheduler = SchedulerProxy(plan.pipeline, plan.scheduler_since, resend_after_s=RESEND_AFTER_S)
            self._desk.scheduler_began()

    def handle(self, event: Event) -> None:
        """Anything but what comes from a stage. Raises as the core does."""
        self._act(self.scheduler.handle(event))

    def heard(self, stage: int, message: OfTheRing, taken_ns: int, now: float) -> None:
        """A stage says something; ``taken_ns``: when the transport took it in, where that is traced.

        Raises:
            RemoteProtocolError: a token that the model does not have, and as the core does; StalePlan: likewise.
        """
        _check_tokens(message, self._vocab_size)
        took = self._trace.now() if self._trace is not None else 0
        self._act(self.scheduler.handle(FromStage(stage, message, now)))
        if isinstance(message, Ack) and self._plan is not None and message.epoch == self._plan.epoch:
            self._meter.acked(message, now)
        elif self._trace is not None and isinstance(message, Verdict):
            self._trace.came_home(message.microbatch, taken_ns, took)

    def _do(self, command: Command) -> None:
        match command:
            case Send(to=int(stage), lane=lane, message=message) if self._plan is not None:
                plan = self._replanner.plan_of(message.epoch) or self._plan  # type: ignore[union-attr]
                self._send_to(plan.stages[stage].worker, lane, message)
            case TellHead(message=told):
                self._desk.told(told)
            case AskDraft(query=query, temperature=temperature, seed=seed) if self._drafter is not None:
                self._drafter.ask(query, temperature=temperature, seed=seed)
                if (wait_s := query.until_s - time.monotonic()) > 0:
                    self._loop.call_later(wait_s, self._waited)
            case DraftClosed(sequence=sequence) if self._drafter is not None:
                self._drafter.closed(sequence)
            case TellSwarm(message=moved):
                self._replanner.moved(moved)
            case _:
                raise AssertionError(f"the scheduler asks for {command!r}")

    def _waited(self) -> None:
        """For a draft, for long enough: no tick is as prompt."""
        if self._drafter is not None:
            self.handle(Tick(time.monotonic()))

    def _send_to(self, worker: WorkerId, lane: Lane, message: AnyMessage) -> None:
        if not isinstance(message, Forward) or self._plan is None or message.epoch != self._plan.epoch:
            self._send(worker, lane, message)
            return
        now = time.monotonic()
        sending = self._trace.now() if self._trace is not None else 0
        num_bytes = self._send(worker, lane, message)
        if num_bytes:
            self._meter.sent(lane, message.frame, num_bytes, 1, now)
            if self._trace is not None:
                self._trace.sent(message, sending)


def _check_tokens(message: OfTheRing, vocab_size: int) -> None:
    """Who picks, or passes a pick on, may be another program: what comes of a wrong token would be somebody else's error."""
    match message:
        case Verdict(picks=picks):
            path = "Verdict.picks"
        case Told(given=given):
            path, picks = "Told.given", tuple(one.pick for one in given)
        case _:
            return
    for pick in picks:
        wrong = [token for token in (pick.token, *(token for token, _ in pick.top)) if token >= vocab_size]
        if wrong and (wrong[0] not in (NO_TOKEN, NO_GRAMMAR) or path != "Verdict.picks"):
            raise RemoteProtocolError(f"token {wrong[0]} of a model that has {vocab_size}", path=path)
