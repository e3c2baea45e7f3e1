"""Workers that are to leave: each serves on until another has what it served. Pure.

Asked by a person at the head or by the worker itself (Drain). A spare takes the worker's stage by a hand-over, or where none can
be as after a loss; where there is no spare the others share its layers out by a hand-over to another plan, if they have room for
what they hold in both. No token is lost. Then it is told that it may go. Where nobody can take its stage nothing changes, and who
asked is told so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.errors import BloomBeeError, Infeasible, PlanError, to_wire
from bloombee.pipeline.commands import Command, Dismiss, Send
from bloombee.pipeline.events import HandOver, WorkerDrains, WorkerGone
from bloombee.pipeline.swarm.core import SwarmCore, surveyed
from bloombee.pipeline.swarm.handover import check_handover
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.replanning import NextPlan
from bloombee.plan.plan import Plan
from bloombee.quote import printable
from bloombee.types import Epoch, Lane, WorkerId
from bloombee.wire.messages import Drain, Drained, Refused


@dataclass(slots=True)
class _Leaving:
    reason: str
    number: int | None = None
    """Of the worker's own Drain."""
    tried: set[tuple[WorkerId | None, Epoch]] = field(default_factory=set)
    """Who was to take its stage (None: all others), and from which plan: to come to this again is to have failed."""


class Drains:
    """Of one swarm. What comes of what it is told is said by :meth:`step`, which is to be called often."""

    def __init__(self, core: SwarmCore) -> None:
        self._core = core
        self._leaving: dict[WorkerId, _Leaving] = {}
        self._refused: list[Send] = []

    def ask(self, worker: WorkerId, reason: str) -> None:
        """Have ``worker`` leave. Said again it changes nothing.

        Raises:
            PlanError: it is not in the swarm, or (Infeasible) nobody can take its stage.
        """
        member = self._core.members.get(worker)
        if member is None:
            raise PlanError(f"worker {worker} is not in the swarm", worker=worker)
        if worker not in self._leaving:
            self._successor(member)
            self._leaving[worker] = _Leaving(reason)
            member.is_draining = True

    def said(self, worker: WorkerId, drain: Drain) -> None:
        """The worker asks for it, or asks again."""
        try:
            self.ask(worker, printable(drain.reason))
        except BloomBeeError as error:
            self._refuse(worker, error)
        else:
            self._leaving[worker].number = drain.number

    def step(self, now: float) -> list[Command]:
        """Go on with each, one change of the ring at a time."""
        refused, self._refused = self._refused, []
        return [*refused, *(command for worker in list(self._leaving) for command in self._go_on(worker, now))]

    def _go_on(self, worker: WorkerId, now: float) -> list[Command]:
        core, leaving = self._core, self._leaving[worker]
        member = core.members.get(worker)
        if member is None or core.error is not None:
            del self._leaving[worker]
            return []
        plan = core.plan
        if plan is not None and (not core.is_up or core.handovers.plans):
            return []
        if core.stage_of(worker) is None:
            del self._leaving[worker]
            answer = [] if leaving.number is None else [Send(worker, Lane.CONTROL, Drained(leaving.number))]
            return [*answer, Dismiss(worker, None, None), *core.handle(WorkerGone(worker, leaving.reason, now))]
        try:
            successor = self._successor(member)
        except Infeasible as error:  # whoever could have taken it is gone
            self._give_up(member, error)
            return []
        why = f"it leaves: {leaving.reason}"
        if plan is None or successor is None:
            return []
        if isinstance(successor, Plan):
            leaving.tried.add((None, plan.epoch))
            return core.handle(HandOver(successor, why, now))
        if successor.is_away:
            return []
        leaving.tried.add((successor.id, plan.epoch))
        return core.handle(WorkerDrains(worker, successor.id, why, now))

    def _successor(self, member: Member) -> Member | Plan | None:
        """Who takes its stage, or the plan in which the others share its layers out; None: it has none.

        Raises:
            Infeasible: nobody can.
        """
        core = self._core
        stage, plan = core.stage_of(member.id), core.plan
        if stage is None or plan is None:
            return None
        tried = self._leaving[member.id].tried if member.id in self._leaving else ()
        spares = [core.members[spare] for spare in core.spares]
        untried = [one for one in spares if (one.id, plan.epoch) not in tried]
        if (found := core.shadows.heir(plan.stages[stage], untried)) is not None:
            return found
        why = f"{', '.join(spare.name for spare in spares)} cannot hold, load or reach them" if spares else "there is no spare"
        try:
            if (None, plan.epoch) in tried:
                raise PlanError("that has failed before")
            return self._shared_out(plan, {member.id, *(worker for worker, epoch in tried if epoch == plan.epoch)})
        except BloomBeeError as error:
            span = plan.stages[stage].span
            raise Infeasible(
                f"nobody can take layers {span.start}-{span.stop - 1} of worker {member.name!r}: {why}, and the others cannot"
                f" share them out: {error.message}; have another worker join first ('bloombee token' prints how)",
                constraint="spares",
                worker=member.name,
            ) from error

    def _shared_out(self, plan: Plan, without: set[WorkerId | None]) -> Plan:
        """The best plan of all others. Raises BloomBeeError: there is none, or it cannot be taken over beside ``plan``."""
        core = self._core
        others = [one.id for one in core.members.values() if one.id not in without and not one.is_draining]
        other = NextPlan.of(core.request, plan, core.members, others, surveyed(core)).best()
        check_handover(other, plan, core.members)
        return other

    def _give_up(self, member: Member, error: BloomBeeError) -> None:
        member.is_draining = False
        if self._leaving.pop(member.id).number is not None:
            self._refuse(member.id, error)

    def _refuse(self, worker: WorkerId, error: BloomBeeError) -> None:
        code, fields = to_wire(error)
        self._refused.append(Send(worker, Lane.CONTROL, Refused(code, {**fields, "refused": Drain.__name__})))
