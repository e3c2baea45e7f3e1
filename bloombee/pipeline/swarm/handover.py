"""From the plan that runs to another one, while it runs: make before break. Pure.

Workers of the new plan load what they lack beside what they serve; when all have, they are wired in the next epoch and the
scheduler moves over (``scheduler/succession.py``); then the old epoch is retired. A stage whose worker has the same layers in
both plans keeps what its sequences have. Until the scheduler has moved over anything that goes wrong ends the hand-over, and the
plan that runs goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bloombee.errors import BloomBeeError, LinkDown, PlanError, from_wire
from bloombee.pipeline.commands import (
    Command,
    HandoverBegan,
    HandoverEnded,
    PipelineUp,
    PlanMade,
    ReportProgress,
    Send,
    StageLoaded,
    TellScheduler,
)
from bloombee.pipeline.events import EpochBegan, EpochOver, PlanBeside, PlanDropped
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.orders import REPEAT_S, Orders
from bloombee.pipeline.swarm.planning import check_fit
from bloombee.pipeline.swarm.shadows import Shadows
from bloombee.pipeline.swarm.stuck import stuck
from bloombee.plan.plan import Plan, StagePlan, check_memory
from bloombee.types import Epoch, Lane, SchedulerPlace, WorkerId
from bloombee.wire.messages import AnyMessage, Loaded, Loading, Retire, Retired, StageFailed, Wired


@dataclass(slots=True)
class Handover:
    """Of one swarm, to ``plan``.

    Args:
        old: what runs when it begins.
        workers: that are in, kept by the owner.
    """

    plan: Plan
    old: Plan
    reason: str
    workers: Mapping[WorkerId, Member]
    orders: Orders
    is_wiring: bool = False
    has_switched: bool = False
    is_over: bool = False
    """Done, or given up and done with."""
    _loads: dict[WorkerId, int] = field(default_factory=dict)
    """Orders to load that are not answered."""
    _wires: set[WorkerId] = field(default_factory=set)
    """Who has yet to say that it is wired."""
    _retires: set[tuple[WorkerId, Epoch]] = field(default_factory=set)
    """Who has yet to say that it has retired which epoch."""
    _is_retiring: bool = False
    _error: BloomBeeError | None = None
    _said_at: float = 0.0

    # -- before ----------------------------------------------------------------------------

    def begin(self, now: float) -> list[Command]:
        """Have loaded what is lacking."""
        self._said_at = now
        loads = []
        for stage in self.plan.stages:
            if not self._is_kept(stage):
                loads.append(self.orders.load(self.plan, stage, now))
                self._loads[stage.worker] = stage.load
                self.workers[stage.worker].progress_at = now
        return [HandoverBegan(self.plan, self.reason), *loads, *self._go_on(now)]

    def _is_kept(self, stage: StagePlan) -> bool:
        """Its worker has these layers in the plan that runs."""
        return any((one.worker, one.span) == (stage.worker, stage.span) for one in self.old.stages)

    def _go_on(self, now: float) -> list[Command]:
        if self._loads or self.is_wiring:
            return []
        self.is_wiring, self._said_at = True, now
        self._wires = {stage.worker for stage in self.plan.stages}
        feeds = not self._is_kept(self.plan.stages[0])
        return [*self._wire(now), TellScheduler(PlanBeside(self.plan.ring, feeds, now))]

    def _wire(self, now: float) -> list[Command]:
        stages = [stage for stage in self.plan.stages if stage.worker in self._wires]
        return [self.orders.wire(self.plan, stage.index, now, oldest=self.old.epoch) for stage in stages]

    # -- what workers say ------------------------------------------------------------------

    def said(self, worker: Member, message: AnyMessage, now: float) -> list[Command] | None:
        """None: that is not about the hand-over."""
        match message:
            case Loading(loaded_bytes=loaded, total_bytes=total) if worker.id in self._loads:
                worker.progress_at = now
                return [ReportProgress(worker.id, self._index(worker.id), loaded, total)]
            case Loaded(number=number) if self._loads.get(worker.id) == number:
                del self._loads[worker.id]
                worker.is_loaded = True
                return [StageLoaded(worker.id, self._index(worker.id)), *self._go_on(now)]
            case Wired(epoch=epoch) if epoch == self.plan.epoch:
                worker.wired = epoch
                self._wires.discard(worker.id)
                return []
            case Retired(epoch=epoch):
                self._retires.discard((worker.id, epoch))
                return self._end_if_retired()
            case StageFailed() if not self.has_switched and self._is_of_new(worker.id, message):
                return self.give_up(from_wire(message.code, message.fields), now)
        return None

    def _is_of_new(self, worker: WorkerId, failed: StageFailed) -> bool:
        """Whether it is no word of what runs: a worker cannot load, or reach a neighbour, or has no stage that runs."""
        if failed.epoch != self.plan.epoch:
            return not failed.epoch and worker in self._loads
        runs = any(stage.worker == worker for stage in self.old.stages)
        return not runs or "peer" in failed.fields

    def _index(self, worker: WorkerId) -> int:
        return next(stage.index for stage in self.plan.stages if stage.worker == worker)

    # -- over --------------------------------------------------------------------------------

    def switched(self) -> list[Command]:
        """The scheduler has moved over."""
        self.has_switched = True
        return [PlanMade(self.plan), PipelineUp(self.plan)]

    def left(self, now: float) -> list[Command]:
        """Nothing of the old epoch counts any more."""
        return self._retire(self.old, now)

    def give_up(self, error: BloomBeeError, now: float) -> list[Command]:
        """The scheduler has not moved over, and will not."""
        self._error, was_wiring = error, self.is_wiring
        self._loads.clear()
        self._wires.clear()
        self.is_wiring = True
        dropped = [TellScheduler(PlanDropped(self.plan.epoch, now))] if was_wiring else []
        return [*dropped, *self._retire(self.plan, now)]

    @property
    def is_given_up(self) -> bool:
        return self._error is not None

    def _retire(self, plan: Plan, now: float) -> list[Command]:
        self._said_at, self._is_retiring = now, True
        self._retires = {(stage.worker, plan.epoch) for stage in plan.stages if stage.worker in self.workers}
        return [*self._say_retire(), *self._end_if_retired()]

    def _say_retire(self) -> list[Command]:
        pipeline = self.plan.pipeline
        return [Send(worker, Lane.CONTROL, Retire(pipeline, epoch)) for worker, epoch in sorted(self._retires)]

    def _end_if_retired(self) -> list[Command]:
        if self._retires or self.is_over or not self._is_retiring:
            return []
        self.is_over = True
        return [HandoverEnded(self.plan, self._error)]

    def lost(self, worker: Member, reason: str, now: float) -> list[Command]:
        """A worker is gone, which the swarm knows no more."""
        self._retires = {one for one in self._retires if one[0] != worker.id}
        if self.has_switched:
            is_old = any(stage.worker == worker.id for stage in self.old.stages)
            dropped = [TellScheduler(PlanDropped(self.old.epoch, now))] if is_old else []
            return [*dropped, *self._end_if_retired()]
        if self._error is None:
            return self.give_up(LinkDown(f"worker {worker.name!r} is gone ({reason})", worker=worker.name), now)
        return self._end_if_retired()

    # -- time ------------------------------------------------------------------------------

    def tick(self, now: float, load_deadline_s: float) -> list[Command]:
        """Say again what has not been answered; give up on who gets on with nothing."""
        error = stuck(
            [self.workers[one].name for one in self._loads if now - self.workers[one].progress_at > load_deadline_s],
            load_deadline_s,
        )
        if error is not None:
            return self.give_up(error, now)
        if now - self._said_at < REPEAT_S:
            return []
        self._said_at = now
        loads = [self.orders.load(self.plan, stage, now) for stage in self.plan.stages if stage.worker in self._loads]
        return [*loads, *self._wire(now), *self._say_retire()]

    def say_again(self, now: float) -> None:
        """What has not been answered, with the next tick."""
        self._said_at = now - REPEAT_S

    def concerns(self, worker: WorkerId) -> bool:
        """Whether it is in the new plan, or in one that is being left."""
        plans = (self.plan, self.old) if self.has_switched else (self.plan,)
        return any(stage.worker == worker for plan in plans for stage in plan.stages)

    def is_loading(self, worker: WorkerId) -> bool:
        """What it lacks for the new plan."""
        return worker in self._loads

    def end(self, error: BloomBeeError | None = None) -> HandoverEnded:
        """As it stands: all will be wired anew, which retires every epoch before, or (``error``) nothing runs any more."""
        self.is_over = True
        return HandoverEnded(self.plan, error or self._error)


class Handovers:
    """One after the other.

    Args:
        workers: that are in, kept by the owner.
        shadows: of whom some may have to make room.
    """

    def __init__(self, workers: Mapping[WorkerId, Member], orders: Orders, shadows: Shadows) -> None:
        self._workers = workers
        self._orders = orders
        self._shadows = shadows
        self._now: Handover | None = None

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The new one and the old one, while one is handed over."""
        return () if self._now is None else (self._now.plan, self._now.old)

    def begin(self, plan: Plan, running: Plan | None, reason: str, now: float) -> list[Command]:
        """To ``plan``, whose orders are given here; why it cannot be now is told."""
        try:
            if running is None or self._now is not None:
                raise PlanError("another plan can be taken over only while one runs, and one at a time")
            check_handover(plan, running, self._workers)
        except BloomBeeError as error:
            return [HandoverEnded(plan, error)]
        room, numbered = self._shadows.make_room(plan, now), self._orders.numbered(plan, running)
        self._now = Handover(numbered, running, reason, self._workers, self._orders)
        return [*room, *self._now.begin(now)]

    def moved_over(self, event: EpochBegan | EpochOver, running: Plan | None) -> tuple[Plan | None, list[Command]]:
        """The scheduler has, or has left what it moved from. Returns the plan that runs now: the new one, or as before."""
        one = self._now
        if one is None or one.is_given_up:
            return running, []
        if isinstance(event, EpochBegan) and event.epoch == one.plan.epoch:
            return one.plan, one.switched()
        if isinstance(event, EpochOver) and event.epoch == one.old.epoch:
            return running, self._done(one.left(event.now))
        return running, []

    def said(self, worker: Member, message: AnyMessage, now: float) -> list[Command] | None:
        """None: that is not about a hand-over."""
        commands = None if self._now is None else self._now.said(worker, message, now)
        return None if commands is None else self._done(commands)

    def lost(self, worker: Member, reason: str, now: float, *, ends: bool) -> list[Command]:
        """A worker is gone, which the swarm knows no more. ``ends``: it was in the ring that runs, and all will be wired anew."""
        one = self._now
        if one is None or not (ends or one.concerns(worker.id)):
            return []
        commands = one.lost(worker, reason, now)
        if ends and not one.is_over:
            commands = [*commands, one.end()]
        return self._done(commands)

    def restored(self, worker: WorkerId, now: float) -> None:
        """Its connection is back: what it was told last may be lost, and is said again with the next tick."""
        if self._now is not None and self._now.concerns(worker):
            self._now.say_again(now)

    def is_loading(self, worker: WorkerId) -> bool:
        """What it lacks for a plan that is to come."""
        return self._now is not None and self._now.is_loading(worker)

    def end(self, error: BloomBeeError) -> list[Command]:
        """Nothing runs any more."""
        return [] if self._now is None else self._done([self._now.end(error)])

    def tick(self, now: float, load_deadline_s: float) -> list[Command]:
        return [] if self._now is None else self._done(self._now.tick(now, load_deadline_s))

    def _done(self, commands: list[Command]) -> list[Command]:
        if self._now is not None and self._now.is_over:
            self._now = None
        return commands


def check_handover(plan: Plan, running: Plan, workers: Mapping[WorkerId, Member]) -> None:
    """Raises unless ``plan`` can be taken over beside ``running``.

    Raises:
        PlanError: one of its workers is not there, or what it shares with ``running`` is not the same.
        Infeasible: a worker has no memory for what it holds in both; says short by how much.
    """
    if (plan.groups, plan.page_size, plan.scheduler) != (running.groups, running.page_size, SchedulerPlace.HEAD):
        raise PlanError("a hand-over keeps KV memory as it is, and the scheduler with the head")
    if running.scheduler is not SchedulerPlace.HEAD:
        raise PlanError("the scheduler is beside the first stage, which a hand-over cannot follow")
    old = {stage.worker: stage for stage in running.stages}
    for stage in plan.stages:
        worker = workers.get(stage.worker)
        if worker is None or worker.is_away:
            raise PlanError(f"worker {stage.name!r} is not there", worker=stage.name)
        check_fit(stage, worker)
        if (held := old.get(stage.worker)) is not None and held.span != stage.span:
            check_memory(_both(held, stage), worker.memory_bytes)


def can_hand_over(plan: Plan, running: Plan, workers: Mapping[WorkerId, Member]) -> bool:
    """As :func:`check_handover`."""
    try:
        check_handover(plan, running, workers)
    except BloomBeeError:
        return False
    return True


def _both(held: StagePlan, stage: StagePlan) -> StagePlan:
    """What a worker holds of two spans at a time: layers that are in both once, KV memory and scratch of each."""
    shared = max(0, min(held.span.stop, stage.span.stop) - max(held.span.start, stage.span.start))
    once = shared * min(held.weight_bytes // len(held.span), stage.weight_bytes // len(stage.span))
    return replace(
        stage,
        weight_bytes=held.weight_bytes + stage.weight_bytes - once,
        kv_bytes=held.kv_bytes + stage.kv_bytes,
        scratch_bytes=max(held.scratch_bytes, stage.scratch_bytes),
    )
