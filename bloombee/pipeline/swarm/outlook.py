"""Whether another plan would be better by what is known now of workers and links. Pure.

Looked at again and again while requests run; the search is asked only when a figure has moved by more than MOVED since it was
last asked, and may run on any thread meanwhile. What comes of it goes to the control core, which decides
(``control/replanning.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median_low

from bloombee.control.events import PlansCompared
from bloombee.control.observed import Shown
from bloombee.errors import BloomBeeError
from bloombee.models.shape import ModelShape
from bloombee.objective import Objective
from bloombee.pipeline.swarm.building import build_s
from bloombee.pipeline.swarm.core import SwarmCore
from bloombee.pipeline.swarm.handover import can_hand_over
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.planning import FirstPlan
from bloombee.pipeline.swarm.replanning import NextPlan, is_same
from bloombee.plan.candidate import Candidate
from bloombee.plan.choose import with_guesses, worth
from bloombee.plan.memory import layer_bytes
from bloombee.plan.plan import Plan
from bloombee.plan.solve import Space, alone
from bloombee.plan.topology import Device, Link, RowTime, Topology
from bloombee.types import SchedulerPlace, WorkerId

LOOK_EVERY_S = 0.5
ASK_EVERY_S = 2.0
"""The search, at most."""
MOVED = 1.25
"""A figure that is so many times another is another figure, ..."""
LEAST_S = 0.002
"""... unless it is of a latency and the difference is no more than this."""
OFF = 2.0
"""Less is how devices differ from what they claim: other work on the machine, heat, what a profile has not seen."""
LEAST_COST_S = 1.0
"""Of any change: links are made, and figures need time to be believed."""


@dataclass(frozen=True, slots=True)
class Found:
    """Another plan, what it is worth beside the one that runs, and what the change costs."""

    plan: Plan
    running_worth: float
    worth: float
    cost_s: float


@dataclass(frozen=True, slots=True)
class Question:
    """About what there is to plan with; may be answered on any thread.

    Args:
        other: another plan that was the best once: it is looked at again where the one that runs is the best.
        num_rows: that stages hold of open sequences.
    """

    next: NextPlan
    topology: Topology
    other: Plan | None
    num_rows: int

    def answer(self) -> Found | None:
        """None: there is no other plan that could be taken over."""
        running, members = self.next.running, {one.id: one for one in self.next.members}
        try:
            best = self.next.best()
            plan = self.other if is_same(best, running) else best
            if plan is None or not can_hand_over(plan, running, members):
                return None
            return self._found(running, plan, members)
        except BloomBeeError:
            return None

    def _found(self, running: Plan, plan: Plan, members: Mapping[WorkerId, Member]) -> Found:
        request = self.next.request
        first, num_pages = FirstPlan(request), running.groups[0].num_pages
        model, space = first.wish().shape(request.card, num_pages), first.wish().space(request.card, num_pages)
        topology, _ = with_guesses(first.known(members.values(), self.topology), model, streams=request.streams)
        objective = request.objective or Objective()
        worths = [worth(_candidate(one, model, space), topology, model, space, objective) for one in (running, plan)]
        pause_s = alone(_candidate(plan, model, space), topology, model, space.ratios).time_per_token_s
        building_s = build_s(running, plan, topology, model, self.num_rows)
        return Found(plan, worths[0], worths[1], max(LEAST_COST_S, building_s + pause_s))


def _candidate(plan: Plan, model: ModelShape, space: Space) -> Candidate:
    return Candidate(
        workers=tuple(stage.worker for stage in plan.stages),
        layers=tuple(len(stage.span) for stage in plan.stages),
        context=space.context,
        kv_tokens=space.kv_tokens,
        page_size=space.page_size,
        max_rows=space.max_rows,
        scheduler=plan.scheduler,
        streamed_bytes=tuple(layer_bytes(model, stage.streamed) for stage in plan.stages),
    )


class Outlook:
    """Of one swarm whose plans are chosen."""

    def __init__(self) -> None:
        self.found: Found | None = None
        """By the last answer."""
        self._asked: tuple[int, Topology] | None = None
        """The epoch and the figures of the last question."""
        self._ask_at = -math.inf
        self._left: Plan | None = None
        """Another plan that was the best once, or ran before."""

    def look(self, core: SwarmCore, topology: Topology, num_rows: int, now: float) -> Question | None:
        """What to ask now; None: nothing has changed, or it was asked a moment ago."""
        running = core.plan
        if running is None or now < self._ask_at:
            return None
        asked = self._asked
        if asked is not None and asked[0] == running.epoch and not has_moved(asked[1], topology):
            return None
        if asked is not None and asked[0] != running.epoch:
            self.found = None
        self._asked, self._ask_at = (running.epoch, topology), now + ASK_EVERY_S
        wanted = NextPlan.of(core.request, running, core.members, None, topology)
        other = self._left if self._left is not None and not is_same(self._left, running) else None
        return Question(wanted, topology, other, num_rows)

    def answered(self, found: Found | None) -> None:
        """To the last question."""
        self.found = found
        if found is not None:
            self._left = found.plan

    def compared(self, core: SwarmCore, now: float) -> PlansCompared | None:
        """For the control core; None: there is nothing to compare with."""
        found, running = self.found, core.plan
        if found is None or running is None or self._asked is None or self._asked[0] != running.epoch:
            return None
        layers = ", ".join(f"{stage.name} {len(stage.span)}" for stage in found.plan.stages)
        return PlansCompared(f"layers of {layers}", found.running_worth, found.worth, found.cost_s, now)

    def taken(self, core: SwarmCore) -> Plan | None:
        """The other plan is to be taken over; the one that runs is what there is to go back to."""
        found, self._left = self.found, core.plan
        self.found, self._asked = None, None
        return None if found is None else found.plan


def may_replan(core: SwarmCore) -> bool:
    """A plan that was chosen runs, nothing else is under way, and requests could be carried over to another one.

    Workers of one machine share its cores: no other plan of theirs is worth a change.
    """
    running, request = core.plan, core.request
    if request.objective is None or request.machine is not None or running is None or not core.is_up or core.handovers.plans:
        return False
    is_calm = not any(one.is_draining or (one.is_away and running.stage_of(one.id)) for one in core.members.values())
    return is_calm and running.scheduler is SchedulerPlace.HEAD


# -- figures -----------------------------------------------------------------------------------


def as_shown(topology: Topology, shown: Mapping[WorkerId, Shown]) -> Topology:
    """Devices that by what they have shown are OFF times as slow as they claim, beside what is usual here, are that slow.

    What is usual says how right claims are, and holds for those that have shown nothing as well.
    """
    ratios = {
        worker: _alone_s(one.correct(device)) / _alone_s(device)
        for worker, device in topology.devices.items()
        if (one := shown.get(worker)) is not None and _alone_s(device) > 0 and not device.kinds
    }
    if not ratios:
        return topology
    usual = median_low(ratios.values())
    off = {worker: topology.devices[worker].scaled(ratio / usual) for worker, ratio in ratios.items() if ratio > OFF * usual}
    return replace(topology, devices={**topology.devices, **off})


def _alone_s(device: Device) -> float:
    """A layer, for one row."""
    return device.stage.decode_s(1) + device.layer.decode_s(1)


def has_moved(before: Topology, now: Topology) -> bool:
    """Whether a figure is another than it was, or a worker or a link."""
    if before.devices.keys() != now.devices.keys() or before.links.keys() != now.links.keys():
        return True
    return any(_link_moved(before.links[ends], link) for ends, link in now.links.items()) or any(
        _time_moved(one, other)
        for worker, device in now.devices.items()
        for one, other in ((before.devices[worker].stage, device.stage), (before.devices[worker].layer, device.layer))
    )


def _time_moved(before: RowTime, now: RowTime) -> bool:
    return _is_other(before.decode_s(1), now.decode_s(1))


def _link_moved(before: Link, now: Link) -> bool:
    is_longer = abs(before.latency_s - now.latency_s) > LEAST_S and _is_other(before.latency_s, now.latency_s)
    return is_longer or _is_other(before.bandwidth_bytes_per_s, now.bandwidth_bytes_per_s)


def _is_other(before: float, now: float) -> bool:
    return max(before, now) > MOVED * min(before, now)
