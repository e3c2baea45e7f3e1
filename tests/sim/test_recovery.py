"""A lost worker's place is taken by a spare: no request is lost, no token doubled or changed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from bloombee.errors import LinkDown
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.device import ROW_BYTES
from bloombee.sim.network import Faults
from tests.sim_kit import HARSH, assert_right, submit


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(6))
def test_requests_live_through_the_loss_of_any_stage(num_stages: int, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster = SimCluster(
        seed=seed, num_stages=num_stages, num_spares=1, num_microbatches=rng.choice([1, 3]), faults=faults,
        lossy_orders=faults is not None,
    )  # fmt: skip
    submit(cluster, rng, 16, most_new=40)
    cluster.kill(rng.randint(1, num_stages), at=rng.uniform(0.0, 0.9))
    assert cluster.run()
    assert cluster.head.num_recoveries == 1
    assert_right(cluster, num_stages)


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(12))
def test_requests_live_through_several_losses_the_new_worker_s_among_them(faults: Faults | None, seed: int) -> None:
    """Also two at once, and before the first plan is wired; each loss finds a spare."""
    rng = random.Random(seed)
    kills = rng.randint(2, 4)
    cluster = SimCluster(
        seed=seed, num_stages=3, num_spares=kills, num_microbatches=3, faults=faults, lossy_orders=faults is not None
    )
    submit(cluster, rng, 16, until=2.0, most_new=40)
    at = rng.choice([0.0001, 0.3, 0.8])
    for worker in rng.sample([1, 2, 3, 4, 5][: 2 + kills], kills):
        cluster.kill(worker, at=at)
        at += rng.choice([0.0, 0.0005, 0.052, 0.3])
    assert cluster.run()
    assert cluster.head.down is None
    assert_right(cluster, 3)


@pytest.mark.parametrize("seed", range(8))
def test_what_the_log_has_dropped_is_sent_again_from_the_tokens(seed: int) -> None:
    rng = random.Random(seed)
    cluster = SimCluster(seed=seed, num_stages=3, num_spares=1, faults=rng.choice([None, HARSH]), log_bytes=8 * ROW_BYTES)
    submit(cluster, rng, 16, most_new=40)
    cluster.kill(rng.choice([2, 3]), at=rng.uniform(0.5, 0.9))
    assert cluster.run()
    assert any(" Lost(" in line for line in cluster.trace)
    assert_right(cluster, 3)


@pytest.mark.parametrize("seed", range(8))
def test_what_has_no_room_in_memory_comes_from_the_logs_file(seed: int) -> None:
    rng = random.Random(seed)
    cluster = SimCluster(
        seed=seed, num_stages=3, num_spares=1, faults=rng.choice([None, HARSH]), log_bytes=128 * ROW_BYTES, log_disk_bytes=1 << 20
    )
    submit(cluster, rng, 16, most_new=40)
    cluster.kill(rng.choice([2, 3]), at=rng.uniform(0.5, 0.9))
    assert cluster.run()
    assert any(stage.log._num_spills for stage in cluster.stages.values())
    assert not any(" Lost(" in line for line in cluster.trace)
    assert_right(cluster, 3)


@pytest.mark.parametrize("lost", [1, 2])
def test_what_the_next_stage_holds_is_not_said_to_it_again(lost: int) -> None:
    """Whoever takes a lost stage's place computes all rows again, and passes on those that are new."""
    cluster = SimCluster(seed=0, num_stages=3, num_spares=1, num_pages=512, row_bytes=8192, log_bytes=1 << 20)
    for number in range(4):
        cluster.submit([number] * 200, max_new_tokens=200, seed=number)
    link, before = cluster.carrier.link(f"stage{lost - 1}", f"stage{lost}"), list[tuple[int, int]]()

    def snapshot() -> None:
        before.append((link.num_bytes, sum(len(request.tokens) for request in cluster.requests.values())))

    cluster.clock.call_at(0.4, snapshot)
    cluster.kill(lost, at=0.4)
    assert cluster.run()
    assert cluster.head.num_recoveries == 1
    assert_right(cluster, 3)
    ((num_bytes, num_tokens),) = before
    assert num_tokens > 100
    assert link.num_bytes - num_bytes < 1.1 * 8192 * (4 * 200 - num_tokens)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_layers_with_windows_are_filled_again(lost: int) -> None:
    windows = ((0, 6), (6,), (0,))
    cluster = SimCluster(seed=lost, num_stages=3, num_spares=1, card=sim_card((0, 6, 6, 6, 0, 0)), num_pages=256, max_rows=16)
    rng = random.Random(lost)
    for _ in range(12):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 250))]
        cluster.submit(prompt, max_new_tokens=rng.randint(1, 60), seed=rng.randrange(2**64), at=rng.uniform(0, 1))
    cluster.kill(lost, at=0.7)
    assert cluster.run()
    assert cluster.head.num_recoveries == 1
    assert_right(cluster, 3, windows)


def test_without_a_spare_every_request_ends_with_a_typed_error() -> None:
    cluster = SimCluster(seed=1, num_stages=3)
    submit(cluster, random.Random(1), 8, until=0.2, most_new=40)
    cluster.kill(2, at=0.1)
    cluster.run_for(2.0)
    assert isinstance(cluster.head.down, LinkDown)
    assert all(request.ended for request in cluster.requests.values())
    assert any(isinstance(request.error, LinkDown) for request in cluster.requests.values())


def test_same_seed_same_trace_through_a_recovery() -> None:
    traces = []
    for _ in range(2):
        cluster = SimCluster(seed=5, num_stages=3, num_spares=1, faults=HARSH, lossy_orders=True)
        submit(cluster, random.Random(5), 12, most_new=40)
        cluster.kill(2, at=0.5)
        assert cluster.run()
        traces.append(cluster.trace)
    assert traces[0] == traces[1]


def _moment(cluster: SimCluster, holds: Callable[[], bool], act: Callable[[], None]) -> list[float]:
    """Let ``act`` happen as soon as something holds; when it did."""
    happened: list[float] = []

    def look() -> None:
        if holds():
            happened.append(cluster.clock.now)
            act()
        else:
            cluster.clock.call_later(0.0003, look)

    look()
    return happened


def _swarm(seed: int, faults: Faults | None, num_spares: int) -> tuple[SimCluster, random.Random]:
    rng = random.Random(seed)
    cluster = SimCluster(
        seed=seed, num_stages=3, num_spares=num_spares, num_microbatches=rng.choice([1, 3]), faults=faults,
        lossy_orders=faults is not None, log_bytes=rng.choice([256, 1 << 20]),
    )  # fmt: skip
    submit(cluster, rng, 12, most_new=40)
    return cluster, rng


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("pair", [(1, 2), (2, 3), (1, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_two_stages_that_are_lost_in_the_same_moment_are_both_replaced(
    pair: tuple[int, int], faults: Faults | None, seed: int
) -> None:
    cluster, rng = _swarm(seed, faults, 2)
    at = rng.uniform(0.3, 0.8)
    for worker in pair:
        cluster.kill(worker, at=at)
    assert cluster.run()
    assert cluster.head.num_recoveries == 2
    assert_right(cluster, 3)


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("other", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_stage_that_is_lost_while_another_s_rows_are_said_again(other: int, faults: Faults | None, seed: int) -> None:
    """Of a seat that has just opened and has rows to say again, or takes them."""
    cluster, rng = _swarm(seed, faults, 2)
    first = rng.choice([worker for worker in (1, 2, 3) if worker != other])
    cluster.kill(first, at=0.5)
    happened = _moment(
        cluster,
        lambda: any(" Resume(" in line and "epoch=2" in line for line in cluster.trace[-20:]),
        lambda: cluster.kill(other, at=cluster.clock.now + rng.choice([0.0, 0.001, 0.004])),
    )
    assert cluster.run()
    assert happened
    assert cluster.head.num_recoveries == 2
    assert_right(cluster, 3)


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_spare_that_dies_while_it_loads_leaves_its_place_to_the_next(lost: int, faults: Faults | None, seed: int) -> None:
    """Also one that dies when it has loaded and is not wired yet."""
    cluster, _ = _swarm(seed, faults, 2)
    cluster.kill(lost, at=0.4)
    happened = _moment(
        cluster,
        lambda: cluster.head.num_recoveries == 1 and (seed == 0 or cluster.workers[4].core is not None),
        lambda: cluster.kill(4, at=cluster.clock.now),
    )
    assert cluster.run()
    assert happened
    assert cluster.head.num_recoveries == 2
    assert cluster.plan is not None
    assert cluster.plan.stages[lost - 1].worker == 5
    assert_right(cluster, 3)
