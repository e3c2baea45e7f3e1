"""Workers that leave on purpose: a spare takes what each served, and no request loses a token."""

from __future__ import annotations

import random

import pytest

from bloombee.errors import DeviceError, Infeasible, PlanError
from bloombee.pipeline.events import WorkerGone
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.moving import MovingCluster
from bloombee.sim.network import Faults
from bloombee.sim.worker import Order
from bloombee.types import SchedulerPlace, WorkerId
from bloombee.wire.messages import Drain, Drained, Load, Refused, StageFailed
from tests.sim_kit import HARSH, assert_right


def cluster_of(seed: int, num_stages: int, num_spares: int, faults: Faults | None = None) -> SimCluster:
    """With sixteen requests, of which some are cancelled."""
    rng = random.Random(seed)
    cluster = MovingCluster(
        seed=seed, card=sim_card((0,) * num_stages), num_stages=num_stages, num_workers=num_stages + num_spares,
        num_microbatches=rng.choice([1, 3]), faults=faults, lossy_orders=faults is not None, layer_load_s=0.05,
    )  # fmt: skip
    submit(cluster, rng)
    return cluster


def submit(cluster: SimCluster, rng: random.Random) -> None:
    for number in range(16):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 60))]
        cluster.submit(prompt, max_new_tokens=rng.randint(1, 40), seed=rng.randrange(2**64), at=rng.uniform(0, 1))
        if rng.random() < 0.1:
            cluster.cancel(number, at=rng.uniform(0, 2))


def left(cluster: SimCluster, *workers: WorkerId) -> bool:
    """Whether they end, soon."""
    return cluster.clock.run(
        lambda: not any(cluster.workers[worker].is_alive for worker in workers), deadline_s=cluster.clock.now + 10
    )


def drain(cluster: SimCluster, worker: WorkerId, at: float, *, asks_itself: bool = False) -> None:
    def act() -> None:
        if asks_itself:
            cluster.head.drains.said(worker, Drain(7, "x"))
        else:
            cluster.head.drains.ask(worker, "x")

    cluster.clock.call_at(at, act)


def fill(cluster: SimCluster) -> None:
    """No worker of the plan has memory for more than it holds."""
    swarm = cluster.head.swarm
    assert swarm.plan is not None
    for stage in swarm.plan.stages:
        swarm.members[stage.worker].memory_bytes = stage.weight_bytes + stage.kv_bytes + stage.scratch_bytes


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(6))
def test_any_worker_may_leave(num_stages: int, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster = cluster_of(seed, num_stages, 1, faults)
    leaver = rng.randint(1, num_stages + 1)  # or the spare
    drain(cluster, leaver, rng.uniform(0.0, 0.9), asks_itself=seed % 2 == 0)
    assert cluster.run()
    assert_right(cluster, num_stages)
    assert left(cluster, leaver)
    assert leaver not in cluster.head.swarm.members
    assert [ended.error for ended in cluster.head.handovers] == [None] * (leaver <= num_stages)
    assert cluster.head.num_recoveries == 0
    assert cluster.head.answers == ([(leaver, Drained(7))] if seed % 2 == 0 else [])


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(8))
def test_several_leave_one_after_the_other_and_others_die_meanwhile(faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster = cluster_of(seed, 3, 4, faults)
    at = rng.choice([0.05, 0.3, 0.8])
    first, second, dies = rng.sample([1, 2, 3], 3)
    drain(cluster, first, at)
    drain(cluster, second, at)
    cluster.kill(rng.choice([dies, first, second, 4]), at=at + rng.choice([0.0, 0.01, 0.12, 0.3]))
    assert cluster.run()
    assert cluster.head.down is None
    assert_right(cluster, 3)
    assert left(cluster, first, second)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_layers_with_windows_are_filled_again(lost: int) -> None:
    windows = (0, 6, 6, 6, 0, 0)
    cluster = MovingCluster(
        seed=lost, num_stages=3, num_workers=4, card=sim_card(windows), num_pages=256, max_rows=16, layer_load_s=0.05
    )
    rng = random.Random(lost)
    for _ in range(12):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 250))]
        cluster.submit(prompt, max_new_tokens=rng.randint(1, 60), seed=rng.randrange(2**64), at=rng.uniform(0, 1))
    drain(cluster, lost, 0.7)
    assert cluster.run()
    assert left(cluster, lost)
    assert [ended.error for ended in cluster.head.handovers] == [None]
    assert_right(cluster, 6, [(window,) for window in windows])


@pytest.mark.parametrize("leaver", [1, 2, 3])
def test_with_the_scheduler_beside_the_first_stage(leaver: int) -> None:
    """Which no hand-over can follow: the spare takes over as after a loss."""
    cluster = SimCluster(seed=leaver, num_stages=3, num_spares=1, scheduler=SchedulerPlace.STAGE0)
    submit(cluster, random.Random(leaver))
    drain(cluster, leaver, 0.4)
    assert cluster.run()
    assert left(cluster, leaver)
    assert cluster.head.num_recoveries == 1
    assert_right(cluster, 3)


@pytest.mark.parametrize("asks_itself", [False, True])
def test_with_nobody_to_take_its_stage_nothing_changes_and_it_is_said(asks_itself: bool) -> None:
    cluster = cluster_of(1, 3, 0)
    refused: list[PlanError] = []

    def ask() -> None:
        fill(cluster)
        if asks_itself:
            cluster.head.drains.said(2, Drain(7, "x"))
            return
        why = r"nobody can take layers 1-1 of worker 'w2': there is no spare, and the others cannot share .*; have another"
        with pytest.raises(Infeasible, match=why) as caught:
            cluster.head.drains.ask(2, "x")
        refused.append(caught.value)

    cluster.clock.call_at(0.3, ask)
    assert cluster.run()
    assert_right(cluster, 3)
    assert cluster.plan is not None
    assert (cluster.plan.epoch, cluster.head.num_recoveries) == (1, 0)
    assert cluster.workers[2].is_alive
    if asks_itself:
        ((worker, answer),) = cluster.head.answers
        assert worker == 2
        assert isinstance(answer, Refused)
        assert (answer.code, answer.fields["refused"]) == (Infeasible.code, "Drain")
    else:
        assert [error.fields["worker"] for error in refused] == ["w2"]


@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(6))
def test_without_a_spare_the_others_share_its_layers_out(num_stages: int, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster = cluster_of(seed, num_stages, 0, faults)
    leaver = rng.randint(1, num_stages)
    drain(cluster, leaver, rng.uniform(0.2, 0.9), asks_itself=True)
    assert cluster.run()
    assert_right(cluster, num_stages)
    assert left(cluster, leaver)
    assert cluster.head.answers == [(leaver, Drained(7))]
    assert ([ended.error for ended in cluster.head.handovers], cluster.head.num_recoveries) == ([None], 0)
    assert cluster.plan is not None
    assert [len(stage.span) for stage in cluster.plan.stages] == sorted(
        (len(stage.span) for stage in cluster.plan.stages), reverse=True
    )
    assert len(cluster.plan.stages) == num_stages - 1


def test_a_worker_that_is_not_in_is_no_worker_to_drain() -> None:
    cluster = cluster_of(1, 2, 0)
    with pytest.raises(PlanError, match="worker 9 is not in the swarm"):
        cluster.head.drains.ask(9, "x")
    assert cluster.run()


def test_a_spare_that_is_to_leave_takes_no_stage() -> None:
    cluster = cluster_of(3, 2, 2)
    drain(cluster, 3, 0.3)
    cluster.kill(1, at=0.3)
    assert cluster.run()
    assert cluster.plan is not None
    assert cluster.plan.stages[0].worker == 4
    assert_right(cluster, 2)


def test_should_the_spare_be_lost_first_the_worker_stays_and_hears_it() -> None:
    cluster = cluster_of(4, 2, 1)

    def both() -> None:
        fill(cluster)
        cluster.head.drains.said(1, Drain(7, "x"))
        cluster.workers[3].end()
        cluster.head.do(cluster.head.swarm.handle(WorkerGone(3, "x", cluster.clock.now)))

    cluster.clock.call_at(0.3, both)
    assert cluster.run()
    assert_right(cluster, 2)
    ((worker, answer),) = cluster.head.answers
    assert (worker, isinstance(answer, Refused)) == (1, True)
    assert cluster.workers[1].is_alive
    assert not cluster.head.swarm.members[1].is_draining


@pytest.mark.parametrize("num_spares", [1, 2])
def test_a_spare_that_cannot_load_is_not_tried_again_and_again(num_spares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_of(4, 2, num_spares)
    heir = cluster.workers[3]
    take = heir.order

    def order(order: Order) -> None:
        if isinstance(order, Load):
            cluster.say(heir, StageFailed(order.pipeline, 0, DeviceError.code, {"message": "no memory is left"}))
        else:
            take(order)

    monkeypatch.setattr(heir, "order", order)
    cluster.clock.call_at(0.3, lambda: fill(cluster))
    drain(cluster, 1, 0.3, asks_itself=True)
    assert cluster.run()
    assert_right(cluster, 2)
    ended = [str(ended.error) for ended in cluster.head.handovers]
    if num_spares == 2:  # another takes it
        assert left(cluster, 1)
        assert ended == ["no memory is left", "None"]
        assert cluster.head.answers == [(1, Drained(7))]
        return
    assert ended == ["no memory is left"]
    ((worker, answer),) = cluster.head.answers
    assert worker == 1
    assert isinstance(answer, Refused)
    assert "w3 cannot hold, load or reach them" in str(answer.fields["message"])
    assert not cluster.head.swarm.members[1].is_draining
