"""Where the planner puts the scheduler: where steps are quicker, and with the head where it makes no difference."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from bench.topologies import small
from bloombee.errors import Infeasible, PlanError
from bloombee.models.shape import ModelShape
from bloombee.objective import Goal, Objective
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import evaluate
from bloombee.plan.solve import Space, best_place, solve, solve_places
from bloombee.plan.solve.places import _with_head_at
from bloombee.plan.topology import LOCAL, Cores, Device, Link, RowTime, Site, Topology
from bloombee.types import HEAD, SchedulerPlace

MODEL = ModelShape(hidden=1024, num_layers=8)
SPACE = Space(most_sequences=64)
STAGE0 = SchedulerPlace.STAGE0


def _all_to_all(workers: int, hop: Link, head: Link) -> Topology:
    ends = range(workers + 1)
    links = {(a, b): head if HEAD in (a, b) else hop for a, b in itertools.permutations(ends, 2)}
    devices = {worker: Device(f"w{worker}", stage=RowTime(0.002), layer=RowTime(0.001, 1e-4)) for worker in ends if worker}
    return Topology(devices, links)


FAR = _all_to_all(4, Link(math.inf, 0.010), Link(math.inf, 0.050))
NEAR = _all_to_all(4, Link(math.inf, 0.010), Link(math.inf, 0.0001))


def test_a_ring_closes_where_its_scheduler_is() -> None:
    plan = Candidate((1, 2, 3, 4), (2, 2, 2, 2))
    with_head, beside = evaluate(plan, FAR, MODEL), evaluate(replace(plan, scheduler=STAGE0), FAR, MODEL)
    assert with_head.delay_s == pytest.approx(3 * 0.010 + 2 * 0.050)
    assert beside.delay_s == pytest.approx(4 * 0.010)
    assert (beside.links[0].source, beside.links[0].target, beside.links[0].pass_s) == (1, 1, 0.0)
    assert (beside.links[-1].source, beside.links[-1].target) == (4, 1)
    alone = evaluate(Candidate((2,), (8,), scheduler=STAGE0), FAR, MODEL)
    assert alone.delay_s == 0.0


def test_a_last_stage_that_does_not_reach_the_first_is_named() -> None:
    links = {ends: link for ends, link in FAR.links.items() if ends != (4, 1)}
    with pytest.raises(PlanError, match="no link from 'w4' to 'w1'"):
        evaluate(Candidate((1, 2, 3, 4), (2, 2, 2, 2), scheduler=STAGE0), replace(FAR, links=links), MODEL)


def test_a_plan_moves_its_scheduler_if_that_pays() -> None:
    plan = Candidate((1, 2, 3, 4), (2, 2, 2, 2), num_microbatches=2)
    assert best_place(evaluate(plan, FAR, MODEL), FAR, MODEL).candidate.scheduler is STAGE0
    assert best_place(evaluate(plan, NEAR, MODEL), NEAR, MODEL).candidate.scheduler is SchedulerPlace.HEAD
    one_machine = _all_to_all(4, LOCAL, LOCAL)
    assert best_place(evaluate(plan, one_machine, MODEL), one_machine, MODEL).candidate == plan


@pytest.mark.parametrize("goal", [Goal.LATENCY, Goal.THROUGHPUT, Goal.BALANCE])
def test_a_far_head_has_its_scheduler_beside_the_first_stage(goal: Goal) -> None:
    found = solve_places(FAR, MODEL, SPACE, Objective(goal))
    assert {cost.candidate.scheduler for cost in found.pipelines} == {STAGE0}
    plain = solve(FAR, MODEL, SPACE, Objective(goal))
    if goal is Goal.THROUGHPUT:
        assert found.value > plain.value
        assert found.value <= found.bound
    else:
        assert found.value < plain.value
        assert found.value >= found.bound
    assert solve_places(NEAR, MODEL, SPACE, Objective(goal)).pipelines[0].candidate.scheduler is SchedulerPlace.HEAD
    machine = replace(FAR, cores=Cores(2))
    assert solve_places(machine, MODEL, SPACE, Objective(goal)).pipelines[0].candidate.scheduler is SchedulerPlace.HEAD


def test_a_target_that_only_a_scheduler_beside_the_first_stage_keeps_is_kept() -> None:
    objective = Objective(Goal.TARGET, 0.08)
    with pytest.raises(Infeasible):
        solve(replace(FAR, devices={1: FAR.devices[1]}), MODEL, SPACE, objective)
    found = solve_places(replace(FAR, devices={1: FAR.devices[1]}), MODEL, SPACE, objective)
    assert found.pipelines[0].candidate.scheduler is STAGE0
    assert found.pipelines[0].time_per_token_s <= 0.08
    with pytest.raises(Infeasible):
        solve_places(FAR, MODEL, SPACE, Objective(Goal.TARGET, 0.001))


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_it_is_never_worse_than_with_the_head_alone_and_never_beyond_its_bound(first: int) -> None:
    for seed in range(first, first + 10):
        case = small(seed)
        try:
            plain = solve(case.topology, case.model, case.space, case.objective, budget_s=10)
        except Infeasible:
            continue
        found = solve_places(case.topology, case.model, case.space, case.objective, budget_s=20)
        is_beside = found.pipelines[0].candidate.scheduler is STAGE0
        if case.objective.goal in (Goal.THROUGHPUT, Goal.TARGET):
            assert found.value >= plain.value * (1 - 1e-9)
            assert found.bound >= plain.value * (1 - 1e-9)
        elif case.objective.goal is Goal.LATENCY:
            assert found.value <= plain.value * (1 + 1e-9)
            assert found.bound <= plain.value * (1 + 1e-9)
        assert is_beside or found.pipelines == plain.pipelines


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_a_ring_that_closes_at_its_first_stage_is_one_whose_head_is_there(first: int) -> None:
    """So what such rings are searched as is worth what they are."""
    for seed in range(first, first + 10):
        case = small(seed)
        topology = replace(case.topology, sites={1: Site("a", 2e6, 3e6), 2: Site("b", 1e6, 1e6), HEAD: Site("b", 1e6, 1e6)})
        for workers in itertools.permutations(topology.devices, min(3, case.model.num_layers)):
            layers = (*(1 for _ in workers[1:]), case.model.num_layers - len(workers) + 1)
            plan = Candidate(workers, layers, num_microbatches=2, microbatch_sequences=3)
            try:
                beside = evaluate(replace(plan, scheduler=STAGE0), topology, case.model)
            except PlanError:
                continue
            as_head = evaluate(plan, _with_head_at(topology, workers[0]), case.model)
            assert (beside.step_s, beside.loop_s) == (as_head.step_s, as_head.loop_s)


@pytest.mark.parametrize("goal", [Goal.LATENCY, Goal.THROUGHPUT, Goal.BALANCE])
def test_with_few_workers_the_place_is_proven_too(goal: Goal) -> None:
    far = solve_places(FAR, MODEL, SPACE, Objective(goal))
    assert far.proven
    assert far.gap == 0
    assert solve_places(FAR, MODEL, SPACE, Objective(goal), place=STAGE0).pipelines == far.pipelines
    head = solve_places(FAR, MODEL, SPACE, Objective(goal), place=SchedulerPlace.HEAD)
    assert head.pipelines == solve(FAR, MODEL, SPACE, Objective(goal)).pipelines
