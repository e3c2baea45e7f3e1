"""Prompts that have much in common, on real processes: fewer rows, the same tokens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from swarm_kit import Swarm

import bloombee

SHARED = list(range(7, 7 + 200)) * 2
PAGE = 16


@contextlib.contextmanager
def _swarm(**arguments: Any) -> Iterator[Swarm]:
    swarm = Swarm(**({"model": "demo", "workers": 2, "dtype": "float32", "threads": 1, "page_size": PAGE} | arguments))
    try:
        yield swarm
    finally:
        swarm.close()


async def _answers(runtime: bloombee.Runtime) -> list[bloombee.Generation]:
    """A burst that shares its beginning, greedy, sampled and with penalties; then the same conversation a turn further."""
    fields: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "seed": 5},
        {"repetition_penalty": 1.3, "temperature": 0.5, "seed": 1},
    ]
    burst = await asyncio.gather(
        *(runtime.generate([*SHARED, 30 + n], max_new_tokens=20, **fields[n % len(fields)]) for n in range(6))
    )
    turns = [
        await runtime.generate([*one.prompt_token_ids, *one.token_ids, 9, 8], max_new_tokens=8, **fields[n % len(fields)])
        for n, one in enumerate(burst)
    ]
    return [*burst, *turns]


@pytest.mark.parametrize("scheduler", ["head", "stage0"])
def test_tokens_are_those_of_a_swarm_that_keeps_nothing(scheduler: str) -> None:
    with _swarm(scheduler=scheduler, prefix_cache=False) as plain:
        wanted = plain.run(_answers(plain.runtime))
    with _swarm(scheduler=scheduler) as swarm:
        got = swarm.run(_answers(swarm.runtime))
        assert swarm.run(swarm.runtime.pages_free()) == tuple(stage.num_pages for stage in swarm.runtime.plan.stages)
    assert [one.token_ids for one in got] == [one.token_ids for one in wanted]
    assert [one.num_cached_tokens for one in wanted] == [0] * 12
    assert [one.num_cached_tokens for one in got[:6]] == [0, *[len(SHARED)] * 5]
    for one in got[6:]:
        assert len(one.prompt_token_ids) - 2 - 2 * PAGE <= one.num_cached_tokens < len(one.prompt_token_ids) - 2
