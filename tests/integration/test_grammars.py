"""Answers that obey a grammar, by real processes: sound, the same however they are run, each for itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
from typing import Any

import jsonschema_rs
import pytest
from swarm_kit import Swarm

import bloombee
from bench.schemas import random_schema
from bloombee import FinishReason, Grammar
from bloombee.errors import ConfigError

PROMPT = "def f(x):\n    return "
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}  # fmt: skip


async def _answer(runtime: bloombee.Runtime, schema: Any, seed: int) -> bloombee.Generation:
    grammar = Grammar.json_schema(schema)
    return await runtime.generate(PROMPT, grammar=grammar, temperature=1.0, seed=seed, max_new_tokens=400)


def test_answers_of_random_schemas_end_and_are_what_they_must_be(demo: Swarm) -> None:
    schemas = [random_schema(random.Random(seed)) for seed in range(40)]

    async def ask() -> list[bloombee.Generation]:
        return await asyncio.gather(*(_answer(demo.runtime, schema, seed) for seed, schema in enumerate(schemas)))

    answers = demo.run(ask())
    ended = [(schema, answer) for schema, answer in zip(schemas, answers, strict=True) if answer.finish_reason == "stop"]
    assert len(ended) >= 38
    for schema, answer in ended:
        assert jsonschema_rs.is_valid(schema, json.loads(answer.text))


def test_an_answer_is_the_same_alone_and_beside_others(demo: Swarm) -> None:
    alone = [demo.run(_answer(demo.runtime, SCHEMA, seed)) for seed in range(4)]

    async def ask() -> list[Any]:
        others = (demo.runtime.generate("import ", seed=seed, temperature=1.0, max_new_tokens=40) for seed in range(4))
        return await asyncio.gather(*others, *(_answer(demo.runtime, SCHEMA, seed) for seed in range(4)))

    assert [one.token_ids for one in demo.run(ask())[4:]] == [one.token_ids for one in alone]


def test_a_pattern_is_matched_from_end_to_end_and_then_it_is_over(demo: Swarm) -> None:
    for seed in range(5):
        got = demo.generate("x = ", grammar=Grammar.regex("[a-z]{3}-[0-9]{2}"), temperature=1.0, seed=seed)
        assert got.finish_reason is FinishReason.STOP
        assert re.fullmatch("[a-z]{3}-[0-9]{2}", got.text)


def test_what_runs_out_of_tokens_is_the_beginning_of_an_answer(demo: Swarm) -> None:
    got = demo.generate("x = ", grammar=Grammar.regex("[ab]{500}"), temperature=1.0, seed=1, max_new_tokens=20)
    assert got.finish_reason is FinishReason.LENGTH
    assert re.fullmatch("[ab]+", got.text)


def test_with_penalties_and_biases_it_is_obeyed_all_the_same(demo: Swarm) -> None:
    grammar = Grammar.regex("(a|b|c){12}")
    got = demo.generate(
        "x = ",
        grammar=grammar,
        temperature=1.0,
        seed=3,
        frequency_penalty=2.0,
        repetition_penalty=1.3,
        top_k=2,
        logit_bias={5: 50.0},
    )
    assert re.fullmatch("[abc]{12}", got.text)


def test_a_bias_decides(demo: Swarm) -> None:
    assert demo.generate("x = ", logit_bias={7: 1000.0}, max_new_tokens=5).token_ids == (7,) * 5
    plain = demo.generate("x = ", max_new_tokens=1).token_ids[0]
    assert demo.generate("x = ", logit_bias={plain: -1000.0}, max_new_tokens=1).token_ids[0] != plain


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"grammar": Grammar.json_schema({"type": "strin"})}, "Invalid type"),
        ({"grammar": Grammar.regex("a"), "ignore_eos": True}, "ignore_eos"),
        ({"grammar": "a"}, "bloombee.Grammar"),
        ({"logit_bias": {4096: 1.0}}, "token 4096: the model has 0 to 4095"),
    ],
    ids=["schema", "no end", "no grammar", "no token"],
)
def test_what_cannot_be_obeyed_is_refused_before_anything_runs(demo: Swarm, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        demo.generate("x = ", **fields)
    assert demo.runtime.num_requests == 0


def test_grammars_go_on_when_the_last_stage_is_killed_with_the_scheduler_beside_the_first() -> None:
    async def use() -> None:
        fields: dict[str, Any] = {"workers": 2, "spares": 1, "dtype": "float32", "threads": 1, "scheduler": "stage0"}
        grammar = Grammar.regex("[a-z ]{120}")

        async with bloombee.Runtime("demo", **fields) as runtime:

            async def ask(seed: int, came: asyncio.Queue[int] | None = None) -> list[int]:
                tokens = []
                async for token in runtime.stream(PROMPT, grammar=grammar, temperature=1.0, seed=seed, max_new_tokens=200):
                    tokens.append(token.token_id)
                    if came is not None:
                        came.put_nowait(seed)
                return tokens

            undisturbed = await asyncio.gather(*map(ask, range(4)))
            came: asyncio.Queue[int] = asyncio.Queue()
            asked = [asyncio.ensure_future(ask(seed, came)) for seed in range(4)]
            for _ in range(12):
                await came.get()
            os.kill(runtime.worker_pids[runtime.plan.stages[1].worker], signal.SIGKILL)
            assert await asyncio.gather(*asked) == undisturbed
            assert runtime.plan.epoch == 2

    asyncio.run(asyncio.wait_for(use(), 120))


def test_what_is_drafted_changes_no_answer() -> None:
    numbers = Grammar.regex("(import [a-z]{2,6}\n){12}")
    asked: list[dict[str, Any]] = [
        {"grammar": numbers},
        {"grammar": numbers, "temperature": 0.7, "seed": 3, "frequency_penalty": 0.1},
        {"grammar": Grammar.json_schema(SCHEMA), "temperature": 1.0, "seed": 5},
        {"grammar": Grammar.json_schema({"const": ["import os", "import os", "import os", "import os"]})},
        {"logit_bias": {5: 3.0}, "temperature": 1.0, "seed": 6},
    ]

    async def answers(draft: str) -> list[bloombee.Generation]:
        async with bloombee.Runtime("demo", workers=2, dtype="float32", draft=draft) as runtime:
            prompt = "import os\nimport os\nimport os\nimport os\n"
            return await asyncio.gather(*(runtime.generate(prompt, max_new_tokens=120, **fields) for fields in asked))

    async def both() -> tuple[list[bloombee.Generation], list[bloombee.Generation]]:
        return await answers("off"), await answers("auto")

    plain, drafted = asyncio.run(asyncio.wait_for(both(), 120))
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    assert [one.finish_reason for one in drafted] == [one.finish_reason for one in plain]
    assert sum(one.accepted for one in drafted[:4]) > 10
