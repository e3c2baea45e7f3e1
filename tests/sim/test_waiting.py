"""Where nobody can take a lost worker's layers requests wait for another one to join, if that is wanted."""

from __future__ import annotations

import random

import pytest

from bloombee.errors import LinkDown
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import Faults
from tests.sim_kit import HARSH, assert_right

WAITS_S = 10.0
STAGES = 3


class WaitingCluster(SimCluster):
    waits_s = WAITS_S


def _cluster(seed: int, faults: Faults | None = None, kind: type[SimCluster] = WaitingCluster) -> SimCluster:
    rng = random.Random(seed)
    cluster = kind(seed=seed, num_stages=STAGES, num_microbatches=rng.choice([1, 3]), faults=faults)
    for _ in range(12):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 60))]
        cluster.submit(prompt, max_new_tokens=rng.randint(20, 60), seed=rng.randrange(2**64), at=rng.uniform(0, 1))
    return cluster


@pytest.mark.parametrize("lost", [(1,), (2,), (3,), (1, 2), (2, 3)])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(3))
def test_requests_go_on_with_whoever_joins_in_time(lost: tuple[int, ...], faults: Faults | None, seed: int) -> None:
    cluster = _cluster(seed, faults)
    rng = random.Random(seed)
    for number, worker in enumerate(lost):
        cluster.kill(worker, at=rng.uniform(0.3, 0.6))
        joins_s = rng.uniform(2.0, 8.0)
        cluster.clock.call_at(joins_s, lambda worker=STAGES + 1 + number: cluster.join(worker))  # type: ignore[misc]
    assert cluster.run()
    assert cluster.head.down is None
    assert_right(cluster, STAGES)
    assert cluster.plan is not None
    assert not {stage.worker for stage in cluster.plan.stages} & set(lost)


def test_should_another_be_lost_meanwhile_both_places_are_waited_for() -> None:
    cluster = _cluster(5)
    cluster.kill(2, at=0.4)
    cluster.kill(1, at=3.0)
    cluster.clock.call_at(5.0, lambda: cluster.join(4))
    cluster.clock.run(lambda: cluster.clock.now > 7.0, deadline_s=8.0)
    assert not cluster.head.up
    cluster.clock.call_at(8.0, lambda: cluster.join(5))
    assert cluster.run()
    assert_right(cluster, STAGES)


@pytest.mark.parametrize(("kind", "ends_s"), [(SimCluster, 0.4), (WaitingCluster, 0.4 + WAITS_S)])
def test_when_nobody_comes_each_request_ends_typed(kind: type[SimCluster], ends_s: float) -> None:
    cluster = _cluster(6, kind=kind)
    cluster.kill(2, at=0.4)
    assert cluster.clock.run(lambda: cluster.head.down is not None, deadline_s=30.0)
    ended = [request for request in cluster.requests.values() if request.error is not None]
    assert ended
    assert all(isinstance(request.error, LinkDown) for request in ended)
    assert isinstance(cluster.head.down, LinkDown)
    assert ends_s <= cluster.clock.now <= ends_s + 1.0
