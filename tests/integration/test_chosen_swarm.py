"""Real processes run the plan that a planner has chosen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

import bloombee
from bloombee import timeline
from bloombee.errors import Infeasible
from bloombee.types import SwarmEvent, SwarmEventKind

PROMPTS = ["def add(a, b):\n", "import os\n", "class Stack:\n    def push(self"]


async def _answers(runtime: bloombee.Runtime) -> list[tuple[int, ...]]:
    done = await asyncio.gather(*(runtime.generate(prompt, max_new_tokens=24) for prompt in PROMPTS))
    return [one.token_ids for one in done]


async def _so_far(runtime: bloombee.Runtime, kind: SwarmEventKind) -> SwarmEvent:
    """The first of its kind."""
    async for event in runtime.events():
        if event.kind is kind:
            return event
    raise AssertionError("the swarm has ended")


def test_a_plan_for_latency_gives_the_same_tokens_with_fewer_stages_and_says_why(tmp_path: Path) -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=3, dtype="float32", threads=1) as runtime:
            assert runtime.plan.prediction is None
            expected = await _answers(runtime)
        log = tmp_path / "decisions"
        async with bloombee.Runtime(
            "demo", workers=3, objective="latency", dtype="float32", threads=1, decisions=str(log), trace=str(tmp_path)
        ) as runtime:
            assert await _answers(runtime) == expected
            prediction = runtime.plan.prediction
            assert prediction is not None
            assert len(runtime.plan.stages) + len(prediction.spares) == 3
            assert len(runtime.plan.stages) == 1, "each hop takes time, and one of them has room for all layers"
            assert all("longer" in why for _, why in prediction.spares)
            planned = await _so_far(runtime, SwarmEventKind.PLANNED)
            decided = await _so_far(runtime, SwarmEventKind.DECIDED)
            assert planned.reason == decided.reason == str(prediction)
            assert json.loads(decided.decision)["what"] == "plan"
            assert runtime.plan.summary()["predicted"] == prediction.summary()
        assert '"what":"plan"' in log.read_text()
        assert len(timeline.load([str(tmp_path)]).stages) == 1

    asyncio.run(asyncio.wait_for(use(), 120))


def test_a_worker_that_the_plan_has_left_takes_the_place_of_one_that_is_lost() -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=2, objective="latency", dtype="float32", threads=1) as runtime:
            expected = await _answers(runtime)
            (stage,) = runtime.plan.stages
            asked = asyncio.ensure_future(_answers(runtime))
            os.kill(runtime.worker_pids[stage.worker], signal.SIGKILL)
            assert await asked == expected
            assert runtime.plan.stages[0].worker != stage.worker
            assert (runtime.plan.epoch, runtime.plan.prediction) == (2, None)

    asyncio.run(asyncio.wait_for(use(), 120))


def test_a_target_that_nothing_keeps_is_an_error_with_what_is_missing() -> None:
    async def use() -> None:
        with pytest.raises(Infeasible, match="no plan takes 1e-06 s or less") as caught:
            async with bloombee.Runtime("demo", workers=2, objective="target:1e-6", threads=1):
                raise AssertionError("it is up")
        assert caught.value.fields["constraint"] == "target"

    asyncio.run(asyncio.wait_for(use(), 120))
