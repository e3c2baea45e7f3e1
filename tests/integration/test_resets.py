"""Connections that are reset once, on short links and long: the swarm goes on as if nothing had been."""

from __future__ import annotations

import asyncio

import pytest
from relay_kit import behind_relays, stream_tokens

from bloombee.errors import LinkDown

LONG_PROMPT = "import os\n" * 60
"""Of many chunks, so that the bulk lanes have something to lose."""


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("rtt_ms", [20, 150, 300])
def test_a_swarm_outlives_a_reset_of_every_connection(rtt_ms: int) -> None:
    """Head to each worker, worker to worker, both lanes; while prompts and decode are under way. The same tokens come."""

    async def use() -> None:
        async with behind_relays(rtt_ms / 1000, max_microbatch_rows=64) as (runtime, network):
            wanted = [await stream_tokens(runtime, prompt, 12) for prompt in ("import ", LONG_PROMPT)]
            begun = asyncio.Event()
            short = asyncio.ensure_future(stream_tokens(runtime, "import ", 12, begun))
            await asyncio.wait_for(begun.wait(), 60)
            long = asyncio.ensure_future(stream_tokens(runtime, LONG_PROMPT, 12))
            before = [relay.num_accepted for relay in network.relays]
            await asyncio.sleep(0)  # the prompt is on its way
            for relay in network.relays:
                assert relay.num_open == 4  # two lanes, two ends
                relay.reset()
            assert await asyncio.wait_for(asyncio.gather(short, long), 90) == wanted
            assert [relay.num_accepted - n for relay, n in zip(network.relays, before, strict=True)] == [2] * 5
            assert await stream_tokens(runtime, "import ", 12) == wanted[0]
            assert set(await runtime.pages_free()) == {runtime.plan.groups[0].num_pages}

    asyncio.run(use())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_idle_swarm_outlives_a_reset_too() -> None:
    """Nothing is said over the ring that would show who is back, for far longer than a link may be away."""

    async def use() -> None:
        async with behind_relays(0.1) as (runtime, network):
            wanted = await stream_tokens(runtime, "import ", 8)
            for relay in network.relays:
                relay.reset()
            for _ in range(60):  # questions go over the head's links alone; each takes a round trip
                await runtime.pages_free()
            assert await asyncio.wait_for(stream_tokens(runtime, "import ", 8), 30) == wanted

    asyncio.run(use())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_hop_that_swallows_everything_is_found_and_named() -> None:
    """Both workers answer the head; only what goes between them is lost."""

    async def use() -> None:
        async with behind_relays(0.0) as (runtime, network):
            begun = asyncio.Event()
            request = asyncio.ensure_future(stream_tokens(runtime, "import ", 1900, begun))
            await asyncio.wait_for(begun.wait(), 60)
            network.hops[1].is_deaf = True
            with pytest.raises(LinkDown) as caught:
                await asyncio.wait_for(request, 30)
            assert "'local-1' cannot reach worker 'local-2'" in str(caught.value)

    asyncio.run(use())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_bit_that_flips_on_the_way_is_asked_for_again_and_costs_no_worker() -> None:
    """Only without encryption can it get as far as the frame's checksum."""

    async def use() -> None:
        settings = {"curve": False, "codec": "off", "max_microbatch_rows": 64, "prefix_cache": False}
        async with behind_relays(0.0, **settings) as (runtime, network):
            wanted = await stream_tokens(runtime, LONG_PROMPT, 12)
            for hop in network.hops:
                hop.num_to_damage = 1
                assert await asyncio.wait_for(stream_tokens(runtime, LONG_PROMPT, 12), 60) == wanted
                assert hop.num_to_damage == 0

    asyncio.run(use())
