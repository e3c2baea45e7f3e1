"""Workers that are to leave: each serves on until another has what it served. Pure.

Asked by a person at the head or by the worker itself (Drain). A spare takes the worker's stage by a hand-over, or where none can
be as after a loss, and no token is lost. Then it is told that it may go. Where nobody can take its stage nothing changes, and who
asked is told so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.errors import BloomBeeError, Infeasible, PlanError, to_wire
from bloombee.pipeline.commands import Command, Dismiss, Send
from bloombee.pipeline.events import WorkerDrains, WorkerGone
from bloombee.pipeline.swarm.core import SwarmCore
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.planning import heir
from bloombee.types import Epoch, Lane, WorkerId
from bloombee.wire.messages import Drain, Drained, Refused


@dataclass(slots=True)
class _Leaving:
    reason: str
    number: int | None = None
    """Of the worker's own Drain."""
    tried: set[tuple[WorkerId, Epoch]] = field(default_factory=set)
    """Who was to take its stage, and from which plan: to come to this again is to have failed."""


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
            self._heir(member)
            self._leaving[worker] = _Leaving(reason)
            member.is_draining = True

    def said(self, worker: WorkerId, drain: Drain) -> None:
        """The worker asks for it, or asks again."""
        try:
            self.ask(worker, drain.reason)
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
        if core.plan is not None and (not core.is_up or core.handovers.plans):
            return []
        if core.stage_of(worker) is None:
            del self._leaving[worker]
            answer = [] if leaving.number is None else [Send(worker, Lane.CONTROL, Drained(leaving.number))]
            return [*answer, Dismiss(worker, None, None), *core.handle(WorkerGone(worker, leaving.reason, now))]
        try:
            spare = self._heir(member)
        except Infeasible as error:  # whoever could have taken it is gone
            self._give_up(member, error)
            return []
        if spare is None or spare.is_away or core.plan is None:
            return []
        leaving.tried.add((spare.id, core.plan.epoch))
        return core.handle(WorkerDrains(worker, spare.id, f"it leaves: {leaving.reason}", now))

    def _heir(self, member: Member) -> Member | None:
        """Who takes its stage; None: it has none. Raises Infeasible: nobody can."""
        core = self._core
        stage, plan = core.stage_of(member.id), core.plan
        if stage is None or plan is None:
            return None
        tried = self._leaving[member.id].tried if member.id in self._leaving else ()
        spares = [core.members[spare] for spare in core.spares]
        if (found := heir(plan.stages[stage], [one for one in spares if (one.id, plan.epoch) not in tried])) is not None:
            return found
        span = plan.stages[stage].span
        why = f"{', '.join(spare.name for spare in spares)} cannot hold, load or reach them" if spares else "there is no spare"
        raise Infeasible(
            f"nobody can take layers {span.start}-{span.stop - 1} of worker {member.name!r}: {why}; have another worker join"
            " first ('bloombee token' prints how)",
            constraint="spares",
            worker=member.name,
        )

    def _give_up(self, member: Member, error: BloomBeeError) -> None:
        member.is_draining = False
        if self._leaving.pop(member.id).number is not None:
            self._refuse(member.id, error)

    def _refuse(self, worker: WorkerId, error: BloomBeeError) -> None:
        code, fields = to_wire(error)
        self._refused.append(Send(worker, Lane.CONTROL, Refused(code, {**fields, "refused": Drain.__name__})))
