"""Where a swarm by Petals' rule would put a model and how a client would go through it: what placements are held against. Pure.

In words (Borzunov et al., "Distributed Inference and Fine-tuning of Large Language Models Over The Internet", NeurIPS 2023;
petals/server/block_selection.py):

- a server holds as many consecutive blocks as its memory has room for, and announces a throughput: what its device computes or
  its network line carries, whichever is less;
- a block's throughput is the sum of what its servers announce. Who joins takes the stretch of blocks that is served worst,
  compared block by block from the worst one up, the first of several;
- later a server moves if the swarm's throughput, that of its worst block, would gain enough from it (a balance below
  :data:`BALANCE`), until no server does;
- a client takes the chain of servers with the shortest time for one token by itself: round trips halved, and each block at its
  server's speed. How wide links are and what others do plays no part.

Spans may overlap; a client uses the part of each that its chain needs. Servers outside the chain stay idle.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from bench.worlds import Placement, World
from bloombee.errors import Infeasible
from bloombee.plan.topology import Topology
from bloombee.types import HEAD, WorkerId

BALANCE = 0.75
"""A server stays where it is while the swarm has this much of the throughput that moving it would give."""
MOST_ROUNDS = 10
"""Of every server looking for a better place; they all come to rest before, or go round in circles."""


@dataclass(frozen=True, slots=True)
class Server:
    """A worker as it announces itself: blocks [start, stop) at so many rows a second."""

    worker: WorkerId
    start: int
    stop: int
    rows_per_s: float


def place(world: World, *, rows: int) -> Placement:
    """The chain that a client would take.

    Args:
        rows: of the forwards by which servers measure what they compute.

    Raises:
        Infeasible: some block is on no server, or no chain goes through all of them.
    """
    return route(world, settle(world, rows=rows))


def announced_rows_per_s(world: World, worker: WorkerId, blocks: int, rows: int) -> float:
    """The lesser of device and line. A chain crosses about half of a server's blocks; a line is as wide as its best link."""
    device = world.topology.device(worker)
    used = (blocks + 1) / 2
    computes = rows / (device.stage.decode_s(rows) + used * device.layer.decode_s(rows))
    links = world.topology.links.items()
    up = max(link.bandwidth_bytes_per_s for (source, _), link in links if source == worker)
    down = max(link.bandwidth_bytes_per_s for (_, target), link in links if target == worker)
    return min(computes, min(up, down) / world.shape.row_bytes)


def settle(world: World, *, rows: int) -> list[Server]:
    """All have joined, in their order, and nobody gains from moving any more."""
    servers: list[Server] = []
    for worker in world.joined:
        blocks = world.room(worker)
        if blocks:
            rate = announced_rows_per_s(world, worker, blocks, rows)
            servers.append(_join(world.shape.num_layers, servers, worker, blocks, rate))
    for _ in range(MOST_ROUNDS):
        moved = [_move(world.shape.num_layers, servers, index) for index in range(len(servers))]
        if not any(moved):
            break
    return servers


def throughputs(num_blocks: int, servers: Sequence[Server]) -> list[float]:
    """Of each block."""
    totals = [0.0] * num_blocks
    for server in servers:
        for block in range(server.start, server.stop):
            totals[block] += server.rows_per_s
    return totals


def _join(num_blocks: int, servers: Sequence[Server], worker: WorkerId, blocks: int, rows_per_s: float) -> Server:
    """At the stretch that is served worst."""
    served = throughputs(num_blocks, servers)
    start = min(range(num_blocks - blocks + 1), key=lambda first: (sorted(served[first : first + blocks]), first))
    return Server(worker, start, start + blocks, rows_per_s)


def _move(num_blocks: int, servers: list[Server], index: int) -> bool:
    """Whether that server went elsewhere."""
    one, others = servers[index], servers[:index] + servers[index + 1 :]
    moved = _join(num_blocks, others, one.worker, one.stop - one.start, one.rows_per_s)
    now, then = min(throughputs(num_blocks, servers)), min(throughputs(num_blocks, [*others, moved]))
    if moved.start == one.start or now >= BALANCE * then:
        return False
    servers[index] = moved
    return True


def route(world: World, servers: Sequence[Server]) -> Placement:
    """The quickest chain for one token. A stage is a worker, so no server comes twice. Raises Infeasible: there is none."""
    by_worker = {server.worker: server for server in servers}
    ticket = itertools.count()
    waiting: list[tuple[float, int, int, tuple[WorkerId, ...], tuple[int, ...]]] = [(0.0, next(ticket), 0, (), ())]
    done: set[tuple[int, WorkerId, frozenset[WorkerId]]] = set()
    while waiting:
        seconds, _, block, chain, layers = heapq.heappop(waiting)
        at = chain[-1] if chain else HEAD
        if at == HEAD and chain:
            return Placement(chain[:-1], layers)
        if (key := (block, at, frozenset(chain))) in done:
            continue
        done.add(key)
        for worker, count in _steps(world, by_worker, block, chain):
            took_s = _half_round_trip_s(world.topology, at, worker) + count * _block_s(world.topology, worker)
            onward = layers if worker == HEAD else (*layers, count)
            heapq.heappush(waiting, (seconds + took_s, next(ticket), block + count, (*chain, worker), onward))
    raise Infeasible(f"{world.name}: no chain of servers holds all blocks", constraint="memory")


def _steps(world: World, servers: dict[WorkerId, Server], block: int, chain: tuple[WorkerId, ...]) -> list[tuple[WorkerId, int]]:
    """(who may be next, how many blocks there); home when all are done."""
    at = chain[-1] if chain else HEAD
    if block == world.shape.num_layers:
        return [(HEAD, 0)] if (at, HEAD) in world.topology.links else []
    return [
        (worker, count)
        for worker, server in servers.items()
        if worker not in chain and server.start <= block < server.stop and (at, worker) in world.topology.links
        for count in range(1, server.stop - block + 1)
    ]


def _block_s(topology: Topology, worker: WorkerId) -> float:
    """For one token."""
    return 0.0 if worker == HEAD else topology.device(worker).layer.decode_s(1)


def _half_round_trip_s(topology: Topology, source: WorkerId, target: WorkerId) -> float:
    there = topology.link(source, target)
    back = topology.links.get((target, source), there)
    return (there.latency_s + back.latency_s) / 2
