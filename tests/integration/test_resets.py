"""Connections that are reset once, on short links and long: the swarm goes on as if nothing had been."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from relay_kit import Relay, free_port

import bloombee
from bloombee.config import LocalWorker
from bloombee.errors import LinkDown

LONG_PROMPT = "import os\n" * 60
"""Of many chunks, so that the bulk lanes have something to lose."""


@dataclass
class Network:
    """Relays between a head and its workers, and before the workers that are dialled."""

    heads: list[Relay]
    hops: list[Relay]

    @property
    def relays(self) -> list[Relay]:
        return [*self.heads, *self.hops]


@asynccontextmanager
async def behind_relays(rtt_s: float, **arguments: object) -> AsyncIterator[tuple[bloombee.Runtime, Network]]:
    """Three workers, each link of which goes through a relay."""
    listen, ports = free_port(), [free_port() for _ in range(3)]
    network = Network([Relay(listen, rtt_s) for _ in range(3)], [Relay(port, rtt_s) for port in ports[1:]])
    for relay in network.relays:
        await relay.listen()
    advertised = [None, *(hop.endpoint for hop in network.hops)]
    places = [
        LocalWorker(head_endpoint=head.endpoint, listen=f"tcp://127.0.0.1:{port}", advertise=advertise)
        for head, port, advertise in zip(network.heads, ports, advertised, strict=True)
    ]
    runtime = bloombee.Runtime(
        "demo", workers=3, dtype="float32", threads=1, listen=f"tcp://127.0.0.1:{listen}", local_workers=places, **arguments
    )
    try:
        async with runtime:
            yield runtime, network
    finally:
        for relay in network.relays:
            relay.close()


async def _tokens(runtime: bloombee.Runtime, prompt: str, count: int, begun: asyncio.Event | None = None) -> list[int]:
    found = []
    async for token in runtime.stream(prompt, max_new_tokens=count, ignore_eos=True):
        found.append(token.token_id)
        if begun is not None and len(found) == 4:
            begun.set()
    return found


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("rtt_ms", [20, 150, 300])
def test_a_swarm_outlives_a_reset_of_every_connection(rtt_ms: int) -> None:
    """Head to each worker, worker to worker, both lanes; while prompts and decode are under way. The same tokens come."""

    async def use() -> None:
        async with behind_relays(rtt_ms / 1000, max_microbatch_rows=64) as (runtime, network):
            wanted = [await _tokens(runtime, prompt, 12) for prompt in ("import ", LONG_PROMPT)]
            begun = asyncio.Event()
            short = asyncio.ensure_future(_tokens(runtime, "import ", 12, begun))
            await asyncio.wait_for(begun.wait(), 60)
            long = asyncio.ensure_future(_tokens(runtime, LONG_PROMPT, 12))
            before = [relay.num_accepted for relay in network.relays]
            await asyncio.sleep(0)  # the prompt is on its way
            for relay in network.relays:
                assert relay.num_open == 4  # two lanes, two ends
                relay.reset()
            assert await asyncio.wait_for(asyncio.gather(short, long), 90) == wanted
            assert [relay.num_accepted - n for relay, n in zip(network.relays, before, strict=True)] == [2] * 5
            assert await _tokens(runtime, "import ", 12) == wanted[0]
            assert set(await runtime.pages_free()) == {runtime.plan.groups[0].num_pages}

    asyncio.run(use())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_idle_swarm_outlives_a_reset_too() -> None:
    """Nothing is said over the ring that would show who is back, for far longer than a link may be away."""

    async def use() -> None:
        async with behind_relays(0.1) as (runtime, network):
            wanted = await _tokens(runtime, "import ", 8)
            for relay in network.relays:
                relay.reset()
            for _ in range(60):  # questions go over the head's links alone; each takes a round trip
                await runtime.pages_free()
            assert await asyncio.wait_for(_tokens(runtime, "import ", 8), 30) == wanted

    asyncio.run(use())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_hop_that_swallows_everything_is_found_and_named() -> None:
    """Both workers answer the head; only what goes between them is lost."""

    async def use() -> None:
        async with behind_relays(0.0) as (runtime, network):
            begun = asyncio.Event()
            request = asyncio.ensure_future(_tokens(runtime, "import ", 1900, begun))
            await asyncio.wait_for(begun.wait(), 60)
            network.hops[1].is_deaf = True
            with pytest.raises(LinkDown) as caught:
                await asyncio.wait_for(request, 30)
            assert "'local-1' cannot reach worker 'local-2'" in str(caught.value)

    asyncio.run(use())
