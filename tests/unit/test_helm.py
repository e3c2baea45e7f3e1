"""The control core's shell: questions and answers, what is written down, and what goes wrong inside."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bloombee.config import RuntimeConfig
from bloombee.control.events import Decision, PlanRuns, StageMeasured
from bloombee.control.log import Replayed, from_line, replay, to_line
from bloombee.errors import ConfigError, LocalProtocolError, RuntimeClosed
from bloombee.pipeline.events import Tune
from bloombee.roles.helm import Helm
from bloombee.types import StageUse

PLAN = PlanRuns(3, (1, 2), ("a", "b"), (2, 2), 64, 2, 8, 64, None, None, "off", 0.0)


class Shell:
    """What a helm does to its surroundings."""

    def __init__(self, **settings: Any) -> None:
        self.asked, self.tuned = list[tuple[int, int]](), list[Tune]()
        self.told = list[tuple[Decision, str]]()
        self.helm = Helm(
            RuntimeConfig(**settings),
            ask=lambda *question: self.asked.append(question),
            tune=self.tuned.append,
            decided=lambda *decision: self.told.append(decision),
            active_s=lambda now: now,
        )
        self.helm.tell(PLAN)


def test_whoever_asks_gets_the_answers_of_all_stages() -> None:
    async def use() -> list[int]:
        shell = Shell()
        measuring = asyncio.ensure_future(shell.helm.measure())
        await asyncio.sleep(0)
        assert len(shell.asked) == 2
        for stage, number in reversed(shell.asked):
            shell.helm.tell(StageMeasured(stage, number, StageUse(), 10 + stage, 1.0))
        return [said.pages_free for said in await asyncio.wait_for(measuring, 30)]

    assert asyncio.run(use()) == [10, 11]


def test_what_raises_inside_is_an_error_of_those_who_ask_and_of_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        shell = Shell()
        monkeypatch.setattr(shell.helm.core, "handle", lambda event: 1 // 0)
        with pytest.raises(LocalProtocolError, match="ZeroDivisionError"):
            await asyncio.wait_for(shell.helm.measure(), 30)
        shell.helm.tell(PLAN)

    asyncio.run(use())


def test_the_file_holds_what_makes_the_same_decisions_again(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    shell = Shell(decisions=str(path))
    shell.helm.close(RuntimeClosed("closed"))
    shell.helm.tell(PLAN)  # after its end nothing is written
    lines = path.read_bytes().splitlines(keepends=True)
    records = [from_line(line) for line in lines]
    assert records[0] == PLAN
    decided = [record for record in records if isinstance(record, Decision)]
    assert [decision.what for decision in decided] == ["codec", "run"]
    assert replay(lines) == Replayed(1, decided)
    assert [line for _, line in shell.told[:2]] == [to_line(decision).decode() for decision in decided]
    assert shell.tuned[0].num_microbatches == 2


def test_a_file_that_cannot_be_written_is_refused_at_the_start_and_a_full_disk_ends_the_log_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decisions: cannot write .*: Is a directory"):
        Shell(decisions=str(tmp_path))
    full = Path("/dev/full")
    if full.exists():
        shell = Shell(decisions=str(full))
        assert len(shell.told) == 2
