"""A placement on the wall: real processes with paced stand-ins, and links between any two of the world's nodes."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from bench.foretold import foretell
from bench.load import Run, measure, settle, warm_up
from bench.placed import Demand, Way
from bench.predict import Prediction
from bench.profiles import LinkProfile, load_profile
from bench.ring import until_idle
from bench.shapes import Shape
from bench.texts import prompts
from bench.worlds import Placement, World, network
from bloombee.plan.network import HEAD_NODE
from bloombee.runtime import Runtime
from bloombee.types import HEAD
from tools.wan_network import Network


class PlacedRing:
    """Up for the length of an ``async with``; as :class:`bench.load.Swarm`."""

    def __init__(self, world: World, placement: Placement, way: Way, demand: Demand) -> None:
        self.profile = load_profile("lan")
        self.is_reshaped = False
        self.runtime: Runtime
        self._world, self._placement, self._way, self._demand = world, placement, way, demand
        self._nodes = (HEAD_NODE, *(world.node(worker) for worker in placement.workers), HEAD_NODE)
        self._network: Network
        self._stack = AsyncExitStack()
        self._decisions = Path(self._stack.enter_context(TemporaryDirectory())) / "decisions.jsonl"

    async def __aenter__(self) -> Self:
        """Start links and workers and wait until tokens can flow.

        Raises:
            WanError and what :class:`~bloombee.Runtime` raises.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        spec = network(self._world, self._placement)
        self._network = await asyncio.to_thread(Network(spec).__enter__)
        self._stack.callback(self._network.close)
        self.runtime = Runtime(
            self._world.model,
            workers=len(self._placement.workers),
            split=self._placement.layers,
            microbatches=self._way.microbatches,
            codec="auto" if self._way.codec else "off",
            kv_tokens=self._demand.kv_tokens,
            prefix_cache=False,  # rounds are alike, and each is to compute its prompts
            silence_s=20.0,  # a machine at its limits is slow, not gone
            step_deadline_s=600.0,
            threads=1,
            listen=self._network.listen(HEAD_NODE),
            local_workers=[self._network.local_worker(name) for name in self._nodes[1:-1]],
            decisions=str(self._decisions),
        )
        await self._stack.enter_async_context(self.runtime)

    @property
    def is_tuned(self) -> bool:
        return self.tunes_microbatches or self._way.codec

    @property
    def tunes_microbatches(self) -> bool:
        return self._way.microbatches is None

    @property
    def relay_pid(self) -> int | None:
        return self._network.pid

    def links(self) -> list[LinkProfile]:
        """In ring order, from the head on."""
        ends = (HEAD, *self._placement.workers, HEAD)
        topology = self._world.topology
        shapes = [Shape(delay_s=topology.link(*pair).latency_s) for pair in itertools.pairwise(ends)]
        return [LinkProfile(shape, shape) for shape in shapes]

    def begin_schedule(self) -> None:
        self._network.start()

    async def link_bytes(self) -> list[int]:
        stats = await asyncio.to_thread(self._network.stats)
        return [stats.links[pair].forward.bytes_in for pair in itertools.pairwise(self._nodes)]

    async def until_idle(self) -> None:
        await until_idle(self.runtime)

    def foretell(self) -> Prediction | None:
        """What it expects of itself now; None where nothing is tuned, and so nothing weighed."""
        return foretell(self._decisions.read_text().splitlines(), self._demand.batch) if self.tunes_microbatches else None


async def on_wall(
    world: World, placement: Placement, way: Way, demand: Demand, on_foretold: Callable[[Prediction], None]
) -> tuple[Prediction, Run]:
    """What :func:`bench.placed.simulate` simulates; (as it is predicted, all that was measured).

    Args:
        on_foretold: gets what the swarm expects of itself, before it is measured; where it weighs anything.

    Raises:
        BenchError, WanError, BloomBeeError: it could not be measured.
    """
    async with PlacedRing(world, placement, way, demand) as ring:
        await warm_up(ring)
        texts = prompts(demand.batch, demand.prompt_tokens, ring.runtime.card.tokenizer_json)
        await settle(ring, texts, demand.tokens, limit=demand.most_tokens)
        if (expected := ring.foretell()) is not None:
            on_foretold(expected)
        run = await measure(ring, texts, demand.tokens, prefill=False, limit=demand.most_tokens)
    return Prediction(run.decode_tokens_per_s, statistics.median(run.gaps_s)), run
