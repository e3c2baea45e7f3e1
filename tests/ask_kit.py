"""Requests that are asked the same way again and again, so that what disturbs them shows in their tokens."""

from __future__ import annotations

import asyncio

import bloombee

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
