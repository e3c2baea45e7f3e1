"""What makes a swarm look for another plan, and when it must not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bloombee.control.observed import Shown
from bloombee.objective import Objective
from bloombee.pipeline.events import WorkerAway, WorkerDrains
from bloombee.pipeline.swarm import Machine
from bloombee.pipeline.swarm.outlook import Outlook, as_shown, has_moved, may_replan
from bloombee.plan.candidate import Candidate
from bloombee.plan.choose import worth
from bloombee.plan.solve import Space
from bloombee.plan.topology import Cores, Device, Link, RowTime, Topology
from tests.drift_kit import LAYERS, drifting, topology

LINKS = {(0, 1): Link(1e6, 0.02), (1, 2): Link(math.inf, 0.0001), (2, 0): Link(1e6, 0.02)}
BEFORE = Topology({worker: Device(f"w{worker}", layer=RowTime(fixed_s=0.01)) for worker in (1, 2, 3)}, LINKS)


@pytest.mark.parametrize(
    ("ends", "link", "moved"),
    [
        ((0, 1), Link(1.2e6, 0.02), False),
        ((0, 1), Link(1.3e6, 0.02), True),
        ((0, 1), Link(0.7e6, 0.02), True),
        ((0, 1), Link(1e6, 0.03), True),
        ((1, 2), Link(math.inf, 0.0015), False),
        ((1, 2), Link(1e6, 0.0001), True),
        ((1, 3), Link(1e6, 0.0001), True),
    ],
)
def test_a_figure_has_moved_by_more_than_a_quarter(ends: tuple[int, int], link: Link, moved: bool) -> None:
    assert has_moved(BEFORE, replace(BEFORE, links={**LINKS, ends: link})) == moved


def test_a_device_counts_as_slower_than_it_claims_where_it_is_far_from_what_is_usual() -> None:
    shown = {worker: Shown((2,), False, 1.0, 0.0, 2 * 0.01 * ratio) for worker, ratio in ((1, 1.5), (2, 6.0), (3, 1.8))}
    now = as_shown(BEFORE, shown).devices
    assert now[1] == BEFORE.devices[1]
    assert now[3] == BEFORE.devices[3]
    assert now[2].layer.fixed_s == pytest.approx(0.01 * 6.0 / 1.8)
    assert has_moved(BEFORE, as_shown(BEFORE, shown))
    assert as_shown(BEFORE, {1: shown[2]}) == BEFORE  # nobody to tell whether it is the claim that is wrong
    assert as_shown(BEFORE, {}) == BEFORE


def test_nothing_is_done_where_a_plan_was_asked_for_or_something_else_is_under_way() -> None:
    cluster = drifting(topology(), "throughput")
    swarm = cluster.head.swarm
    assert not may_replan(swarm)  # not wired yet
    cluster.run_for(1.0)
    assert may_replan(swarm)
    assert cluster.plan is not None
    chosen = swarm.request
    for other in (replace(chosen, objective=None), replace(chosen, machine=Machine(Cores(2), Device("alike")))):
        swarm.request = other
        assert not may_replan(swarm)
    swarm.request = chosen
    worker = cluster.plan.stages[1].worker
    swarm.handle(WorkerAway(worker, cluster.clock.now))
    assert not may_replan(swarm)
    swarm.members[worker].is_away = False
    swarm.members[worker].is_draining = True
    assert not may_replan(swarm)
    swarm.members[worker].is_draining = False
    cluster.head.do(swarm.handle(WorkerDrains(worker, 4, "asked", cluster.clock.now)))
    assert swarm.handovers.plans
    assert not may_replan(swarm)


def test_the_search_is_asked_again_only_when_a_figure_has_moved() -> None:
    cluster = drifting(topology(), "throughput", replans=False)
    cluster.run_for(1.0)
    assert cluster.plan is not None
    swarm, outlook, ends = cluster.head.swarm, Outlook(), (cluster.plan.stages[0].worker, cluster.plan.stages[1].worker)
    question = outlook.look(swarm, topology(), 100, 10.0)
    assert question is not None
    outlook.answered(question.answer())
    assert outlook.compared(swarm, 10.0) is None  # the one that runs is the best
    assert outlook.look(swarm, topology(), 100, 20.0) is None
    slow = replace(topology(), links={**topology().links, ends: Link(1e6, 0.005)})
    question = outlook.look(swarm, slow, 100, 20.0)
    assert question is not None
    outlook.answered(question.answer())
    few = outlook.compared(swarm, 20.0)
    assert few is not None
    assert few.other_worth > 2 * few.running_worth
    assert outlook.look(swarm, topology(), 100, 21.0) is None  # it was asked a moment ago
    question = outlook.look(swarm, topology(), 100_000, 23.0)
    assert question is not None
    outlook.answered(question.answer())
    many = outlook.compared(swarm, 23.0)
    assert many is not None  # against the plan that was the best a while ago
    assert many.other_worth == pytest.approx(many.running_worth, rel=0.01)
    assert many.cost_s > 10 * few.cost_s


def test_a_plan_is_worth_what_its_objective_says() -> None:
    cluster = drifting(topology(), "throughput", replans=False)
    assert cluster.plan is not None
    model = cluster.head.swarm.request.card.shape(cluster.plan.dtype)
    one, three = Candidate((1,), (LAYERS,)), Candidate((1, 2, 3), (2, 2, 2))

    def worths(objective: str) -> list[float]:
        return [worth(one_of, topology(), model, Space(), Objective.parse(objective)) for one_of in (one, three)]

    alone, apart = worths("latency")
    assert alone > apart
    alone, apart = most = worths("throughput")
    assert alone < apart
    assert worths("target:100") == most
    assert worths("target:0.001") < most
