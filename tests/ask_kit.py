"""Requests that are asked the same way again and again, so that what disturbs them shows in their tokens."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import bloombee
from bloombee.plan.plan import StagePlan

PROMPTS = [[n, 40 + n, 300 + n, 7] * 10 for n in range(4)]
NEW = 48


async def ask(runtime: bloombee.Runtime, number: int, came: asyncio.Queue[int] | None = None) -> tuple[int, ...]:
    """The token ids of a request, greedy and sampled by turns; ``came`` gets its number with each of them."""
    tokens = []
    async for token in runtime.stream(
        PROMPTS[number], max_new_tokens=NEW, ignore_eos=True, temperature=0.7 * (number % 2), seed=number, logprobs=1
    ):
        tokens.append(token.token_id)
        if came is not None:
            came.put_nowait(number)
    return tuple(tokens)


async def lose(runtime: bloombee.Runtime, stages: Sequence[int]) -> tuple[list[StagePlan], list[tuple[int, ...]]]:
    """The stages whose workers are killed once some tokens have come: requests go on with the same ones as without, which are
    returned too."""
    undisturbed = await asyncio.gather(*(ask(runtime, number) for number in range(len(PROMPTS))))
    came: asyncio.Queue[int] = asyncio.Queue()
    asked = [asyncio.ensure_future(ask(runtime, number, came)) for number in range(len(PROMPTS))]
    for _ in range(20):
        await came.get()
    lost = [runtime.plan.stages[stage] for stage in stages]
    for stage in lost:
        os.kill(runtime.worker_pids[stage.worker], signal.SIGKILL)
    assert await asyncio.gather(*asked) == undisturbed
    return lost, undisturbed
