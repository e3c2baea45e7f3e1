"""A link of a swarm that runs becomes a tenth as wide, or a device a quarter as quick: what the requests notice, and how soon
another plan is run.

    python bench/drift.py                          one drift of a swarm of four (some 4 min)
    python bench/drift.py --device
    python bench/drift.py --repeats 3 --calm 120 --json drift.json

Real worker processes behind emulated access lines; devices and weights are emulated. Sequences decode all the time. First for
``--calm`` seconds with nothing changed; then the link that the most activations cross is set to a tenth, or (``--device``) the
process of the second stage is let run for a quarter of the time. Beside it, likewise: a swarm that may not replan (``stays``),
and one that is started when the link is narrow already, or with a worker that says how slow it is (``fresh``).

Bounds: no change of plan while it is calm and at most one after; from second 10 on 90 % of the fresh swarm's tokens/s; no second
below half of what the plan that stays gives on the narrow link; every answer the same tokens as before. Exit status 1: one was
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, seconds, whole, writable
from bench.first_plan import Check, table
from bench.program import headline, program
from bench.shapes import Shape
from bloombee.pace import parse_pace
from bloombee.plan.document import parse_network
from bloombee.plan.network import HEAD_NODE
from bloombee.types import SwarmEventKind
from tools.wan_network import Network

MODEL, PACE = "standin:4096x24", parse_pace("60,6,1/24")
MEMORY_BYTES, KV_TOKENS = 5 * 10**9, 4096
"""For a third of the layers, and some: no plan is without a link."""
NAMES = ("local-0", "local-1", "local-2", "local-3")
BYTES_PER_S, DELAY_S = 4e6, 0.002
NARROW = Shape(bandwidth_bits_per_s=8 * BYTES_PER_S / 10, delay_s=2 * DELAY_S)
SEQUENCES, TOKENS, PROMPT_TOKENS = 16, 64, 16
WARM_S = 6.0
"""For prompts, and for what is tuned while it runs."""
AT_ONCE_S, LATE_S, WATCH_S = 5.0, 10.0, 40.0
"""What the requests notice at first; from when on another plan is to be run; how long it is looked at."""
SHARE, LEAST = 0.9, 0.5
SLOWER, PERIOD_S = 4, 0.12
"""A process that is to be so many times slower stands still for all but that share of each period."""


@dataclass(slots=True)
class Traffic:
    """Sequences that decode all the time, each the same answer again and again.

    Attributes:
        times: of all tokens. answers: that each has given, whole ones.
    """

    runtime: bloombee.Runtime
    times: list[float] = field(default_factory=list)
    answers: list[set[tuple[int, ...]]] = field(default_factory=lambda: [set() for _ in range(SEQUENCES)])
    switches: list[float] = field(default_factory=list)
    """When another plan began to run."""

    async def stream(self, number: int) -> None:
        prompt = [1 + (7 * number + position) % 1000 for position in range(PROMPT_TOKENS)]
        while True:
            ids = []
            async for token in self.runtime.stream(prompt, max_new_tokens=TOKENS, ignore_eos=True, seed=number):
                self.times.append(time.monotonic())
                ids.append(token.token_id)
            self.answers[number].add(tuple(ids))

    async def watch(self) -> None:
        async with contextlib.aclosing(self.runtime.events()) as events:
            async for event in events:
                if event.kind is SwarmEventKind.UP and event.epoch > 1:
                    self.switches.append(event.at_s)

    def rate(self, start_s: float, stop_s: float) -> float:
        """Tokens a second."""
        return sum(start_s <= moment < stop_s for moment in self.times) / (stop_s - start_s)

    def bins(self, start_s: float, stop_s: float) -> list[float]:
        """Of whole seconds."""
        return [self.rate(start_s + second, start_s + second + 1) for second in range(int(stop_s - start_s))]

    def num_switches(self, start_s: float, stop_s: float) -> int:
        return sum(start_s <= moment < stop_s for moment in self.switches)

    @property
    def num_changed(self) -> int:
        """Sequences that have not always said the same."""
        return sum(len(said) > 1 for said in self.answers)


@dataclass(frozen=True, slots=True)
class Drift:
    """Tokens a second: before, in the first seconds after, from LATE_S on; by bins of a second after.

    Args:
        what: became slow.
        calm_switches, switches: changes of plan before and after. switched_s: until the first one after; None: there was none.
        stays, fresh: of the swarms beside it, on the narrow link. changed: sequences of other tokens.
    """

    what: str
    before: float
    at_once: float
    after: float
    bins: tuple[float, ...]
    calm_switches: int
    switches: int
    switched_s: float | None
    stays: float
    fresh: float
    changed: int


@contextlib.asynccontextmanager
async def swarm(net: Network, *, replan: bool, slow: str = "") -> AsyncIterator[Traffic]:
    """One that runs, warm. ``slow``: the worker that says that it is SLOWER times as slow as the others."""
    paces = {name: PACE.scaled(SLOWER) if name == slow else PACE for name in NAMES}
    workers = [replace(net.local_worker(name), pace=str(paces[name]), memory_bytes=MEMORY_BYTES) for name in NAMES]
    runtime = bloombee.Runtime(
        MODEL, workers=len(NAMES), local_workers=workers, listen=net.listen(HEAD_NODE), objective="throughput", scheduler="head",
        replan=replan, kv_tokens=KV_TOKENS, threads=1, silence_s=20.0, step_deadline_s=600.0,
    )  # fmt: skip
    async with runtime:
        traffic = Traffic(runtime)
        tasks = [asyncio.create_task(one) for one in (traffic.watch(), *map(traffic.stream, range(SEQUENCES)))]
        try:
            await asyncio.sleep(WARM_S)
            yield traffic
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def network() -> Network:
    line = {"up_bytes_per_s": BYTES_PER_S, "down_bytes_per_s": BYTES_PER_S, "delay_s": DELAY_S}
    return Network(parse_network({"version": 1, "nodes": dict.fromkeys((HEAD_NODE, *NAMES), line)}))


async def measured(traffic: Traffic, seconds: float) -> tuple[float, float]:
    """When it began and ended."""
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    return begun, time.monotonic()


@contextlib.asynccontextmanager
async def harmed(net: Network, traffic: Traffic, *, is_device: bool) -> AsyncIterator[tuple[str, str]]:
    """The first two stages, between which the link is narrow for good, or of which the second is slow for the block."""
    first, second = traffic.runtime.plan.stages[:2]
    throttling = None
    if is_device:
        throttling = asyncio.create_task(throttle(traffic.runtime.worker_pids[second.worker]))
    else:
        await asyncio.to_thread(net.set, first.name, second.name, NARROW)
    try:
        yield first.name, second.name
    finally:
        if throttling is not None:
            throttling.cancel()
            await asyncio.gather(throttling, return_exceptions=True)


async def throttle(pid: int) -> None:
    """Let a process run for one SLOWERth of each period. A paced device sleeps, and time goes on while it stands still; but what
    it has begun ends only when it runs again, and nothing begins before that. Cancelled: it runs on."""
    try:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(PERIOD_S * (1 - 1 / SLOWER))
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(PERIOD_S / SLOWER)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def drift(calm_s: float, *, is_device: bool) -> Drift:
    """One, and the two swarms beside it.

    Raises:
        BloomBeeError, WanError: a swarm does not come up.
    """
    with await asyncio.to_thread(network().__enter__) as net:
        async with swarm(net, replan=True) as traffic:
            begun, ended = await measured(traffic, calm_s)
            async with harmed(net, traffic, is_device=is_device) as ends:
                cut, over = await measured(traffic, WATCH_S)
            switched = [moment - cut for moment in traffic.switches if moment >= cut]
            mine, calm = traffic, (begun, ended)
    with await asyncio.to_thread(network().__enter__) as net:
        async with swarm(net, replan=False) as beside, harmed(net, beside, is_device=is_device):
            await asyncio.sleep(WARM_S)
            stays = beside.rate(*await measured(beside, LATE_S))
    with await asyncio.to_thread(network().__enter__) as net:
        if not is_device:
            await asyncio.to_thread(net.set, *ends, NARROW)
        async with swarm(net, replan=True, slow=ends[1] if is_device else "") as beside:
            fresh = beside.rate(*await measured(beside, LATE_S))
    return Drift(
        what=f"{ends[1]} {SLOWER} times as slow" if is_device else f"{ends[0]} -> {ends[1]} to a tenth",
        before=mine.rate(*calm),
        at_once=mine.rate(cut, cut + AT_ONCE_S),
        after=mine.rate(cut + LATE_S, over),
        bins=tuple(mine.bins(cut, over)),
        calm_switches=mine.num_switches(*calm),
        switches=len(switched),
        switched_s=min(switched, default=None),
        stays=stays,
        fresh=fresh,
        changed=mine.num_changed,
    )


def judged(found: Drift) -> Iterator[Check]:
    """Everything beside its bound."""
    yield Check("changes of plan while it is calm", found.calm_switches, 0, "changes")
    yield Check("changes of plan after", found.switches, 1, "changes")
    yield Check("tokens/s from second 10 on, over a fresh swarm's", found.after / found.fresh, SHARE, "", at_least=True)
    yield Check("tokens/s of the worst second, over the old plan's", min(found.bins) / found.stays, LEAST, "", at_least=True)
    yield Check("sequences of other tokens", found.changed, 0, "sequences")


def told(found: Drift) -> str:
    when = "no other plan" if found.switched_s is None else f"another plan after {found.switched_s:.1f} s"
    return (
        f"{found.what}: {found.before:.0f} tokens/s before, {found.at_once:.0f} at once,"
        f" {found.after:.0f} from second {LATE_S:.0f} on ({when}); the old plan {found.stays:.0f}, a fresh swarm"
        f" {found.fresh:.0f}"
    )


async def run(repeats: int, calm_s: float, *, is_device: bool) -> list[Drift]:
    found = []
    for _ in range(repeats):
        found.append(await drift(calm_s, is_device=is_device))
        print(told(found[-1]), flush=True)
    return found


@program("drift")
def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=whole(1, 100), default=1)
    parser.add_argument(
        "--calm", type=seconds(5, 3600), default=60.0, help="of each repeat, before the link changes (default 60)"
    )
    parser.add_argument("--device", action="store_true", help="the second stage's machine becomes slow, and no link")
    parser.add_argument("--json", type=writable, help="also write what was found here")
    options = parser.parse_args(arguments)
    print(headline())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # what links were like is not to be remembered
        found = asyncio.run(run(options.repeats, options.calm, is_device=options.device))
    checks = [check for one in found for check in judged(one)]
    for one in found:
        Console(width=110).print(table(list(judged(one))))
    shares = statistics.median(one.after / one.fresh for one in found)
    print(f"median share of a fresh swarm: {shares:.3f}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    return 0 if all(check.is_met for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
