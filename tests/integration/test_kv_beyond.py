"""Real processes whose KV memory is short: sequences make way and come back from their host's memory, token for token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from swarm_kit import Swarm

import bloombee
from bloombee.grammar import Grammar

PROMPTS = [[*range(7 + n, 7 + n + 40 + 7 * n)] for n in range(5)]
FIELDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 5},
    {"repetition_penalty": 1.3, "temperature": 0.5, "seed": 1},
]
LONG = 80


async def _short_answers(runtime: bloombee.Runtime) -> None:
    """That end long before they may: the scheduler admits more from then on."""
    short = (runtime.generate([9, n], max_new_tokens=LONG, grammar=Grammar.regex("[ab]")) for n in range(20))
    assert all(len(one.token_ids) < 5 for one in await asyncio.gather(*short))


async def _long_answers(runtime: bloombee.Runtime, cancelled: int) -> list[tuple[int, ...]]:
    asked = [
        asyncio.create_task(runtime.generate(prompt, max_new_tokens=LONG, ignore_eos=True, **FIELDS[n % 3]))
        for n, prompt in enumerate(PROMPTS)
    ]
    for number in range(cancelled):
        await asyncio.sleep(0)
        asked[-1 - number].cancel()
    return [one.token_ids for one in await asyncio.gather(*asked[: len(asked) - cancelled])]


def _served(cancelled: int = 0, **arguments: Any) -> list[tuple[int, ...]]:
    swarm = Swarm(model="demo", workers=2, dtype="float32", threads=1, **arguments)
    try:
        swarm.run(_short_answers(swarm.runtime))
        found: list[tuple[int, ...]] = swarm.run(_long_answers(swarm.runtime, cancelled))
        assert swarm.run(swarm.runtime.pages_free()) == tuple(stage.num_pages for stage in swarm.runtime.plan.stages)
        return found
    finally:
        swarm.close()


@pytest.fixture(scope="module")
def undisturbed() -> list[tuple[int, ...]]:
    return _served(kv_tokens=8000)


@pytest.mark.parametrize(("host_memory", "cancelled"), [("64MiB", 0), ("64MiB", 2), (0, 0)])
def test_who_makes_way_comes_back_with_the_same_tokens(
    undisturbed: list[tuple[int, ...]], host_memory: str | int, cancelled: int
) -> None:
    """Where the host has room for all, and where it has none."""
    found = _served(cancelled, host_memory=host_memory, kv_tokens=320)
    assert found == undisturbed[: len(PROMPTS) - cancelled]
