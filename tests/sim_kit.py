"""What every simulated cluster must have come to, whatever befell it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bloombee.control.log import to_line
from bloombee.sim.cluster import SimCluster
from bloombee.sim.device import oracle
from bloombee.sim.network import Faults
from bloombee.types import FinishReason

HARSH = Faults(lose=0.1, duplicate=0.1, delay=0.3, max_extra_delay_s=0.3)
SHORT_PROMPT = [1, 2, 3]


class Forgetful(SimCluster):
    """Computes every prompt, though many are alike."""

    prefix_cache = False


def draw_prompt(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(50_000) for _ in range(count)]


def submit(cluster: SimCluster, rng: random.Random, count: int, until: float = 1.0, *, most_new: int = 60) -> None:
    """Requests of any length, of which a few are cancelled."""
    for _ in range(count):
        prompt = draw_prompt(rng, rng.randint(1, 60))
        new, seed = rng.randint(1, most_new), rng.randrange(2**64)
        number = cluster.submit(prompt, max_new_tokens=new, seed=seed, at=rng.uniform(0, until))
        if rng.random() < 0.1:
            cluster.cancel(number, at=rng.uniform(0, 2 * until))


def see_short_answers(cluster: SimCluster, num_stages: int, windows: list[tuple[int, ...]] | None = None) -> None:
    """Answers that end long before they may: the scheduler admits more from then on."""
    end = oracle(SHORT_PROMPT, 1, num_stages, 2, windows)[-1]
    numbers = [cluster.submit(SHORT_PROMPT, max_new_tokens=90, seed=1, end_tokens=frozenset([end])) for _ in range(30)]
    assert cluster.run()
    for number in numbers:
        assert cluster.requests.pop(number).finish is FinishReason.STOP


def ask_long_answers(cluster: SimCluster, seed: int, count: int = 20, *, cancels: bool = False) -> None:
    """Each takes up to a third of the pages that there are."""
    rng, start = random.Random(seed), cluster.clock.now
    for _ in range(count):
        prompt = draw_prompt(rng, rng.randint(1, 12))
        number = cluster.submit(prompt, max_new_tokens=rng.randint(40, 80), seed=rng.randrange(2**64), at=start)
        if cancels and rng.random() < 0.3:
            cluster.cancel(number, at=start + rng.uniform(0, 2))


def assert_right(cluster: SimCluster, num_stages: int, windows: Sequence[Sequence[int]] | None = None) -> None:
    """Every request has the model's tokens, a cancelled one the first of them, and no stage holds anything any more."""
    for request in cluster.requests.values():
        want = oracle(request.prompt, request.seed, num_stages, request.max_new_tokens, windows)
        assert request.error is None
        assert request.ended
        if request.finish is None:
            assert request.tokens == want[: len(request.tokens)]
        else:
            assert request.finish is FinishReason.LENGTH
            assert request.tokens == want
    for stage in cluster.stages.values():
        assert stage.num_sequences == 0
        assert not stage.store._cuts.of
        assert all(pool.num_free == pool.num_pages for pool in stage.store.kv.pools)
        assert stage.log.num_bytes == 0


def log_lines(cluster: SimCluster) -> list[bytes]:
    """As ``--decisions`` would have written them."""
    return [to_line(record) + b"\n" for record in cluster.head.control_log]


def kill_once_it_moves(cluster: SimCluster, worker: int, rng: random.Random) -> list[float]:
    """Have a worker killed in the middle of the hand-over that comes. What is returned gets the time when that has begun."""
    began: list[float] = []

    def look() -> None:
        if cluster.head.swarm.handovers.plans:
            began.append(cluster.clock.now)
            cluster.kill(worker, at=cluster.clock.now + rng.choice([0.0, 0.04, 0.1, 0.15]))
        else:
            cluster.clock.call_later(0.001, look)

    cluster.clock.call_at(0.3, look)
    return began
