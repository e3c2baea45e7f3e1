"""The planner's choice of a placement for a load, and the best there is by trying every order: both by the cost model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.placed import RATIO, Way
from bench.worlds import Placement, World
from bloombee.errors import Infeasible
from bloombee.objective import Objective
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import evaluate
from bloombee.plan.solve import Space, solve
from bloombee.types import HEAD, WorkerId

BUDGET_S = 1.0
"""Of a plan."""
MICROBATCHES = (*range(1, 17), 20, 24, 28, 32)


@dataclass(frozen=True, slots=True)
class Choice:
    """A placement, how the planner would begin to run it, and how far it may be from the best."""

    placement: Placement
    microbatches: int
    codec: bool
    gap: float

    @property
    def way(self) -> Way:
        """As it is run: how many microbatches are under way the runtime tunes."""
        return Way(None, self.codec)


def space_of(world: World, batch: int) -> Space:
    """All ways to spread ``batch`` sequences over microbatches, with a codec and without."""
    counts = [count for count in MICROBATCHES if count <= batch]
    return Space(
        sequences=tuple(sorted({batch // count for count in counts})),
        microbatches=tuple(counts),
        ratios=(None, RATIO),
        most_sequences=batch,
        kv_tokens=world.kv_tokens,
    )


def choose(world: World, objective: Objective, batch: int) -> Choice:
    """Raises Infeasible: no placement fits."""
    solution = solve(world.topology, world.shape, space_of(world, batch), objective, budget_s=BUDGET_S)
    best = solution.pipelines[0].candidate
    codec = any(ratio is not None for ratio in best.ratios)
    return Choice(Placement(best.workers, best.layers), best.num_microbatches, codec, solution.gap)


def quickest(world: World) -> Placement:
    """The placement with the least time per token of one sequence, by trying every order of every choice of workers.

    Layers are alike and a stage takes as long as its layers together, so for one order the quickest workers get as many as fit.
    Orders whose links alone take longer than the best are left out.

    Raises:
        Infeasible: none fits.
    """
    tries = _Orders(world)
    tries.walk((), 0.0)
    if tries.best is None:
        raise Infeasible(f"{world.name}: no order of workers holds all layers", constraint="memory")
    return tries.best


class _Orders:
    """Every ring that links allow, and the best so far."""

    def __init__(self, world: World) -> None:
        self.best: Placement | None = None
        self._best_s = math.inf
        self._world = world

    def walk(self, chain: tuple[WorkerId, ...], delay_s: float) -> None:
        """On from ``chain``, whose links take ``delay_s``: home, and to each other worker."""
        at, links = chain[-1] if chain else HEAD, self._world.topology.links
        for worker in (HEAD, *self._world.topology.devices) if chain else self._world.topology.devices:
            link = links.get((at, worker))
            if worker in chain or link is None or delay_s + link.latency_s >= self._best_s:
                continue
            if worker == HEAD:
                self._try(chain)
            else:
                self.walk((*chain, worker), delay_s + link.latency_s)

    def _try(self, workers: tuple[WorkerId, ...]) -> None:
        layers = _fastest_first(self._world, workers)
        if layers is None:
            return
        ratios = (RATIO,) * (len(workers) - 1)
        candidate = Candidate(workers, layers, ratios=ratios, kv_tokens=self._world.kv_tokens)
        cost = evaluate(candidate, self._world.topology, self._world.shape)
        if cost.loop_s < self._best_s and not any(stage.short_bytes for stage in cost.stages):
            self.best, self._best_s = Placement(workers, layers), cost.loop_s


def _fastest_first(world: World, workers: tuple[WorkerId, ...]) -> tuple[int, ...] | None:
    """One layer for each, the others where they are quickest and fit; None: they do not."""
    shape, last = world.shape, len(workers) - 1
    rooms = []
    for index, worker in enumerate(workers):
        ends = shape.embedding_bytes * (index == 0) + shape.output_bytes * (index == last)
        rooms.append(world.room(worker, ends))
    layers, left = [1] * len(workers), shape.num_layers - len(workers)
    if min(rooms) < 1 or left < 0:
        return None
    for index in sorted(range(len(workers)), key=lambda index: world.topology.device(workers[index]).layer.decode_s(1)):
        more = min(left, rooms[index] - 1)
        layers[index] += more
        left -= more
    return tuple(layers) if left == 0 else None
