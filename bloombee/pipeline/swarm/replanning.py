"""Another plan for a swarm that runs one, with the KV memory that its sequences count on. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from bloombee.errors import BloomBeeError, Infeasible
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.planning import FirstPlan, PlanRequest, heir
from bloombee.plan.plan import Plan, StagePlan
from bloombee.plan.topology import LOCAL, Device, Topology
from bloombee.types import HEAD, WorkerId


@dataclass(frozen=True, slots=True)
class NextPlan:
    """Of what is known when it is made; may be used on any thread.

    Args:
        request: what the first plan was made for.
        running: whose KV memory and place of the scheduler are kept.
        members: workers that may have a stage, in the order in which they joined.
        surveyed: what is known of workers and links; None: no more than the request says.
    """

    request: PlanRequest
    running: Plan
    members: tuple[Member, ...]
    surveyed: Topology | None = None

    @classmethod
    def of(
        cls,
        request: PlanRequest,
        running: Plan,
        workers: Mapping[WorkerId, Member],
        allowed: Collection[WorkerId] | None,
        surveyed: Topology | None = None,
    ) -> NextPlan:
        """Of those ``workers`` that are there and ``allowed``; None: all but those that are to leave."""
        may = {one.id for one in workers.values() if not one.is_draining} if allowed is None else set(allowed)
        there = [one for one in workers.values() if not one.is_away and one.id in may]
        return cls(request, running, tuple([replace(one) for one in there]), surveyed)

    def best(self) -> Plan:
        """Chosen where a planner is asked for, by what is known now; else as :meth:`nearest`.

        Raises:
            BloomBeeError: there is none; says why.
        """
        return self.nearest() if self.request.objective is None else self._decide(self.members)

    def nearest(self) -> Plan:
        """As it runs, with spares in the place of workers that may have no stage; if there is none for one of them, the layers
        are split over all others.

        Raises:
            BloomBeeError: they lack the memory; says what.
        """
        return self._with_spares() or self._decide(self.members)

    def shared_out(self) -> Plan | None:
        """A split over all; None: they lack the memory."""
        try:
            return self._decide(self.members)
        except BloomBeeError:
            return None

    def _with_spares(self) -> Plan | None:
        allowed = {one.id: one for one in self.members}
        spares = [one for one in self.members if all(one.id != stage.worker for stage in self.running.stages)]
        stages = []
        for stage in self.running.stages:
            if stage.worker not in allowed:
                spare = heir(stage, spares)
                if spare is None:
                    return None
                spares.remove(spare)
                stage = replace(stage, worker=spare.id, name=spare.name, load=0)
            stages.append(stage)
        changed = any(one.load == 0 for one in stages)
        return replace(self.running, stages=tuple(stages), prediction=None if changed else self.running.prediction)

    def _decide(self, workers: Sequence[Member]) -> Plan:
        """Raises Infeasible: there is nobody, or they lack the memory; and what :meth:`FirstPlan.decide` does."""
        if not workers:
            raise Infeasible("no worker is left", constraint="workers")
        running = self.running
        request = replace(
            self.request,
            num_pages=running.groups[0].num_pages,
            pages_fixed=True,
            split=None,
            order=(),
            scheduler=running.scheduler,
            before=None,
        )
        plan = FirstPlan(request).decide(workers, self.surveyed) if request.objective else None
        return plan or self._split(FirstPlan(request), workers[: request.card.num_layers])

    @staticmethod
    def _split(planner: FirstPlan, workers: Sequence[Member]) -> Plan:
        """Evenly, if each has the memory for that, else as memory allows."""
        try:
            return planner.make(workers)
        except BloomBeeError:
            ids = [one.id for one in workers]
            ways = dict.fromkeys(itertools.permutations((HEAD, *ids), 2), LOCAL)
            return planner.chosen(Topology({one.id: Device(one.name) for one in workers}, ways), workers)


def is_same(plan: Plan, other: Plan) -> bool:
    """Whether the same workers have the same layers, in the same order."""
    return [(one.worker, one.span) for one in plan.stages] == [(one.worker, one.span) for one in other.stages]


def with_spare(plan: Plan, lost: StagePlan, spare: Member) -> Plan:
    """``plan`` with another worker at a stage; it predicts nothing any more."""
    stage = replace(lost, worker=spare.id, name=spare.name)
    stages = tuple(stage if one.index == lost.index else one for one in plan.stages)
    return replace(plan, stages=stages, prediction=None)
