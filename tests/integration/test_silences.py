"""Links that fall silent while their connections stand: short silences change nothing, long ones are found soon and named."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import psutil
import pytest
from relay_kit import RelayNetwork, behind_relays, stream_tokens
from stall_kit import StallWatch

import bloombee
from bloombee.config import SILENCE_S
from bloombee.errors import LinkDown

PROMPT = "import "
BOUND_S = 0.8
HOPS = [0, 1, 2]
"""To the second stage, to the third, and home to the head."""


@contextlib.asynccontextmanager
async def swarm(rtt_s: float, silence_s: float | None = None) -> AsyncIterator[tuple[bloombee.Runtime, RelayNetwork, list[str]]]:
    """Three workers behind relays, and the kinds of what happens to them."""
    happened: list[str] = []
    async with behind_relays(rtt_s, silence_s=silence_s) as (runtime, network):

        async def listen() -> None:
            async for event in runtime.events():
                happened.append(str(event.kind))  # noqa: PERF401

        listening = asyncio.ensure_future(listen())
        try:
            yield runtime, network, happened
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("hop", HOPS)
@pytest.mark.parametrize("rtt_ms", [20, 100])
def test_a_hop_that_goes_dark_with_its_connections_up_is_found_and_named_in_0_8_s(rtt_ms: int, hop: int) -> None:
    async def use() -> None:
        async with swarm(rtt_ms / 1e3, SILENCE_S) as (runtime, network, _):
            begun = asyncio.Event()
            request = asyncio.ensure_future(stream_tokens(runtime, PROMPT, 1900, begun))
            await asyncio.wait_for(begun.wait(), 60)
            with StallWatch() as stalls:
                network.ring[hop].is_dark = True
                since = time.monotonic()
                with pytest.raises(LinkDown) as caught:
                    await asyncio.wait_for(request, 30)
                took_s = time.monotonic() - since
            named = "'local-2'" if hop == 2 else f"'local-{hop}' cannot reach worker 'local-{hop + 1}'"
            assert named in str(caught.value)
            assert "nothing has come from it" in str(caught.value)
            # A stall keeps everybody from running: it lengthens the silence, and more than once where it slows more processes.
            assert took_s <= BOUND_S + 3 * stalls.stalled_s(since)

    asyncio.run(use())


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("hop", HOPS)
def test_a_hop_that_is_dark_for_half_a_second_costs_nothing(hop: int) -> None:
    async def use() -> None:
        async with swarm(0.02) as (runtime, network, happened):
            wanted = await stream_tokens(runtime, PROMPT, 40)
            begun = asyncio.Event()
            request = asyncio.ensure_future(stream_tokens(runtime, PROMPT, 40, begun))
            await asyncio.wait_for(begun.wait(), 60)
            network.ring[hop].is_dark = True
            await asyncio.sleep(0.5)  # what is tested is this long
            network.ring[hop].is_dark = False
            assert await asyncio.wait_for(request, 60) == wanted
            assert await stream_tokens(runtime, PROMPT, 40) == wanted
            assert {"lost", "down"}.isdisjoint(happened)

    asyncio.run(use())


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("stage", HOPS)
def test_a_worker_that_is_stopped_for_0_4_s_costs_nothing(stage: int) -> None:
    async def use() -> None:
        async with swarm(0.02) as (runtime, _, happened):
            wanted = await stream_tokens(runtime, PROMPT, 40)
            begun = asyncio.Event()
            request = asyncio.ensure_future(stream_tokens(runtime, PROMPT, 40, begun))
            await asyncio.wait_for(begun.wait(), 60)
            pid = runtime.worker_pids[runtime.plan.stages[stage].worker]
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.4)  # what is tested is this long
            os.kill(pid, signal.SIGCONT)
            assert await asyncio.wait_for(request, 60) == wanted
            assert {"lost", "down"}.isdisjoint(happened)

    asyncio.run(use())


HEAD = """
import asyncio, bloombee, sys
async def main():
    async with bloombee.Runtime("demo", workers=3, dtype="float32", threads=1) as runtime:
        happened = []
        async def listen():
            async for event in runtime.events():
                happened.append(str(event.kind))
        listening = asyncio.ensure_future(listen())
        found = []
        async for token in runtime.stream("import ", max_new_tokens=300, ignore_eos=True):
            found.append(token.token_id)
            if len(found) == 4:
                print("begun", flush=True)
        print(len(found), "lost" in happened or "down" in happened, flush=True)
asyncio.run(main())
"""


@pytest.mark.timeout(150)
def test_a_head_that_stands_still_for_two_seconds_loses_nobody() -> None:
    head = subprocess.Popen([sys.executable, "-c", HEAD], stdout=subprocess.PIPE, text=True)
    assert head.stdout is not None
    try:
        assert head.stdout.readline() == "begun\n"
        psutil.Process(head.pid).suspend()
        time.sleep(2.0)  # what is tested is this long
        psutil.Process(head.pid).resume()
        assert head.stdout.readline() == "300 False\n"
        assert head.wait(30) == 0
    finally:
        head.kill()
        head.wait()
        head.stdout.close()
