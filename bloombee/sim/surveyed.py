"""A simulated swarm whose workers and links are looked at before the first plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from bloombee.errors import ConfigError
from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.pipeline.events import WorkerJoined
from bloombee.pipeline.swarm import Figures
from bloombee.plan.network import Network
from bloombee.plan.plan import Plan
from bloombee.sim.carrier import HEAD, stage_name, worker_name
from bloombee.sim.cluster import SimCluster
from bloombee.sim.surveying import SimIntroductions
from bloombee.sim.worker import Order, SimWorker
from bloombee.types import WorkerId
from bloombee.wire.messages import AnyMessage


class SurveyedCluster(SimCluster):
    """As :class:`SimCluster`; workers are numbered in the order in which they join.

    Args:
        network: where all of them stand.
        nodes, paces: of the workers in that order, spares among them.
        join_s: when each joins.
        dial_only: workers that nobody gets through to, though they tell an address.
        figures: of links, from before.
    """

    def __init__(
        self,
        *,
        network: Network,
        nodes: Sequence[str],
        paces: Sequence[Pace],
        objective: Objective,
        join_s: Mapping[WorkerId, float] | None = None,
        dial_only: Collection[WorkerId] = (),
        figures: Figures | None = None,
        num_stages: int,
        **options: Any,
    ) -> None:
        if not num_stages <= len(nodes) == len(paces):
            raise ConfigError(f"{len(nodes)} nodes and {len(paces)} paces for {num_stages} stages and spares", field="nodes")
        self._node_of = dict(enumerate(nodes, start=1))
        self._pace_of = dict(enumerate(paces, start=1))
        self._join_s = join_s or {}
        self._dial_only = dial_only
        self.introductions: dict[WorkerId, SimIntroductions] = {}
        self.objective = objective
        super().__init__(
            num_stages=num_stages,
            num_spares=len(nodes) - num_stages,
            network=network,
            nodes=nodes[:num_stages],
            pace=paces,
            **options,
        )
        self.head.on_plan = self._planned
        if figures is not None:
            self.head.swarm.figures = figures

    def join(self, worker: WorkerId, memory_bytes: int = 1 << 40) -> None:
        self.carrier.place(worker_name(worker), self._node_of[worker])
        at = self.workers[worker] = SimWorker(worker, self, memory_bytes)
        at.introductions = self.introductions[worker] = SimIntroductions(worker, self, is_reachable=worker not in self._dial_only)

        def act() -> None:
            key, endpoint = bytes(31) + bytes([worker % 256]), f"tcp://sim:{worker}"
            joined = WorkerJoined(worker, f"w{worker}", endpoint, key, memory_bytes, self.clock.now)
            self.head.do(self.head.swarm.handle(joined))

        self.clock.call_at(self._join_s.get(worker, 0.0), act)

    def _planned(self, plan: Plan) -> None:
        """Who has a stage is where it was."""
        for stage in plan.stages:
            self.carrier.place(stage_name(stage.index), self._node_of[stage.worker])
            self.devices.paces[stage.index] = self._pace_of[stage.worker]

    def _order(self, worker: WorkerId, order: Order) -> None:
        deliver = partial(self.workers[worker].order, order)
        self.carrier.carry(HEAD, worker_name(worker), order, deliver, reliable=True)

    def say(self, worker: SimWorker, message: AnyMessage) -> None:
        """Of a worker, to the head."""
        self.say_of(worker.id, message)

    # -- what workers find around them -----------------------------------------------------

    def say_of(self, worker: WorkerId, message: AnyMessage) -> None:
        """To the head."""
        self.carrier.carry(worker_name(worker), HEAD, message, partial(self.head.hear, worker, message), reliable=True)

    def introductions_of(self, worker: WorkerId) -> SimIntroductions:
        return self.introductions[worker]
