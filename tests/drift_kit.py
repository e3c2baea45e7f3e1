"""A simulated swarm of four workers of a kind, all links alike, whose plan is chosen."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.plan.topology import Device, Link, Topology
from bloombee.sim.cluster import sim_card
from bloombee.sim.moving import DriftingCluster
from bloombee.types import HEAD, WorkerId

LAYERS = 6
WORKERS = (1, 2, 3, 4)
PACE = Pace(0.004, 0.0004, 0.0001, layers=1)
WIDE, LONG_S = 20e6, 0.005
CARD = dataclasses.replace(sim_card((0,) * LAYERS), hidden_size=4096)


def topology() -> Topology:
    devices = {worker: Device.paced(f"w{worker}", PACE) for worker in WORKERS}
    links = {ends: Link(WIDE, LONG_S) for ends in itertools.permutations((HEAD, *WORKERS), 2)}
    return Topology(devices, links)


def drifting(
    topology: Topology, objective: str, *, replans: bool = True, slow: Mapping[WorkerId, float] | None = None
) -> DriftingCluster:
    """``slow``: workers whose device takes so many times as long as the topology says."""
    paces = [PACE.scaled((slow or {}).get(worker, 1.0)) for worker in WORKERS]
    cluster = DriftingCluster(
        topology, paces, Objective.parse(objective), card=CARD, replans=replans, seed=1, num_pages=1024,
        page_size=16, max_rows=64, num_microbatches=8, tuned=True, layer_load_s=0.2,
    )  # fmt: skip
    for number in range(16):
        cluster.submit([number + 1] * 20, max_new_tokens=320, seed=number, at=0.5)
    return cluster
