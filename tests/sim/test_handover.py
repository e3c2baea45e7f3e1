"""Another plan is taken over while requests run: no token is lost, doubled or changed, and nobody waits for it."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from bloombee.control.chunks import Chunks
from bloombee.errors import DeviceError, LinkDown
from bloombee.pipeline.events import Tune, WorkersEnded
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.sim.cluster import sim_card
from bloombee.sim.head import PLAN_S
from bloombee.sim.moving import MovingCluster
from bloombee.sim.network import Faults, LinkShape
from bloombee.types import SchedulerPlace
from tests.sim_kit import HARSH, assert_right, kill_once_it_moves, submit

LAYERS = 6
FIRST = ((1, 2, 3), (2, 2, 2))
OTHERS = {
    "order": ((2, 1, 3), (2, 2, 2)),
    "spans": ((1, 2, 3), (1, 3, 2)),
    "worker": ((1, 4, 3), (2, 2, 2)),
    "first": ((4, 2, 3), (2, 2, 2)),
    "last": ((1, 2, 4), (2, 2, 2)),
    "fewer": ((1, 3), (2, 4)),
    "more": ((1, 2, 4, 3), (2, 1, 1, 2)),
    "all": ((4, 5), (3, 3)),
}
"""Workers and their layers."""
_HEAD_AND_FIRST = (("scheduler", "stage0"), ("stage0", "scheduler"))


def _cluster(seed: int, faults: Faults | None = None, **arguments: Any) -> MovingCluster:
    return MovingCluster(
        seed=seed, card=sim_card((0,) * LAYERS), num_stages=3, num_workers=5, num_pages=128, num_microbatches=3, faults=faults,
        lossy_orders=faults is not None, layer_load_s=0.05, **arguments,
    )  # fmt: skip


def _handed_over(cluster: MovingCluster, count: int = 1) -> None:
    assert [ended.error for ended in cluster.head.handovers] == [None] * count
    assert cluster.head.num_recoveries == 0


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(3))
def test_requests_go_on_over_another_plan(other: str, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster = _cluster(seed, faults)
    submit(cluster, rng, 16)
    workers, layers = OTHERS[other]
    cluster.hand_over(workers, layers, at=rng.uniform(0.05, 0.6))
    assert cluster.run()
    assert cluster.plan is not None
    assert [stage.worker for stage in cluster.plan.stages] == list(workers)
    assert cluster.plan.epoch == 2
    _handed_over(cluster)
    assert_right(cluster, LAYERS)


@pytest.mark.parametrize("other", ["order", "spans", "first", "all"])
@pytest.mark.parametrize("dies", [1, 2, 3, 4])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
def test_whoever_dies_in_the_middle_requests_go_on(other: str, dies: int, faults: Faults | None) -> None:
    """A worker of the new plan alone ends the hand-over; one of the ring that runs is replaced, and that ends it too."""
    rng = random.Random(dies)
    cluster = _cluster(dies, faults)
    submit(cluster, rng, 16)
    workers, layers = OTHERS[other]
    cluster.hand_over(workers, layers, at=0.3)
    began = kill_once_it_moves(cluster, dies, rng)
    assert cluster.run()
    assert began
    assert cluster.head.down is None
    assert_right(cluster, LAYERS)


@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(3))
def test_without_a_spare_layers_are_shared_out_over_those_that_are_left(lost: int, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster = MovingCluster(
        seed=seed, card=sim_card((0,) * LAYERS), num_stages=3, num_workers=3, num_pages=128, num_microbatches=3, faults=faults,
        lossy_orders=faults is not None, layer_load_s=0.05, shares_out=True,
    )  # fmt: skip
    submit(cluster, rng, 16)
    cluster.kill(lost, at=rng.uniform(0.1, 0.9))
    assert cluster.run()
    assert cluster.plan is not None
    assert [len(stage.span) for stage in cluster.plan.stages] == [3, 3]
    assert cluster.head.num_recoveries == 1
    assert_right(cluster, LAYERS)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (3, 1), (4, 2)])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
def test_a_second_worker_that_is_lost_while_a_split_is_looked_for_is_left_out_of_it(
    first: int, second: int, faults: Faults | None
) -> None:
    """Or is the only other one left; whoever is lost last has the last word."""
    cluster = MovingCluster(
        seed=first, card=sim_card((0,) * LAYERS), num_stages=4, num_workers=4, num_pages=128, num_microbatches=3, faults=faults,
        lossy_orders=faults is not None, layer_load_s=0.05, shares_out=True,
    )  # fmt: skip
    submit(cluster, random.Random(first), 8)
    cluster.kill(first, at=0.4)
    cluster.kill(second, at=0.4 + PLAN_S / 2)
    assert cluster.run()
    assert cluster.plan is not None
    assert {stage.worker for stage in cluster.plan.stages} == {1, 2, 3, 4} - {first, second}
    assert_right(cluster, LAYERS)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_layers_are_shared_out_where_the_scheduler_is_beside_the_first_stage_too(lost: int) -> None:
    """It is lost with the first worker, and begins anew."""
    cluster = MovingCluster(
        seed=lost, card=sim_card((0,) * LAYERS), num_stages=3, num_workers=3, num_pages=128, num_microbatches=3,
        layer_load_s=0.05, shares_out=True, scheduler=SchedulerPlace.STAGE0,
    )  # fmt: skip
    submit(cluster, random.Random(lost), 6)
    cluster.kill(lost, at=0.4)
    assert cluster.run()
    assert cluster.plan is not None
    assert cluster.plan.scheduler_since == (2 if lost == 1 else 1)
    assert_right(cluster, LAYERS)


def test_without_the_memory_for_that_requests_end_typed() -> None:
    cluster = MovingCluster(
        seed=1, card=sim_card((0,) * LAYERS), num_stages=3, num_workers=3, num_pages=128, memory_bytes=[5000] * 3, shares_out=True
    )
    submit(cluster, random.Random(1), 8, until=0.2)
    cluster.kill(2, at=0.1)
    cluster.run_for(2.0)
    assert isinstance(cluster.head.down, LinkDown)
    assert all(request.ended for request in cluster.requests.values())


def test_a_swarm_that_ends_in_the_middle_leaves_nobody_waiting_for_the_other_plan() -> None:
    cluster = _cluster(1)
    submit(cluster, random.Random(1), 4)
    workers, layers = OTHERS["all"]
    cluster.hand_over(workers, layers, at=0.3)

    def end() -> None:
        swarm = cluster.head.swarm
        assert swarm.handovers.plans
        cluster.head.do(swarm.handle(WorkersEnded(DeviceError("nobody is left"), cluster.clock.now)))

    cluster.clock.call_at(0.31, end)
    cluster.run()
    assert [str(ended.error) for ended in cluster.head.handovers] == ["nobody is left"]
    assert cluster.head.swarm.handovers.plans == ()


def test_sequences_that_begin_anew_at_the_switch_wait_for_nothing_whatever_else_comes_of_it() -> None:
    """Rows that they began on are in no log, so they are sent from the start as another generation; and with the new plan more
    rows of prompts may be under way. No message is lost here, so nothing may have to be said again after a long silence."""
    near, far = LinkShape(), LinkShape(latency_s=0.02)  # so that the first stage has all that was sent over the plan before
    cluster = _cluster(1, resend_after_s=30.0, step_deadline_s=5.0, shape=far, shapes=dict.fromkeys(_HEAD_AND_FIRST, near))
    prompts = [[number, *range(40, 79)] for number in range(4)]
    for at in (0.0, 5.0):
        for number, prompt in enumerate(prompts):
            cluster.submit(prompt, max_new_tokens=40, seed=number, at=at)

    def tune(under_way: int, after_s: float) -> None:
        scheduler, chunks = cluster.head.scheduler, (Chunks(0, 16, 16, under_way),)
        assert isinstance(scheduler, SchedulerCore)
        cluster.head.schedule(scheduler.handle(Tune(3, chunks, None, cluster.clock.now + after_s)))

    cluster.clock.call_at(5.5, lambda: tune(192, 0.0))
    cluster.head.on_plan = lambda plan: tune(4096, 0.2) if plan.epoch == 2 else None  # on a machine that is busy
    cluster.hand_over((1, 4, 3), (2, 2, 2), at=5.5)
    assert cluster.run()
    _handed_over(cluster)
    assert any(" Lost(" in line for line in cluster.trace)
    arrived = re.findall(
        r"scheduler->stage0 Forward\(pipeline=1, epoch=2, frame=(\d+), .*?lane=<Lane.BULK", "\n".join(cluster.trace)
    )
    assert [int(number) for number in arrived] == sorted(map(int, arrived))
    assert not any(" Gap(" in line for line in cluster.trace)
    assert_right(cluster, LAYERS)
