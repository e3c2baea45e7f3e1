"""What the head tells workers to do: load a span, take a seat. Said again word by word until it is answered. Pure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import replace

from bloombee.models.rules import LogitsRules
from bloombee.pipeline.commands import Command, Send
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.pairs import Pairs
from bloombee.pipeline.swarm.planning import PlanRequest
from bloombee.plan.placement import placement_of
from bloombee.plan.plan import Plan, StagePlan
from bloombee.types import Epoch, Lane, SchedulerPlace, Span, WorkerId
from bloombee.wire.messages import Group, Introduce, Load, Peer, Retire, Rules, Schedule, Watermark, Wire

REPEAT_S = 2.0
"""An order that is not answered is said again after so long."""


class Orders:
    """Of one swarm.

    Args:
        workers: that have joined, kept by the owner.
        pairs: their links.
    """

    def __init__(self, request: PlanRequest, workers: Mapping[WorkerId, Member], pairs: Pairs) -> None:
        self._request = request
        self._workers = workers
        self._pairs = pairs
        self._epochs = itertools.count(1)
        self._numbers = itertools.count(1)
        self.loaded: dict[tuple[WorkerId, Span, tuple[int, ...]], int] = {}
        """Orders to load that spares were given ahead of need: by worker, layers and those of them that stream."""

    def numbered(self, plan: Plan, before: Plan | None = None) -> Plan:
        """``plan`` as the next epoch, with a new order to load for each of its stages, but for those that are as ``before``.

        A scheduler that was beside another first stage than that of ``plan`` is gone with it, and begins anew."""
        epoch, kept = next(self._epochs), () if before is None else before.stages
        orders = self.loaded | {(one.worker, one.span, one.streamed): one.load for one in kept}
        stages = [
            replace(one, load=orders.get((one.worker, one.span, one.streamed)) or next(self._numbers)) for one in plan.stages
        ]
        begins = plan.scheduler is SchedulerPlace.STAGE0 and [one.worker for one in kept[:1]] != [plan.stages[0].worker]
        since = epoch if before is None or begins else before.scheduler_since
        return replace(plan, epoch=epoch, stages=tuple(stages), scheduler_since=since)

    def load(self, plan: Plan, stage: StagePlan, now: float) -> Send:
        """To be said once more after a while, unless it is answered."""
        self._workers[stage.worker].asked_at = now
        message = Load(
            number=stage.load,
            pipeline=plan.pipeline,
            start=stage.span.start,
            stop=stage.span.stop,
            num_layers=plan.num_layers,
            model=plan.model,
            config_digest=bytes.fromhex(self._request.card.config_digest),
            weight_digests=self._request.card.span_digests(stage.span),
            dtype=str(plan.dtype),
            groups=tuple(Group(window=group.window, num_pages=group.num_pages) for group in stage.groups),
            page_size=plan.page_size,
            codec=self._request.codec,
            rules=rules_message(self._request.card.logits_rules) if stage.span.stop == plan.num_layers else None,
            placement=placement_of(stage.span, stage.streamed),
            budgets=(),
        )
        return Send(stage.worker, Lane.CONTROL, message)

    def first_load(self, plan: Plan, stage: StagePlan, now: float) -> Send:
        """From now on it is to get on with it."""
        worker = self._workers[stage.worker]
        worker.is_loaded, worker.progress_at = False, now
        return self.load(plan, stage, now)

    def wire(self, plan: Plan, index: int, now: float, *, oldest: Epoch | None = None) -> Send:
        """``oldest``: the epoch before which all are retired; None: the plan's own."""
        stage = plan.stages[index]
        self._workers[stage.worker].asked_at = now
        is_beside = plan.scheduler is SchedulerPlace.STAGE0
        message = Wire(
            pipeline=plan.pipeline,
            epoch=plan.epoch,
            oldest=plan.epoch if oldest is None else oldest,
            stage=index,
            num_stages=len(plan.stages),
            num_microbatches=plan.num_microbatches,
            max_rows=self._request.max_rows,
            predecessor=self._peer(plan, index, index - 1),
            successor=self._peer(plan, index, index + 1),
            scheduler=self._peer(plan, index, 0) if is_beside and index else None,
            listeners=(),
            schedule=self._schedule(plan) if is_beside and not index else None,
            trace=self._request.trace,
            load=stage.load,
            shadow=False,
        )
        return Send(stage.worker, Lane.CONTROL, message)

    def follow(self, plan: Plan, index: int, now: float, *, feeds: bool) -> Send:
        """Of the epoch of a worker that follows a stage: to that one, or (``feeds``) to the stage before, which feeds it."""
        stage = plan.stages[index]
        self._workers[stage.worker].asked_at = now
        message = Wire(
            pipeline=plan.pipeline,
            epoch=plan.epoch,
            oldest=1,
            stage=index,
            num_stages=len(plan.stages),
            num_microbatches=plan.num_microbatches,
            max_rows=self._request.max_rows,
            predecessor=None if feeds else self._peer(plan, index, index - 1),
            successor=self._peer(plan, index, index + 1) if feeds else None,
            scheduler=None,
            listeners=(),
            schedule=None,
            trace=False,
            load=stage.load,
            shadow=True,
        )
        return Send(stage.worker, Lane.CONTROL, message)

    def introduce(self, dialler: WorkerId, listener: WorkerId) -> list[Command]:
        """The two are to make a link, if they have none; said once, for they make it anyhow when it is needed."""
        pair = self._pairs.of(dialler, listener)
        ends = ((dialler, listener), (listener, dialler))
        return [Send(one, Lane.CONTROL, Introduce(pair.peer(self._workers[other]))) for one, other in ends]

    def move(self, plan: Plan, old: Plan, now: float) -> list[Command]:
        """From ``old``, which is broken: whoever gets other layers lets go of those that it had first, for want of memory.

        Where ``old`` itself was not wired yet a worker still has its seat of the epoch before."""
        numbers = {stage.load for stage in old.stages}
        moved = [stage for stage in plan.stages if stage.load not in numbers]
        had = [self._workers[stage.worker] for stage in moved if old.stage_of(stage.worker) is not None]
        retires = [
            Send(worker.id, Lane.CONTROL, Retire(plan.pipeline, epoch))
            for worker in had
            for epoch in sorted({worker.wired, old.epoch} - {0})
        ]
        return [*retires, *(self.first_load(plan, stage, now) for stage in moved)]

    def press(self, plan: Plan, now: float, *, is_wiring: bool) -> list[Command]:
        """Say again what has not been answered for a while."""
        late = [stage for stage in plan.stages if now - self._workers[stage.worker].asked_at >= REPEAT_S]
        return [command for stage in late for command in self.unanswered(plan, stage, now, is_wiring=is_wiring)]

    def unanswered(self, plan: Plan, stage: StagePlan, now: float, *, is_wiring: bool) -> list[Command]:
        """Again, of the orders to a stage. Who does not answer a Wire may have let go of what that is about: it is told to load
        as well, which changes nothing where that is held."""
        worker = self._workers[stage.worker]
        wire = [self.wire(plan, stage.index, now)] if is_wiring and worker.wired < plan.epoch else []
        load = [self.load(plan, stage, now)] if wire or not worker.is_loaded else []
        return [*load, *wire]

    def _schedule(self, plan: Plan) -> Schedule:
        peers = [self._peer(plan, 0, stage.index) for stage in plan.stages[1:]]
        return Schedule(
            since=plan.scheduler_since,
            groups=tuple(Group(window=group.window, num_pages=group.num_pages) for group in plan.groups),
            page_size=plan.page_size,
            step_deadline_s=self._request.step_deadline_s,
            drafts=self._request.drafts,
            stages=tuple(peer for peer in peers if peer is not None),
            prefix_cache=self._request.prefix_cache,
        )

    def _peer(self, plan: Plan, index: int, other: int) -> Peer | None:
        """The worker at stage ``other`` as the one at ``index`` gets to know it: of two, the one that comes first dials."""
        if not 0 <= other < len(plan.stages):
            return None
        first, last = sorted((index, other))
        pair = self._pairs.of(plan.stages[first].worker, plan.stages[last].worker)
        return pair.peer(self._workers[plan.stages[other].worker])


def rules_message(rules: LogitsRules | None) -> Rules | None:
    """``rules`` as a stage is told them."""
    if rules is None:
        return None
    mark = rules.watermark
    fields = {f.name: getattr(rules, f.name) for f in dataclasses.fields(rules)}
    return Rules(**{**fields, "watermark": None if mark is None else Watermark(**dataclasses.asdict(mark))})
