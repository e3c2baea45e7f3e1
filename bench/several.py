"""A simulated swarm that loses one to three workers at any time, as bench/fault_sim.py has it for what its cells do not name."""

from __future__ import annotations

import random

from bloombee.sim.cluster import SimCluster
from bloombee.sim.device import oracle
from bloombee.sim.network import Faults

FAULTS = Faults(lose=0.1, duplicate=0.1, delay=0.3, max_extra_delay_s=0.3)
REQUESTS = 12


def simulate_several(seed: int) -> tuple[int, str]:
    """(recoveries, what went wrong) of a swarm of one to four stages that loses one to three workers, at any time."""
    rng = random.Random(seed)
    stages, kills = rng.randint(1, 4), rng.randint(1, 3)
    harsh = FAULTS if rng.random() < 0.7 else None
    cluster = SimCluster(
        seed=seed, num_stages=stages, num_spares=kills, num_microbatches=rng.randint(1, 4), faults=harsh,
        lossy_orders=harsh is not None, log_bytes=rng.choice([64, 2048, 1 << 20]),
    )  # fmt: skip
    for _ in range(REQUESTS):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 60))]
        cluster.submit(prompt, max_new_tokens=rng.randint(1, 40), seed=rng.randrange(2**64), at=rng.uniform(0, 1.5))
    at = rng.uniform(0.0, 1.0)
    for worker in rng.sample(range(1, stages + kills + 1), min(kills, stages + kills)):
        cluster.kill(worker, at=at)
        at += rng.choice([0.0, 0.001, 0.051, 0.2, 0.5])
    try:
        ended = cluster.run()
    except Exception as error:  # of a core: the other seeds are still to be seen
        return cluster.head.num_recoveries, f"{type(error).__name__}: {error}"
    bad = [r for r in cluster.requests.values() if r.error or r.tokens != oracle(r.prompt, r.seed, stages, r.max_new_tokens)]
    said = "no end" if not ended else f"{len(bad)} requests wrong" if bad else ""
    return cluster.head.num_recoveries, said
