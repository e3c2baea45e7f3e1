"""What prompts have in common is computed once, and no token changes for that, whatever befalls the cluster."""

from __future__ import annotations

import random

import pytest

from bloombee.pipeline.work import Outcome, Work
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.device import SimDevice
from bloombee.types import SchedulerPlace
from bloombee.wire.messages import Load
from tests.sim_kit import HARSH, assert_right, draw_prompt


class CountingDevice(SimDevice):
    """Counts the rows that it computes."""

    num_rows = 0

    def run(self, work: Work) -> Outcome:
        self.num_rows += work.num_rows
        return super().run(work)


class Counted:
    """Makes the devices of a cluster, by stage."""

    def __init__(self) -> None:
        self.devices: list[CountingDevice] = []

    def __call__(self, load: Load) -> CountingDevice:
        device = CountingDevice(
            stage=load.start, is_last=load.stop == load.num_layers, groups=load.groups, page_size=load.page_size
        )
        self.devices.append(device)
        return device


def test_what_a_hundred_prompts_share_is_computed_once_a_stage() -> None:
    counted, rng = Counted(), random.Random(1)
    cluster = SimCluster(seed=1, num_stages=3, num_pages=4096, max_rows=256, make_device=counted)
    shared = draw_prompt(rng, 1000)
    for number in range(100):
        cluster.submit(shared + draw_prompt(rng, 9), max_new_tokens=3, seed=number, at=0.001 * number)
    assert cluster.run()
    assert_right(cluster, 3)
    for device in counted.devices:
        assert device.num_rows == 1000 + 100 * (9 + 2)


def test_a_conversation_goes_on_from_its_last_answer() -> None:
    counted, rng = Counted(), random.Random(2)
    cluster = SimCluster(seed=2, num_stages=2, num_pages=256, max_rows=64, make_device=counted)
    said = draw_prompt(rng, 100)
    for turn in range(4):
        number = cluster.submit(list(said), max_new_tokens=20, seed=turn, at=cluster.clock.now)
        assert cluster.run()
        said += cluster.requests[number].tokens + draw_prompt(rng, 8)
    assert_right(cluster, 2)
    rows = 100 + 19 + 3 * (9 + 19)  # of each turn what is new: what was said since, and the last token of the answer before
    for device in counted.devices:
        assert rows <= device.num_rows <= rows + 3 * 3  # the rest of a page that was not full


def _load(cluster: SimCluster, seed: int, count: int, until: float = 4.0) -> None:
    """Prompts that begin as one of three do, or as another one up to some place; some are cancelled."""
    rng = random.Random(seed)
    beginnings = [draw_prompt(rng, rng.randint(20, 400)) for _ in range(3)]
    for number in range(count):
        prompt = rng.choice(beginnings)[: rng.randint(1, 400)] + draw_prompt(rng, rng.randint(0, 9))
        beginnings.append(prompt)
        cluster.submit(
            prompt, max_new_tokens=rng.randint(1, 20), seed=rng.randrange(2**64), at=rng.uniform(0, until), client=f"{number % 3}"
        )
        if rng.random() < 0.2:
            cluster.cancel(number, at=rng.uniform(0, until))


@pytest.mark.parametrize("num_pages", [110, 1000])
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_token_is_right_where_messages_are_lost_doubled_and_late(seed: int, num_stages: int, num_pages: int) -> None:
    cluster = SimCluster(seed=seed, num_stages=num_stages, num_pages=num_pages, max_rows=64, faults=HARSH)
    _load(cluster, seed, 40)
    assert cluster.run()
    assert_right(cluster, num_stages)


@pytest.mark.parametrize("seed", range(6))
def test_windows_are_reused_as_far_as_they_are_held(seed: int) -> None:
    windows = (0, 24, 7)
    counted = Counted()
    cluster = SimCluster(
        seed=seed, num_stages=3, num_pages=400, max_rows=64, faults=HARSH, card=sim_card(windows), make_device=counted
    )
    _load(cluster, seed, 30)
    rng = random.Random(seed)
    said = draw_prompt(rng, 50)
    for turn in range(3):
        number = cluster.submit(list(said), max_new_tokens=20, seed=turn, at=cluster.clock.now)
        assert cluster.run()
        said += cluster.requests[number].tokens + draw_prompt(rng, 8)
    assert_right(cluster, 3, [(window,) for window in windows])


@pytest.mark.parametrize("seed", range(8))
def test_a_lost_stage_and_what_began_on_its_rows(seed: int) -> None:
    cluster = SimCluster(seed=seed, num_stages=3, num_spares=1, num_pages=300, max_rows=64, faults=HARSH, lossy_orders=True)
    _load(cluster, seed, 40)
    cluster.kill(1 + seed % 3, at=1.0 + 0.2 * seed)
    assert cluster.run()
    assert_right(cluster, 3)


@pytest.mark.parametrize("seed", range(4))
def test_with_the_scheduler_beside_the_first_stage(seed: int) -> None:
    counted = Counted()
    cluster = SimCluster(
        seed=seed, num_stages=3, num_pages=1000, max_rows=64, faults=HARSH, scheduler=SchedulerPlace.STAGE0, make_device=counted
    )
    _load(cluster, seed, 40)
    assert cluster.run()
    assert_right(cluster, 3)
