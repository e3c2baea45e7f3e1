"""Real processes whose KV memory is short: sequences make way and come back from their host's memory, token for token."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
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


SHARED = list(range(7, 7 + 150)) * 2


async def _conversation(runtime: bloombee.Runtime, ends: int) -> list[bloombee.Generation]:
    return [await runtime.generate([*SHARED, ends, n], max_new_tokens=8, **FIELDS[n]) for n in range(3)]


def _talk(ends: int, directory: Path, num_files: int = 0) -> list[bloombee.Generation]:
    """Until so many files have been written."""
    swarm = Swarm(model="demo", workers=2, dtype="float32", threads=1, disk=f"{directory}:64MiB")
    try:
        found: list[bloombee.Generation] = swarm.run(_conversation(swarm.runtime, ends))
        deadline = time.monotonic() + 60
        while len(list(directory.rglob("*.rows"))) < num_files and time.monotonic() < deadline:
            swarm.run(asyncio.sleep(0.05))
        assert len(list(directory.rglob("*.rows"))) >= num_files
        return found
    finally:
        swarm.close()


def test_what_was_kept_is_found_on_disk_by_the_next_run(tmp_path: Path) -> None:
    before = _talk(1, tmp_path, num_files=4)
    assert before[0].num_cached_tokens == 0
    again = _talk(1, tmp_path)
    assert [one.token_ids for one in again] == [one.token_ids for one in before]
    assert again[0].num_cached_tokens >= len(SHARED) - 16
    path = max(tmp_path.rglob("*.rows"), key=lambda one: one.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1000])  # of one of the stages
    other = _talk(1, tmp_path)
    assert [one.token_ids for one in other] == [one.token_ids for one in before]


def test_a_disk_that_takes_nothing_costs_nothing(tmp_path: Path, undisturbed: list[tuple[int, ...]]) -> None:
    """There is no room for one file beside what is there."""
    (tmp_path / "full").write_bytes(bytes(1 << 20))
    assert _served(disk=f"{tmp_path}:1MiB", kv_tokens=320) == undisturbed
    assert not list(tmp_path.rglob("*.rows"))
