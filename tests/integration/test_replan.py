"""Layers move between workers while requests run: real processes, the same tokens."""

from __future__ import annotations

import asyncio

import pytest

import bloombee
from tests.ask_kit import PROMPTS, ask


async def _replan_under_load(runtime: bloombee.Runtime, *without: int) -> None:
    """While all requests run: the plan is to do without the workers of these stages. Nothing shows in the tokens."""
    undisturbed = await asyncio.gather(*(ask(runtime, number) for number in range(len(PROMPTS))))
    came: asyncio.Queue[int] = asyncio.Queue()
    asked = [asyncio.ensure_future(ask(runtime, number, came)) for number in range(len(PROMPTS))]
    for _ in range(20):
        await came.get()
    before = runtime.plan
    gone = {before.stages[stage].worker for stage in without}
    plan = await runtime.replan(set(runtime.worker_pids) - gone)
    assert plan.epoch == before.epoch + 1
    assert gone.isdisjoint(stage.worker for stage in plan.stages)
    assert await asyncio.gather(*asked) == undisturbed
    assert runtime.plan == plan
    assert await runtime.pages_free() == tuple(one.num_pages for one in plan.stages)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_spare_takes_over_a_stage_while_requests_run(stage: int) -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=3, spares=1, dtype="float32", threads=1, silence_s=5.0) as runtime:
            await _replan_under_load(runtime, stage)
            assert len(runtime.plan.stages) == 3

    asyncio.run(asyncio.wait_for(use(), 120))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_layers_of_a_stage_are_shared_out_while_requests_run(stage: int) -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=3, dtype="float32", threads=1) as runtime:
            await _replan_under_load(runtime, stage)
            assert len(runtime.plan.stages) == 2

    asyncio.run(asyncio.wait_for(use(), 120))


def test_after_one_that_nobody_waits_for_any_more_the_next_begins_with_what_came_of_it() -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=2, spares=1, dtype="float32", threads=1, silence_s=5.0) as runtime:
            begun = asyncio.Event()

            async def listen() -> None:
                async for event in runtime.events():
                    if event.kind is bloombee.SwarmEventKind.REPLANNING:
                        begun.set()

            listening = asyncio.ensure_future(listen())
            while len(runtime.worker_pids) < 3:
                await ask(runtime, 0)
            given_up = asyncio.ensure_future(runtime.replan(set(runtime.worker_pids) - {runtime.plan.stages[1].worker}))
            await begun.wait()
            given_up.cancel()
            plan = await runtime.replan()
            assert (plan.epoch, runtime.plan) == (2, plan)
        await listening

    asyncio.run(asyncio.wait_for(use(), 120))
