"""A placement in a simulated swarm: the runtime's own cores, what they tune themselves, and links between any two workers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.load import SETTLE_LOOPS, SETTLE_S
from bench.predict import HOP_S, HOP_SEQUENCE_S, PAGE_TOKENS, Prediction
from bench.program import BenchError
from bench.window import find_window
from bench.worlds import Placement, World, network
from bloombee.control.operate import tune
from bloombee.pipeline.work import Outcome, Piece, Segment, Work
from bloombee.plan.cost import Cost
from bloombee.sim.cluster import SimCluster
from bloombee.types import HEAD
from bloombee.wire.messages import Load, Pick

RATIO = 0.662
"""Sent over raw bytes of a stand-in's activations: bench/results/pipeline."""
MOST_MICROBATCHES = 128
MOST_ROWS = 512
SPARE_TOKENS = 16
MOST_SETTLE_S = 120.0
LIMIT_S = 3600.0
MOST_TOKENS = 4096
"""Of a simulated sequence: enough to settle in."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a placement is run. ``microbatches`` None: as the runtime tunes them; ``codec``: on links where it pays."""

    microbatches: int | None = None
    codec: bool = True


@dataclass(frozen=True, slots=True)
class Demand:
    """Sequences that decode at the same time, and how long they are."""

    batch: int
    prompt_tokens: int = 16
    tokens: int = 16

    @property
    def most_tokens(self) -> int:
        """That each may generate."""
        return 4 * self.tokens + 256

    @property
    def kv_tokens(self) -> int:
        """Of every stage, while it is measured."""
        each = self.prompt_tokens + self.most_tokens + SPARE_TOKENS
        return PAGE_TOKENS * math.ceil((self.batch + 1) * each / PAGE_TOKENS)


def ratio_of(way: Way) -> float | None:
    return RATIO if way.codec else None


def tuned(world: World, placement: Placement, way: Way, batch: int) -> Cost:
    """What the cost model says of so many sequences, spread as the runtime would or as asked for."""
    at_once = min(way.microbatches or MOST_MICROBATCHES, batch)
    base = placement.candidate(world, ratio_of(way))
    return tune(
        base,
        world.topology,
        world.shape,
        sequences=batch,
        most_microbatches=at_once,
        most_rows=MOST_ROWS,
        least_microbatches=at_once if way.microbatches else 1,
    ).cost


def hop_s(sequences: int) -> float:
    """Of a microbatch of so many, beyond device, wire and delay."""
    return HOP_S + HOP_SEQUENCE_S * sequences


def simulate(world: World, placement: Placement, way: Way, demand: Demand, *, seed: int = 0) -> Prediction:
    """All sequences' tokens in the stretch in which they decode together, once what is tuned has settled.

    Raises:
        BenchError: the sequences ended before.
    """
    cluster = _cluster(world, placement, way, demand, seed)
    for number in range(demand.batch):
        prompt = [(seed + number + place) % 1000 for place in range(demand.prompt_tokens)]
        cluster.submit(prompt, max_new_tokens=MOST_TOKENS, seed=number)
    times = [cluster.requests[number].token_times for number in range(demand.batch)]
    _run_until(cluster, lambda: all(times))
    since_s = cluster.clock.now
    if way.microbatches is None and demand.batch > 1:
        _settle(cluster, world, placement)
        since_s = cluster.clock.now
    goal = [len(one) + demand.tokens for one in times]
    _run_until(cluster, lambda: all(len(one) >= most for one, most in zip(times, goal, strict=True)))
    window = find_window(times, demand.tokens, since_s)
    if window is None:
        raise BenchError(f"{world.name}: the sequences did not decode together long enough")
    return Prediction(window.tokens_per_s, window.time_per_token_s)


def _settle(cluster: SimCluster, world: World, placement: Placement) -> None:
    """As bench/load.py lets a ring settle, but until it has."""
    places = (HEAD, *placement.workers, HEAD)
    loop_s = sum(world.topology.link(a, b).latency_s for a, b in itertools.pairwise(places))
    cluster.run_for(SETTLE_S + SETTLE_LOOPS * loop_s)
    stop = cluster.clock.now + MOST_SETTLE_S
    while not cluster.head.control.is_settled and cluster.clock.now < stop:
        cluster.run_for(0.5)


def _run_until(cluster: SimCluster, is_there: Callable[[], bool]) -> None:
    while not is_there():
        if not cluster.run_for(0.25) or cluster.clock.now > LIMIT_S:
            raise BenchError(f"the simulated swarm came to rest: {cluster.head.down or 'nothing is under way'}")


def _cluster(world: World, placement: Placement, way: Way, demand: Demand, seed: int) -> SimCluster:
    cost = tuned(world, placement, way, demand.batch)
    extra_s = hop_s(cost.candidate.microbatch_sequences)
    row_bytes = round(world.shape.row_bytes * (RATIO if way.codec else 1.0))
    return SimCluster(
        seed=seed,
        num_stages=len(placement.workers),
        num_microbatches=way.microbatches or MOST_MICROBATCHES,
        num_pages=demand.batch * (demand.prompt_tokens + MOST_TOKENS + PAGE_TOKENS) // PAGE_TOKENS,
        page_size=PAGE_TOKENS,
        max_rows=MOST_ROWS,
        make_device=PlainDevice,
        pace=placement.paces(world),
        network=network(world, placement, hop_s=extra_s),
        nodes=[world.node(worker) for worker in placement.workers],
        row_bytes=row_bytes,
        resend_after_s=60.0,
        tuned=way.microbatches is None,
        log_bytes=0,
    )


class PlainDevice:
    """Computes nothing: a token is its position. Frames are the number of their rows."""

    def __init__(self, load: Load) -> None:
        self._is_last = load.stop == load.num_layers

    def run(self, work: Work) -> Outcome:
        if self._is_last:
            return Outcome(work.number, picks=tuple(pick for segment in work.segments for pick in _picks(segment)))
        return Outcome(work.number, hidden=work.num_rows, num_bytes=work.num_rows)

    def gather(self, pieces: Sequence[Piece]) -> int:
        return sum(piece.stop - piece.start for piece in pieces)


def _picks(segment: Segment) -> list[Pick]:
    stop = segment.position + segment.num_rows
    first = stop - segment.num_picks
    return [Pick(segment.sequence, segment.generation, place + 1, place % 1000, None, ()) for place in range(first, stop)]
