"""Spares that follow stages: what they hold when one is lost, and that nothing is lost, doubled or late by them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from bloombee.errors import RemoteProtocolError
from bloombee.pipeline.events import FromStage
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.moving import MovingCluster
from bloombee.sim.network import Faults, LinkShape
from bloombee.wire.messages import Holding, Lost, StageFailed, Verdict
from tests.sim_kit import assert_right, kill_once_it_moves

HARSH = Faults(lose=0.1, duplicate=0.1, delay=0.3, max_extra_delay_s=0.3)


class Shadowed(SimCluster):
    """Spares follow stages."""

    shadows = True
    layer_load_s = 0.05


class MovingShadowed(MovingCluster):
    """Likewise."""

    shadows = True


def _swarm(
    seed: int, faults: Faults | None, num_stages: int = 3, num_spares: int = 1, **arguments: Any
) -> tuple[Shadowed, random.Random]:
    rng = random.Random(seed)
    cluster = Shadowed(
        seed=seed, num_stages=num_stages, num_spares=num_spares, num_microbatches=rng.choice([1, 3]), faults=faults,
        lossy_orders=faults is not None, **arguments,
    )  # fmt: skip
    _submit(cluster, rng, 16)
    return cluster, rng


def _submit(cluster: SimCluster, rng: random.Random, count: int, until: float = 1.0) -> None:
    for _ in range(count):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 60))]
        number = cluster.submit(prompt, max_new_tokens=rng.randint(1, 60), seed=rng.randrange(2**64), at=rng.uniform(0, until))
        if rng.random() < 0.1:
            cluster.cancel(number, at=rng.uniform(0, 2 * until))


def _all_right(cluster: SimCluster, num_stages: int) -> None:
    """Whoever follows holds nothing any more either."""
    assert cluster.head.down is None
    assert_right(cluster, num_stages)
    for shadow in cluster.head.swarm.shadows.all:
        core = cluster.workers[shadow.worker].core_of(shadow.stage.load)
        if shadow.is_wired:
            assert core is not None
            assert core.num_sequences == 0
            assert core.pages_free == shadow.stage.num_pages
            assert core.log.num_bytes == 0


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(10))
def test_requests_live_through_the_loss_of_any_stage(num_stages: int, faults: Faults | None, seed: int) -> None:
    """While the spare loads, catches up or has caught up, and of a stage that it does not follow."""
    cluster, rng = _swarm(seed, faults, num_stages)
    cluster.kill(rng.randint(1, num_stages), at=rng.uniform(0.0, 0.9))
    assert cluster.run()
    assert cluster.head.num_recoveries == 1
    _all_right(cluster, num_stages)


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(30))
def test_whoever_dies_and_whenever(faults: Faults | None, seed: int) -> None:
    """Two to four of three stages and as many spares: those that follow, those that feed them, several at once."""
    rng = random.Random(f"kills {seed}")
    kills = rng.randint(2, 4)
    cluster, _ = _swarm(seed, faults, num_spares=kills)
    at = rng.choice([0.0001, 0.1, 0.3, 0.8])
    for worker in rng.sample(range(1, 4 + kills), kills):
        cluster.kill(worker, at=at)
        at += rng.choice([0.0, 0.0005, 0.052, 0.3])
    assert cluster.run()
    _all_right(cluster, 3)


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(12))
def test_a_spare_that_dies_costs_nothing(faults: Faults | None, seed: int) -> None:
    cluster, rng = _swarm(seed, faults)
    cluster.kill(4, at=rng.uniform(0.0, 1.0))
    assert cluster.run()
    assert cluster.head.num_recoveries == 0
    _all_right(cluster, 3)


def test_what_begins_on_a_kept_prefix_is_followed_where_the_scheduler_feeds() -> None:
    """Whoever follows the first stage is told token ids, from the first on; what it has kept does not matter."""
    cluster = Shadowed(seed=1, num_stages=2, num_spares=1, num_pages=256)
    _wait(cluster, 3.0)
    cluster.submit([7] * 64, max_new_tokens=4, seed=1, at=3.0)
    assert cluster.run()
    number = cluster.submit([7] * 64 + [8], max_new_tokens=100, seed=2, at=cluster.clock.now)
    cluster.clock.run(lambda: len(cluster.requests[number].tokens) >= 60, deadline_s=cluster.clock.now + 60.0)
    assert isinstance(cluster.scheduler, SchedulerCore)
    ((sequence, state),) = cluster.scheduler._open.items()
    (shadow,) = [one for one in cluster.head.swarm.shadows.all if not one.index]
    core = cluster.workers[shadow.worker].core_of(shadow.stage.load)
    assert core is not None
    held = core.store.get(sequence)
    assert held is not None
    assert 0 < state.num_cached < held.have <= state.num_sent
    cluster.kill(1, at=cluster.clock.now)
    assert cluster.run()
    _all_right(cluster, 2)


def _wait(cluster: SimCluster, seconds: float) -> None:
    """Though nothing is asked."""
    cluster.clock.run(lambda: False, deadline_s=cluster.clock.now + seconds)


def test_the_stages_whose_loss_would_cost_most_are_followed_first_and_all_that_memory_holds() -> None:
    cluster = Shadowed(seed=1, num_stages=4, num_spares=1, card=sim_card((0,) * 6))
    _wait(cluster, 3.0)
    begun = [one for one in cluster.head.shadows if not one.is_fed]
    assert sorted(one.stage for one in begun[:2]) == [0, 1]  # two layers each
    assert sorted(one.stage for one in begun) == [0, 1, 2, 3]
    assert [one.loss_s for one in begun] == sorted((one.loss_s for one in begun), reverse=True)
    assert all(shadow.is_wired for shadow in cluster.head.swarm.shadows.all)


def test_a_spare_follows_no_more_than_its_memory_holds() -> None:
    whole = SimCluster(seed=1, num_stages=3)
    _wait(whole, 1.0)
    assert whole.plan is not None
    one = max(stage.weight_bytes + stage.kv_bytes + stage.scratch_bytes for stage in whole.plan.stages)
    cluster = Shadowed(seed=1, num_stages=3, num_spares=2, memory_bytes=[1 << 40] * 3 + [one, one - 1])
    _wait(cluster, 3.0)
    (shadow,) = cluster.head.swarm.shadows.all
    assert shadow.worker == 4
    assert shadow.is_wired


def test_what_a_spare_has_failed_at_is_not_tried_again() -> None:
    cluster = Shadowed(seed=1, num_stages=2, num_spares=1)
    _wait(cluster, 2.0)
    failed = cluster.head.swarm.shadows.all[0]
    cluster.head.hear(3, StageFailed(1, failed.plan.epoch, "DeviceError", {"message": "no memory"}))
    _wait(cluster, 2.0)
    assert [one.over for one in cluster.head.shadows if one.over] == ["no memory"]
    assert failed.index not in [shadow.index for shadow in cluster.head.swarm.shadows.all]


@pytest.mark.parametrize("said", [Verdict(0, 0, 0, 0, (), None), Lost(0, 0, (Holding(0, 0, 0),), False)], ids=["verdict", "lost"])
def test_a_worker_that_follows_does_not_speak_as_the_stage(said: Verdict | Lost) -> None:
    cluster = Shadowed(seed=1, num_stages=1, num_spares=1)
    _wait(cluster, 2.0)
    (shadow,) = cluster.head.swarm.shadows.all
    wrong = replace(said, pipeline=shadow.plan.pipeline, epoch=shadow.plan.epoch)
    with pytest.raises(RemoteProtocolError, match="not from a worker that follows"):
        cluster.scheduler.handle(FromStage(0, wrong, cluster.clock.now))


def test_being_followed_takes_no_more_than_a_fiftieth_of_the_throughput() -> None:
    """Of links that have room; all three stages are followed."""
    ended = []
    for kind in (SimCluster, Shadowed):
        cluster = kind(
            seed=3, num_stages=3, num_spares=1, num_pages=256, page_size=16, num_microbatches=4, max_rows=64,
            shape=LinkShape(latency_s=0.03, bandwidth_bytes_per_s=12.5e6),
        )  # fmt: skip
        _wait(cluster, 3.0)
        for number in range(8):
            cluster.submit([number] * 16, max_new_tokens=40, seed=number, at=3.0)
        assert cluster.run()
        assert_right(cluster, 3)
        ended.append(max(request.token_times[-1] for request in cluster.requests.values()) - 3.0)
    assert len(cluster.head.swarm.shadows.all) == 3
    assert ended[0] >= 0.98 * ended[1]


LAYERS = 6
OTHERS = {
    "order": ((2, 1, 3), (2, 2, 2)),
    "spans": ((1, 2, 3), (1, 3, 2)),
    "worker": ((1, 4, 3), (2, 2, 2)),
    "first": ((4, 2, 3), (2, 2, 2)),
    "last": ((1, 2, 4), (2, 2, 2)),
    "more": ((1, 2, 4, 3), (2, 1, 1, 2)),
    "all": ((4, 5), (3, 3)),
}
"""Workers and their layers."""


def _moving(seed: int, faults: Faults | None) -> tuple[MovingShadowed, random.Random]:
    rng = random.Random(seed)
    cluster = MovingShadowed(
        seed=seed, card=sim_card((0,) * LAYERS), num_stages=3, num_workers=5, num_pages=128, num_microbatches=3, faults=faults,
        lossy_orders=faults is not None, layer_load_s=0.03,
    )  # fmt: skip
    _submit(cluster, rng, 16)
    return cluster, rng


def _kill_once_it_has_moved(cluster: SimCluster, worker: int, later_s: float) -> None:
    def look() -> None:
        if cluster.head.handovers:
            cluster.kill(worker, at=cluster.clock.now + later_s)
        else:
            cluster.clock.call_later(0.01, look)

    look()


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(4))
def test_another_plan_is_taken_over_whoever_follows_what(other: str, faults: Faults | None, seed: int) -> None:
    cluster, rng = _moving(seed, faults)
    workers, layers = OTHERS[other]
    cluster.hand_over(workers, layers, at=rng.uniform(0.2, 0.6))
    if seed % 2:
        _kill_once_it_has_moved(cluster, rng.choice(workers), rng.uniform(0.0, 0.3))
    assert cluster.run()
    assert [ended.error for ended in cluster.head.handovers] == [None]
    _all_right(cluster, LAYERS)


@pytest.mark.parametrize("other", ["order", "spans", "first", "all"])
@pytest.mark.parametrize("dies", [1, 2, 3, 4])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
def test_whoever_dies_in_the_middle_of_a_hand_over(other: str, dies: int, faults: Faults | None) -> None:
    cluster, rng = _moving(dies, faults)
    workers, layers = OTHERS[other]
    cluster.hand_over(workers, layers, at=0.3)
    assert kill_once_it_moves(cluster, dies, rng) is not None
    assert cluster.run()
    _all_right(cluster, LAYERS)
