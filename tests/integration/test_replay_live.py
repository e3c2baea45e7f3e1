"""The decision log of a swarm that has lost a worker gives every decision again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

import bloombee
from bloombee.cli import main
from bloombee.control.events import Decision
from bloombee.control.log import from_line


def test_all_that_was_decided_in_a_run_with_a_loss_is_decided_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"

    async def use() -> None:
        async with bloombee.Runtime("demo", workers=2, spares=1, dtype="float32", threads=1, decisions=str(log)) as runtime:
            asked = [asyncio.ensure_future(_answer(runtime, number)) for number in range(8)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            again = [asyncio.ensure_future(_answer(runtime, number)) for number in range(8)]
            os.kill(runtime.worker_pids[runtime.plan.stages[1].worker], signal.SIGKILL)
            assert await asyncio.gather(*again) == await asyncio.gather(*asked)

    asyncio.run(asyncio.wait_for(use(), 120))
    assert main(["plan", "--replay", str(log)]) == 0
    assert "the same byte for byte" in capsys.readouterr().out
    lines = log.read_bytes().splitlines(keepends=True)
    decisions = [number for number, line in enumerate(lines, start=1) if isinstance(from_line(line), Decision)]
    assert {from_line(lines[number - 1]).epoch for number in decisions} == {1, 2}  # type: ignore[union-attr]

    last = decisions[-1] - 1
    log.write_bytes(b"".join([*lines[:last], lines[last].replace(b'"epoch":2', b'"epoch":3'), *lines[last + 1 :]]))
    assert main(["plan", "--replay", str(log)]) == 1
    assert f"line {last + 1}" in capsys.readouterr().out


async def _answer(runtime: bloombee.Runtime, number: int) -> tuple[int, ...]:
    answer = await runtime.generate([number + 1] * 20, max_new_tokens=200, ignore_eos=True, seed=number)
    return answer.token_ids
