"""The best plan by trying all of them, which the solver is held against: they share ``plan.cost.evaluate`` and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from bloombee.errors import PlanError
from bloombee.models.shape import ModelShape
from bloombee.objective import Goal, Objective
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import Cost, evaluate
from bloombee.plan.solve import Space
from bloombee.plan.topology import Topology
from bloombee.types import WorkerId


@dataclass(frozen=True, slots=True)
class Run:
    """A pipeline that fits, run in one way."""

    members: frozenset[WorkerId]
    tokens_per_s: float
    time_per_token_s: float
    alone_s: float
    """Time per token at B = 1."""


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write ``total`` as ``parts`` numbers >= 1."""
    for cuts in itertools.combinations(range(1, total), parts - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *cuts, total)))


def count(num_workers: int, num_layers: int, space: Space) -> int:
    """How many candidates there are."""
    points, parts, ratios = len(list(space.points())), len(set(space.streamed)), len(set(space.ratios))
    return points * sum(
        math.perm(num_workers, stages) * math.comb(num_layers - 1, stages - 1) * int(parts**stages * ratios ** (stages - 1))
        for stages in range(1, min(num_workers, num_layers) + 1)
    )


def best(topology: Topology, model: ModelShape, space: Space, objective: Objective) -> float | None:
    """The value of the best plan in the terms of ``Solution.value``; None: there is none."""
    if objective.goal is Goal.LATENCY:
        space = dataclasses.replace(space, sequences=(1,), microbatches=(1,), most_sequences=None)
        return min((run.time_per_token_s for run in runs(topology, model, space)), default=None)
    every = list(runs(topology, model, space))
    if objective.target_s is not None:
        every = [run for run in every if run.time_per_token_s <= objective.target_s]
    if not every:
        return None
    rates = _rates(every)
    most = max(run.tokens_per_s + _beside(rates, run, space.pipelines) for run in every)
    if objective.goal is not Goal.BALANCE:
        return most
    return min(run.alone_s for run in every if run.tokens_per_s + _beside(rates, run, space.pipelines) >= 0.97 * most)


def _rates(every: list[Run]) -> dict[frozenset[WorkerId], float]:
    rates: dict[frozenset[WorkerId], float] = {}
    for run in every:
        rates[run.members] = max(rates.get(run.members, 0.0), run.tokens_per_s)
    return rates


def _beside(rates: dict[frozenset[WorkerId], float], run: Run, pipelines: int) -> float:
    """The most of another pipeline beside this one; two at most."""
    if pipelines == 1:
        return 0.0
    assert pipelines == 2, "no more are tried out"
    return max((rate for members, rate in rates.items() if not members & run.members), default=0.0)


def runs(topology: Topology, model: ModelShape, space: Space) -> Iterator[Run]:
    """Every pipeline that fits, in every way to run it."""
    for stages in range(1, min(len(topology.devices), model.num_layers) + 1):
        for workers in _orders(topology, space, stages):
            if not _is_ring(topology, workers):
                continue
            for layers in compositions(model.num_layers, stages):
                for parts in itertools.product(sorted(set(space.streamed)), repeat=stages):
                    yield from _ways(topology, model, space, workers, layers, parts)


def _orders(topology: Topology, space: Space, stages: int) -> Iterator[tuple[WorkerId, ...]]:
    if space.order is not None:
        return itertools.combinations(space.order, stages)
    return itertools.permutations(sorted(topology.devices), stages)


def _is_ring(topology: Topology, workers: tuple[WorkerId, ...]) -> bool:
    try:
        for source, target in itertools.pairwise((0, *workers, 0)):
            topology.link(source, target)
    except PlanError:
        return False
    return True


def _ways(
    topology: Topology,
    model: ModelShape,
    space: Space,
    workers: tuple[WorkerId, ...],
    layers: tuple[int, ...],
    parts: tuple[float, ...],
) -> Iterator[Run]:
    streamed = _streamed(model, layers, parts)
    if any(topology.device(w).stream_bytes_per_s is None and count for w, count in zip(workers, streamed, strict=True)):
        return
    base = Candidate(
        workers,
        layers,
        rows_per_sequence=space.rows_per_sequence,
        tokens_per_round=space.tokens_per_round,
        context=space.context,
        kv_tokens=space.kv_tokens,
        streamed_bytes=streamed,
    )
    codecs = list(itertools.product(space.ratios, repeat=len(workers) - 1))
    alone_s = min(evaluate(dataclasses.replace(base, ratios=ratios), topology, model).time_per_token_s for ratios in codecs)
    for sequences, microbatches in space.points():
        for ratios in codecs:
            candidate = dataclasses.replace(base, num_microbatches=microbatches, microbatch_sequences=sequences, ratios=ratios)
            cost = evaluate(candidate, topology, model)
            if not fits(cost):
                break
            yield Run(frozenset(workers), cost.tokens_per_s, cost.time_per_token_s, alone_s)


def _streamed(model: ModelShape, layers: tuple[int, ...], parts: tuple[float, ...]) -> tuple[int, ...]:
    starts = itertools.accumulate(layers, initial=0)
    counts = [model.counts(start, start + k) for start, k in zip(starts, layers, strict=False)]
    weights = [sum(n * kind.layer_bytes for n, kind in zip(of, model.layer_kinds, strict=True)) for of in counts]
    return tuple(int(part * weight) for part, weight in zip(parts, weights, strict=True))


def fits(cost: Cost) -> bool:
    return all(stage.memory_limit_bytes is None or stage.memory_bytes <= stage.memory_limit_bytes for stage in cost.stages)
