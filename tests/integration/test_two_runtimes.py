"""Two Runtimes in one process, one of which loses a worker: the other notices nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import pytest

import bloombee
from bloombee import SwarmEventKind
from bloombee.errors import LinkDown

PROMPTS = [[n, 40 + n, 300 + n, 7] * 10 for n in range(4)]
NEW = 48


async def _ask(runtime: bloombee.Runtime, number: int, came: asyncio.Queue[int] | None = None) -> tuple[int, ...]:
    tokens = []
    async for token in runtime.stream(
        PROMPTS[number], max_new_tokens=NEW, ignore_eos=True, temperature=0.7 * (number % 2), seed=number
    ):
        tokens.append(token.token_id)
        if came is not None:
            came.put_nowait(number)
    return tuple(tokens)


async def _all(runtime: bloombee.Runtime, came: asyncio.Queue[int] | None = None) -> list[tuple[int, ...]]:
    return await asyncio.gather(*(_ask(runtime, number, came) for number in range(len(PROMPTS))))


async def _kinds(runtime: bloombee.Runtime, kinds: list[SwarmEventKind]) -> None:
    kinds.extend([event.kind async for event in runtime.events()])


def _runtime(spares: int = 0) -> bloombee.Runtime:
    return bloombee.Runtime("demo", workers=2, spares=spares, dtype="float32", threads=1, silence_s=5.0)


async def _lose_one(struck: bloombee.Runtime, other: bloombee.Runtime) -> list[tuple[int, ...] | BaseException]:
    """Kill a worker of ``struck`` while both are asked everything; what became of its requests. The other's must be as ever."""
    expected, kinds = await _all(other), []  # type: tuple[list[tuple[int, ...]], list[SwarmEventKind]]
    listening = asyncio.ensure_future(_kinds(other, kinds))
    came: asyncio.Queue[int] = asyncio.Queue()
    asked = asyncio.gather(*(_ask(struck, number, came) for number in range(len(PROMPTS))), return_exceptions=True)
    beside = asyncio.ensure_future(_all(other))
    for _ in range(20):
        await came.get()
    os.kill(struck.worker_pids[struck.plan.stages[0].worker], signal.SIGKILL)
    ended = await asyncio.wait_for(asked, 30)
    assert await beside == expected
    assert await _all(other) == expected
    assert other.plan.epoch == 1
    assert len(other.worker_pids) == 2
    assert await other.pages_free() == tuple(stage.num_pages for stage in other.plan.stages)
    await other.close()
    await listening
    calm = [SwarmEventKind.PLANNED, *[SwarmEventKind.LOADED] * 2, SwarmEventKind.WIRING, SwarmEventKind.UP]
    assert [kind for kind in kinds if kind not in (SwarmEventKind.JOINED, SwarmEventKind.DECIDED)] == calm
    return list(ended)


def test_a_runtime_beside_one_that_recovers_notices_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        async with _runtime(spares=1) as struck, _runtime() as other:
            alone = await _all(struck)
            assert await _lose_one(struck, other) == alone
            assert struck.plan.epoch == 2

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(use(), 120))
    assert [record.levelname for record in caplog.records] == [
        "WARNING"
    ] * 2  # of the one that lost a worker, and starts it again


def test_a_runtime_beside_one_that_goes_down_notices_nothing_and_the_lost_worker_is_named() -> None:
    async def use() -> None:
        async with _runtime() as struck, _runtime() as other:
            ended = await _lose_one(struck, other)
            assert [type(end) for end in ended] == [LinkDown] * len(PROMPTS)
            assert all("local-0" in str(end) for end in ended)

    asyncio.run(asyncio.wait_for(use(), 120))


def test_a_new_runtime_starts_after_one_of_its_process_went_down() -> None:
    async def use() -> None:
        async with _runtime() as struck:
            os.kill(struck.worker_pids[struck.plan.stages[1].worker], signal.SIGKILL)
            with pytest.raises(LinkDown, match="local-1"):
                await _all(struck)
            async with _runtime() as fresh:
                assert all(len(tokens) == NEW for tokens in await _all(fresh))

    asyncio.run(asyncio.wait_for(use(), 120))
