"""What spares that follow stages are worth and cost: how long requests stand when a stage is lost, with and without; throughput.

A Runtime of three workers and a spare, any two of them as far apart as a profile says, serves a model whose weights lie on disk.
When its sequences hold 2,048 tokens, and the spare, if it follows, is no more than some rows behind, the worker of a stage is
ended by SIGKILL. From then until the next token:

detect      until the loss was known.
wire        until each stage knew its new neighbours, what it lacked was loaded, and the head knew that.
replay      until the first token after that: what the spare lacks is said again, and computed there.

With a spare that follows: detect + one loop (the time between two tokens of a sequence before) + 0.5 s at most.

What following costs: two swarms of the same stand-in, one with ``shadow`` and one without, stand side by side and are loaded in
turn (as bench/log_cost.py does); the throughput of the one over that of the other is 0.98 at least. The same in virtual time,
where only wires and devices count and whatever else the machine does changes nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.log_cost import LEAST_RATIO, MODEL, SETTINGS, tokens_per_s
from bench.mesh import Mesh, MeshSpec
from bench.profiles import Profile
from bench.program import BenchError
from bench.recovery import BEFORE, DTYPE, SEQUENCES, STAGES, weights_on_disk
from bench.spread import interval
from bloombee.errors import BloomBeeError
from bloombee.runtime import Runtime
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import LinkShape
from bloombee.types import SwarmEventKind
from tools.wan_native import WanError

HELD = 2048
"""Tokens that all sequences hold together when a worker is killed."""
SLACK_S = 0.5
BEHIND = 16 * SEQUENCES
"""Rows that a spare which follows may lack when the worker is killed: what a few ticks of the clock bring."""
FOLLOWS_S = 60.0
NO_TOKEN_S = 60.0
LOOPS = 8
"""The last ones before, of which the median is taken."""
ROW_BYTES = 8192
SETTLES_S = 3.0
"""Until the spare follows what it can, in virtual time."""
SIMULATED_TOKENS = 150
SIMULATED = ((100e6, 0.03, 1), (100e6, 0.03, 8), (100e6, 0.03, 32), (1000e6, 0.005, 32), (10e6, 0.03, 8))
"""Bandwidth, delay, sequences."""
FAILURES = (BenchError, BloomBeeError, WanError, OSError)
Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Loss:
    """Seconds. ``behind``: rows that the spare lacked when it was last asked; -1: it did not follow."""

    stage: int
    shadow: bool
    behind: int
    loop_s: float
    detect_s: float
    wire_s: float
    replay_s: float

    @property
    def total_s(self) -> float:
        return self.detect_s + self.wire_s + self.replay_s

    @property
    def bound_s(self) -> float:
        """Of one with a spare that follows."""
        return self.detect_s + self.loop_s + SLACK_S

    @property
    def is_good(self) -> bool:
        return not self.shadow or self.total_s <= self.bound_s


async def lose(directory: str, profile: Profile, stage: int, shadow: bool, seed: int) -> Loss:
    """Kill the worker of ``stage`` in a swarm of its own, and take the time.

    Raises:
        BenchError: a request ended, or nothing came any more. BloomBeeError, WanError: the swarm cannot be started.
    """
    settings = {"dtype": DTYPE, "threads": 1, "device": "cpu", "shadow": shadow}
    async with Mesh(MeshSpec(directory, STAGES, 1, profile, settings)) as mesh:
        rng = random.Random(seed)
        times: list[list[float]] = [[] for _ in range(SEQUENCES)]
        prompts = [[rng.randrange(1, 4096) for _ in range(HELD // SEQUENCES - BEFORE)] for _ in times]
        asked = [asyncio.ensure_future(_take(mesh, prompt, one)) for prompt, one in zip(prompts, times, strict=True)]
        try:
            await _until(lambda: min(map(len, times)) >= BEFORE, asked, NO_TOKEN_S)
            behind = await _followed(mesh, stage, asked) if shadow else -1
            return await _kill(mesh, stage, behind, times, asked)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)


async def _take(mesh: Mesh, prompt: list[int], times: list[float]) -> None:
    async for _ in mesh.runtime.stream(prompt, max_new_tokens=1000, ignore_eos=True, temperature=0.0):
        times.append(time.monotonic())  # noqa: PERF401  (whoever waits looks at what there is)


async def _followed(mesh: Mesh, stage: int, asked: Sequence[asyncio.Future[None]]) -> int:
    """Rows that the spare lacks, once those are few."""
    until = time.monotonic() + FOLLOWS_S
    while time.monotonic() < until:
        follows = dict(itertools.chain.from_iterable(one.follows for one in (await mesh.runtime.status()).workers))
        behind = follows.get(stage)
        if behind is not None and behind <= BEHIND:
            return behind
        await asyncio.wait(asked, timeout=0.05)
    raise BenchError(f"no spare followed stage {stage} in {FOLLOWS_S:.0f} s")


async def _kill(mesh: Mesh, stage: int, behind: int, times: Sequence[list[float]], asked: Sequence[asyncio.Future[None]]) -> Loss:
    gaps = [after - before for one in times for before, after in itertools.pairwise(one[-LOOPS - 1 :])]
    killed_at = time.monotonic()
    os.kill(mesh.runtime.worker_pids[mesh.runtime.plan.stages[stage].worker], signal.SIGKILL)
    lost_at, up_at = await mesh.until(SwarmEventKind.LOST, 1), await mesh.until(SwarmEventKind.UP, 2)
    if lost_at is None or up_at is None:
        raise BenchError("nobody took the lost worker's place")
    await _until(lambda: any(one[-1] > up_at for one in times), asked, NO_TOKEN_S)
    first = min(at for one in times for at in one if at > up_at)
    loop_s = statistics.median(gaps)
    return Loss(stage, behind >= 0, behind, loop_s, lost_at - killed_at, up_at - lost_at, first - up_at)


async def _until(holds: Callable[[], bool], asked: Sequence[asyncio.Future[None]], most_s: float) -> None:
    """Raises BenchError: a request ended before, or it took too long."""
    until = time.monotonic() + most_s
    while not holds():
        await asyncio.wait(asked, timeout=0.001)
        if time.monotonic() > until or any(task.done() for task in asked):
            raise BenchError("a request ended, or no token came any more")


async def cost(pairs: int, on_pair: Callable[[], None]) -> list[float]:
    """Throughput of a swarm whose stages are followed over that of one whose are not, of each pair.

    Raises:
        BloomBeeError: a swarm cannot be started or does not answer.
    """
    ratios = []
    async with (
        Runtime(MODEL, **SETTINGS, spares=1, shadow=True) as followed,
        Runtime(MODEL, **SETTINGS, spares=1) as alone,
    ):
        for runtime in (followed, alone):
            await tokens_per_s(runtime)
        for pair in range(pairs):
            rates = {}
            for runtime in (followed, alone) if pair % 2 else (alone, followed):
                rates[runtime] = await tokens_per_s(runtime)
            ratios.append(rates[followed] / rates[alone])
            on_pair()
    return ratios


class _Followed(SimCluster):
    shadows = True


def simulated_cost(bits_per_s: float, delay_s: float, sequences: int) -> tuple[float, float]:
    """As :func:`cost`, in virtual time: three stages that one spare follows; also the bytes on all links, over those without."""
    found = []
    for kind in (_Followed, SimCluster):
        shape = LinkShape(latency_s=delay_s, bandwidth_bytes_per_s=bits_per_s / 8)
        swarm = kind(
            seed=3, num_stages=STAGES, num_spares=1, num_pages=4096, page_size=16, num_microbatches=4, max_rows=64,
            row_bytes=ROW_BYTES, shape=shape,
        )  # fmt: skip
        swarm.clock.run(lambda: False, deadline_s=SETTLES_S)
        for number in range(sequences):
            swarm.submit([number] * 16, max_new_tokens=SIMULATED_TOKENS, seed=number, at=SETTLES_S)
        swarm.run()
        took_s = max(request.token_times[-1] for request in swarm.requests.values()) - SETTLES_S
        found.append((took_s, sum(link.num_bytes for link in swarm.carrier.links.values())))
    (followed_s, followed_bytes), (alone_s, alone_bytes) = found
    return alone_s / followed_s, followed_bytes / alone_bytes


def _run_simulated(keep: Keep, console: Console) -> bool:
    table = Table(title="followed / not, in virtual time")
    for column in ("Mbit/s", "delay", "sequences", "throughput", "bytes"):
        table.add_column(column, justify="right")
    ratios = []
    for bits_per_s, delay_s, sequences in SIMULATED:
        ratio, num_bytes = simulated_cost(bits_per_s, delay_s, sequences)
        ratios.append(ratio)
        keep({"mode": "shadow-simulated", "bits_per_s": bits_per_s, "delay_s": delay_s, "sequences": sequences, "ratio": ratio})
        cells = f"{bits_per_s / 1e6:.0f}", f"{1e3 * delay_s:.0f} ms", str(sequences), f"{ratio:.4f}", f"{num_bytes:.2f}"
        table.add_row(*cells)
    console.print(table)
    return min(ratios) >= LEAST_RATIO


def run_shadows(count: int, profile: Profile, seed: int, keep: Keep, progress: Progress, console: Console) -> bool:
    """``count`` losses with a spare that follows and as many without, stages in turn; as many pairs of loads. Whether all went
    well."""
    task = progress.add_task("shadows", total=3 * count)
    found: list[Loss] = []
    is_whole = True
    with weights_on_disk() as directory:
        for number, shadow in itertools.product(range(count), (True, False)):
            stage = number % STAGES
            try:
                found.append(asyncio.run(lose(directory, profile, stage, shadow, seed + number)))
            except FAILURES as error:
                console.print(f"stage {stage}, {'with' if shadow else 'without'} a spare that follows: {error}")
                is_whole = False
            else:
                keep({"mode": "shadow", "links": profile.name, **asdict(found[-1]), "total_s": found[-1].total_s})
            progress.advance(task)
    console.print(_table(found, profile))
    is_whole = _run_simulated(keep, console) and is_whole
    return _run_cost(count, keep, lambda: progress.advance(task), console) and is_whole and all(one.is_good for one in found)


def _run_cost(pairs: int, keep: Keep, on_pair: Callable[[], None], console: Console) -> bool:
    try:
        ratios = asyncio.run(cost(pairs, on_pair))
    except FAILURES as error:
        console.print(f"cost of being followed: {error}")
        return False
    keep({"mode": "shadow-cost", "model": MODEL, "ratios": ratios})
    low, high = interval([[ratio] for ratio in ratios])
    median = statistics.median(ratios)
    figures = f"{median:.4f} of the throughput, 90 % interval {low:.4f} to {high:.4f} (bound: {LEAST_RATIO})"
    console.print(f"followed / not, {pairs} pairs: {figures}")
    return median >= LEAST_RATIO


def _table(losses: Sequence[Loss], profile: Profile) -> Table:
    table = Table(title=f"a stage is lost at {profile.name}, {HELD} tokens held: milliseconds")
    for column in ("stage", "follows", "rows behind", "loop", "detect", "wire", "replay", "all", "bound", ""):
        table.add_column(column, justify="right")
    for one in losses:
        parts = (one.loop_s, one.detect_s, one.wire_s, one.replay_s, one.total_s)
        bound, verdict = (f"{1e3 * one.bound_s:.0f}", "good" if one.is_good else "over") if one.shadow else ("", "")
        who = ("yes", str(one.behind)) if one.shadow else ("no", "")
        table.add_row(str(one.stage), *who, *(f"{1e3 * part:.0f}" for part in parts), bound, verdict)
    return table
