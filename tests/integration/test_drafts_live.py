"""Real processes that draft: the tokens are those of a swarm that does not, whatever is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import pytest

import bloombee
from bloombee.types import Generation

PROMPTS = ("import os\n\n\ndef walk(", "class Reader:\n    def __init__(self", "for i in range(10):\n    print(i)\nfor i in")


async def _answers(rt: bloombee.Runtime, **fields: object) -> list[Generation]:
    return list(await asyncio.gather(*(rt.generate(prompt, max_new_tokens=96, **fields) for prompt in PROMPTS)))


def _same(some: Sequence[Generation], others: Sequence[Generation]) -> None:
    assert [one.token_ids for one in some] == [one.token_ids for one in others]
    assert [one.text for one in some] == [one.text for one in others]
    for one, other in zip(some, others, strict=True):
        assert one.finish_reason == other.finish_reason
        if one.logprobs is not None:
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


ASKED: dict[str, dict[str, object]] = {
    "greedy": {},
    "warm": {"temperature": 0.7, "seed": 5, "logprobs": 1},
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.3},
    "stops": {"stop": ("return", "self.")},
    "grammar": {"grammar": bloombee.Grammar.regex("[a-d]{3}(, [a-d]{3}){30}"), "temperature": 1.0, "seed": 3},
}


def test_tokens_are_those_of_a_swarm_that_does_not_draft() -> None:
    async def run() -> None:
        async with bloombee.Runtime("demo", workers=2, dtype="float32", draft="off") as rt:
            plain = {name: await _answers(rt, **fields) for name, fields in ASKED.items()}
        async with bloombee.Runtime("demo", workers=2, dtype="float32", draft="auto") as rt:
            drafted = {name: await _answers(rt, **fields) for name, fields in ASKED.items()}
        for name in ASKED:
            _same(drafted[name], plain[name])
        every = [one for answers in drafted.values() for one in answers]
        assert sum(one.accepted for one in every) > 20
        assert sum(one.drafted for one in every) >= sum(one.accepted for one in every)
        assert all(one.rounds + one.accepted - len(one.token_ids) in (0, 1) for one in every)
        assert all(one.drafted == 0 and one.rounds == len(one.token_ids) for answers in plain.values() for one in answers)

    asyncio.run(run())


def test_the_scheduler_beside_the_first_stage_drafts_and_says_so() -> None:
    async def run() -> None:
        async with bloombee.Runtime("demo", workers=2, dtype="float32", draft="auto", scheduler="stage0") as rt:
            (answer,) = [await rt.generate("import os\nimport os\nimport os\nimport os\n", max_new_tokens=64)]
        async with bloombee.Runtime("demo", workers=2, dtype="float32") as rt:
            _same([answer], [await rt.generate("import os\nimport os\nimport os\nimport os\n", max_new_tokens=64)])
        assert answer.accepted > 0

    asyncio.run(run())


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_is_killed_with_drafts_under_way(stage: int) -> None:
    async def run() -> None:
        prompt = "import os\nimport os\nimport os\n"
        async with bloombee.Runtime("demo", workers=2, dtype="float32") as rt:
            plain = await rt.generate(prompt, max_new_tokens=200)
        async with bloombee.Runtime("demo", workers=2, spares=1, dtype="float32", draft="auto", silence_s=5.0) as rt:
            tokens: list[int] = []
            async for token in rt.stream(prompt, max_new_tokens=200):
                tokens.append(token.token_id)
                if len(tokens) == 40:
                    assert rt.plan is not None
                    os.kill(rt.worker_pids[rt.plan.stages[stage].worker], signal.SIGKILL)
        assert tuple(tokens) == plain.token_ids

    asyncio.run(run())
