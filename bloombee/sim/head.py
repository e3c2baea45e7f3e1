"""The head of a simulated swarm: its four cores, and what they ask for."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from bloombee.control import events as control
from bloombee.control.core import ControlCore
from bloombee.control.seen import link_seen, plan_runs, stage_measured
from bloombee.errors import BloomBeeError, RemoteProtocolError, StalePlan
from bloombee.pipeline.acting import InTurn
from bloombee.pipeline.commands import (
    AskDraft,
    Command,
    Conclude,
    Deliver,
    Dismiss,
    DraftClosed,
    FindPlan,
    HandoverBegan,
    HandoverEnded,
    MeasureHere,
    PipelineBroken,
    PipelineDown,
    PipelineUp,
    PlanMade,
    ReportMeasured,
    Send,
    ShadowChanged,
    StageLoaded,
    TellHead,
    TellScheduler,
    TellSwarm,
)
from bloombee.pipeline.events import (
    FromStage,
    MeasuredHere,
    Moved,
    PlanFound,
    Priced,
    SchedulerBegan,
    SchedulerSaid,
    StageRestored,
    SwarmLost,
    Tick,
    WorkerSaid,
    tune_event,
)
from bloombee.pipeline.requests import RequestCore
from bloombee.pipeline.scheduler import SchedulerCore, SchedulerProxy
from bloombee.pipeline.swarm import Drains, PlanRequest, SwarmCore, SwarmLimits
from bloombee.plan.plan import Plan
from bloombee.sim.carrier import HEAD, SCHEDULER, SimCarrier, stage_name
from bloombee.sim.clock import VirtualClock
from bloombee.sim.drafter import SimDrafter
from bloombee.sim.surveying import SimGauges
from bloombee.types import FinishReason, SchedulerPlace, WorkerId
from bloombee.wire.messages import (
    AnyMessage,
    Drained,
    Introduce,
    LinkReport,
    Load,
    Measure,
    Measured,
    MeasureLink,
    Profile,
    Refused,
    Retire,
    Wire,
)

PLAN_S = 0.05
"""Until another plan is made."""


@dataclass(slots=True)
class SimRequest:
    """A request and what became of it."""

    prompt: list[int]
    seed: int
    max_new_tokens: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    finish: FinishReason | None = None
    ended: bool = False
    error: BloomBeeError | None = None
    submitted_at: float = 0.0
    token_times: list[float] = field(default_factory=list)


class SimHead:
    """Cores and what they ask for.

    Args:
        hidden: of the model, in elements of four bytes.
        make_scheduler: where the plan has it; None: there is no plan yet.
        order: brings an order or a question to a worker. to_stage: a message of the scheduler to the worker at a stage.
    """

    def __init__(
        self,
        clock: VirtualClock,
        carrier: SimCarrier,
        request: PlanRequest,
        make_scheduler: Callable[[Plan | None], SchedulerCore | SchedulerProxy],
        *,
        hidden: int,
        order: Callable[[WorkerId, Load | Wire | Retire | Measure | Introduce | MeasureLink | Profile], None],
        to_stage: Callable[[int, Send], None],
    ) -> None:
        limits = SwarmLimits(load_deadline_s=1e9)
        links = (number.to_bytes(16, "big") for number in itertools.count(1))
        self.swarm = SwarmCore(request, limits, links)
        self.request_core = RequestCore(max_waiting=10_000)
        self.scheduler = make_scheduler(None)
        self._act = InTurn(self._do_of_scheduler)
        """What is told to the swarm and the head may come back as the next event."""
        self.control = ControlCore()
        self.requests: dict[int, SimRequest] = {}
        self.plan: Plan | None = None
        self.down: BloomBeeError | None = None
        self.up = False
        self.num_recoveries = 0
        self.handovers: list[HandoverEnded] = []
        """As they ended."""
        self.shadows: list[ShadowChanged] = []
        """Whoever began to follow a stage, and no longer does."""
        self.num_stale = 0
        """Verdicts and acknowledgements that came after their epoch had ended."""
        self.tunings: list[tuple[float, int]] = []
        """When another number of microbatches was chosen, and which."""
        self.control_log: list[control.Event | control.Decision] = []
        """What the control core was told, and what it decided."""
        self.drains = Drains(self.swarm)
        self.answers: list[tuple[WorkerId, Drained | Refused]] = []
        """What workers that want to leave were told."""
        self.on_dismissed: Callable[[WorkerId], None] = lambda _: None
        self.drafter: SimDrafter | None = None
        """In a process of its own."""
        self._clock = clock
        self._carrier = carrier
        self._hidden = hidden
        self._max_rows = request.max_rows
        self._microbatches = None if request.tuned else request.num_microbatches
        self._order = order
        self._to_stage = to_stage
        self._make_scheduler = make_scheduler
        self._scheduler_at = SchedulerPlace.HEAD, 1
        self.on_plan: Callable[[Plan], None] = lambda _: None
        """Told of each plan."""
        self.on_replan: Callable[[str], None] = lambda _: None
        """Takes over the plan of the last comparison, for this reason."""
        self._gauges = SimGauges(clock, carrier, HEAD, self._measured_here)

    # -- what it hears ---------------------------------------------------------------------

    def tick(self) -> None:
        """Time goes on for the cores."""
        now = self._clock.now
        self.do(self.swarm.handle(Tick(now)))
        self.do(self.drains.step(now))
        self.schedule(self.scheduler.handle(Tick(now)))
        self._look_at_links()
        scheduler = self.scheduler
        waiting = scheduler.num_sequences - scheduler.num_open
        self.steer(control.Looked(scheduler.num_open, waiting, scheduler.quickest_loop, scheduler.decoded, now))

    def moved(self) -> None:
        """Something came on over some link."""
        self.schedule(self.scheduler.handle(Moved(self._clock.now)))

    def stage_restored(self, stage: int) -> None:
        """The connections to a stage came back."""
        self.schedule(self.scheduler.handle(StageRestored(stage, self._clock.now)))
        self.steer(control.StageBack(stage, self._clock.now))

    def hear(self, worker: WorkerId, message: AnyMessage) -> None:
        """A worker said something, not of the ring."""
        if isinstance(message, Measured):
            self._measured(worker, message)
            return
        with contextlib.suppress(RemoteProtocolError):  # it was given up meanwhile
            self.do(self.swarm.handle(WorkerSaid(worker, message, self._clock.now)))

    def hear_stage(self, stage: int, message: AnyMessage) -> None:
        """Of the ring."""
        try:
            commands = self.scheduler.handle(FromStage(stage, message, self._clock.now))
        except StalePlan:
            self.num_stale += 1
            return
        self.schedule(commands)

    # -- what its cores ask for ------------------------------------------------------------

    def do(self, commands: list[Command]) -> None:
        """Of the swarm's and the requests' core."""
        for command in commands:
            match command:
                case Send(to=int(worker), message=Load() | Wire() | Retire() | Introduce() | MeasureLink() | Profile() as order):
                    self._order(worker, order)
                case TellScheduler(message=message):
                    self.schedule(self.scheduler.handle(message))
                case MeasureHere(order=order):
                    self._gauges.measure(order)
                case FindPlan():
                    self._clock.call_at(self._clock.now + PLAN_S, partial(self._find, command))
                case PlanMade(plan=plan):
                    self._planned(plan)
                case StageLoaded() | ReportMeasured() | HandoverBegan():
                    pass
                case ShadowChanged():
                    self.shadows.append(command)
                case HandoverEnded():
                    self.handovers.append(command)
                case Send(to=int(worker), message=Drained() | Refused() as answer):
                    self.answers.append((worker, answer))
                case Dismiss(worker=worker):
                    self.on_dismissed(worker)
                case PipelineBroken(lost=lost):
                    self.up = False
                    self.num_recoveries += 1
                    self.steer(control.PlanEnded(lost, self._clock.now))
                case PipelineUp(plan=plan):
                    self.up = True
                    self._runs(plan)
                case PipelineDown(error=error):
                    self.down = error
                    self.steer(control.PlanEnded(None, self._clock.now))
                    self.do(self.request_core.handle(SwarmLost(error)))
                case Deliver():
                    self._deliver(command)
                case Conclude(request=number, error=error):
                    self.requests[number].ended = True
                    self.requests[number].error = error
                case _:
                    raise AssertionError(f"the head asks for {command!r}")

    def _find(self, asked: FindPlan) -> None:
        self.do(self.swarm.handle(PlanFound(asked.number, asked.find(), self._clock.now)))

    def _planned(self, plan: Plan) -> None:
        self.plan = plan
        self.on_plan(plan)
        place = plan.scheduler, plan.scheduler_since
        if place != self._scheduler_at:
            self._scheduler_at = place
            self.scheduler = self._make_scheduler(plan)
            self.do(self.request_core.handle(SchedulerBegan(self._clock.now)))

    def _measured_here(self, report: LinkReport) -> None:
        self.do(self.swarm.handle(MeasuredHere(report, self._clock.now)))

    def _deliver(self, token: Deliver) -> None:
        request = self.requests[token.request]
        request.tokens.append(token.pick.token)
        request.logprobs.append(token.pick.logprob)
        request.token_times.append(self._clock.now)
        request.finish = token.finish
        request.ended = token.finish is not None

    def schedule(self, commands: list[Command]) -> None:
        """Of the scheduler's core."""
        self._act(commands)

    def _do_of_scheduler(self, command: Command) -> None:
        match command:
            case Send(to=int(stage)):
                self._to_stage(stage, command)
            case TellHead(message=message):
                self.do(self.request_core.handle(SchedulerSaid(message, self._clock.now)))
            case TellSwarm(message=moved):
                self.do(self.swarm.handle(moved))
            case AskDraft() if self.drafter is not None:
                self.drafter.ask(command)
                self._clock.call_at(command.query.until_s, self._waited)
            case DraftClosed(sequence=sequence) if self.drafter is not None:
                self.drafter.closed(sequence)
            case _:
                raise AssertionError(f"the scheduler asks for {command!r}")

    def _waited(self) -> None:
        """For a draft, for long enough."""
        self.schedule(self.scheduler.handle(Tick(self._clock.now)))

    # -- control ---------------------------------------------------------------------------

    def steer(self, event: control.Event) -> None:
        """Tell the control core, and do what it asks for."""
        commands = self.control.handle(event)
        self.control_log += [event, *(command for command in commands if isinstance(command, control.Decision))]
        for command in commands:
            match command:
                case control.AskStage(stage=stage, number=number):
                    assert self.plan is not None
                    asked = Measure(pipeline=self.plan.pipeline, epoch=self.plan.epoch, number=number)
                    self._order(self.plan.stages[stage].worker, asked)
                case control.Run():
                    if not self.tunings or self.tunings[-1][1] != command.num_microbatches:
                        self.tunings.append((self._clock.now, command.num_microbatches))
                    self.schedule(self.scheduler.handle(tune_event(command, self._clock.now)))
                case control.Price(load=load):
                    self.schedule(self.scheduler.handle(Priced(load, self._clock.now)))
                case control.Replan(why=why):
                    self.on_replan(why)
                case control.Decision():
                    pass
                case control.Answer():
                    raise AssertionError("nobody asked")

    def _runs(self, plan: Plan) -> None:
        now, rows, count = self._clock.now, self._max_rows, self._microbatches
        runs = plan_runs(plan, hidden=self._hidden, most_rows=rows, microbatches=count, target_s=None, codec="off", now=now)
        self.steer(runs)

    def _look_at_links(self) -> None:
        if self.plan is None or self._microbatches is not None:
            return
        workers = [self.plan.scheduler_worker, *(stage.worker for stage in self.plan.stages), self.plan.scheduler_worker]
        at = self.scheduler_name
        names = [at, *map(stage_name, range(len(self.plan.stages))), at]
        for ends, (source, target) in zip(itertools.pairwise(workers), itertools.pairwise(names), strict=True):
            link = self._carrier.seen(source, target) if source != target else None
            if link is not None:
                self.steer(link_seen(*ends, link, self._clock.now))

    def _measured(self, worker: WorkerId, said: Measured) -> None:
        stage = self.swarm.stage_of(worker)
        if self.plan is not None and stage is not None and said.epoch == self.plan.epoch:
            self.steer(stage_measured(stage, said, self._clock.now))

    @property
    def scheduler_name(self) -> str:
        """Of the scheduler's end of links."""
        is_beside = self.plan is not None and self.plan.scheduler is SchedulerPlace.STAGE0
        return stage_name(0) if is_beside else SCHEDULER

    def place(self, worker: WorkerId, otherwise: int) -> str:
        """How the links of a worker are named; ``otherwise``: its stage, should the swarm's core not know of one."""
        stage = self.swarm.stage_of(worker)
        return stage_name(otherwise if stage is None else stage)
