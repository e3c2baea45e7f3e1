"""A link of a planned swarm that is wide and narrow by turns for half an hour: what staying and changing cost, in the whole
simulated swarm, against who knows the future."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import pytest

from bloombee.control.events import PlansCompared
from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.pipeline.swarm.outlook import Question
from bloombee.pipeline.swarm.replanning import NextPlan
from bloombee.plan.plan import Plan
from bloombee.plan.topology import Device, Link, Topology
from bloombee.sim.cluster import sim_card
from bloombee.sim.moving import DriftingCluster
from bloombee.types import HEAD
from tests.sim_kit import assert_right

LAYERS = 6
WORKERS = (1, 2, 3, 4)
PACE = Pace(0.04, 0.004, 0.001, layers=1)
WIDE, LONG_S = 2e6, 0.05
"""Everything takes ten times as long as in tests/drift_kit.py: half an hour has that many fewer tokens."""
CARD = dataclasses.replace(sim_card((0,) * LAYERS), hidden_size=4096)
BEGIN_S, LASTS_S, STEP_S = 4.0, 1800.0, 0.5
NARROW = 0.1


class Flapping(DriftingCluster):
    """With the plans that were taken over, and when that was decided; the first one from the start."""

    def __init__(self, topology: Topology) -> None:
        super().__init__(
            topology, [PACE] * len(WORKERS), Objective.parse("throughput"), card=CARD, seed=1, num_pages=1024, page_size=16,
            max_rows=64, num_microbatches=8, tuned=True, layer_load_s=0.2,
        )  # fmt: skip
        assert self.plan is not None
        self.runs: list[tuple[float, Plan]] = [(0.0, self.plan)]

    def _replan(self, why: str) -> None:
        super()._replan(why)
        begun = max(self.head.swarm.handovers.plans, key=lambda plan: plan.epoch)
        self.runs.append((self.clock.now, begun))

    def worths(self, topology: Topology) -> list[float]:
        """Of those plans in turn, by these figures."""
        swarm, first = self.head.swarm, self.runs[0][1]
        members = {member.id: member for member in swarm.members.values()}
        asked = Question(NextPlan.of(swarm.request, first, members, None, topology), topology, None, 0)
        return [asked._found(first, plan, members).worth for _, plan in self.runs]


def _topology(narrow: tuple[int, int] | None = None) -> Topology:
    devices = {worker: Device.paced(f"w{worker}", PACE) for worker in WORKERS}
    links = {ends: Link(WIDE, LONG_S) for ends in itertools.permutations((HEAD, *WORKERS), 2)}
    return Topology(devices, links if narrow is None else {**links, narrow: Link(WIDE * NARROW, LONG_S)})


def _losses(cluster: Flapping, ends: tuple[int, int], period_s: float) -> Iterator[tuple[float, list[float]]]:
    """Each step's time, and what each plan loses in it against the best of them."""
    worths = {is_narrow: cluster.worths(_topology(ends if is_narrow else None)) for is_narrow in (False, True)}
    for step in range(int(LASTS_S / STEP_S)):
        values = worths[step * STEP_S % period_s < period_s / 2]
        yield BEGIN_S + step * STEP_S, [STEP_S * (1.0 - value / max(values)) for value in values]


def _best_offline(losses: Sequence[tuple[float, list[float]]], cost_s: float) -> float:
    """Of any schedule that begins with the first plan."""
    totals = [0.0, *[cost_s] * (len(losses[0][1]) - 1)]
    for _, lost in losses:
        cheapest_s = min(totals) + cost_s
        totals = [min(total, cheapest_s) + one for total, one in zip(totals, lost, strict=True)]
    return min(totals)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("period_s", [2.0, 10.0, 60.0, 300.0])
def test_half_an_hour_of_swings_costs_at_most_twice_what_who_knows_the_future_pays(period_s: float) -> None:
    cluster = Flapping(_topology())
    first = cluster.runs[0][1]
    ends = first.stages[0].worker, first.stages[1].worker
    for swing in range(int(LASTS_S / period_s)):
        cluster.narrow(*ends, NARROW, at=BEGIN_S + swing * period_s)
        cluster.narrow(*ends, 1 / NARROW, at=BEGIN_S + (swing + 0.5) * period_s)
    for number in range(int(LASTS_S / 20.0)):
        cluster.submit([number + 1] * 8, max_new_tokens=60, seed=number, at=0.5 + 20.0 * number)
    cluster.run_for(BEGIN_S + LASTS_S)

    cost_s = max(one.cost_s for one in cluster.head.control_log if isinstance(one, PlansCompared))
    losses = list(_losses(cluster, ends, period_s))
    num_changes = len(cluster.runs) - 1
    lost_s = sum(lost[sum(at <= now for at, _ in cluster.runs) - 1] for now, lost in losses)
    best_s = _best_offline(losses, cost_s)
    assert num_changes, "the link is worth leaving"
    assert lost_s + num_changes * cost_s <= 2 * best_s
    assert cluster.head.num_recoveries == 0
    assert cluster.run()
    assert_right(cluster, LAYERS)
