"""Another plan is taken over while drafts are under way: no token is lost, doubled or changed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.pipeline.scheduler.rounds import UNKNOWN_LOAD
from bloombee.sim.cluster import sim_card
from bloombee.sim.device import oracle
from bloombee.sim.moving import MovingCluster
from bloombee.sim.network import Faults
from bloombee.spec.controller import Line, Load
from tests.draft_kit import Drawn, Eager
from tests.sim_kit import assert_right, kill_once_it_moves

HARSH = Faults(lose=0.1, duplicate=0.1, delay=0.3, max_extra_delay_s=0.3)
IN_PARTS = Load(Line(1.0, 0.01), (Line(0.001, 0.001),))
LAYERS = 6
OTHERS = {
    "order": ((2, 1, 3), (2, 2, 2)),
    "spans": ((1, 2, 3), (1, 3, 2)),
    "first": ((4, 2, 3), (2, 2, 2)),
    "last": ((1, 2, 4), (2, 2, 2)),
    "fewer": ((1, 3), (2, 4)),
    "all": ((4, 5), (3, 3)),
}
"""Workers and their layers."""


class _Moving(MovingCluster):
    """Drafts, and knows what follows on the requests that it is asked for."""

    def __init__(self, seed: int, load: Load, **arguments: Any) -> None:
        self.texts: list[list[int]] = []
        drafter = Drawn(random.Random(f"drafts {seed}"), self._future, 0.7)
        self.make_speculator = lambda: Eager(drafter)  # type: ignore[method-assign]
        super().__init__(
            seed=seed, card=sim_card((0,) * LAYERS), num_stages=3, num_workers=5, num_pages=1024, num_microbatches=4,
            layer_load_s=0.05, **arguments,
        )  # fmt: skip
        assert isinstance(self.scheduler, SchedulerCore)
        self.scheduler._rounds.load = load

    def _future(self, tokens: Sequence[int]) -> Sequence[int]:
        known = list(tokens)
        return next((text[len(known) :] for text in self.texts if text[: len(known)] == known), [])

    def ask(self, rng: random.Random, count: int) -> None:
        for number in range(count):
            prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 60))]
            seed, length = rng.randrange(2**64), rng.randint(1, 60)
            self.texts.append(prompt + oracle(prompt, seed, LAYERS, length))
            self.submit(prompt, max_new_tokens=length, seed=seed, at=rng.uniform(0, 1.0))
            if rng.random() < 0.1:
                self.cancel(number, at=rng.uniform(0, 2))


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("load", [UNKNOWN_LOAD, IN_PARTS], ids=["whole", "in parts"])
def test_requests_go_on_over_another_plan_with_drafts_under_way(other: str, faults: Faults | None, load: Load) -> None:
    rng = random.Random(other)
    cluster = _Moving(1, load, faults=faults, lossy_orders=faults is not None)
    cluster.ask(rng, 16)
    workers, layers = OTHERS[other]
    cluster.hand_over(workers, layers, at=rng.uniform(0.05, 0.6))
    assert cluster.run()
    assert cluster.plan is not None
    assert [stage.worker for stage in cluster.plan.stages] == list(workers)
    assert not any(ended.error for ended in cluster.head.handovers)
    assert cluster.head.num_recoveries == 0
    assert_right(cluster, LAYERS)


@pytest.mark.parametrize("other", ["spans", "first", "all"])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_rounds_that_a_new_stage_has_no_room_for_are_told_again(
    seed: int, other: str, faults: Faults | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence goes on from round to round while its rows are still on their way to who is to compute it."""
    monkeypatch.setattr("bloombee.pipeline.cuts.MOST_AHEAD", 2)
    rng = random.Random(other if seed == 1 else f"{other} {seed}")
    cluster = _Moving(seed, IN_PARTS, faults=faults, lossy_orders=faults is not None)
    cluster.ask(rng, 16)
    cluster.hand_over(*OTHERS[other], at=0.3)
    assert cluster.run()
    assert not any(ended.error for ended in cluster.head.handovers)
    assert_right(cluster, LAYERS)


@pytest.mark.parametrize("other", ["spans", "first", "all"])
@pytest.mark.parametrize("dies", [1, 2, 4])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
def test_whoever_dies_in_the_middle_requests_go_on(other: str, dies: int, faults: Faults | None) -> None:
    rng = random.Random(dies)
    cluster = _Moving(dies, IN_PARTS, faults=faults, lossy_orders=faults is not None)
    cluster.ask(rng, 16)
    cluster.hand_over(*OTHERS[other], at=0.3)
    began = kill_once_it_moves(cluster, dies, rng)
    assert cluster.run()
    assert began
    assert_right(cluster, LAYERS)
