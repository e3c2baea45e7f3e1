"""What must cost no worker and no request: processes that stand still for a moment, connections that are reset, a dark hop. And
a hop that stays dark, which must be found and named.

Each is done to a swarm with a spare, behind emulated links, while requests decode. A recovery would show as a lost worker.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from bench.exact import Reference
from bench.mesh import Mesh, MeshSpec
from bench.profiles import load_profile
from bench.same import Comparison, Request, compare
from bench.spread import quantile
from bloombee.errors import BloomBeeError
from bloombee.plan.network import HEAD_NODE
from bloombee.runtime import Runtime
from bloombee.types import SwarmEventKind

MODEL, STAGES = "demo", 3
STOPPED_S, HEAD_S, DARK_S = 0.4, 2.0, 0.5
BEFORE, AFTER = 4, 12
"""Tokens of each request before it happens, and after it is over."""
NEW = 800
"""More than come while it is done."""
LOOPS = 40
"""Tokens of each request before a hop goes dark for good."""
FOUND_S, LOOPS_FACTOR = 0.8, 1.5
DARK_LINKS = ("100M-20ms", "100M-100ms")
LIMIT_S = 120.0
SETTINGS: dict[str, Any] = {"dtype": "float32", "threads": 1, "prefix_cache": False}


@dataclass
class Stall:
    """One thing that was done. ``pause_s``: the longest that any request waited for a token meanwhile."""

    what: str
    links: str
    num_lost_workers: int = 0
    num_failed: int = 0
    pause_s: float = 0.0
    reasons: list[str] = field(default_factory=list)
    same: Comparison = field(default_factory=Comparison)

    @property
    def is_good(self) -> bool:
        return not (self.num_lost_workers or self.num_failed or self.same.num_wrong)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Deed = Callable[[Mesh], Awaitable[None]]


async def _stop_each(mesh: Mesh) -> None:
    for stage in mesh.runtime.plan.stages:
        pid = mesh.runtime.worker_pids[stage.worker]
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(1.0)


async def _stall_head(mesh: Mesh) -> None:
    home = mesh.runtime._home
    assert home is not None
    home.soon(time.sleep, HEAD_S)
    await asyncio.sleep(HEAD_S)


async def _reset_each(mesh: Mesh) -> None:
    for one, other in _links():
        mesh.network.reset(one, other)
        await asyncio.sleep(2.5)


async def _darken_each(mesh: Mesh) -> None:
    for one, other in _links():
        for is_up in (False, True):
            mesh.network.set(one, other, is_up=is_up)
            mesh.network.set(other, one, is_up=is_up)
            await asyncio.sleep(1.0 if is_up else DARK_S)


def _links() -> list[tuple[str, str]]:
    """Of the ring, and those from the head to each worker."""
    workers = [f"w{number}" for number in range(STAGES)]
    return [*itertools.pairwise(workers), *((HEAD_NODE, worker) for worker in workers)]


DEEDS: tuple[tuple[str, str, Deed], ...] = (
    (f"each stage stopped for {STOPPED_S:g} s", "100M-20ms", _stop_each),
    (f"the head stalled for {HEAD_S:g} s", "100M-20ms", _stall_head),
    (f"each link dark for {DARK_S:g} s", "100M-20ms", _darken_each),
    (f"each link dark for {DARK_S:g} s", "100M-100ms", _darken_each),
    ("each link's connections reset", "100M-300ms", _reset_each),
)


async def expected_of(requests: Sequence[Request]) -> list[list[int]]:
    """Undisturbed, without links.

    Raises:
        BloomBeeError: the swarm cannot be started or does not answer.
    """
    async with Runtime(MODEL, workers=STAGES, **SETTINGS) as runtime:
        asked = [_Asked() for _ in requests]
        await asyncio.gather(*(one.ask(runtime, request) for one, request in zip(asked, requests, strict=True)))
    return [one.tokens for one in asked]


async def disturb(number: int, requests: Sequence[Request], expected: Sequence[list[int]], reference: Reference) -> Stall:
    """Do the ``number``-th of :data:`DEEDS`.

    Raises:
        BloomBeeError, WanError: the swarm cannot be started.
    """
    what, links, deed = DEEDS[number]
    stall, asked = Stall(what, links), [_Asked() for _ in requests]
    async with Mesh(MeshSpec(MODEL, STAGES, 1, load_profile(links), SETTINGS)) as mesh:
        tasks = [asyncio.ensure_future(one.ask(mesh.runtime, request)) for one, request in zip(asked, requests, strict=True)]
        try:
            await _until(lambda: all(len(one.tokens) >= BEFORE for one in asked), tasks)
            began = time.monotonic()
            await deed(mesh)
            goals = [min(NEW, len(one.tokens) + AFTER) for one in asked]
            await _until(lambda: all(len(one.tokens) >= goal for one, goal in zip(asked, goals, strict=True)), tasks)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        stall.num_lost_workers = mesh.count(SwarmEventKind.LOST)
    stall.reasons = [str(end) for end in ended if isinstance(end, BloomBeeError)]
    stall.num_failed = sum(len(one.tokens) < goal for one, goal in zip(asked, goals, strict=True))
    stall.pause_s = max(one.longest_pause_s(began) for one in asked)
    for one, request, want in zip(asked, requests, expected, strict=True):
        stall.same.add(await asyncio.to_thread(compare, reference, request, want[: len(one.tokens)], one.tokens))
    return stall


@dataclass
class DarkHop:
    """A hop of the ring that stayed dark while its connections stood.

    Args:
        found_s: until its worker was taken for lost; None: it was not.
        bound_s: in which it must be: the larger of 0.8 s and 1.5 times the 99.9th percentile of a token's time before.
        name: of who was taken for lost.
        ends: the names of the two that it joins.
    """

    links: str
    bound_s: float
    ends: tuple[str, ...]
    found_s: float | None = None
    name: str = ""

    @property
    def is_good(self) -> bool:
        return self.found_s is not None and self.found_s <= self.bound_s and self.name in self.ends


async def darken(links: str, requests: Sequence[Request]) -> DarkHop:
    """Between the first two stages, for good.

    Raises:
        BloomBeeError, WanError: the swarm cannot be started.
    """
    asked = [_Asked() for _ in requests]
    async with Mesh(MeshSpec(MODEL, STAGES, 1, load_profile(links), SETTINGS)) as mesh:
        tasks = [asyncio.ensure_future(one.ask(mesh.runtime, request)) for one, request in zip(asked, requests, strict=True)]
        try:
            await _until(lambda: all(len(one.tokens) >= LOOPS for one in asked), tasks)
            loops = [late - early for one in asked for early, late in itertools.pairwise(one.times)]
            ends = mesh.runtime.plan.stages[:2]
            hop = DarkHop(links, max(FOUND_S, LOOPS_FACTOR * quantile(loops, 0.999)), tuple(stage.name for stage in ends))
            began = time.monotonic()
            for pair in (("w0", "w1"), ("w1", "w0")):
                mesh.network.set(*pair, is_up=False)
            lost_at = await mesh.until(SwarmEventKind.LOST, 1)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if lost_at is not None:
            hop.found_s = lost_at - began
            hop.name = next(event.name for event in mesh.events if event.kind is SwarmEventKind.LOST)
    return hop


class _Asked:
    """The tokens of a request, and when they came."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.times: list[float] = []

    async def ask(self, runtime: Runtime, request: Request) -> None:
        async for token in runtime.stream(request.prompt, max_new_tokens=NEW, ignore_eos=True, **request.fields):
            self.tokens.append(token.token_id)
            self.times.append(time.monotonic())

    def longest_pause_s(self, since: float) -> float:
        times = [since, *(at for at in self.times if at > since)]
        return max((late - early for early, late in itertools.pairwise(times)), default=float("inf"))


async def _until(condition: Callable[[], bool], asked: Sequence[asyncio.Future[None]]) -> None:
    """Until it holds or all requests have ended; at most :data:`LIMIT_S`."""
    stop = time.monotonic() + LIMIT_S
    while not condition() and time.monotonic() < stop and not all(task.done() for task in asked):
        await asyncio.wait(asked, timeout=0.02)


def stalls_table(stalls: Sequence[Stall]) -> Table:
    table = Table(title="what must cost no worker (lost), no request (failed) and no token (wrong): 0")
    for column in ("what", "links", "lost", "failed", "wrong", "flips", "pause, ms"):
        table.add_column(column, justify="left" if column in ("what", "links") else "right")
    for one in stalls:
        counts = (one.num_lost_workers, one.num_failed, one.same.num_wrong, one.same.num_flips, round(1e3 * one.pause_s))
        table.add_row(one.what, one.links, *map(str, counts))
    return table


def hops_table(hops: Sequence[DarkHop]) -> Table:
    table = Table(title="a hop that stays dark")
    for column in ("links", "found after, ms", "bound", "taken for lost", "the hop's ends"):
        table.add_column(column, justify="right")
    for one in hops:
        found = "never" if one.found_s is None else f"{1e3 * one.found_s:.0f}"
        table.add_row(one.links, found, f"{1e3 * one.bound_s:.0f}", one.name, ", ".join(one.ends))
    return table
