"""What the cost model and the simulated cluster say of a cell, before or beside what was measured."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.floors import microbatches_in_use
from bench.load import most_tokens
from bench.shapes import Shape
from bench.window import find_window
from bloombee.pace import Pace
from bloombee.plan.cost import Candidate, Cost, ModelShape, evaluate
from bloombee.plan.topology import LOCAL, Cores, Device, Link, Topology
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import LinkShape

PAGE_TOKENS = 16
HOP_S, HOP_SEQUENCE_S = 0.45e-3, 0.02e-3
"""What a hop takes besides device, wire and delay: hand-overs between threads, sockets, encryption; and more for each sequence in
the frame. Measured by bench/hops.py and bench/pipeline.py on the machine of bench/results/; where nothing was measured apart."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A ring as the models see it.

    Args:
        links: forward and backward shapes in ring order, one a worker; none for a single worker.
        paces: of each stage, whatever its layers: as asked, or as fitted from what was measured.
        layers: of each stage.
        row_bytes: raw activations of one row.
    """

    links: tuple[tuple[Shape, Shape], ...]
    paces: tuple[Pace, ...]
    layers: tuple[int, ...]
    hidden: int
    row_bytes: int
    batch: int
    microbatches: int
    prompt_tokens: int
    tokens: int
    ratios: tuple[float, ...] = ()
    """Sent over raw bytes of each activation link; empty: 1."""
    cores: Cores | None = None
    """That all workers share, with what a hop takes; None: every worker is a machine, and a hop takes what HOP_S says."""

    @property
    def hop_s(self) -> float:
        if self.cores is not None:
            return self.cores.hop_s
        return HOP_S + HOP_SEQUENCE_S * microbatches_in_use(self.batch, self.microbatches)[1]


@dataclass(frozen=True, slots=True)
class Prediction:
    tokens_per_s: float
    time_per_token_s: float


def predict_cost(setting: Setting) -> Cost:
    """By :mod:`bloombee.plan.cost`."""
    count, rows = microbatches_in_use(setting.batch, setting.microbatches)
    workers = tuple(range(1, len(setting.paces) + 1))
    devices = [Device.paced(f"stage {index}", pace) for index, pace in enumerate(setting.paces)]
    links = [_link(forward, setting.hop_s) for forward, _ in setting.links] or [LOCAL]
    candidate = Candidate(workers, setting.layers, num_microbatches=count, microbatch_sequences=rows, ratios=setting.ratios)
    model = ModelShape(setting.hidden, sum(setting.layers), activation_bytes=setting.row_bytes // setting.hidden)
    return evaluate(candidate, Topology.ring(devices, links, setting.cores), model)


def predict_by_cost(setting: Setting) -> Prediction:
    """Tokens per second of all sequences (the last microbatch may hold fewer than the others)."""
    cost = predict_cost(setting)
    return Prediction(setting.batch / cost.step_s, cost.time_per_token_s)


def simulate(setting: Setting, *, seed: int = 0) -> Prediction | None:
    """By the real cores under a virtual clock: the same requests, prefill included, and the same window.

    None: the first sequences came to their end before the last had begun, so they never decode together.
    """
    stages = len(setting.paces)
    limit = most_tokens(setting.tokens)
    pages = math.ceil((setting.prompt_tokens + limit) / PAGE_TOKENS) * setting.batch
    cluster = SimCluster(
        seed=seed,
        num_stages=stages,
        num_microbatches=setting.microbatches,
        num_pages=pages,
        page_size=PAGE_TOKENS,
        max_rows=512,
        pace=setting.paces,
        shape=LinkShape(latency_s=0.0),
        shapes=_shapes(setting, stages),
        row_bytes=round(setting.row_bytes * (statistics.fmean(setting.ratios) if setting.ratios else 1.0)),
        resend_after_s=60.0,
        cores=setting.cores,
    )
    rng = random.Random(seed)
    numbers = [
        cluster.submit([rng.randrange(1000) for _ in range(setting.prompt_tokens)], max_new_tokens=limit, seed=number)
        for number in range(setting.batch)
    ]
    goes_on, window = True, None
    while window is None:
        if not goes_on:
            return None
        goes_on = cluster.run_for(1.0)
        window = find_window([cluster.requests[number].token_times for number in numbers], setting.tokens)
    return Prediction(window.tokens_per_s, window.time_per_token_s)


def _shapes(setting: Setting, stages: int) -> dict[tuple[str, str], LinkShape]:
    shapes = {}
    hop_s = 0.0 if setting.cores else setting.hop_s  # shared cores: the cluster adds it, as a turn there
    for index, (forward, backward) in enumerate(setting.links):
        here, there = f"stage{index}", f"stage{index + 1}" if index + 1 < stages else "scheduler"
        shapes[here, there] = _link_shape(forward, hop_s)
        shapes[there, here] = _link_shape(backward, 0.0)
    return shapes


def _link_shape(shape: Shape, hop_s: float) -> LinkShape:
    bits = shape.bandwidth_bits_per_s
    return LinkShape(shape.delay_s + hop_s, None if bits is None else bits / 8)


def _link(shape: Shape, hop_s: float) -> Link:
    bits = shape.bandwidth_bits_per_s
    return Link(math.inf if bits is None else bits / 8, shape.delay_s + hop_s)


def fit_paces(asked: Pace | None, computes_s: Sequence[float], rows: int) -> tuple[Pace, ...]:
    """As asked; of a real device one that takes what a forward of ``rows`` rows took."""
    if asked is not None:
        return (asked,) * len(computes_s)
    return tuple(Pace(seconds, 0.0, seconds / max(1, rows)) for seconds in computes_s)
