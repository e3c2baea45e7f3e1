"""Workers that come and go all the time: a thousand of them in fifty pipelines, in virtual time.

    python bench/churn.py
    python bench/churn.py --workers 100 --pipelines 5 --seconds 60
    python bench/churn.py --seed 3 --jobs 2 --json churn.json

A planner divides the workers; each pipeline is a simulated swarm of the real cores with its planner, which has spares,
shares layers out and waits for others to join. Once a second a worker joins the smallest pipeline or one is lost, by chance,
wherever it is. Requests come all the time.

Bounds: no request lost while the workers that are left have the memory for the model, no other token than the model's; the time
of a plan, by the processor's clock, 99 of 100: 50 ms up to 16 workers, 150 ms up to 64. Exit status 1: one was missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.arguments import Parser, seconds, whole, writable
from bench.first_plan import Check, table
from bench.program import headline, program
from bench.spread import quantile
from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.pipeline.events import WorkerGone
from bloombee.pipeline.swarm.outlook import Found, Question
from bloombee.plan.solve import Space, solve
from bloombee.plan.topology import Device, Link, Topology
from bloombee.sim.cluster import sim_card
from bloombee.sim.device import oracle
from bloombee.sim.moving import DriftingCluster
from bloombee.types import HEAD, WorkerId

LAYERS, PAGES, PAGE_SIZE = 12, 64, 16
CARD = dataclasses.replace(sim_card((0,) * LAYERS), hidden_size=4096, layer_parameters=(25_000_000,) * LAYERS)
LAYER_BYTES = 4 * CARD.layer_parameters[0]
ROOMS = (1, 2, 2, 4)
"""Layers that a worker has memory for, and half of one for KV and what a pass needs besides."""
PACE = Pace(0.02, 0.002, 0.0002, layers=1)
REGION_S, LINE_BYTES_PER_S = 0.02, (2e6, 2e7)
LAYER_LOAD_S, WAITS_S, LOOK_S = 1.0, 300.0, 0.1
REQUEST_EVERY_S, PROMPT, NEW = 12.0, 12, 16
SETTLE_S = 600.0
"""After the last that comes or goes, for requests to end."""
GOALS = ((16, 0.05), (64, 0.15))
"""Up to so many workers a plan takes so long."""


@dataclass(frozen=True, slots=True)
class Change:
    """At ``at_s`` the worker joins, or is lost."""

    at_s: float
    worker: WorkerId
    joins: bool

    def happens(self, cluster: ChurningCluster, memory_bytes: int, number: WorkerId) -> None:
        """``number``: of the worker in its pipeline."""
        if self.joins:
            cluster.join(number, memory_bytes)
        else:
            cluster.lose(number)


@dataclass(slots=True)
class Pipeline:
    """Of the whole swarm: its workers at the start, and who comes and goes."""

    seed: int
    first: tuple[WorkerId, ...]
    changes: list[Change] = field(default_factory=list)
    members: set[WorkerId] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Lived:
    """What became of a pipeline.

    Args:
        plans: (workers, seconds of the processor) of each plan after the first. down_s: without a plan that ran, in all.
        unserved: requests that ended with an error when memory for the model was missing.
    """

    requests: int
    losses: int
    joins: int
    recoveries: int
    replans: int
    plans: tuple[tuple[int, float], ...]
    down_s: float
    lost: int
    unserved: int
    wrong: int


class ChurningCluster(DriftingCluster):
    """With the time that its plans take."""

    waits_s = WAITS_S

    def __init__(self, topology: Topology, paces: Sequence[Pace], seed: int, rooms: Sequence[int]) -> None:
        self.plans: list[tuple[int, float]] = []
        self.down_s = 0.0
        super().__init__(
            topology, paces, Objective.parse("throughput"), card=CARD, seed=seed, num_pages=PAGES, page_size=PAGE_SIZE,
            max_rows=32, num_microbatches=8, tuned=True, layer_load_s=LAYER_LOAD_S, shares_out=True, memory_bytes=rooms,
        )  # fmt: skip
        self.clock.call_later(LOOK_S, self._watch)

    def _watch(self) -> None:
        self.down_s += LOOK_S * (not self.head.up)
        self.clock.call_later(LOOK_S, self._watch)

    def answer(self, question: Question) -> Found | None:
        begun = time.process_time()
        found = super().answer(question)
        self.plans.append((len(question.next.members), time.process_time() - begun))
        return found

    def lose(self, worker: WorkerId) -> None:
        """At once. What its head makes of that counts as a plan."""
        self.workers[worker].is_alive = False

        def act() -> None:
            begun, swarm = time.process_time(), self.head.swarm
            commands = swarm.handle(WorkerGone(worker, "killed", self.clock.now))
            self.plans.append((len(swarm.members), time.process_time() - begun))
            self.head.do(commands)

        self.clock.call_later(self._detect_s, act)

    def can_serve(self) -> bool:
        """Whether the workers that are left have the memory for the model."""
        rooms = (worker._memory_bytes // LAYER_BYTES for worker in self.workers.values() if worker.is_alive)
        return sum(rooms) >= LAYERS


# -- the swarm ---------------------------------------------------------------------------------


class World:
    """Workers by number: how quick each is, where it is, and what memory it has."""

    def __init__(self, seed: int, num_workers: int) -> None:
        rng = random.Random(seed)
        self.paces, self.rooms = list[Pace](), list[int]()
        self._places, self._lines = [(0.0, 0.0)], [LINE_BYTES_PER_S[1]]
        regions = [(rng.uniform(0, 0.06), rng.uniform(0, 0.04)) for _ in range(5)]
        for _ in range(num_workers):
            factor = rng.choice((1.0, 2.0, 4.0)) * rng.uniform(0.8, 1.2)
            self.paces.append(PACE.scaled(factor))
            self.rooms.append(rng.choice(ROOMS))
            x, y = rng.choice(regions)
            self._places.append((x + rng.uniform(-0.003, 0.003), y + rng.uniform(-0.003, 0.003)))
            self._lines.append(math.exp(rng.uniform(*map(math.log, LINE_BYTES_PER_S))))

    def topology(self, workers: Sequence[WorkerId]) -> Topology:
        """Of these, as 1, 2, ... in their order."""
        numbers = {HEAD: HEAD, **dict(enumerate(workers, start=1))}
        links = {}
        for source, target in itertools.permutations(numbers, 2):
            ends = numbers[source], numbers[target]
            delay_s = 0.001 + math.dist(*(self._places[end] for end in ends))
            links[source, target] = Link(min(self._lines[end] for end in ends), delay_s)
        devices = {
            number: dataclasses.replace(Device.paced(f"w{worker}", self.paces[worker - 1]), memory_bytes=self.memory(worker))
            for number, worker in numbers.items()
            if number != HEAD
        }
        return Topology(devices, links)

    def memory(self, worker: WorkerId) -> int:
        return self.rooms[worker - 1] * LAYER_BYTES + LAYER_BYTES // 2


def divided(world: World, num_workers: int, num_pipelines: int, budget_s: float) -> tuple[list[Pipeline], float]:
    """By the planner; those that it leaves are spares of whoever has fewest. And the seconds that took."""
    topology = world.topology(range(1, num_workers + 1))
    space = Space(pipelines=num_pipelines, kv_tokens=PAGES * PAGE_SIZE, page_size=PAGE_SIZE)
    begun = time.process_time()
    solution = solve(topology, CARD.shape(CARD.dtype), space, Objective.parse("throughput"), budget_s=budget_s)
    took_s = time.process_time() - begun
    groups = [list(cost.candidate.workers) for cost in solution.pipelines]
    taken = set(itertools.chain.from_iterable(groups))
    for worker in range(1, num_workers + 1):
        if worker not in taken:
            min(groups, key=len).append(worker)
    return [Pipeline(number, tuple(group), members=set(group)) for number, group in enumerate(groups)], took_s


def schedule(pipelines: Sequence[Pipeline], num_workers: int, lasts_s: int, seed: int) -> None:
    """One joins or is lost a second, by chance."""
    rng, newest = random.Random(seed), num_workers
    for second in range(1, lasts_s + 1):
        if rng.random() < 0.5:
            newest += 1
            pipeline = min(pipelines, key=lambda one: len(one.members))
            pipeline.members.add(newest)
            pipeline.changes.append(Change(second, newest, joins=True))
        else:
            among = [(pipeline, worker) for pipeline in pipelines for worker in sorted(pipeline.members)]
            pipeline, worker = rng.choice(among)
            pipeline.members.remove(worker)
            pipeline.changes.append(Change(second, worker, joins=False))


def live(world: World, pipeline: Pipeline, lasts_s: int) -> Lived:
    """Through all that comes and goes."""
    joined = [change.worker for change in pipeline.changes if change.joins]
    workers = [*pipeline.first, *joined]
    paces = [world.paces[worker - 1] for worker in pipeline.first]
    cluster = ChurningCluster(world.topology(workers), paces, pipeline.seed, list(map(world.memory, pipeline.first)))
    for change in pipeline.changes:
        number = workers.index(change.worker) + 1
        cluster.clock.call_at(change.at_s, partial(change.happens, cluster, world.memory(change.worker), number))
    rng = random.Random(pipeline.seed)
    count = int(lasts_s / REQUEST_EVERY_S)
    for request in range(count):
        at_s = (request + rng.random()) * REQUEST_EVERY_S
        cluster.submit([rng.randrange(50_000) for _ in range(PROMPT)], max_new_tokens=NEW, seed=request, at=at_s)
    is_up = cluster.clock.run(lambda: cluster.head.down is not None, deadline_s=lasts_s) is False and cluster.run(
        deadline_s=lasts_s + SETTLE_S
    )
    requests = cluster.requests.values()
    bad = sum(one.error is not None or not one.ended for one in requests)
    is_excused = not is_up and not cluster.can_serve()
    return Lived(
        requests=count,
        losses=len(pipeline.changes) - len(joined),
        joins=len(joined),
        recoveries=cluster.head.num_recoveries,
        replans=len(cluster.head.handovers),
        plans=tuple(cluster.plans),
        down_s=cluster.down_s,
        lost=0 if is_excused else bad,
        unserved=bad if is_excused else 0,
        wrong=sum(one.tokens != oracle(one.prompt, one.seed, LAYERS, NEW)[: len(one.tokens)] for one in requests),
    )


# -- what came of it ---------------------------------------------------------------------------


def judged(found: Sequence[Lived]) -> Iterator[Check]:
    """Everything beside its bound."""
    yield Check("requests lost that could be served", sum(one.lost for one in found), 0, "requests")
    yield Check("requests with other tokens", sum(one.wrong for one in found), 0, "requests")
    least = 0
    for most, bound_s in GOALS:
        took = [1e3 * took_s for one in found for workers, took_s in one.plans if least < workers <= most]
        if took:
            yield Check(f"p99 of {len(took)} plans, {least + 1} to {most} workers", quantile(took, 0.99), 1e3 * bound_s, "ms")
        least = most


def told(found: Sequence[Lived], options: argparse.Namespace) -> str:
    def total(name: str) -> int:
        return sum(getattr(one, name) for one in found)

    down = sum(one.down_s for one in found) / (len(found) * options.seconds)
    return (
        f"{options.workers} workers in {len(found)} pipelines, {options.seconds} s: {total('losses')} went, {total('joins')} came"
        f"; {total('recoveries')} recoveries, {total('replans')} hand-overs; no plan ran {100 * down:.2f} % of the time;"
        f" {total('requests')} requests, {total('unserved')} that no plan could serve"
    )


@program("churn")
def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=whole(2, 10_000), default=1000)
    parser.add_argument("--pipelines", type=whole(1, 1000), default=50)
    parser.add_argument("--seconds", type=whole(1, 10**6), default=600, help="of virtual time (default 600)")
    parser.add_argument("--seed", type=whole(0, 2**31), default=0)
    parser.add_argument("--jobs", type=whole(1, 256), default=2, help="pipelines that are simulated side by side (default 2)")
    parser.add_argument("--budget", type=seconds(0.01, 600), default=10.0, help="of the first division, in seconds")
    parser.add_argument("--json", type=writable, help="also write what became of each pipeline here")
    options = parser.parse_args(arguments)
    print(headline())
    world = World(options.seed, options.workers + options.seconds)
    pipelines, took_s = divided(world, options.workers, options.pipelines, options.budget)
    print(f"divided into {len(pipelines)} pipelines in {took_s:.2f} s of the processor", flush=True)
    schedule(pipelines, options.workers, options.seconds, options.seed)
    with ProcessPoolExecutor(options.jobs) as pool:
        found = list(pool.map(partial(live, world, lasts_s=options.seconds), pipelines))
    print(told(found, options))
    checks = list(judged(found))
    Console(width=110).print(table(checks))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    return 0 if all(check.is_met for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
