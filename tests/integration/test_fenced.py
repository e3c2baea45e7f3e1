"""A worker that stood still for so long that another has its stage: what it had meant to say counts for nobody."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import bloombee
from bloombee.types import SwarmEventKind
from tests.ask_kit import PROMPTS, ask


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_worker_that_goes_on_in_the_middle_of_the_requests_doubles_no_token(stage: int) -> None:
    """Stopped while all decode, and let go on as soon as another has its stage."""

    async def use() -> None:
        async with bloombee.Runtime(
            "demo", workers=3, spares=1, dtype="float32", threads=1, heartbeat_s=0.1, silence_s=1.0
        ) as runtime:
            happened: asyncio.Queue[SwarmEventKind] = asyncio.Queue()
            listening = asyncio.ensure_future(_listen(runtime, happened))
            undisturbed = await asyncio.gather(*(ask(runtime, number) for number in range(len(PROMPTS))))
            came: asyncio.Queue[int] = asyncio.Queue()
            asked = [asyncio.ensure_future(ask(runtime, number, came)) for number in range(len(PROMPTS))]
            await came.get()
            pid = runtime.worker_pids[runtime.plan.stages[stage].worker]
            os.kill(pid, signal.SIGSTOP)
            try:
                await _until(happened, SwarmEventKind.LOST)
                await _until(happened, SwarmEventKind.UP)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert await asyncio.gather(*asked) == undisturbed
            await _until(happened, SwarmEventKind.JOINED)  # it has seen that it is out
            assert await ask(runtime, 0) == undisturbed[0]
            listening.cancel()

    asyncio.run(asyncio.wait_for(use(), 280))


async def _listen(runtime: bloombee.Runtime, happened: asyncio.Queue[SwarmEventKind]) -> None:
    async for event in runtime.events():
        happened.put_nowait(event.kind)


async def _until(happened: asyncio.Queue[SwarmEventKind], kind: SwarmEventKind) -> None:
    while await happened.get() is not kind:
        pass
