"""What a swarm that runs expects of itself, from its own measurements alone: the log of its decisions has them. Pure.

Devices and codec ratios are those by which the control core last weighed how to run, links as their frames had shown them last.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

from bench.predict import Prediction
from bench.program import BenchError
from bloombee.control.events import Decision, Figures, LinkSeen, PlanRuns
from bloombee.control.log import from_line
from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import evaluate
from bloombee.plan.topology import Device, Link, Topology
from bloombee.types import HEAD


def foretell(lines: Iterable[str], batch: int) -> Prediction:
    """Of ``batch`` sequences that decode, run as it was last decided.

    Raises:
        BenchError: nothing has been weighed yet.
    """
    plan: PlanRuns | None = None
    links: dict[tuple[int, int], Link] = {}
    chosen: tuple[int, Figures] | None = None
    for line in lines:
        match from_line(line):
            case PlanRuns() as plan:
                links, chosen = {}, None
            case LinkSeen() as seen:
                links[seen.source, seen.target] = Link(seen.bandwidth_bytes_per_s or float("inf"), seen.latency_s)
            case Decision(what="run", figures=Figures() as figures) as decision:
                chosen = int(decision.chosen.split()[0]), figures
    if plan is None or chosen is None:
        raise BenchError("the swarm has weighed nothing yet: nothing ran for long enough")
    return _predict(plan, links, *chosen, batch)


def _predict(plan: PlanRuns, links: dict[tuple[int, int], Link], most: int, figures: Figures, batch: int) -> Prediction:
    ring = list(itertools.pairwise((HEAD, *plan.workers, HEAD)))
    first, *others = (links.get(ends) or _link(said) for ends, said in zip(ring, figures.links, strict=True))
    devices = [Device(name, stage=time) for name, time in zip(plan.names, figures.devices, strict=True)]
    topology = Topology.ring(devices, others, first=first)
    model = ModelShape(plan.hidden, sum(plan.layers), activation_bytes=plan.activation_bytes)
    count = min(most, batch)
    size, rest = divmod(batch, count)
    base = Candidate(tuple(range(1, len(devices) + 1)), plan.layers, num_microbatches=count, ratios=figures.ratios)
    low, high = (evaluate(replace(base, microbatch_sequences=size + more), topology, model) for more in (0, 1))
    share = rest / count

    def mean(a: float, b: float) -> float:
        return a + share * (b - a)

    step_s = max(count * mean(low.bottleneck_s, high.bottleneck_s), mean(low.loop_s, high.loop_s))
    return Prediction(batch / step_s, step_s)


def _link(said: tuple[float, float | None]) -> Link:
    latency_s, bandwidth = said
    return Link(bandwidth or float("inf"), latency_s)
