"""More sequences than there are pages for: the youngest make way for a while, all end, and no token changes for it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from bloombee.pipeline.commands import Command
from bloombee.pipeline.scheduler.room import Room
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.device import oracle
from bloombee.sim.network import Faults
from bloombee.types import SchedulerPlace
from tests.draft_kit import Drawn, Eager
from tests.sim_kit import HARSH, ask_long_answers, assert_right, see_short_answers


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those that made way, as often as they did."""
    numbers: list[int] = []
    preempt = Room._preempt

    def noted(self: Room, sequence: Any, *rest: Any) -> list[Command]:
        numbers.append(sequence.id)
        return preempt(self, sequence, *rest)

    monkeypatch.setattr(Room, "_preempt", noted)
    return numbers


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_all_end_with_their_own_tokens(seed: int, num_stages: int, faults: Faults | None, preempted: list[int]) -> None:
    cluster = SimCluster(seed=seed, num_stages=num_stages, faults=faults)
    see_short_answers(cluster, num_stages)
    ask_long_answers(cluster, seed, cancels=bool(seed % 2))
    assert cluster.run()
    assert_right(cluster, num_stages)
    assert preempted


@pytest.mark.parametrize("seed", range(4))
def test_the_oldest_never_makes_way(seed: int, preempted: list[int]) -> None:
    cluster = SimCluster(seed=seed, num_stages=2)
    see_short_answers(cluster, 2)
    ask_long_answers(cluster, seed)
    assert cluster.run()
    assert preempted
    assert min(preempted) > 31


@pytest.mark.parametrize("seed", range(3))
def test_with_windows(seed: int, preempted: list[int]) -> None:
    windows = [(0,), (24,)]
    cluster = SimCluster(seed=seed, num_stages=2, faults=HARSH, card=sim_card((0, 24)))
    see_short_answers(cluster, 2, windows)
    ask_long_answers(cluster, seed)
    assert cluster.run()
    assert_right(cluster, 2, windows)
    assert preempted


@pytest.mark.parametrize("seed", range(6))
def test_a_lost_stage_meanwhile(seed: int, preempted: list[int]) -> None:
    cluster = SimCluster(seed=seed, num_stages=3, num_spares=1, faults=HARSH, lossy_orders=True)
    see_short_answers(cluster, 3)
    ask_long_answers(cluster, seed)
    cluster.kill(1 + seed % 3, at=cluster.clock.now + 0.2 + 0.1 * seed)
    assert cluster.run()
    assert_right(cluster, 3)
    assert preempted


@pytest.mark.parametrize("seed", range(2))
def test_with_the_scheduler_beside_the_first_stage(seed: int, preempted: list[int]) -> None:
    cluster = SimCluster(seed=seed, num_stages=2, faults=HARSH, scheduler=SchedulerPlace.STAGE0)
    see_short_answers(cluster, 2)
    ask_long_answers(cluster, seed)
    assert cluster.run()
    assert_right(cluster, 2)
    assert preempted


def _waits_of_newcomers(seed: int) -> float:
    """Of clients with nothing open, on the average, while another client has asked for more than there is room for; all end."""
    cluster = SimCluster(seed=seed, num_stages=2)
    see_short_answers(cluster, 2)
    start = cluster.clock.now
    for n in range(12):
        cluster.submit([n, 5, 6], max_new_tokens=80, seed=n, at=start, client="many")
    asked = [start + 0.3 + 0.05 * n for n in range(20)]
    few = [cluster.submit([n, 7], max_new_tokens=6, seed=n, at=at, client=f"few {n}") for n, at in enumerate(asked)]
    ends: dict[int, float] = {}

    def look() -> None:
        ends.update({number: cluster.clock.now for number in few if number not in ends and cluster.requests[number].ended})
        cluster.clock.call_later(0.02, look)

    look()
    assert cluster.run()
    look()
    assert_right(cluster, 2)
    return sum(ends[number] - at for number, at in zip(few, asked, strict=True)) / len(few)


@pytest.mark.parametrize("seed", range(3))
def test_who_has_nothing_open_passes_those_that_wait_to_come_back(
    seed: int, preempted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = _waits_of_newcomers(seed)
    assert preempted
    monkeypatch.setattr(Room, "lets_pass", lambda self, *_: not self.is_short)
    assert passing < 0.7 * _waits_of_newcomers(seed)


def test_where_answers_are_as_long_as_they_may_be_nobody_makes_way(preempted: list[int]) -> None:
    cluster = SimCluster(seed=1, num_stages=2)
    ask_long_answers(cluster, 1)
    assert cluster.run()
    assert_right(cluster, 2)
    assert preempted == []


class _Drafting(SimCluster):
    """Drafts what follows rightly in two of three cases."""

    def __init__(self, seed: int, num_stages: int, **arguments: Any) -> None:
        self.texts: list[list[int]] = []
        drafter = Drawn(random.Random(f"drafts {seed}"), self._following, 0.7)
        self.make_speculator = lambda: Eager(drafter)  # type: ignore[method-assign]
        super().__init__(seed=seed, num_stages=num_stages, **arguments)

    def _following(self, tokens: Sequence[int]) -> Sequence[int]:
        known = list(tokens)
        return next((text[len(known) :] for text in self.texts if text[: len(known)] == known), [])


@pytest.mark.parametrize("seed", range(4))
def test_drafts_under_way_and_what_is_kept_of_them(seed: int, preempted: list[int]) -> None:
    """Prompts that others have begun with, too, and conversations that go on from answers that were drafted."""
    cluster, rng = _Drafting(seed, 2, faults=HARSH), random.Random(seed)
    see_short_answers(cluster, 2)
    beginning = [rng.randrange(50_000) for _ in range(16)]
    for turn in range(2):
        start, said = cluster.clock.now, list(cluster.requests.values())
        for number in range(14):
            before = said[number].prompt + said[number].tokens[:20] if turn else beginning
            prompt, new, noise = [*before, rng.randrange(50_000)], rng.randint(30, 60), rng.randrange(2**64)
            cluster.texts.append(prompt + oracle(prompt, noise, 2, new))
            cluster.submit(prompt, max_new_tokens=new, seed=noise, at=start)
        assert cluster.run()
    assert_right(cluster, 2)
    assert preempted
