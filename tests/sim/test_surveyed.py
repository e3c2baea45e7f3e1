"""What a simulated swarm finds out of its workers and links before the first plan, through the cores that run over ZeroMQ."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.pipeline.swarm.estimates import Estimates
from bloombee.pipeline.swarm.survey import Survey
from bloombee.plan.document import parse_network
from bloombee.plan.network import Network
from bloombee.sim.surveyed import SurveyedCluster
from bloombee.types import HEAD, WorkerId

PACE = Pace(0.004, 0.0001, 0.0005)
SLOW = Pace(0.016, 0.0004, 0.002)
LEAST_BITS, MOST_BITS = 2e6, 200e6


def _access(rng: random.Random) -> dict[str, float]:
    """A line of 2 to 200 Mbit/s each way, 1 to 60 ms long."""
    up, down = (LEAST_BITS * (MOST_BITS / LEAST_BITS) ** rng.random() / 8 for _ in range(2))
    return {"up_bytes_per_s": up, "down_bytes_per_s": down, "delay_s": rng.uniform(0.001, 0.06)}


class _World:
    """A swarm behind such lines, joined in random order within two seconds; one device is slow."""

    def __init__(self, seed: int, num_workers: int = 8, **options: Any) -> None:
        rng = random.Random(f"survey {seed}")
        nodes = [f"w{index}" for index in range(num_workers)]
        self.network: Network = parse_network({"version": 1, "nodes": {name: _access(rng) for name in ("head", *nodes)}})
        rng.shuffle(nodes)
        joins = sorted(rng.uniform(0, 2) for _ in nodes)
        self.last_join_s = joins[-1]
        self.cluster = SurveyedCluster(
            seed=seed,
            network=self.network,
            nodes=nodes,
            paces=[SLOW if node == "w0" else PACE for node in nodes],
            objective=Objective(),
            num_stages=num_workers,
            join_s=dict(enumerate(joins, start=1)),
            **options,
        )
        self.node_of: dict[WorkerId, str] = {HEAD: "head", **dict(enumerate(nodes, start=1))}

    def plan(self, deadline_s: float) -> float:
        """How long it takes from the last join; the test fails if it is longer."""
        clock = self.cluster.clock
        assert clock.run(lambda: self.cluster.plan is not None, deadline_s=self.last_join_s + deadline_s)
        return clock.now - self.last_join_s

    @property
    def survey(self) -> Survey:
        survey = self.cluster.head.swarm.survey
        assert survey is not None
        return survey

    @property
    def estimates(self) -> Estimates:
        return self.survey.estimates

    def asked(self, source: WorkerId, target: WorkerId) -> tuple[float, float]:
        """Round trip and bandwidth, as the network was asked for."""
        ends = self.node_of[source], self.node_of[target]
        bandwidth = self.network.bandwidth_bytes_per_s(*ends)
        assert bandwidth is not None
        return self.network.delay_s(*ends) + self.network.delay_s(*reversed(ends)), bandwidth


@pytest.mark.parametrize("seed", range(4))
def test_all_that_there_is_to_know_is_known_before_the_first_plan(seed: int) -> None:
    """Eight workers and a head behind lines of their own, one device slow, one worker that can only dial out."""
    world = _World(seed, dial_only=(1 + seed,))
    world.plan(20.0)
    for link in itertools.permutations(world.node_of, 2):
        figure = world.estimates.figure(*link)
        assert figure is not None, link
        assert not figure.is_estimated
        rtt_s, bandwidth = world.asked(*link)
        assert abs(figure.rtt_s - rtt_s) < 0.05 * rtt_s + 1e-3, link
        assert figure.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=0.1), link
        assert figure.low_bytes_per_s is not None
        assert 0.75 * bandwidth < figure.low_bytes_per_s < bandwidth
    slow = next(worker for worker, node in world.node_of.items() if node == "w0")
    stages = {worker: device.stage.fixed_s for worker, device in world.survey.topology().devices.items()}
    assert [worker for worker, fixed_s in stages.items() if fixed_s == pytest.approx(SLOW.fixed_s)] == [slow]


def test_two_that_can_only_dial_out_are_never_neighbours_and_the_swarm_runs() -> None:
    world = _World(5, 4, dial_only=(2, 4))
    world.plan(20.0)
    missing = set(itertools.permutations(world.node_of, 2)) - set(world.survey.topology().links)
    assert missing == {(2, 4), (4, 2)}
    world.cluster.submit([1, 2, 3], max_new_tokens=5, at=world.cluster.clock.now)
    assert world.cluster.run()
    assert len(world.cluster.requests[0].tokens) == 5


@pytest.mark.parametrize("seed", range(3))
def test_a_swarm_that_is_known_starts_within_three_seconds_and_six_round_trips(seed: int) -> None:
    first = _World(seed)
    first.plan(20.0)
    again = _World(seed, figures=first.cluster.head.swarm.figures)
    longest_s = max(again.asked(*link)[0] for link in itertools.permutations(again.node_of, 2))
    again.plan(3.0 + 6 * longest_s)
    known, before = again.survey.topology(), first.survey.topology()
    assert {ends: link.bandwidth_bytes_per_s for ends, link in known.links.items()} == {
        ends: link.bandwidth_bytes_per_s for ends, link in before.links.items()
    }
