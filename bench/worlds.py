"""Worlds that a pipeline may be placed in: unlike devices, links between any two, and a stand-in of a model. Pure data.

A placement names workers in ring order and the layers of each; the paces of its stages and the network that emulator
(tools/wan_network.py) and simulator (bloombee/sim) take are made here of the topology that the planner is given.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from pathlib import Path

from bloombee.config import LocalWorker
from bloombee.models.shape import ModelShape
from bloombee.models.standin import ACCELERATORS, standin_card
from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.plan import document
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import evaluate
from bloombee.plan.network import HEAD_NODE, Network
from bloombee.plan.problem import Problem, document_of
from bloombee.plan.solve import Space
from bloombee.plan.topology import Device, Link, RowTime, Topology
from bloombee.planning import load
from bloombee.types import HEAD, WorkerId

MODEL = "standin:llama-30b"
CONTEXT_TOKENS = 4096
"""Cached tokens of a sequence that a row of a drawn device reads."""
BYTES_PER_S, FLOPS_PER_S = ACCELERATORS["rtx-4090"].bytes_per_s, ACCELERATORS["rtx-4090"].flops_per_s
"""Of the quickest drawn devices."""
SLOWER = (1.0, 2.0, 4.0)
ROOM = 1.5
"""Layers that all drawn workers together have room for, over those there are; each has room for as many."""
LEAST_BYTES_PER_S, LEAST_DELAY_S, APART = 2.5e6, 0.010, 10.0
"""Of links: 20 to 200 Mbit/s, round trips of 20 to 200 ms."""
MOST_ROOM_BYTES = 1 << 50
NOBODY = LocalWorker()


@dataclass(frozen=True, slots=True)
class World:
    """Where a pipeline may be placed.

    Args:
        model: a stand-in's name; shape: its sizes.
        joined: workers in the order in which they came.
        kv_tokens: that the layers of a stage are to hold.
    """

    name: str
    topology: Topology
    shape: ModelShape
    model: str
    joined: tuple[WorkerId, ...]
    kv_tokens: int

    def node(self, worker: WorkerId) -> str:
        """Its name in a network."""
        return self.topology.device(worker).name

    def room(self, worker: WorkerId, ends_bytes: int | None = None) -> int:
        """Layers that fit it with their KV, beside what a first or a last stage has besides (None: wherever it stands)."""
        memory = self.topology.device(worker).memory_bytes
        if memory is None:
            return self.shape.num_layers
        ends = self.shape.embedding_bytes + self.shape.output_bytes if ends_bytes is None else ends_bytes
        each = max(kind.layer_bytes + self.kv_tokens * kind.kv_token_bytes for kind in self.shape.layer_kinds)
        return max(0, min(self.shape.num_layers, (memory - ends) // max(1, each)))


@dataclass(frozen=True, slots=True)
class Placement:
    """Who runs how many layers, in ring order."""

    workers: tuple[WorkerId, ...]
    layers: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join(f"{worker}:{count}" for worker, count in zip(self.workers, self.layers, strict=True))

    def candidate(self, world: World, ratio: float | None) -> Candidate:
        """One sequence by itself, its activations coded to ``ratio`` of their size on every link.

        Raises:
            Infeasible: it does not fit.
        """
        candidate = Candidate(self.workers, self.layers, ratios=(ratio,) * (len(self.workers) - 1), kv_tokens=world.kv_tokens)
        evaluate(candidate, world.topology, world.shape).check()
        return candidate

    def paces(self, world: World) -> tuple[Pace, ...]:
        """Of each stage, whatever its layers."""
        devices = [world.topology.device(worker) for worker in self.workers]
        last = len(devices) - 1
        return tuple(
            _pace(device, count, is_last=index == last)
            for index, (device, count) in enumerate(zip(devices, self.layers, strict=True))
        )


def _pace(device: Device, layers: int, *, is_last: bool) -> Pace:
    stage, layer, output = device.stage, device.layer, device.output
    return Pace(
        stage.fixed_s + layers * layer.fixed_s + is_last * output.fixed_s,
        stage.decode_row_s + layers * layer.decode_row_s + is_last * output.decode_row_s,
        stage.prefill_row_s + layers * layer.prefill_row_s,
    )


def network(world: World, placement: Placement, *, hop_s: float = 0.0) -> Network:
    """All of ``world``; the placement's workers have the pace of their stage, and memory for whatever is asked of them.

    Args:
        hop_s: that every way from a worker is longer, for simulators, whose hops take no time of their own.
    """
    whole = document_of(Problem(world.topology, world.shape, Space(), Objective())).network()
    paces = {world.node(worker): pace for worker, pace in zip(placement.workers, placement.paces(world), strict=True)}
    nodes = {
        name: replace(node, worker=LocalWorker(pace=str(paces[name]), memory_bytes=MOST_ROOM_BYTES) if name in paces else NOBODY)
        for name, node in whole.nodes.items()
    }
    links = {
        pair: link if link.source == HEAD_NODE else replace(link, delay_s=link.delay_s + hop_s)
        for pair, link in whole.links.items()
    }
    return replace(whole, nodes=nodes, links=links)


def read(path: Path, kv_tokens: int) -> World:
    """The world of a file in the planner's format (docs/topology.md); its model's layers become those of a stand-in.

    Args:
        kv_tokens: unless the file says how many.

    Raises:
        ConfigError: it is none.
    """
    problem = load(document.read(path))
    model = f"standin:{problem.model.hidden}x{problem.model.num_layers}"
    return World(
        path.stem, problem.topology, problem.model, model, tuple(problem.topology.devices), problem.space.kv_tokens or kv_tokens
    )


def drawn(seed: int, sequences: int) -> World:
    """4 to 8 workers: devices that take 1x, 2x and 4x the time, links 10x apart in bandwidth and in delay, each by itself.

    A worker has room for :data:`ROOM` times an even share of the layers: no one holds the model, and not all are needed.

    Args:
        sequences: of CONTEXT_TOKENS that there is to be room for.
    """
    rng = random.Random(f"world {seed}")
    shape, kv_tokens = standin_card(MODEL).shape(), sequences * CONTEXT_TOKENS
    workers = list(range(1, rng.randint(4, 8) + 1))
    slower = [rng.choice(SLOWER) for _ in workers]
    slower[0], slower[-1] = SLOWER[0], SLOWER[-1]
    memory_bytes = _memory_bytes(shape, int(ROOM * shape.num_layers / len(workers)), kv_tokens)
    devices = {worker: _device(f"w{worker}", shape, times, memory_bytes) for worker, times in zip(workers, slower, strict=True)}
    links = {}
    for a, b in itertools.combinations((HEAD, *workers), 2):
        links[a, b] = links[b, a] = Link(LEAST_BYTES_PER_S * APART ** rng.random(), LEAST_DELAY_S * APART ** rng.random())
    joined = tuple(rng.sample(workers, len(workers)))
    return World(f"wan-{seed:02d}", Topology(devices, links), shape, MODEL, joined, kv_tokens)


def _memory_bytes(shape: ModelShape, layers: int, kv_tokens: int) -> int:
    """That so many layers take, wherever they stand."""
    kind = shape.layer_kinds[0]
    return layers * (kind.layer_bytes + kv_tokens * kind.kv_token_bytes) + shape.embedding_bytes + shape.output_bytes


def _device(name: str, shape: ModelShape, slower: float, memory_bytes: int) -> Device:
    """What a data sheet allows a layer of ``shape`` (Williams et al. 2009), times ``slower``.

    Weights are read once, each row costs two operations a parameter, and in decode the reading of CONTEXT_TOKENS cached tokens.
    """
    kind = shape.layer_kinds[0]
    row_s = kind.layer_bytes / FLOPS_PER_S  # two bytes a parameter, two operations
    read_s = CONTEXT_TOKENS * kind.kv_token_bytes / BYTES_PER_S
    layer = RowTime(slower * kind.layer_bytes / BYTES_PER_S, slower * (row_s + read_s), slower * row_s)
    return Device(name, memory_bytes=memory_bytes, layer=layer)
