"""A simulated swarm whose layers move between workers: what is computed, and how far it is from worker to worker, does not depend
on who has which stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from bloombee.models.card import ModelCard
from bloombee.pace import Pace
from bloombee.pipeline.events import HandOver
from bloombee.pipeline.swarm.planning import FirstPlan
from bloombee.pipeline.work import Outcome, Piece, Work
from bloombee.plan.plan import Plan
from bloombee.sim.carrier import HEAD, stage_name
from bloombee.sim.cluster import PACE, SimCluster
from bloombee.sim.device import Device, SimDevice
from bloombee.sim.worker import Order, SimWorker
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
