"""A simulated swarm whose layers move between workers: what is computed, and how far it is from worker to worker, does not depend
on who has which stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from bloombee.control.seen import finite
from bloombee.models.card import ModelCard
from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.pipeline.events import HandOver
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.pipeline.swarm.outlook import LOOK_EVERY_S, Found, Outlook, Question, as_shown, may_replan
from bloombee.pipeline.swarm.planning import FirstPlan
from bloombee.pipeline.work import Outcome, Piece, Work
from bloombee.plan.plan import Plan
from bloombee.plan.topology import Topology
from bloombee.sim.carrier import HEAD, SCHEDULER, stage_name
from bloombee.sim.cluster import PACE, SimCluster
from bloombee.sim.device import Device, SimDevice
from bloombee.sim.network import LinkShape
from bloombee.sim.worker import Order, SimWorker
from bloombee.types import HEAD as HEAD_ID
from bloombee.types import WorkerId
from bloombee.wire.messages import AnyMessage, Load


class LayeredDevice:
    """Computes digests layer by layer: any split of the layers comes to the same tokens, those of :func:`oracle` with a stage for
    each layer."""

    def __init__(self, load: Load, windows: Sequence[int]) -> None:
        self._layers = [
            SimDevice(
                stage=layer,
                is_last=layer == load.num_layers - 1,
                groups=[group for group in load.groups if group.window == windows[layer]],
                page_size=load.page_size,
            )
            for layer in range(load.start, load.stop)
        ]
        self._groups = [
            [index for index, group in enumerate(load.groups) if group.window == windows[layer]]
            for layer in range(load.start, load.stop)
        ]

    def run(self, work: Work) -> Outcome:
        outcome = None
        for layer, groups in zip(self._layers, self._groups, strict=True):
            segments = [replace(one, pages=tuple(one.pages[index] for index in groups)) for one in work.segments]
            outcome = layer.run(replace(work, segments=tuple(segments)))
            stops = [sum(one.num_rows for one in segments[: index + 1]) for index in range(len(segments))]
            spans = tuple((stop - one.num_rows, stop) for one, stop in zip(segments, stops, strict=True))
            work = replace(work, hidden=outcome.hidden, hidden_rows=spans)
        assert outcome is not None  # a span has a layer
        return outcome

    def gather(self, pieces: Sequence[Piece]) -> object:
        return self._layers[0].gather(pieces)


class MovingCluster(SimCluster):
    """As :class:`SimCluster`, with workers 1, 2, ... instead of stages 0, 1, ... at the ends of links and in ``pace``: ``stage0``
    is where worker 1 is, whatever it does.

    Args:
        num_workers: in all; the first ``num_stages`` have a stage at first. card: of the model.
        layer_load_s: that a worker takes to load a layer. shares_out: as of PlanRequest.
    """

    moves = True

    def __init__(
        self,
        *,
        card: ModelCard,
        num_stages: int,
        num_workers: int,
        layer_load_s: float = 0.0,
        shares_out: bool = False,
        pace: Pace | Sequence[Pace] = PACE,
        **arguments: Any,
    ) -> None:
        self._card = card
        self.layer_load_s = layer_load_s
        paces = [pace] * num_workers if isinstance(pace, Pace) else pace
        self.shares_out = shares_out
        super().__init__(card=card, num_stages=num_stages, num_spares=num_workers - num_stages, pace=paces, **arguments)

    # -- what happens to it ----------------------------------------------------------------

    def join(self, worker: WorkerId, memory_bytes: int = 1 << 40) -> None:
        """One that was not counted is as quick as the last of those that were."""
        self.devices.make_room(worker)
        super().join(worker, memory_bytes)

    def plan_for(self, workers: Sequence[WorkerId], layers: Sequence[int]) -> Plan:
        """With the KV memory of the plan that runs."""
        swarm = self.head.swarm
        return FirstPlan(swarm.request).make([swarm.members[worker] for worker in workers], layers)

    def hand_over(self, workers: Sequence[WorkerId], layers: Sequence[int], *, at: float) -> None:
        """To a plan with these workers in this order, and so many layers each, as soon as one runs."""

        def act() -> None:
            if not self.head.swarm.is_up and self.head.swarm.error is None:
                self.clock.call_later(0.01, act)
                return
            self.head.do(self.head.swarm.handle(HandOver(self.plan_for(workers, layers), "asked", self.clock.now)))

        self.clock.call_at(at, act)

    # -- who is where ----------------------------------------------------------------------

    def stage_of(self, load: Load) -> int:
        return 0  # its wire will say

    def make_device(self, stage: int, load: Load) -> Device:
        return LayeredDevice(load, self._card.layer_windows)

    def _order(self, worker: WorkerId, order: Order) -> None:
        deliver = partial(self.workers[worker].order, order)
        self.carrier.carry(HEAD, stage_name(worker - 1), order, deliver, reliable=not self._lossy_orders)

    def say(self, worker: SimWorker, message: AnyMessage) -> None:
        """To the head."""
        tell = partial(self.head.hear, worker.id, message)
        self.carrier.carry(stage_name(worker.id - 1), HEAD, message, tell, reliable=not self._lossy_orders)


class DriftingCluster(MovingCluster):
    """As :class:`MovingCluster`, with a planner that decides at the start and, if it ``replans``, again while requests run.

    Args:
        topology: of workers 1, 2, ...: paced devices, and links as they are at first and as they are known until they are used.
        paces: of those that are there at the start.
    """

    def __init__(
        self,
        topology: Topology,
        paces: Sequence[Pace],
        objective: Objective,
        *,
        card: ModelCard,
        replans: bool = True,
        **arguments: Any,
    ) -> None:
        self.objective, self.topology = objective, topology
        self._surveyed = topology
        self._outlook = Outlook()
        shapes = {
            (self._name(source), self._name(target)): LinkShape(link.latency_s, finite(link.bandwidth_bytes_per_s))
            for (source, target), link in topology.links.items()
        }
        super().__init__(
            card=card, num_stages=len(paces), num_workers=len(paces), pace=paces, shapes=shapes,
            row_bytes=card.hidden_size * card.dtype.num_bytes, **arguments,
        )  # fmt: skip
        self.head.on_replan = self._replan
        if replans:
            self.clock.call_later(LOOK_EVERY_S, self._look)

    @staticmethod
    def _name(party: WorkerId) -> str:
        return SCHEDULER if party == HEAD_ID else stage_name(party - 1)

    def narrow(self, source: WorkerId, target: WorkerId, factor: float, *, at: float) -> None:
        """The link's bandwidth becomes ``factor`` times what it is."""
        link = self.carrier.link(self._name(source), self._name(target))
        self.clock.call_at(at, lambda: link.scale(factor))

    def slow(self, worker: WorkerId, factor: float, *, at: float) -> None:
        """The worker's device takes ``factor`` times as long as it does."""
        paces, index = self.devices.paces, worker - 1

        def act() -> None:
            paces[index] = paces[index].scaled(factor)

        self.clock.call_at(at, act)

    # -- another plan ----------------------------------------------------------------------

    def _look(self) -> None:
        """As ``roles/lookout.py`` does."""
        self.clock.call_later(LOOK_EVERY_S, self._look)
        swarm, scheduler = self.head.swarm, self.scheduler
        if not isinstance(scheduler, SchedulerCore) or not scheduler.num_open or not may_replan(swarm):
            return
        known = as_shown(self._known(), self.head.control.shown)
        if (question := self._outlook.look(swarm, known, scheduler.num_rows, self.clock.now)) is not None:
            self._outlook.answered(self.answer(question))
        if (compared := self._outlook.compared(swarm, self.clock.now)) is not None:
            self.head.steer(compared)

    def answer(self, question: Question) -> Found | None:
        """As a thread of the head's does."""
        return question.answer()

    def _known(self) -> Topology:
        """Links of the ring as they are, others as they were when they were last of it, or at first."""
        assert self.plan is not None
        seen = {ends: self.carrier.seen(*map(self._name, ends)) for ends in self.plan.hops}
        self._surveyed = dataclasses.replace(
            self._surveyed, links={**self._surveyed.links, **{ends: link for ends, link in seen.items() if link is not None}}
        )
        return self._surveyed

    def _replan(self, why: str) -> None:
        plan = self._outlook.taken(self.head.swarm)
        assert plan is not None
        self.head.do(self.head.swarm.handle(HandOver(plan, why, self.clock.now)))
