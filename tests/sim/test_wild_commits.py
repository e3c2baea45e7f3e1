"""Whole swarms whose scheduler drafts wrongly, rolls back, preempts and forks at random: no token is doubled or changed."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from wild_scheduler import WildScheduler

from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.network import Faults
from tests.sim_kit import HARSH, assert_right


def _cluster(seed: int, num_stages: int, *, wildness: float = 0.3, **arguments: object) -> tuple[SimCluster, WildScheduler]:
    cluster = SimCluster(seed=seed, num_stages=num_stages, num_pages=2048, **arguments)  # type: ignore[arg-type]
    scheduler = WildScheduler(random.Random(f"wild {seed}"), wildness=wildness)
    cluster.head.scheduler = scheduler  # type: ignore[assignment]
    return cluster, scheduler


def _submit(cluster: SimCluster, rng: random.Random, count: int) -> None:
    """Prompts of three families, of which each shares its beginning."""
    stems = [[rng.randrange(50_000) for _ in range(rng.randint(2, 40))] for _ in range(3)]
    for number in range(count):
        stem = rng.choice(stems)
        prompt = stem[: rng.randint(1, len(stem))] + [rng.randrange(50_000) for _ in range(rng.randint(0, 12))]
        cluster.submit(prompt, max_new_tokens=rng.randint(1, 24), seed=rng.randrange(2**64), at=rng.uniform(0, 1.5))
        if rng.random() < 0.1:
            cluster.cancel(number, at=rng.uniform(0, 3))


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(4))
def test_rollbacks_and_forks_at_random_change_no_token(num_stages: int, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster, _ = _cluster(seed, num_stages, num_microbatches=rng.choice([1, 2, 4]), faults=faults)
    _submit(cluster, rng, 16)
    assert cluster.run()
    assert_right(cluster, num_stages)


@pytest.mark.parametrize("seed", range(4))
def test_layers_with_windows_are_cut_and_forked_as_well(seed: int) -> None:
    windows = ((0, 6), (6,), (0,))
    cluster, _ = _cluster(seed, 3, card=sim_card((0, 6, 6, 6, 0, 0)), faults=HARSH if seed % 2 else None)
    _submit(cluster, random.Random(seed), 12)
    assert cluster.run()
    assert_right(cluster, 3, windows)


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(4))
def test_a_stage_may_be_lost_between_rollbacks(num_stages: int, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster, _ = _cluster(
        seed, num_stages, num_spares=1, num_microbatches=3, faults=faults, lossy_orders=faults is not None, wildness=0.2
    )
    _submit(cluster, rng, 12)
    cluster.kill(rng.randint(1, num_stages), at=rng.uniform(0.1, 1.5))
    assert cluster.run()
    assert cluster.head.num_recoveries == 1
    assert_right(cluster, num_stages)


def test_what_it_is_meant_to_survive_really_happens() -> None:
    totals: Counter[str] = Counter()
    overtaken = 0
    for seed in range(4):
        cluster, scheduler = _cluster(seed, 3, num_microbatches=3, faults=HARSH)
        _submit(cluster, random.Random(seed), 16)
        assert cluster.run()
        totals.update(scheduler.counts)
        overtaken += sum(" Gap(" in line for line in cluster.trace)
    assert totals["drafts"] > 500
    assert totals["rollbacks"] > 100
    assert totals["preemptions"] > 20
    assert totals["forks"] > 10
    assert overtaken > 20
