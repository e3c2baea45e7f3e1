"""Who is in the swarm, what each has loaded, and which epoch is wired. Pure.

Life of a pipeline: workers join until the asked number is there; if a planner is to decide, they and their links are looked at
(survey.py); the plan is made, each stage's worker loads its span (Load), all are told their neighbours (Wire), and when all have
greeted them the pipeline is up. Workers beyond the plan are spares. When a stage is lost a spare takes its place: while it loads
all are wired anew in the next epoch; what the sequences had is still with the others, and stages say again to their new neighbour
what it lacks. Without a spare the layers are split over all who are left, or requests wait for another worker, if that is
wanted; else the loss ends the pipeline. Another plan is taken over beside the one that runs (handover.py). Where that is wanted
spares follow stages, and have what these have when they are lost (shadows.py). Load and Wire are idempotent and are said again
until they have been answered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from bloombee.errors import (
    BloomBeeError,
    DeviceError,
    LinkDown,
    LocalProtocolError,
    RemoteProtocolError,
    from_wire,
)
from bloombee.pipeline.commands import (
    Command,
    Dismiss,
    FindPlan,
    PipelineBroken,
    PipelineDown,
    PipelineUp,
    PlanMade,
    ReportLeft,
    ReportProgress,
    StageLoaded,
    TellScheduler,
)
from bloombee.pipeline.events import (
    EpochBegan,
    EpochOver,
    HandOver,
    MeasuredHere,
    PipelineLost,
    PlanBroken,
    PlanFound,
    PlanWired,
    Tick,
    WorkerAway,
    WorkerDrains,
    WorkerGone,
    WorkerJoined,
    WorkerRestored,
    WorkerSaid,
    WorkersEnded,
)
from bloombee.pipeline.swarm.blame import blamed, told
from bloombee.pipeline.swarm.building import loss_s
from bloombee.pipeline.swarm.figures import Figures
from bloombee.pipeline.swarm.handover import Handovers, can_hand_over
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.orders import Orders
from bloombee.pipeline.swarm.pairs import Pairs
from bloombee.pipeline.swarm.planning import FirstPlan, PlanRequest
from bloombee.pipeline.swarm.replanning import NextPlan, with_spare
from bloombee.pipeline.swarm.shadows import Shadows
from bloombee.pipeline.swarm.stuck import stuck
from bloombee.pipeline.swarm.survey import Survey
from bloombee.plan.plan import Plan, StagePlan
from bloombee.plan.topology import Topology
from bloombee.types import HEAD, Epoch, Span, WorkerId
from bloombee.wire.messages import (
    AnyMessage,
    Introduced,
    LinkReport,
    Loaded,
    Loading,
    Profiled,
    Refused,
    Retired,
    StageFailed,
    Unloaded,
    Wired,
)
from bloombee.wire.spoken import check_spoken

RETURN_S = 5.0
"""Workers of a head before this one are awaited so long before it is planned without them."""
STALL_S = 1.0
"""Between two ticks: time that was not this process's."""
_OfWorkers = WorkerJoined | WorkerSaid | WorkerAway | WorkerRestored | WorkerDrains | WorkerGone | WorkersEnded
Event = _OfWorkers | MeasuredHere | Tick | HandOver | PlanFound | EpochBegan | EpochOver


@dataclass(frozen=True, slots=True)
class SwarmLimits:
    load_deadline_s: float
    """Without any progress."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Of a stage of the ring."""

    stage: StagePlan
    reason: str
    cause: BloomBeeError | None = None
    """That it could not load; None: it is gone."""

    @property
    def error(self) -> BloomBeeError:
        """If nothing takes its place."""
        name = self.stage.name
        return self.cause or LinkDown(f"worker {name!r} is gone ({self.reason}); restart it and the Runtime", worker=name)


@dataclass(frozen=True, slots=True)
class Awaiting:
    """Until when another worker may come in the place of one that is gone, and why it is over if none does."""

    until: float
    error: BloomBeeError


@dataclass(slots=True)
class SwarmCore:
    """events: see ``Event``. commands: Send (to a worker id), and those of a swarm in :mod:`bloombee.pipeline.commands`."""

    request: PlanRequest
    limits: SwarmLimits
    links: Iterator[bytes]
    """Fresh unguessable link ids for worker -> worker links; the core itself has no randomness."""
    figures: Figures = field(default_factory=Figures)
    """Of links, from before; those that are measured come to it."""
    plan: Plan | None = None
    survey: Survey | None = None
    """What is known of workers and links; None: nobody looks at them, or not all are there yet."""
    error: BloomBeeError | None = None
    """Why the pipeline is down for good."""
    is_up: bool = False
    was_up: bool = False
    _is_wiring: bool = False
    _workers: dict[WorkerId, Member] = field(default_factory=dict)
    _pairs: Pairs = field(init=False)
    _orders: Orders = field(init=False)
    _measure_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    had: dict[bytes, Span] = field(default_factory=dict)
    """Layers of workers that are gone, by key: should it come back, it is the best spare for them."""
    handovers: Handovers = field(init=False)
    shadows: Shadows = field(init=False)
    awaited_since: float = math.inf
    """Since when workers are."""
    _awaiting: Awaiting | None = None
    """Whoever takes the place of one that is gone."""
    _split_after: Loss | None = None
    """A split over those that are left is looked for; until it is found nothing else is done about that."""
    _num_splits: int = 0
    """That were looked for."""
    _ticked_at: float = 0.0

    def __post_init__(self) -> None:
        self._pairs = Pairs(self.links)
        self._orders = Orders(self.request, self._workers, self._pairs)
        self.shadows = Shadows(self._workers, self._orders, partial(_loss_s, self))
        self.handovers = Handovers(self._workers, self._orders, self.shadows)

    def handle(self, event: Event) -> list[Command]:
        """Raises RemoteProtocolError for a message that its sender must not send; the state is as it was."""
        match event:
            case WorkerJoined():
                return self._joined(event)
            case WorkerSaid(worker=worker, message=message, now=now):
                return self._said(worker, message, now)
            case MeasuredHere(report=report, now=now):
                return self._found(HEAD, report, now)
            case WorkerGone():
                return self._gone(event.worker, event.reason, event.cause, event.now)
            case WorkerDrains() if self.plan is not None and (stage := self.plan.stage_of(event.worker)) is not None:
                return self._drain(self.plan, stage, event)
            case WorkersEnded(error=error, now=now):
                return self._down(error, now)
            case WorkerAway(worker=worker):
                if worker in self._workers:
                    self._workers[worker].is_away = True
                return []
            case WorkerRestored(worker=worker, now=now):
                return self._restored(worker, now)
            case Tick(now=now):
                return self._tick(now)
            case HandOver(plan=plan, reason=reason, now=now):
                return self.handovers.begin(plan, self.plan if self.is_up else None, reason, now)
            case PlanFound():
                return _split(self, event)
            case EpochBegan() | EpochOver():
                self.plan, commands = self.handovers.moved_over(event, self.plan)
                return commands
        raise LocalProtocolError(f"{event!r} is not an event of the swarm")

    # -- what people ask -------------------------------------------------------------------

    def stage_of(self, worker: WorkerId, epoch: Epoch | None = None) -> int | None:
        """In an epoch, if that is wired, else in the plan that runs."""
        plan = (self.plan_of(epoch) if epoch is not None else None) or self.plan
        stage = plan.stage_of(worker) if plan is not None else None
        return stage.index if stage else None

    def plan_of(self, epoch: Epoch) -> Plan | None:
        """Of those that are wired, or are being."""
        plans = (self.plan, *self.handovers.plans, *(shadow.plan for shadow in self.shadows.all))
        return next((plan for plan in plans if plan is not None and plan.epoch == epoch), None)

    @property
    def members(self) -> Mapping[WorkerId, Member]:
        """Who is in, in the order of joining."""
        return self._workers

    @property
    def num_missing(self) -> int:
        """Workers that have yet to join before there is a plan."""
        return max(0, self.request.num_workers - len(self._workers)) if self.plan is None else 0

    @property
    def spares(self) -> tuple[WorkerId, ...]:
        """Workers without a stage that may get one, in the order in which they joined; empty before the first plan."""
        there = self._workers.values() if self.plan is not None else ()
        return tuple(one.id for one in there if self.stage_of(one.id) is None and not one.is_draining)

    # -- joining and the first plan --------------------------------------------------------

    def _joined(self, event: WorkerJoined) -> list[Command]:
        if event.worker in self._workers:
            raise LocalProtocolError(f"worker {event.worker} joined twice")
        had = self.had.pop(event.key, None)
        self._workers[event.worker] = Member(event.worker, event.name, event.endpoint, event.key, event.memory_bytes, had=had)
        if self.plan is not None and self.survey is not None:
            return self.survey.joined(event.worker, event.now)
        return self._plan_if_complete(event.now)

    def _plan_if_complete(self, now: float) -> list[Command]:
        """Nobody who may not come back is planned with: until then another could take the place."""
        first = FirstPlan(self.request)
        awaits = now < min(self.awaited_since, now) + RETURN_S
        workers = first.complete(self._workers.values(), awaits=awaits)
        if workers is None or self.plan is not None or self.error is not None:
            return []
        if not first.wants_survey(workers):
            return self._make_plan(workers, now)
        if self.survey is None or any(worker.id not in self.survey.workers for worker in workers):
            self.survey = Survey(self._workers, self.request, self._pairs, self.figures, self._measure_numbers)
            return [*self.survey.begin(now), *self.survey.reports()]
        return [*self.survey.reports(), *self._make_plan(workers, now)] if self.survey.is_over else []

    def _found(self, worker: WorkerId, message: AnyMessage, now: float) -> list[Command]:
        """Something of a worker or a link."""
        if self.survey is None or (self.plan is not None and self.survey.is_over):
            return []
        return [*self.survey.said(worker, message, now), *self.survey.reports(), *self._plan_if_complete(now)]

    def _make_plan(self, workers: Sequence[Member], now: float) -> list[Command]:
        first = FirstPlan(self.request)
        try:
            plan = first.decide(workers, surveyed(self))
        except BloomBeeError as error:
            return self._down(error, now)
        self.plan = self._orders.numbered(plan)
        return [PlanMade(self.plan), *(self._orders.first_load(self.plan, stage, now) for stage in self.plan.stages)]

    # -- orders ----------------------------------------------------------------------------

    def _wire_all(self, plan: Plan, now: float) -> list[Command]:
        self._is_wiring = True
        wires = [self._orders.wire(plan, stage.index, now) for stage in plan.stages]
        return [*wires, TellScheduler(PlanWired(plan.ring, now))]

    # -- what workers say ------------------------------------------------------------------

    def _said(self, worker_id: WorkerId, message: AnyMessage, now: float) -> list[Command]:
        worker = self._workers.get(worker_id)
        if worker is None:
            raise RemoteProtocolError(f"worker {worker_id} is not in the swarm")
        for part in (self.handovers, self.shadows):
            if (answered := part.said(worker, message, now)) is not None:
                return answered
        plan, stage = self.plan, self.plan.stage_of(worker_id) if self.plan is not None else None
        match message:
            case Profiled() | Introduced() | LinkReport() | Refused():
                return self._found(worker_id, message, now)
            case Loading(loaded_bytes=loaded, total_bytes=total) if stage is not None:
                worker.progress_at = now
                return [ReportProgress(worker_id, stage.index, loaded, total)]
            case Loaded(number=number) if plan is not None and stage is not None:
                if number != stage.load:
                    return []  # of an order that was given before
                told = [] if worker.is_loaded else [StageLoaded(worker_id, stage.index)]
                worker.is_loaded = True
                return [*told, *self._go_on(plan, now)]
            case Wired(epoch=epoch) if plan is not None and epoch <= plan.epoch:
                worker.wired = max(worker.wired, epoch)
                return self._go_on(plan, now)
            case Loading() | Loaded() | Wired() | Retired() | Unloaded():
                return []  # of an order that has been taken back meanwhile
            case StageFailed():
                return _failed(self, worker, message, now)
        check_spoken(message)
        raise RemoteProtocolError(f"{type(message).__name__} from worker {worker.name!r} is not expected now")

    def _go_on(self, plan: Plan, now: float) -> list[Command]:
        """Wire when all have loaded; up when all are wired."""
        workers = [self._workers.get(stage.worker) for stage in plan.stages]
        if self.error is not None or self.is_up:
            return []
        if not self._is_wiring:
            return self._wire_all(plan, now) if all(worker and worker.is_loaded for worker in workers) else []
        if not all(worker and worker.is_loaded and worker.wired == plan.epoch for worker in workers):
            return []
        self.is_up = self.was_up = True
        return [PipelineUp(plan)]

    # -- workers that go -------------------------------------------------------------------

    def _gone(self, worker_id: WorkerId, reason: str, cause: BloomBeeError | None, now: float) -> list[Command]:
        stage = self.plan.stage_of(worker_id) if self.plan is not None else None
        worker = self._workers.pop(worker_id, None)
        if worker is not None and (had := worker.had if stage is None else stage.span) is not None:
            self.had[worker.key] = had
        self._pairs.forget(worker_id)
        if worker is None or self.error is not None:
            return []
        looks = [] if self.survey is None else self.survey.left(worker_id, now)
        if self.plan is None:
            if self.request.takes_others:
                return [*looks, ReportLeft(worker.id, worker.name, self.num_missing), *self._plan_if_complete(now)]
            if worker.name in self.request.order:  # else it is a spare
                why = f"worker {worker.name!r} is gone before all were there: {reason}"
                looks = [*looks, *self._down(DeviceError(why, worker=worker.name), now)]
            return [*looks, *self._plan_if_complete(now)]
        parted = [*looks, *self.shadows.lost(worker_id, now), *self.handovers.lost(worker, reason, now, ends=stage is not None)]
        if stage is None:
            return parted
        loss = Loss(stage, reason, cause)
        # Nothing is wired before whoever is awaited has come: then all places are taken at once.
        if self._awaiting or self._split_after or (spare := _heir(self, stage)) is None:
            return [*parted, *self._share_out(self.plan, loss, now)]
        return [*parted, *self._replace(self.plan, loss, spare, now)]

    def _share_out(self, plan: Plan, loss: Loss, now: float) -> list[Command]:
        """The layers are split over all who are left, if they have the memory and that is wanted; else it is over."""
        if (find := _over_others(self, plan)) is None:
            return self._await_another(plan, loss, now)
        self._split_after, self._num_splits = loss, self._num_splits + 1
        return [self._break(plan, now), FindPlan(self._num_splits, find)]

    def _await_another(self, plan: Plan, loss: Loss, now: float) -> list[Command]:
        """Requests wait for a worker that takes the place of the one that is gone, if that is wanted; else it is over."""
        if not self.request.waits_s:
            return self._down(loss.error, now)
        self._awaiting = self._awaiting or Awaiting(now + self.request.waits_s, loss.error)
        return [self._break(self._orders.numbered(plan, plan), now), *_told(loss, "whoever joins next")]

    def _replace(self, plan: Plan, loss: Loss, spare: Member, now: float) -> list[Command]:
        """Another worker takes over a stage, in the next epoch. Links are made while it loads: they take many round trips."""
        plan, taken = self._take(with_spare(plan, loss.stage, spare), plan, now, _told(loss, spare.name))
        return [*taken, *self._wire_all(plan, now)]

    def _take(self, other: Plan, old: Plan, now: float, told: Sequence[Command] = ()) -> tuple[Plan, list[Command]]:
        """Returns ``other`` as it runs from now on, once it is wired; ``told``: that ``old`` is broken, if nobody knows."""
        self._awaiting, room, plan = None, self.shadows.make_room(other, now), self._orders.numbered(other, old)
        return plan, [*room, self._break(plan, now), *told, PlanMade(plan), *self._orders.move(plan, old, now)]

    def _break(self, plan: Plan, now: float) -> Command:
        """What ran runs no more; ``plan`` is what there is of it until all is wired again."""
        self.plan, self.is_up, self._is_wiring = plan, False, False
        return TellScheduler(PlanBroken(now))

    def _restored(self, worker_id: WorkerId, now: float) -> list[Command]:
        """What was told once and may be lost is told again: a worker that has done it changes nothing."""
        worker, stage = self._workers.get(worker_id), self.plan.stage_of(worker_id) if self.plan is not None else None
        if worker is None:
            return []
        worker.is_away = False
        self.handovers.restored(worker_id, now)
        if self.plan is None or self.error is not None or stage is None:
            return [*self.shadows.restored(worker_id, now), *self._plan_if_complete(now)]
        return self._orders.unanswered(self.plan, stage, now, is_wiring=self._is_wiring)

    def _drain(self, plan: Plan, stage: StagePlan, event: WorkerDrains) -> list[Command]:
        """Its heir takes over beside it, or, where that cannot be, as after a loss."""
        heir = self._workers[event.heir]
        other = with_spare(plan, stage, heir)
        if self.is_up and can_hand_over(other, plan, self._workers):
            return self.handovers.begin(other, plan, event.reason, event.now)
        return self._replace(plan, Loss(stage, event.reason), heir, event.now)

    def _down(self, error: BloomBeeError, now: float) -> list[Command]:
        if self.error is not None:
            return []
        self.error, self.is_up = error, False
        self.shadows.clear()
        return [*self.handovers.end(error), PipelineDown(error), TellScheduler(PipelineLost(error, now))]

    # -- time ------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Command]:
        commands: list[Command] = []
        if self._ticked_at and now - self._ticked_at > STALL_S:
            # It was this process that stood still: what the workers said meanwhile has yet to be read.
            for worker in self._workers.values():
                worker.progress_at = now
        self._ticked_at = now
        self.awaited_since = min(self.awaited_since, now)
        if self.error is None and not self.is_up and (error := _stuck(self, now)) is not None:
            commands += self._down(error, now)
        if self.error is None and self.survey is not None and (self.plan is None or not self.survey.is_over):
            commands += [*self.survey.tick(now), *self.survey.reports()]
        if self.plan is None and self.error is None:
            commands += self._plan_if_complete(now)
        commands += _go_on_with_others(self, now)
        if self.plan is not None and self.error is None and not self.is_up and not (self._awaiting or self._split_after):
            commands += self._orders.press(self.plan, now, is_wiring=self._is_wiring)
        return [*commands, *self.handovers.tick(now, self.limits.load_deadline_s), *_followed(self, now)]


def _split(core: SwarmCore, found: PlanFound) -> list[Command]:
    """What was asked for at the loss of a stage, unless another one has been lost since."""
    plan, loss, other, now = core.plan, core._split_after, found.plan, found.now
    if plan is None or loss is None or found.number != core._num_splits or core.error is not None:
        return []
    core._split_after = None
    if other is None:
        return core._await_another(plan, loss, now)
    if any(stage.worker not in core._workers for stage in other.stages):
        return core._share_out(plan, loss, now)
    plan, taken = core._take(other, plan, now, _told(loss, "a split over those that are left"))
    return [*taken, *core._go_on(plan, now)]


def _go_on_with_others(core: SwarmCore, now: float) -> list[Command]:
    """When all places can be taken, or nobody is waited for any longer."""
    plan, awaiting = core.plan, core._awaiting
    if plan is None or awaiting is None or core._split_after or core.error is not None:
        return []
    if (other := _refilled(core, plan)) is None:
        return core._down(awaiting.error, now) if now >= awaiting.until else []
    plan, taken = core._take(other, plan, now)
    return [*taken, *core._wire_all(plan, now)]


def _told(loss: Loss, name: str) -> list[Command]:
    """``name`` is who, or what, takes the place of the stage."""
    return [PipelineBroken(loss.stage.worker, loss.stage.name, name, loss.reason)]


def surveyed(core: SwarmCore) -> Topology | None:
    """What is known of workers and links; None: no more than the request says."""
    return None if core.survey is None else core.survey.topology()


def _followed(core: SwarmCore, now: float) -> list[Command]:
    """By spares, where that is wanted."""
    plan = core.plan
    if plan is None or core.error is not None or not core.request.shadows:
        return []
    is_calm = core.is_up and not core.handovers.plans
    spares = [core.members[spare] for spare in core.spares]
    begun = core.shadows.follow(plan, spares, now, core.limits.load_deadline_s) if is_calm else []
    return [*begun, *core.shadows.tick(plan.pipeline, now)]


def _heir(core: SwarmCore, stage: StagePlan) -> Member | None:
    """The spare that takes a stage."""
    return core.shadows.heir(stage, [core.members[spare] for spare in core.spares])


def _loss_s(core: SwarmCore, running: Plan, plan: Plan) -> float:
    """With all the KV memory that there is held."""
    rows = running.groups[0].num_pages * running.page_size
    return loss_s(core.request, running, plan, core.members.values(), surveyed(core), rows)


def _stuck(core: SwarmCore, now: float) -> BloomBeeError | None:
    """Loading may take any time while every worker gets on with it. Workers from elsewhere are awaited for ever."""
    limit, members = core.limits.load_deadline_s, core.members.values()
    names = [one.name for one in members if is_loading(core, one.id) and now - one.progress_at > limit]
    if core.plan is None and not core.request.takes_others and now - core.awaited_since > limit:
        here = {one.name for one in members}
        names = [name for name in core.request.order if name not in here]
    return stuck(names, limit)


def _refilled(core: SwarmCore, plan: Plan) -> Plan | None:
    """``plan`` with spares in the places of those that are gone; None: they are too few."""
    spares = [core.members[spare] for spare in core.spares]
    for stage in plan.stages:
        if stage.worker not in core.members:
            spare = core.shadows.heir(stage, spares)
            if spare is None:
                return None
            spares.remove(spare)
            plan = with_spare(plan, stage, spare)
    return plan


def _over_others(core: SwarmCore, plan: Plan) -> Callable[[], Plan | None] | None:
    """What finds another plan, of those that are left; None: that is not wanted. Before the first has run it always is where a
    planner decides about workers from elsewhere: no request waits, and it leaves out who does not pay as well."""
    request, known = core.request, surveyed(core)
    if not core.was_up and request.objective is not None and request.takes_others:
        return partial(_first, request, [replace(one) for one in core.members.values() if not one.is_away], known)
    return NextPlan.of(request, plan, core.members, core.members, known).shared_out if request.shares_out else None


def _first(request: PlanRequest, workers: list[Member], known: Topology | None) -> Plan | None:
    """A first plan of ``workers``; None: they lack the memory."""
    try:
        return FirstPlan(request).decide(workers, known)
    except BloomBeeError:
        return None


def _failed(core: SwarmCore, worker: Member, failed: StageFailed, now: float) -> list[Command]:
    """A stage cannot go on. One that has served is replaced like a lost one, and so is a worker from elsewhere that cannot load;
    all else that happens at the start is the user's to mend."""
    cause = from_wire(failed.code, failed.fields)
    error, plan = told(core.members, worker, cause), core.plan
    if plan is None or core.stage_of(worker.id) is None or _is_past(core, plan, failed):
        return []  # it has no part in this, or what it had in mind has been replaced already
    if not core.was_up and (failed.epoch or not core.request.takes_others):
        return core.handle(WorkersEnded(error, now))
    guilty = blamed(core.members, plan, worker, cause)
    gone = WorkerGone(guilty.id, error.message, now, None if core.was_up else error)
    commands = [Dismiss(guilty.id, core.stage_of(guilty.id), error), *core.handle(gone)]
    if not isinstance(cause, LinkDown):
        core.had.pop(guilty.key, None)  # it is not the best spare for what it has failed at
    return commands


def _is_past(core: SwarmCore, plan: Plan, failed: StageFailed) -> bool:
    """It is about an epoch that is over, or about a neighbour in one that was given up or is broken."""
    epoch = failed.epoch
    return bool(epoch) and (
        epoch < plan.epoch or ("peer" in failed.fields and (core._split_after is not None or core.plan_of(epoch) is None))
    )


def may_be_silent(core: SwarmCore, worker: WorkerId) -> bool:
    """A worker that loads, or imports what it needs to measure itself, may hold its interpreter's lock for long."""
    is_measuring = core.plan is None and core.survey is not None and core.survey.is_measuring(worker)
    return is_measuring or is_loading(core, worker) or core.handovers.is_loading(worker) or core.shadows.is_loading(worker)


def is_loading(core: SwarmCore, worker_id: WorkerId) -> bool:
    """Only its progress counts then."""
    worker = core.members.get(worker_id)
    return worker is not None and not worker.is_loaded and core.stage_of(worker_id) is not None
