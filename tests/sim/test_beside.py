"""The scheduler beside the first stage, far from the head: the same tokens, through lost messages, resets and losses."""

from __future__ import annotations

import random
import statistics

import pytest

from bloombee.errors import LinkDown
from bloombee.pace import Pace
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import Faults, LinkShape
from bloombee.types import SchedulerPlace
from tests.sim_kit import HARSH, assert_right, submit

STAGE0 = SchedulerPlace.STAGE0


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(8))
def test_tokens_are_those_of_the_model_whatever_becomes_of_messages(num_stages: int, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster = SimCluster(
        seed=seed, num_stages=num_stages, num_microbatches=rng.choice([1, 3]), faults=faults, lossy_orders=faults is not None,
        scheduler=STAGE0,
    )  # fmt: skip
    submit(cluster, rng, 24, most_new=40)
    assert cluster.run()
    assert_right(cluster, num_stages)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(6))
def test_requests_live_through_the_loss_of_any_stage(num_stages: int, faults: Faults | None, seed: int) -> None:
    """Of the one with the scheduler, which is built anew from the head's requests, more often than of others."""
    rng = random.Random(seed)
    cluster = SimCluster(
        seed=seed, num_stages=num_stages, num_spares=2, num_microbatches=rng.choice([1, 3]), faults=faults,
        lossy_orders=faults is not None, scheduler=STAGE0,
    )  # fmt: skip
    submit(cluster, rng, 16, most_new=40)
    at = rng.uniform(0.0, 0.9)
    cluster.kill(1, at=at)
    cluster.kill(rng.randint(2, num_stages + 1), at=at + rng.choice([0.0, 0.001, 0.3]))
    assert cluster.run()
    assert cluster.head.num_recoveries in (1, 2)
    assert_right(cluster, num_stages)


def test_the_loss_of_another_stage_leaves_the_scheduler_what_it_has() -> None:
    cluster = SimCluster(seed=3, num_stages=3, num_spares=1, scheduler=STAGE0)
    submit(cluster, random.Random(3), 16, most_new=40)
    cluster.kill(2, at=0.4)
    assert cluster.run()
    assert cluster.plan is not None
    assert (cluster.plan.epoch, cluster.plan.scheduler_since) == (2, 1)
    assert_right(cluster, 3)


def test_without_a_spare_every_request_ends_with_a_typed_error() -> None:
    cluster = SimCluster(seed=1, num_stages=3, scheduler=STAGE0)
    submit(cluster, random.Random(1), 8, until=0.2, most_new=40)
    cluster.kill(1, at=0.1)
    cluster.run_for(2.0)
    assert isinstance(cluster.head.down, LinkDown)
    assert all(request.ended for request in cluster.requests.values())
    assert any(isinstance(request.error, LinkDown) for request in cluster.requests.values())


@pytest.mark.parametrize("rtt_s", [0.002, 0.15])
@pytest.mark.parametrize("seed", range(6))
def test_resets_of_every_connection_cost_no_request_a_token(seed: int, rtt_s: float) -> None:
    rng = random.Random(f"{seed} {rtt_s}")
    cluster = SimCluster(
        seed=seed, num_stages=4, num_microbatches=3, max_rows=8, num_pages=512, shape=LinkShape(rtt_s / 2, 2e6),
        resend_after_s=30.0, scheduler=STAGE0,
    )  # fmt: skip
    for number in range(12):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 60))]
        cluster.submit(prompt, max_new_tokens=12, seed=number, at=rng.uniform(0.1, 2))
    for ends in cluster.breaks.pairs:
        for moment in (1 + 5 * rtt_s, *(rng.uniform(0.2, 4 + 20 * rtt_s) for _ in range(2))):
            cluster.clock.call_at(moment, lambda ends=ends: cluster.breaks.reset(ends))  # type: ignore[misc]
    assert cluster.run()
    assert cluster.head.down is None
    assert_right(cluster, 4)
    assert max(at for request in cluster.requests.values() for at in request.token_times) < 30 + 60 * rtt_s


def test_same_seed_same_trace() -> None:
    traces = []
    for _ in range(2):
        cluster = SimCluster(seed=5, num_stages=3, num_spares=1, faults=HARSH, lossy_orders=True, scheduler=STAGE0)
        submit(cluster, random.Random(5), 10, most_new=40)
        cluster.kill(1, at=0.5)
        assert cluster.run()
        traces.append(cluster.trace)
    assert traces[0] == traces[1]


# -- what it is for ----------------------------------------------------------------------------

STAGES = 4
PACE = Pace(fixed_s=0.004, decode_row_s=0.0002, prefill_row_s=0.0001)
HOP = LinkShape(0.010, 12.5e6)
FAR = LinkShape(0.050, 12.5e6)
"""Between the head and whomever."""


def _far(scheduler: SchedulerPlace, *, microbatches: int | None) -> SimCluster:
    names = [f"stage{index}" for index in range(STAGES)]
    shapes = {ends: FAR for name in names for end in ("head", "scheduler") for ends in ((end, name), (name, end))}
    return SimCluster(
        seed=0, num_stages=STAGES, num_microbatches=microbatches or 32, tuned=microbatches is None, num_pages=4096, page_size=16,
        max_rows=256, pace=PACE, shape=HOP, shapes=shapes, row_bytes=8192, resend_after_s=5.0, scheduler=scheduler,
    )  # fmt: skip


def _tokens_per_s(cluster: SimCluster, sequences: int, *, begin: float = 15.0, end: float = 30.0) -> float:
    for number in range(sequences):
        cluster.submit([number] * 16, max_new_tokens=2000, seed=number)
    cluster.run_for(end)
    times = [at for request in cluster.requests.values() for at in request.token_times]
    return sum(begin <= at < end for at in times) / (end - begin)


def test_alone_a_token_takes_the_rings_own_loop_however_far_the_head_is() -> None:
    cluster = _far(STAGE0, microbatches=1)
    cluster.submit([7] * 16, max_new_tokens=60, seed=1)
    assert cluster.run()
    (request,) = cluster.requests.values()
    gaps = [after - before for before, after in zip(request.token_times, request.token_times[1:], strict=False)]
    loop_s = STAGES * (PACE.fixed_s + PACE.decode_row_s + HOP.latency_s) + (STAGES - 1) * (8192 + 160) / 12.5e6
    assert loop_s <= statistics.fmean(gaps) <= loop_s + 0.001
    assert max(gaps) <= loop_s + 0.001


def test_tuned_with_a_far_head_it_is_as_quick_as_with_the_best_fixed_number_of_microbatches() -> None:
    fixed = {count: _tokens_per_s(_far(STAGE0, microbatches=count), 64) for count in (4, 8, 12, 16, 24, 32)}
    tuned = _tokens_per_s(_far(STAGE0, microbatches=None), 64)
    assert tuned >= 0.97 * max(fixed.values()), (tuned, fixed)
