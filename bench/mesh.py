"""A swarm in which any two processes are as far apart as a profile says: workers that may take each other's places need that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from bench.arguments import OptionError
from bench.profiles import Profile
from bench.shapes import Shape
from bloombee.config import LocalWorker
from bloombee.plan.document import parse_network
from bloombee.plan.network import HEAD_NODE
from bloombee.runtime import Runtime
from bloombee.types import SwarmEvent, SwarmEventKind, WorkerId
from tools.wan_network import Network


@dataclass(frozen=True, slots=True)
class MeshSpec:
    """What to start. ``settings``: of ``RuntimeConfig``; ``spare``, ``stage``: what all spares, and all others, are like."""

    model: str
    stages: int
    spares: int
    profile: Profile
    settings: dict[str, Any] = field(default_factory=dict)
    spare: LocalWorker = field(default_factory=LocalWorker)
    stage: LocalWorker = field(default_factory=LocalWorker)


class Mesh:
    """A Runtime over such links, and what it says that happened.

    Args:
        meanwhile: is done while the workers start.
    """

    def __init__(self, spec: MeshSpec, meanwhile: Callable[[Mesh], Coroutine[None, None, None]] | None = None) -> None:
        self.spec = spec
        self._meanwhile = meanwhile
        self.runtime: Runtime
        self.network: Network
        self.events: list[SwarmEvent] = []
        """When each had its whole span, by ``time.monotonic``."""
        self.failed_at = 0.0
        """When the start failed, if it did."""
        self._news = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start links and workers and wait until tokens can flow and every spare is there.

        Raises:
            WanError and what :class:`~bloombee.Runtime` raises.
        """
        try:
            await self._start()
        except BaseException:
            self.failed_at = time.monotonic()
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        spec = self.spec
        names = [f"w{number}" for number in range(spec.stages + spec.spares)]
        self.network = network = await asyncio.to_thread(Network(parse_network(_mesh(names, spec.profile))).__enter__)
        self._stack.callback(network.close)
        places = [network.local_worker(name) for name in names]
        self.runtime = Runtime(
            spec.model,
            workers=spec.stages,
            spares=spec.spares,
            listen=network.listen(HEAD_NODE),
            local_workers=[
                _like(spec.stage if number < spec.stages else spec.spare, place) for number, place in enumerate(places)
            ],
            **{
                "restarts": 0,  # what is lost is lost: its loss is what is looked at
                "prefix_cache": False,  # rounds are alike, and each is to compute its prompts
                **spec.settings,
            },
        )
        self._stack.push_async_callback(self.runtime.close)
        await self.runtime.prepare()
        self._stack.push_async_callback(_end, asyncio.ensure_future(self._listen()))
        if self._meanwhile is not None:
            self._stack.push_async_callback(_end, asyncio.ensure_future(self._meanwhile(self)))
        await self.runtime.ready()
        await self.until(SwarmEventKind.JOINED, len(names))
        await self.until(SwarmEventKind.UP, 1)

    async def _listen(self) -> None:
        async for event in self.runtime.events():
            self.events.append(event)
            self._news.set()

    def loaded_at(self, worker: WorkerId) -> float | None:
        """When it had what its stage needs."""
        found = [event.at_s for event in self.events if event.kind is SwarmEventKind.LOADED and event.worker == worker]
        return found[-1] if found else None

    def count(self, kind: SwarmEventKind) -> int:
        return sum(event.kind is kind for event in self.events)

    async def after(self, kind: SwarmEventKind, at_s: float) -> float | None:
        """When the first event of a kind from ``at_s`` on happened; as :meth:`until`."""
        return await self.until(kind, 1, since=at_s)

    async def until(self, kind: SwarmEventKind, count: int, limit_s: float = 60.0, *, since: float = 0.0) -> float | None:
        """When the ``count``-th event of a kind, of those ``since`` then, happened; None: it did not within the limit, or nothing
        runs any more."""
        deadline = time.monotonic() + limit_s
        while True:
            found = [event.at_s for event in self.events if event.kind is kind and event.at_s >= since]
            if len(found) >= count:
                return found[count - 1]
            left = deadline - time.monotonic()
            if left <= 0 or self.count(SwarmEventKind.DOWN):
                return None
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                return None


def require_steady(profile: Profile) -> Shape:
    """The one shape of both directions of every link.

    Raises:
        OptionError: the profile has more than one, or a schedule.
    """
    link = profile.links[0]
    if len(profile.links) > 1 or link.schedule is not None or link.forward != link.backward:
        raise OptionError(f"profile {profile.name!r}: any two may become neighbours, so all links must be alike: 100M-60ms")
    return link.forward


def _mesh(names: Sequence[str], profile: Profile) -> dict[str, Any]:
    shape = require_steady(profile)
    facts: dict[str, Any] = {"delay_s": shape.delay_s, "jitter_s": shape.jitter_s, "loss": shape.loss}
    if shape.bandwidth_bits_per_s is not None:
        facts["bandwidth_bytes_per_s"] = shape.bandwidth_bits_per_s / 8
    nodes = [HEAD_NODE, *names]
    links = [{"from": a, "to": b, **facts} for a in nodes for b in nodes if a != b]
    return {"version": 1, "nodes": {name: {} for name in nodes}, "links": links}


def _like(kind: LocalWorker, place: LocalWorker) -> LocalWorker:
    """``kind``, at ``place``."""
    return replace(place, pace=kind.pace, memory_bytes=kind.memory_bytes, load_bytes_per_s=kind.load_bytes_per_s)


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
