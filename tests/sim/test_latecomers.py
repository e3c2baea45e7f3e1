"""Workers that join while the swarm runs: looked at beside what runs, and planned with once they are known."""

from __future__ import annotations

import itertools

import pytest

from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.pipeline.swarm.replanning import NextPlan
from bloombee.plan.document import parse_network
from bloombee.sim.device import oracle
from bloombee.sim.surveyed import SurveyedCluster
from bloombee.types import HEAD

QUICK, SLOW = Pace(0.002, 0.0001, 0.0002, layers=1), Pace(0.030, 0.001, 0.004, layers=1)
JOINS_S, KNOWN_S = 20.0, 20.0
RATE, DELAY_S = 2.5e6, 0.010
LINE = {"up_bytes_per_s": RATE, "down_bytes_per_s": RATE, "delay_s": DELAY_S}
PROMPT = [5, 6, 7]


def _swarm(*late: float) -> SurveyedCluster:
    """Two quick workers and a slow one, and others that come when it runs; lines all alike."""
    nodes = [f"n{index}" for index in range(3 + len(late))]
    cluster = SurveyedCluster(
        seed=1,
        network=parse_network({"version": 1, "nodes": dict.fromkeys(("head", *nodes), LINE)}),
        nodes=nodes,
        paces=[QUICK, QUICK, SLOW, *[QUICK] * len(late)],
        objective=Objective.parse("throughput"),
        num_stages=3,
        join_s=dict(enumerate(late, start=4)),
        num_pages=1024,
        num_microbatches=32,
    )
    assert cluster.clock.run(lambda: cluster.plan is not None, deadline_s=JOINS_S)
    return cluster


def _best(cluster: SurveyedCluster) -> set[int]:
    """Who has a stage in the best plan as far as is known."""
    swarm = cluster.head.swarm
    assert swarm.survey is not None
    assert swarm.plan is not None
    best = NextPlan.of(swarm.request, swarm.plan, swarm.members, None, swarm.survey.topology()).best()
    return {stage.worker for stage in best.stages}


def test_one_that_joins_a_swarm_that_runs_is_measured_and_planned_with() -> None:
    cluster = _swarm(JOINS_S)
    number = cluster.submit(PROMPT, max_new_tokens=200, at=JOINS_S - 1)
    cluster.clock.run(lambda: cluster.clock.now > JOINS_S + 1, deadline_s=JOINS_S + 2)
    swarm = cluster.head.swarm
    assert swarm.survey is not None
    assert 4 in swarm.members
    assert 4 not in swarm.survey.topology().devices, "nobody plans with what is not known yet"
    assert cluster.clock.run(lambda: swarm.survey.is_over, deadline_s=JOINS_S + KNOWN_S)  # type: ignore[union-attr]
    topology = swarm.survey.topology()
    assert topology.devices[4].stage == topology.devices[1].stage
    for link in itertools.permutations((HEAD, 1, 2, 3, 4), 2):
        assert topology.link(*link).latency_s == pytest.approx(2 * DELAY_S, abs=2e-3)
    assert 4 in _best(cluster)
    assert 3 not in _best(cluster)
    assert cluster.run()
    assert cluster.requests[number].tokens == oracle(PROMPT, 0, len(swarm.plan.stages), 200)  # type: ignore[union-attr]


def test_two_that_join_together_and_one_that_is_gone_before_it_is_known() -> None:
    cluster = _swarm(JOINS_S, JOINS_S + 0.3, JOINS_S + 0.6)
    cluster.kill(5, at=JOINS_S + 1.0)
    swarm = cluster.head.swarm
    survey = swarm.survey
    assert survey is not None
    cluster.clock.run(lambda: cluster.clock.now > JOINS_S + 2, deadline_s=JOINS_S + 3)
    assert cluster.clock.run(lambda: survey.is_over, deadline_s=JOINS_S + KNOWN_S)
    assert set(survey.topology().devices) == {1, 2, 3, 4, 6}
    assert (4, 6) in survey.topology().links
