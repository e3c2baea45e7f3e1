"""What every simulated cluster must have come to, whatever befell it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bloombee.control.log import to_line
from bloombee.sim.cluster import SimCluster
from bloombee.sim.device import oracle
from bloombee.types import FinishReason


class Forgetful(SimCluster):
    """Computes every prompt, though many are alike."""

    prefix_cache = False


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
