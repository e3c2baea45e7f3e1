"""The scheduler beside the first stage, in real processes: the same tokens, stops, cancels, and kill -9 of its worker."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import bloombee
from bloombee.types import SchedulerPlace
from tests.ask_kit import PROMPTS, ask, lose

LONG = [5 + n % 400 for n in range(600)]


async def _all(runtime: bloombee.Runtime) -> list[tuple[int, ...]]:
    asked = [ask(runtime, number) for number in range(len(PROMPTS))]
    long = runtime.generate(LONG, max_new_tokens=8, ignore_eos=True)
    *short, last = await asyncio.gather(*asked, long)
    return [*short, tuple(last.token_ids)]


async def _plain() -> list[tuple[int, ...]]:
    """With the scheduler in the head."""
    async with bloombee.Runtime("demo", workers=2, dtype="float32", threads=1, scheduler="head") as runtime:
        assert runtime.plan.scheduler is SchedulerPlace.HEAD
        return await _all(runtime)


async def _pages_are_free(runtime: bloombee.Runtime) -> None:
    whole = tuple(stage.num_pages for stage in runtime.plan.stages)
    while await runtime.pages_free() != whole:
        pass


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_tokens_stops_and_cancels_are_those_of_a_scheduler_in_the_head(workers: int) -> None:
    async def use() -> None:
        plain = await _plain()
        async with bloombee.Runtime("demo", workers=workers, dtype="float32", threads=1, scheduler="stage0") as runtime:
            assert runtime.plan.scheduler is SchedulerPlace.STAGE0
            assert await _all(runtime) == plain
            whole = await runtime.generate("Once upon a time", max_new_tokens=40)
            stop = whole.text[20:24]
            stopped = await runtime.generate("Once upon a time", max_new_tokens=40, stop=(stop,))
            assert stopped.text == whole.text[: whole.text.index(stop)]
            came: asyncio.Queue[int] = asyncio.Queue()
            asked = asyncio.ensure_future(ask(runtime, 0, came))
            await came.get()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await asyncio.wait_for(_pages_are_free(runtime), 20)

    asyncio.run(asyncio.wait_for(use(), 120))


@pytest.mark.parametrize("stage", [0, 2])
def test_requests_go_on_with_the_same_tokens_when_a_stage_is_killed(stage: int) -> None:
    async def use() -> None:
        async with bloombee.Runtime(
            "demo", workers=3, spares=1, dtype="float32", threads=1, scheduler="stage0", silence_s=5.0
        ) as runtime:
            (lost,), undisturbed = await lose(runtime, [stage])
            assert (runtime.plan.epoch, runtime.plan.scheduler_since) == (2, 1 if stage else 2)
            assert runtime.plan.stages[stage].worker != lost.worker
            await asyncio.wait_for(_pages_are_free(runtime), 20)
            assert await ask(runtime, 1) == undisturbed[1]

    asyncio.run(asyncio.wait_for(use(), 120))


def test_without_a_spare_a_loss_ends_requests_typed() -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=2, dtype="float32", threads=1, scheduler="stage0") as runtime:
            came: asyncio.Queue[int] = asyncio.Queue()
            asked = asyncio.ensure_future(ask(runtime, 1, came))
            await came.get()
            os.kill(runtime.worker_pids[runtime.plan.stages[0].worker], signal.SIGKILL)
            with pytest.raises(bloombee.BloomBeeError):
                await asyncio.wait_for(asked, 10)

    asyncio.run(asyncio.wait_for(use(), 120))
