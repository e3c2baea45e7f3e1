"""A plan for people: its pipelines, what binds, how far from the best it can be, and why workers are left out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from bloombee.errors import PlanError
from bloombee.models.shape import ModelShape
from bloombee.objective import Goal
from bloombee.plan.cost import Cost, evaluate
from bloombee.plan.solve.solver import Solution
from bloombee.plan.topology import Topology
from bloombee.types import WorkerId

MOST_TRIES = 20_000
"""Places at which spares are tried, all of them together: some seconds."""


def explain(solution: Solution, topology: Topology, model: ModelShape) -> str:
    """Several lines, the result first."""
    lines = [_headline(solution)]
    for number, cost in enumerate(solution.pipelines, 1):
        lines += ["", *([f"pipeline {number}"] if len(solution.pipelines) > 1 else []), cost.explain()]
    spares = spare_reasons(solution, topology, model)
    if spares:
        lines += ["", "left as spares:"]
        lines += [f"  {topology.name(worker)}: {why}" for worker, why in spares.items()]
    return "\n".join(lines)


def _headline(solution: Solution) -> str:
    objective, value = solution.objective, f"{solution.tokens_per_s:.1f} tokens/s"
    if objective.goal in (Goal.LATENCY, Goal.BALANCE):
        value = f"{solution.value * 1e3:.1f} ms a token at B = 1" + (f", {value}" if objective.goal is Goal.BALANCE else "")
    how = "proven best" if solution.proven else f"at most {solution.gap:.2%} from the best"
    return f"{objective}: {value}; {how}"


def spare_reasons(solution: Solution, topology: Topology, model: ModelShape) -> dict[WorkerId, str]:
    """Why each worker that no pipeline has is left out: what one layer on it would do, at its best place."""
    return {worker: _why_spare(solution, topology, model, worker) for worker in solution.spares}


def _why_spare(solution: Solution, topology: Topology, model: ModelShape, worker: WorkerId) -> str:
    places = ((cost, other) for cost in solution.pipelines for other in _with(cost, topology, model, worker))
    tries = list(itertools.islice(places, max(1, MOST_TRIES // len(solution.spares))))
    if not tries:
        return "its links reach no place in the ring"
    fitting = [pair for pair in tries if not any(stage.short_bytes for stage in pair[1].stages if stage.worker == worker)]
    if not fitting:
        short = min(stage.short_bytes for _, other in tries for stage in other.stages if stage.worker == worker)
        return f"it has no room for a layer, short by {short / 1e9:.2f} GB"
    if solution.objective.goal is Goal.LATENCY:
        longer_s = min(after.loop_s - before.loop_s for before, after in fitting)
        return f"with one layer on it a token would take {longer_s * 1e3:.1f} ms longer" if longer_s > 0 else "no gain"
    before, after = min(fitting, key=lambda pair: pair[1].step_s - pair[0].step_s)
    longer_s, loop_s = after.step_s - before.step_s, after.loop_s - before.loop_s
    if longer_s > 0:
        return f"with one layer on it a step would take {longer_s * 1e3:.1f} ms longer, {after.bottleneck} being the slowest"
    return f"with one layer on it steps take no longer, but a token alone {loop_s * 1e3:.1f} ms more" if loop_s > 0 else "no gain"


def _with(cost: Cost, topology: Topology, model: ModelShape, worker: WorkerId) -> Iterator[Cost]:
    """The pipeline with ``worker`` at each place, and one layer of a neighbour on it."""
    candidate = cost.candidate
    plain = dataclasses.replace(candidate, ratios=(), streamed_bytes=())
    for place in range(len(candidate.workers) + 1):
        for donor in (place - 1, place):
            if not 0 <= donor < len(candidate.layers) or candidate.layers[donor] < 2:
                continue
            layers = list(candidate.layers)
            layers[donor] -= 1
            layers.insert(place, 1)
            workers = (*candidate.workers[:place], worker, *candidate.workers[place:])
            try:
                yield evaluate(dataclasses.replace(plain, workers=workers, layers=tuple(layers)), topology, model)
            except PlanError:
                continue
