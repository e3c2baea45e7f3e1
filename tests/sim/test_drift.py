"""A link of a planned swarm becomes slow while requests run: another plan is taken over, once, and no token shows it."""

from __future__ import annotations

import dataclasses

import pytest

from bloombee.control.events import Decision
from bloombee.control.log import replay
from bloombee.plan.topology import Link, Topology
from bloombee.sim.moving import DriftingCluster
from tests.drift_kit import LAYERS, LONG_S, WIDE, drifting, topology
from tests.sim_kit import assert_right, log_lines

DROP_AT = 2.0
WINDOW = (DROP_AT + 10.0, DROP_AT + 13.0)
"""From ten seconds after the drop on."""


def _tokens(cluster: DriftingCluster, begin: float, end: float) -> int:
    return sum(begin <= at < end for request in cluster.requests.values() for at in request.token_times)


def _narrowed(topology: Topology, ends: tuple[int, int]) -> Topology:
    return dataclasses.replace(topology, links={**topology.links, ends: Link(WIDE / 10, LONG_S)})


@pytest.mark.parametrize(("objective", "hop"), [("balance", 0), ("throughput", 1)])
def test_a_link_that_drops_to_a_tenth_is_left_once_for_a_plan_as_good_as_a_new_one(objective: str, hop: int) -> None:
    drifts = drifting(topology(), objective)
    assert drifts.plan is not None
    first = drifts.plan
    ends = (first.stages[hop].worker, first.stages[hop + 1].worker)
    drifts.narrow(*ends, 0.1, at=DROP_AT)
    assert drifts.run()
    assert [ended.error for ended in drifts.head.handovers] == [None]
    assert ends not in drifts.plan.hops
    assert_right(drifts, LAYERS)

    fresh, stays = drifting(_narrowed(topology(), ends), objective), drifting(topology(), objective, replans=False)
    stays.narrow(*ends, 0.1, at=DROP_AT)
    for other in (fresh, stays):
        other.run_for(WINDOW[1])
        assert other.head.handovers == []
    assert _tokens(drifts, *WINDOW) >= 0.9 * _tokens(fresh, *WINDOW)
    assert _tokens(stays, *WINDOW) < 0.7 * _tokens(fresh, *WINDOW)


@pytest.mark.parametrize(("factor", "stage"), [(4.0, 1), (10.0, 0)])
def test_a_device_that_becomes_slow_is_left_once_for_a_plan_as_good_as_a_new_one(factor: float, stage: int) -> None:
    """Nobody is lost by it, however slow."""
    drifts = drifting(topology(), "throughput")
    assert drifts.plan is not None
    worker = drifts.plan.stages[stage].worker
    drifts.slow(worker, factor, at=DROP_AT)
    assert drifts.run()
    assert [ended.error for ended in drifts.head.handovers] == [None]
    assert drifts.head.num_recoveries == 0
    assert_right(drifts, LAYERS)

    slowed = topology()
    slowed = dataclasses.replace(slowed, devices={**slowed.devices, worker: slowed.device(worker).scaled(factor)})
    fresh, stays = drifting(slowed, "throughput", slow={worker: factor}), drifting(topology(), "throughput", replans=False)
    stays.slow(worker, factor, at=DROP_AT)
    for other in (fresh, stays):
        other.run_for(WINDOW[1])
        assert other.head.handovers == []
    assert _tokens(drifts, *WINDOW) >= 0.9 * _tokens(fresh, *WINDOW)
    assert _tokens(stays, *WINDOW) < 0.7 * _tokens(fresh, *WINDOW)


def test_what_was_decided_and_why_is_in_the_log_and_comes_of_it_again() -> None:
    cluster = drifting(topology(), "throughput")
    assert cluster.plan is not None
    cluster.narrow(*[stage.worker for stage in cluster.plan.stages[:2]], 0.1, at=DROP_AT)
    cluster.run_for(DROP_AT + 6.0)
    decisions = [record for record in cluster.head.control_log if isinstance(record, Decision)]
    found = replay(log_lines(cluster))
    assert (found.decisions, found.difference, found.is_cut) == (decisions, None, False)
    (replan,) = [one for one in decisions if one.what == "replan"]
    assert replan.at_s > DROP_AT
    assert replan.chosen.startswith("layers of w")
    assert "times as good by now" in replan.why


def test_nothing_is_changed_while_nothing_changes() -> None:
    cluster = drifting(topology(), "balance")
    assert cluster.run()
    assert cluster.head.handovers == []
    assert_right(cluster, LAYERS)
