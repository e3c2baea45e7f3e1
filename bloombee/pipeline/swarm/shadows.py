"""Workers that follow a stage in case it is lost: who follows which, and what they are told for it. Pure.

A spare loads the stage's layers and gets the rows that the stage gets, at the lowest priority, from the stage before it (of the
first stage, from the scheduler). Both have a seat for that in an epoch of its own, which outlives those of the ring. So when the
stage is lost the spare holds nearly all that is to be held, and what follows is what follows on any loss: all are wired anew,
each says what it holds, and is told the rest.

Stages whose loss would cost most are followed first; a spare follows as many as its memory holds. Nothing is begun while the ring
is being changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bloombee.errors import BloomBeeError, from_wire
from bloombee.pipeline.commands import Command, Send, ShadowChanged, TellScheduler
from bloombee.pipeline.events import PlanDropped, ShadowBegan, StageRestored
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.orders import REPEAT_S, Orders
from bloombee.pipeline.swarm.planning import check_fit, heir
from bloombee.pipeline.swarm.replanning import with_spare
from bloombee.pipeline.swarm.stuck import stuck
from bloombee.plan.plan import Plan, StagePlan
from bloombee.types import HEAD, Epoch, Lane, PipelineId, SchedulerPlace, Span, WorkerId
from bloombee.wire.messages import AnyMessage, Follows, Loaded, Loading, Retire, Retired, StageFailed, Wired

FRAMES = 4
"""That may be with a worker that follows."""
LossOf = Callable[[Plan, Plan], float]
"""Seconds that requests would wait, from the plan that runs to the one with another worker at a stage."""


@dataclass(slots=True)
class Shadow:
    """One worker that follows one stage.

    Attributes:
        plan: of its epoch: the ring's, with the worker at ``index``.
        loss_s: that the stage's loss would cost without it.
        waits: who has yet to say that it is wired; None: nobody has been told to be.
        rows: of open sequences that the worker has said to have.
        met: the worker after the stage, which has been introduced to it: links take many round trips.
    """

    plan: Plan
    index: int
    loss_s: float
    progress_at: float
    said_at: float
    is_loaded: bool = False
    waits: set[WorkerId] | None = None
    rows: int = 0
    met: WorkerId | None = None

    @property
    def stage(self) -> StagePlan:
        """As the worker has it."""
        return self.plan.stages[self.index]

    @property
    def worker(self) -> WorkerId:
        return self.stage.worker

    @property
    def feeder(self) -> WorkerId:
        """Who has the stage before it, or the head."""
        return self.plan.stages[self.index - 1].worker if self.index else HEAD

    @property
    def ends(self) -> set[WorkerId]:
        """Workers with a seat in its epoch."""
        return {self.feeder, self.worker} - {HEAD}

    @property
    def is_wired(self) -> bool:
        return self.waits is not None and not self.waits


class Shadows:
    """Of one swarm.

    Args:
        workers: that are in, kept by the owner.
        loss_of: of what a loss costs.
    """

    def __init__(self, workers: Mapping[WorkerId, Member], orders: Orders, loss_of: LossOf) -> None:
        self._workers = workers
        self._orders = orders
        self._loss_of = loss_of
        self._all: dict[Epoch, Shadow] = {}
        self._failed: set[tuple[WorkerId, Span]] = set()
        """What a worker could not follow is not tried again."""
        self._retires: set[tuple[WorkerId, Epoch]] = set()
        """Who has yet to say that it has left which epoch."""
        self._said_at = 0.0

    # -- what people ask -------------------------------------------------------------------

    @property
    def all(self) -> tuple[Shadow, ...]:
        """In the order in which they were begun."""
        return tuple(self._all.values())

    def of(self, worker: WorkerId) -> list[Shadow]:
        """What it follows."""
        return [shadow for shadow in self._all.values() if shadow.worker == worker]

    def is_loading(self, worker: WorkerId) -> bool:
        """What it is to follow."""
        return any(not shadow.is_loaded for shadow in self.of(worker))

    def heir(self, stage: StagePlan, spares: Iterable[Member]) -> Member | None:
        """Who of ``spares`` takes the place of a worker that is gone or is to go: who follows it, else who follows nobody, if
        such a one can; None: nobody can."""
        spares = list(spares)
        following = [one for one in spares if any(shadow.stage.span == stage.span for shadow in self.of(one.id))]
        free = [one for one in spares if not self.of(one.id)]
        ways = ([one for one in some if not one.is_away] for some in (following, free, spares))
        return next((found for some in (*ways, spares) if (found := heir(stage, some)) is not None), None)

    # -- whom to follow --------------------------------------------------------------------

    def follow(self, plan: Plan, spares: Sequence[Member], now: float, load_deadline_s: float) -> list[Command]:
        """``plan`` runs, and is not being changed: follow its stages."""
        if plan.scheduler is not SchedulerPlace.HEAD:
            return []
        commands: list[Command] = []
        may = {spare.id for spare in spares}
        for shadow in self.all:
            commands += self._keep_up(shadow, plan, shadow.worker in may, now, load_deadline_s)
        for spare in spares:
            if not spare.is_away and all(shadow.is_wired for shadow in self.of(spare.id)):
                commands += self._begin(plan, spare, now)
        return commands

    def _keep_up(self, shadow: Shadow, plan: Plan, is_spare: bool, now: float, load_deadline_s: float) -> list[Command]:
        """With the ring, which may be another one than when it was begun."""
        stage = next((stage for stage in plan.stages if _is_same(stage, shadow.stage)), None)
        if stage is None or not is_spare:
            return self._end(shadow, "", now)
        late = [] if shadow.is_loaded or now - shadow.progress_at <= load_deadline_s else [shadow.stage.name]
        if (error := stuck(late, load_deadline_s)) is not None:
            return self._fail(shadow, error, now)
        source = plan.stages[stage.index - 1].worker if stage.index else HEAD
        if (stage.index, source) != (shadow.index, shadow.feeder):
            return self._move(shadow, plan, stage, now)
        wired = self._wire(shadow, now) if shadow.is_loaded and shadow.waits is None else []
        return [*wired, *self._introduce(shadow, plan)]

    def _introduce(self, shadow: Shadow, plan: Plan) -> list[Command]:
        """To whoever has the next stage now, so that their link stands before it is needed."""
        after = next((stage.worker for stage in plan.stages[shadow.index + 1 : shadow.index + 2]), None)
        if after is None or after == shadow.met or not shadow.is_wired:
            return []
        shadow.met = after
        return self._orders.introduce(shadow.worker, after)

    def _begin(self, plan: Plan, spare: Member, now: float) -> list[Command]:
        """The stage whose loss would cost most, of those that nobody follows and that it can."""
        followed = {shadow.stage.span for shadow in self._all.values()}
        stages = [stage for stage in plan.stages if stage.span not in followed and self._can(spare, stage)]
        if not stages:
            return []
        losses = {stage.index: self._loss_of(plan, with_spare(plan, stage, spare)) for stage in stages}
        stage = max(stages, key=lambda stage: losses[stage.index])
        shadow = Shadow(self._plan(plan, stage, spare), stage.index, losses[stage.index], now, now)
        self._all[shadow.plan.epoch] = shadow
        self._orders.loaded[shadow.worker, shadow.stage.span, shadow.stage.streamed] = shadow.stage.load
        return [_changed(shadow), self._orders.load(shadow.plan, shadow.stage, now)]

    def _can(self, spare: Member, stage: StagePlan) -> bool:
        """Whether it has the memory for that besides what it follows already, and has not failed at it."""
        if (spare.id, stage.span) in self._failed:
            return False
        held = [shadow.stage for shadow in self.of(spare.id)]
        together = replace(
            stage,
            weight_bytes=stage.weight_bytes + sum(one.weight_bytes for one in held),
            kv_bytes=stage.kv_bytes + sum(one.kv_bytes for one in held),
            scratch_bytes=max([stage.scratch_bytes, *(one.scratch_bytes for one in held)]),
        )
        try:
            check_fit(together, spare)
        except BloomBeeError:
            return False
        return True

    def _plan(self, plan: Plan, stage: StagePlan, spare: Member) -> Plan:
        """Of an epoch of its own."""
        return self._orders.numbered(replace(with_spare(plan, stage, spare), num_microbatches=FRAMES), plan)

    def _move(self, shadow: Shadow, plan: Plan, stage: StagePlan, now: float) -> list[Command]:
        """Another worker has the stage before it: another epoch, with what the worker holds. That begins before this one ends, so
        that it is told all that ends."""
        moved = replace(shadow, plan=self._plan(plan, stage, self._workers[shadow.worker]), index=stage.index, waits=None)
        self._all[moved.plan.epoch] = moved
        wired = self._wire(moved, now) if moved.is_loaded else []
        return [*wired, *self._leave(shadow, now)]

    def _wire(self, shadow: Shadow, now: float) -> list[Command]:
        shadow.waits, shadow.said_at = shadow.ends, now
        return [*self._say_wire(shadow, now), TellScheduler(ShadowBegan(shadow.plan.ring, shadow.index, now))]

    def _say_wire(self, shadow: Shadow, now: float) -> list[Command]:
        waits = shadow.waits or ()
        if not shadow.ends <= self._workers.keys():
            return []  # it is fed by whoever takes that one's place
        feeds = [self._orders.follow(shadow.plan, shadow.index - 1, now, feeds=True)] if shadow.feeder in waits else []
        return [*feeds, *([self._orders.follow(shadow.plan, shadow.index, now, feeds=False)] if shadow.worker in waits else [])]

    # -- what workers say ------------------------------------------------------------------

    def said(self, worker: Member, message: AnyMessage, now: float) -> list[Command] | None:
        """None: that is not about one of these alone."""
        match message:
            case Loading():
                for shadow in self.of(worker.id):
                    shadow.progress_at = now
            case Loaded(number=number):
                for shadow in self.of(worker.id):
                    shadow.is_loaded = shadow.is_loaded or shadow.stage.load == number
            case Wired(epoch=epoch) if epoch in self._all:
                return self._wired(self._all[epoch], worker.id, now)
            case Retired(epoch=epoch) if (worker.id, epoch) in self._retires:
                self._retires.discard((worker.id, epoch))
                return []
            case Follows(epoch=epoch, rows=rows):
                if epoch in self._all and self._all[epoch].worker == worker.id:
                    self._all[epoch].rows = rows
                return []
            case StageFailed():
                return self._failed_at(worker.id, message, now)
        return None

    def _wired(self, shadow: Shadow, worker: WorkerId, now: float) -> list[Command]:
        if not shadow.waits:
            return []
        shadow.waits.discard(worker)
        if shadow.waits:
            return []
        # Who feeds it may have been told after it had said what it holds: it says so again.
        again = [] if shadow.feeder == HEAD else [self._orders.follow(shadow.plan, shadow.index, now, feeds=False)]
        return [*again, _changed(shadow)]

    def _failed_at(self, worker: WorkerId, failed: StageFailed, now: float) -> list[Command] | None:
        """A worker cannot load or compute what it is to follow, or cannot reach it. That it does not reach who feeds it is said
        of that one, which the head judges."""
        is_about_peer = "peer" in failed.fields
        for shadow in self.all:
            is_its = not is_about_peer and shadow.worker == worker
            if is_its or (is_about_peer and shadow.plan.epoch == failed.epoch and shadow.feeder == worker):
                return self._fail(shadow, from_wire(failed.code, failed.fields), now)
        return [] if failed.epoch in self._all else None

    # -- over ------------------------------------------------------------------------------

    def make_room(self, plan: Plan, now: float) -> list[Command]:
        """``plan`` is to run: whoever has another stage in it than the one that it follows has to have room for that."""
        busy = [one for one in self.all if (stage := plan.stage_of(one.worker)) is not None and not _is_same(stage, one.stage)]
        return [command for shadow in busy for command in self._end(shadow, "", now)]

    def lost(self, worker: WorkerId, now: float) -> list[Command]:
        """It is gone, which the swarm knows no more. Who is fed by it is fed by whoever takes its place."""
        self._retires = {one for one in self._retires if one[0] != worker}
        return [command for shadow in self.of(worker) for command in self._end(shadow, "it is gone", now)]

    def restored(self, worker: WorkerId, now: float) -> list[Command]:
        """Its connection is back: what the scheduler told it last may be lost."""
        return [TellScheduler(StageRestored(shadow.index, now, shadow.plan.epoch)) for shadow in self.of(worker)]

    def clear(self) -> None:
        """Nothing runs any more."""
        self._all.clear()
        self._retires.clear()

    def _fail(self, shadow: Shadow, error: BloomBeeError, now: float) -> list[Command]:
        self._failed.add((shadow.worker, shadow.stage.span))
        return self._end(shadow, error.message, now)

    def _end(self, shadow: Shadow, why: str, now: float) -> list[Command]:
        self._orders.loaded.pop((shadow.worker, shadow.stage.span, shadow.stage.streamed), None)
        return [*self._leave(shadow, now), _changed(shadow, why or "over")]

    def _leave(self, shadow: Shadow, now: float) -> list[Command]:
        """Its epoch."""
        del self._all[shadow.plan.epoch]
        ends = {(worker, shadow.plan.epoch) for worker in shadow.ends if worker in self._workers}
        self._retires |= ends
        self._said_at = now
        return [*_say_retire(shadow.plan.pipeline, ends), TellScheduler(PlanDropped(shadow.plan.epoch, now))]

    # -- time ------------------------------------------------------------------------------

    def tick(self, pipeline: PipelineId, now: float) -> list[Command]:
        """Say again what has not been answered."""
        commands: list[Command] = []
        for shadow in self.all:
            if now - shadow.said_at >= REPEAT_S:
                shadow.said_at = now
                load = [] if shadow.is_loaded else [self._orders.load(shadow.plan, shadow.stage, now)]
                commands += [*load, *self._say_wire(shadow, now)]
        if self._retires and now - self._said_at >= REPEAT_S:
            self._said_at = now
            commands += _say_retire(pipeline, self._retires)
        return commands


def _changed(shadow: Shadow, over: str = "") -> ShadowChanged:
    return ShadowChanged(shadow.plan, shadow.index, shadow.is_wired, over, shadow.loss_s)


def _is_same(stage: StagePlan, other: StagePlan) -> bool:
    """Whether who follows the one holds what the other needs."""
    return (stage.span, stage.groups, stage.streamed) == (other.span, other.groups, other.streamed)


def _say_retire(pipeline: PipelineId, ends: Iterable[tuple[WorkerId, Epoch]]) -> list[Command]:
    return [Send(worker, Lane.CONTROL, Retire(pipeline, epoch)) for worker, epoch in sorted(ends)]
