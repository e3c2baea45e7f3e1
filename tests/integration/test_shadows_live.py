"""Spares follow stages of real processes: a stage that is killed is one that they hold, with the same tokens."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import bloombee
from bloombee import SwarmEvent, SwarmEventKind
from tests.ask_kit import PROMPTS, ask

STAGES = 3


class _Shadows:
    """What a Runtime says of spares that follow."""

    def __init__(self, runtime: bloombee.Runtime) -> None:
        self.seen: list[SwarmEvent] = []
        self._news = asyncio.Condition()
        self._listening = asyncio.ensure_future(self._listen(runtime))

    async def _listen(self, runtime: bloombee.Runtime) -> None:
        async for event in runtime.events():
            async with self._news:
                self.seen.append(event)
                self._news.notify_all()

    def following(self) -> set[int | None]:
        """Stages of which that was said last."""
        last = {event.stage: event.reason for event in self.seen if event.kind is SwarmEventKind.SHADOW}
        return {stage for stage, reason in last.items() if reason == "follows it"}

    async def until_all_are_followed(self) -> None:
        async with self._news:
            await self._news.wait_for(lambda: self.following() == set(range(STAGES)))


@pytest.mark.parametrize("stage", range(STAGES))
def test_a_stage_that_is_lost_is_one_that_the_spare_holds(stage: int) -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=STAGES, spares=1, dtype="float32", threads=1, shadow=True) as runtime:
            shadows = _Shadows(runtime)
            undisturbed = await asyncio.gather(*(ask(runtime, number) for number in range(len(PROMPTS))))
            await shadows.until_all_are_followed()
            came: asyncio.Queue[int] = asyncio.Queue()
            asked = [asyncio.ensure_future(ask(runtime, number, came)) for number in range(len(PROMPTS))]
            for _ in range(40):
                await came.get()
            (spare,) = [one for one in (await runtime.status()).workers if one.stage is None]
            assert sorted(index for index, _ in spare.follows) == list(range(STAGES))
            assert spare.reason.startswith("follows ")
            os.kill(runtime.worker_pids[runtime.plan.stages[stage].worker], signal.SIGKILL)
            assert await asyncio.gather(*asked) == undisturbed
            assert runtime.plan.stages[stage].worker == spare.id
            assert await runtime.pages_free() == tuple(one.num_pages for one in runtime.plan.stages)
        lost = next(index for index, event in enumerate(shadows.seen) if event.kind is SwarmEventKind.LOST)
        up = next(index for index, event in enumerate(shadows.seen) if index > lost and event.kind is SwarmEventKind.UP)
        loaded = [one for one in shadows.seen[lost:up] if one.kind is SwarmEventKind.LOADED]
        assert [one.worker for one in loaded] == [spare.id]  # it had them; nobody else loads anything
        decided = [event.decision for event in shadows.seen if event.kind is SwarmEventKind.DECIDED]
        assert any('"shadow"' in line for line in decided)

    asyncio.run(asyncio.wait_for(use(), 180))
