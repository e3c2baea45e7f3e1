"""Connections that break, links that are slow, devices that hang: by the real cores under a virtual clock."""

from __future__ import annotations

import random

import pytest

from bloombee.errors import DeadlineExceeded
from bloombee.pace import Pace
from bloombee.roles.stage_host import RESEND_AFTER_S
from bloombee.sim.cluster import SimCluster
from bloombee.sim.device import oracle
from bloombee.sim.network import LinkShape
from bloombee.types import FinishReason


def _assert_right(cluster: SimCluster, num_stages: int) -> None:
    for request in cluster.requests.values():
        assert request.error is None
        assert request.finish is FinishReason.LENGTH
        assert request.tokens == oracle(request.prompt, request.seed, num_stages, request.max_new_tokens)
    for stage in cluster.stages.values():
        assert all(pool.num_free == pool.num_pages for pool in stage.store.kv.pools)


@pytest.mark.parametrize("rtt_s", [0.002, 0.02, 0.15, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_resets_of_every_connection_cost_no_request_a_token(seed: int, rtt_s: float) -> None:
    """Each is reset three times, at any time, alone and all at once."""
    rng = random.Random(f"{seed} {rtt_s}")
    cluster = SimCluster(
        seed=seed,
        num_stages=3,
        num_microbatches=3,
        max_rows=8,
        num_pages=512,
        shape=LinkShape(rtt_s / 2, 2e6),
        resend_after_s=RESEND_AFTER_S,
    )
    for number in range(12):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 60))]
        cluster.submit(prompt, max_new_tokens=12, seed=number, at=rng.uniform(0.1, 2))
    for ends in cluster.breaks.pairs:
        for moment in (1 + 5 * rtt_s, *(rng.uniform(0.2, 4 + 20 * rtt_s) for _ in range(2))):
            cluster.clock.call_at(moment, lambda ends=ends: cluster.breaks.reset(ends))  # type: ignore[misc]
    assert cluster.run()
    assert cluster.head.down is None
    _assert_right(cluster, 3)
    assert max(at for request in cluster.requests.values() for at in request.token_times) < RESEND_AFTER_S + 60 * rtt_s


@pytest.mark.parametrize(("megabits", "tokens"), [(1, 2048), (2, 2048), (2, 8000)])
def test_a_long_prompt_over_a_slow_link_takes_its_time_and_is_sent_once(megabits: int, tokens: int) -> None:
    """Of a model as wide as LLaMA-30B: minutes of wire time, and pieces come all the while. Nobody is taken for lost."""
    row_bytes = 6656 * 2
    cluster = SimCluster(
        seed=0,
        num_stages=2,
        num_spares=1,
        num_microbatches=4,
        max_rows=512,
        num_pages=-(-tokens // 16) + 1,
        page_size=16,
        pace=Pace(0.05, 0.001, 0.001),
        shape=LinkShape(0.05, megabits * 1e6 / 8),
        row_bytes=row_bytes,
        resend_after_s=RESEND_AFTER_S,
    )
    cluster.submit([7] * tokens, max_new_tokens=4, seed=1)
    assert cluster.run()
    _assert_right(cluster, 2)
    assert cluster.head.num_recoveries == 0
    wire_s = tokens * row_bytes * 8 / (megabits * 1e6)
    (request,) = cluster.requests.values()
    assert wire_s < request.token_times[0] < 1.6 * wire_s
    sent = cluster.carrier.link("stage0", "stage1").num_bytes
    assert sent < 1.02 * tokens * row_bytes


def test_a_device_that_hangs_ends_its_requests_and_the_swarm_serves_again_when_it_goes_on() -> None:
    cluster = SimCluster(seed=0, num_stages=3, num_pages=256)
    cluster.submit([1, 2, 3], max_new_tokens=8, seed=1)
    assert cluster.run()
    healthy, cluster.devices.paces[1] = cluster.devices.paces[1], Pace(100.0, 0.0, 0.0)
    late = cluster.submit([4, 5, 6], max_new_tokens=8, seed=2, at=cluster.clock.now)
    while not cluster.requests[late].ended:
        assert cluster.run_for(1.0)
    assert isinstance(cluster.requests[late].error, DeadlineExceeded)
    assert cluster.clock.now < 60
    cluster.devices.paces[1] = healthy
    again = cluster.submit([7, 8, 9], max_new_tokens=8, seed=3, at=cluster.clock.now + 120)
    assert cluster.run()
    assert cluster.head.down is None
    assert cluster.requests[again].tokens == oracle([7, 8, 9], 3, 3, 8)
    assert all(pool.num_free == pool.num_pages for stage in cluster.stages.values() for pool in stage.store.kv.pools)
