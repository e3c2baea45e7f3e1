"""What a swarm knows before its first plan, how soon, and whether the plan is what the network that was asked for deserves.

    python bench/first_plan.py                     8 workers and a head, each behind an access line of its own (1.5 min)
    python bench/first_plan.py --seed 7 --json first_plan.json

Real worker processes join a head over emulated access lines (up, down and delay at random, 2 to ``--most-mbit`` Mbit/s, 1 to
60 ms), in random order. One device is four times slower, one worker can only dial out. Devices are emulated, and so are
weights: joining, meeting, measuring and planning are not. The head is not told what to do with them. Then the same workers, by
key and address, join a new head that remembers the links.

Every figure stands beside its bound: all directed links known before the plan, 20 s after the last worker has joined at the
latest; bandwidth within 10 % of what was asked for, round trips within 5 % and 1 ms; by the figures that were asked for the
plan within 5 % of the best in tokens/s and in the time per token of one sequence; running 20 s after the last has joined,
loading apart; the second time 3 s and six of the longest round trips after it. Exit status 1: a bound was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, seconds, whole, writable
from bench.program import BenchError, headline, program
from bloombee.config import WorkerConfig
from bloombee.objective import Objective
from bloombee.pipeline.swarm import FirstPlan, PlanRequest
from bloombee.pipeline.swarm.figures import Figure
from bloombee.plan.candidate import Candidate
from bloombee.plan.choose import choose
from bloombee.plan.cost import evaluate
from bloombee.plan.document import parse, parse_network
from bloombee.plan.network import HEAD_NODE
from bloombee.plan.plan import Plan
from bloombee.plan.problem import problem_of
from bloombee.plan.solve import alone
from bloombee.plan.topology import Topology
from bloombee.roles.spawner_client import SpawnerClient
from bloombee.transport.keys import KeyPair, generate
from bloombee.types import HEAD, SwarmEvent, SwarmEventKind, WorkerId
from tools.wan_network import Network

MODEL = "standin:1024x24"
PACE, SLOW = "24,0.6,0.3/24", "96,2.4,1.2/24"
MEMORY_BYTES = 1 << 30
COUNTS = ("links", "changes", "sequences")
"""Units of what is counted."""
LEAST_BITS = 2e6
LEAST_DELAY_S, MOST_DELAY_S = 0.001, 0.060
KNOWN_S, REMEMBERED_S, TRIPS = 20.0, 3.0, 6
BANDWIDTH_ERROR, RTT_SHARE, RTT_S = 0.10, 0.05, 1e-3
WORSE = 0.05
PATIENCE_S = 120.0
"""For a start, before it counts as failed."""
Link = tuple[WorkerId, WorkerId]


@dataclass(frozen=True, slots=True)
class World:
    """What is asked for.

    Args:
        nodes: access lines by name, the head's too. slow: whose device is; dials_only: whom nobody gets through to.
        order: in which workers are started.
    """

    nodes: dict[str, dict[str, float]]
    slow: str
    dials_only: str
    order: tuple[str, ...]

    @classmethod
    def random(cls, seed: int, num_workers: int, most_bits: float) -> World:
        rng = random.Random(f"first plan {seed}")
        names = [f"w{number}" for number in range(num_workers)]
        nodes = {}
        for name in (HEAD_NODE, *names):
            up, down = (LEAST_BITS * (most_bits / LEAST_BITS) ** rng.random() / 8 for _ in range(2))
            nodes[name] = {
                "up_bytes_per_s": up, "down_bytes_per_s": down, "delay_s": rng.uniform(LEAST_DELAY_S, MOST_DELAY_S)
            }  # fmt: skip
        slow, dials_only = rng.sample(names, 2)
        return cls(nodes, slow, dials_only, tuple(rng.sample(names, num_workers)))

    def network(self) -> Network:
        """As emulated links."""
        others = (name for name in self.nodes if name != self.dials_only)
        links = [{"from": name, "to": self.dials_only, "reachable": False} for name in others]
        return Network(parse_network({"version": 1, "nodes": self.nodes, "links": links}))

    def topology(self, names: Sequence[str]) -> Topology:
        """As a planner is asked about it, workers numbered as they are named here."""
        workers = {name: {"pace": SLOW if name == self.slow else PACE, "memory_bytes": MEMORY_BYTES} for name in names}
        nodes = {HEAD_NODE: self.nodes[HEAD_NODE], **{name: {**self.nodes[name], "worker": workers[name]} for name in names}}
        return problem_of(parse({"version": 1, "nodes": nodes, "model": {"hidden": 1024, "num_layers": 24}})).topology

    def asked(self, source: str, target: str) -> Figure:
        """What a measurement should find."""
        one, other = self.nodes[source], self.nodes[target]
        return Figure(
            2 * (one["delay_s"] + other["delay_s"]), bandwidth_bytes_per_s=min(one["up_bytes_per_s"], other["down_bytes_per_s"])
        )


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the swarm.

    Args:
        names: of the workers by their numbers. found: links as they were measured.
        known_s, running_s: after the last worker had joined; loading_s: of ``running_s`` that passed before all had loaded.
    """

    names: dict[WorkerId, str]
    found: dict[Link, Figure]
    plan: Plan
    request: PlanRequest
    known_s: float
    running_s: float
    loading_s: float


@dataclass(frozen=True, slots=True)
class Check:
    """A figure beside its bound."""

    what: str
    found: float
    bound: float
    unit: str
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        return self.found >= self.bound if self.at_least else self.found <= self.bound


@contextlib.asynccontextmanager
async def workers() -> AsyncIterator[SpawnerClient]:
    """What starts them: a process of its own, which has torch already, as each of their machines would."""
    spawner = SpawnerClient(on_exit=lambda pid, status: None, on_lost=lambda: None)
    spawner.start()
    try:
        await spawner.ask("warm")
        yield spawner
    finally:
        await spawner.close()


async def start(world: World, net: Network, keys: Mapping[str, KeyPair]) -> Start:
    """All join a new head, each with the key that it always has, and leave it when it runs.

    Raises:
        BenchError: it does not come up; BloomBeeError: why.
    """
    runtime = bloombee.Runtime(
        MODEL, remote_workers=len(world.order), listen=net.listen(HEAD_NODE), advertise=net.endpoint(HEAD_NODE)
    )
    async with workers() as spawner:
        await runtime.prepare()
        try:
            for token, name in zip(runtime.join_tokens, world.order, strict=True):
                await spawner.spawn(worker(world, net, name, token), keys[name])
            async with asyncio.timeout(PATIENCE_S):
                await runtime.ready()
            return await taken(runtime)
        except TimeoutError:
            raise BenchError(f"the swarm did not come up within {PATIENCE_S:g} s") from None
        finally:
            await runtime.close()


def worker(world: World, net: Network, name: str, token: str) -> WorkerConfig:
    """At its place in the network."""
    return WorkerConfig(
        join=token,
        name=name,
        listen=net.listen(name),
        advertise=net.endpoint(name),
        source=net.source(name),
        pace=SLOW if name == world.slow else PACE,
        memory_bytes=MEMORY_BYTES,
        device="cpu",
        threads=1,
        log_level="warning",
    )


async def taken(runtime: bloombee.Runtime) -> Start:
    """What there is to know of a start that has succeeded."""
    events = await so_far(runtime)
    joined = [event for event in events if event.kind is SwarmEventKind.JOINED]
    last = joined[-1].at_s
    planned, up = (
        next(event.at_s for event in events if event.kind is kind) for kind in (SwarmEventKind.PLANNED, SwarmEventKind.UP)
    )
    loaded = max(event.at_s for event in events if event.kind is SwarmEventKind.LOADED)
    core = runtime._head.core
    assert core.survey is not None
    names = {event.worker: event.name for event in joined if event.worker is not None}
    return Start(names, dict(core.survey.found), runtime.plan, core.request, planned - last, up - last, loaded - planned)


async def so_far(runtime: bloombee.Runtime) -> list[SwarmEvent]:
    """Events until it runs."""
    events = []
    async with contextlib.aclosing(runtime.events()) as happening:
        async for event in happening:
            events.append(event)
            if event.kind is SwarmEventKind.UP:
                break
    return events


# -- judging -----------------------------------------------------------------------------------


def judged(world: World, first: Start, again: Start) -> Iterator[Check]:
    """Everything beside its bound."""
    names = {HEAD: HEAD_NODE, **first.names}
    pairs = {link: world.asked(names[link[0]], names[link[1]]) for link in itertools.permutations(names, 2)}
    known = {link: figure for link, figure in first.found.items() if figure.bandwidth_bytes_per_s is not None}
    yield Check("directed links known before the plan", len(known), len(pairs), "links", at_least=True)
    yield Check("known after the last has joined", first.known_s, KNOWN_S, "s")
    errors = [_off(known[link].bandwidth_bytes_per_s, pairs[link].bandwidth_bytes_per_s) for link in known]
    yield Check("bandwidth, worst", max(errors), BANDWIDTH_ERROR, "")
    yield Check("bandwidth, median", statistics.median(errors), BANDWIDTH_ERROR, "")
    excess = [abs(known[link].rtt_s - pairs[link].rtt_s) - RTT_SHARE * pairs[link].rtt_s for link in known]
    yield Check("round trip beyond 5 %, worst", 1e3 * max(0.0, *excess), 1e3 * RTT_S, "ms")
    yield from _plan_checks(world, first)
    yield Check("running after the last has joined, loading apart", first.running_s - first.loading_s, KNOWN_S, "s")
    longest_s = max(figure.rtt_s for figure in pairs.values())
    within_s = REMEMBERED_S + TRIPS * longest_s
    yield Check("the second time: running, loading apart", again.running_s - again.loading_s, within_s, "s")


def _off(found: float | None, asked: float | None) -> float:
    assert found is not None
    assert asked is not None
    return abs(found / asked - 1)


def _plan_checks(world: World, first: Start) -> Iterator[Check]:
    """The plan and the best one, both by the figures that were asked for."""
    topology = world.topology([first.names[worker] for worker in sorted(first.names)])
    number = {worker: place for place, worker in enumerate(sorted(first.names), HEAD + 1)}
    card, wish = first.request.card, FirstPlan(first.request).wish()
    model, space = wish.shape(card, wish.num_pages), wish.space(card, wish.num_pages)
    best = choose(topology, card, wish, first.request.objective or Objective()).prediction
    prediction = first.plan.prediction
    assert prediction is not None
    candidate = Candidate(
        workers=tuple(number[stage.worker] for stage in first.plan.stages),
        layers=tuple(len(stage.span) for stage in first.plan.stages),
        num_microbatches=prediction.num_microbatches,
        microbatch_sequences=prediction.microbatch_sequences,
        ratios=prediction.ratios,
        context=space.context,
        kv_tokens=space.kv_tokens,
        page_size=space.page_size,
        max_rows=space.max_rows,
        scheduler=first.plan.scheduler,
    )
    cost = evaluate(candidate, topology, model)
    alone_s = alone(candidate, topology, model, space.ratios).time_per_token_s
    yield Check("plan: tokens/s over the best plan's", cost.tokens_per_s / best.tokens_per_s, 1 - WORSE, "", at_least=True)
    yield Check("plan: time per token alone over the best plan's", alone_s / best.alone_s, 1 + WORSE, "")


def table(checks: Sequence[Check]) -> Table:
    shown = Table("", "found", "bound", "")
    for check in checks:
        digits = ".0f" if check.unit in COUNTS else ".3f" if not check.unit else ".2f"
        sign = ">=" if check.at_least else "<="
        unit = f" {check.unit}" if check.unit else ""
        shown.add_row(
            check.what, f"{check.found:{digits}}{unit}", f"{sign} {check.bound:{digits}}{unit}", "" if check.is_met else "MISSED"
        )
    return shown


async def measure(world: World) -> tuple[Start, Start]:
    keys = {name: generate() for name in world.order}
    with await asyncio.to_thread(world.network().__enter__) as net:
        return await start(world, net, keys), await start(world, net, keys)


@program("first_plan")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=whole(0, 10**6), default=0)
    parser.add_argument("--workers", type=whole(2, 16), default=8)
    parser.add_argument("--most-mbit", type=seconds(2, 1000, "Mbit/s"), default=200.0, help="of an access line (default 200)")
    parser.add_argument("--json", type=writable, help="also write what was found here")
    arguments = parser.parse_args()
    world = World.random(arguments.seed, arguments.workers, arguments.most_mbit * 1e6)
    print(headline())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # so that the first start remembers nothing, and the second what the first found
        first, again = asyncio.run(measure(world))
    checks = list(judged(world, first, again))
    Console(width=110).print(table(checks))
    print(f"{first.plan.prediction}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_record(world, first, checks), indent=1) + "\n")
    return 0 if all(check.is_met for check in checks) else 1


def _record(world: World, first: Start, checks: Sequence[Check]) -> dict[str, Any]:
    names = {HEAD: HEAD_NODE, **first.names}
    links = [
        {"from": names[a], "to": names[b], "asked": asdict(world.asked(names[a], names[b])), "found": asdict(figure)}
        for (a, b), figure in sorted(first.found.items())
    ]
    return {"world": asdict(world), "links": links, "checks": [asdict(check) for check in checks], "plan": first.plan.summary()}


if __name__ == "__main__":
    sys.exit(main())
