"""A plan that is looked for on a thread, while the head's loop goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from bloombee.config import RuntimeConfig
from bloombee.errors import RuntimeClosed
from bloombee.models.standin import standin_card
from bloombee.pipeline.commands import Command, FindPlan, PipelineDown, PlanMade
from bloombee.pipeline.events import WorkerGone, WorkerJoined, WorkerSaid
from bloombee.pipeline.swarm import SwarmCore, SwarmLimits
from bloombee.plan.plan import Plan
from bloombee.roles.bulletin import Bulletin
from bloombee.roles.plan_wishes import plan_request
from bloombee.roles.replanner import Replanner
from bloombee.wire.messages import Loaded, Wired

WAIT_S = 60.0


def _after_a_loss() -> tuple[SwarmCore, FindPlan]:
    """Of one of two workers; what is looked for then."""
    card = standin_card("standin:64x4")
    request = plan_request(RuntimeConfig(model=card.model, workers=2, share_out=True, kv_tokens=64), card, ())
    core = SwarmCore(request, SwarmLimits(60.0), iter(bytes([n]) * 16 for n in range(9)))
    for worker in (1, 2):
        core.handle(WorkerJoined(worker, f"w{worker}", "tcp://127.0.0.1:1", bytes([worker]) * 32, 1 << 40, 0.0))
    for worker in (1, 2):
        core.handle(WorkerSaid(worker, Loaded(worker, 1, (0,), (0,)), 0.0))
    for worker in (1, 2):
        core.handle(WorkerSaid(worker, Wired(1, 1), 0.0))
    asked = core.handle(WorkerGone(2, "killed", 1.0))[-1]
    assert isinstance(asked, FindPlan)
    return core, asked


class _Told:
    """A Replanner, and what comes of what it is told."""

    def __init__(self) -> None:
        self.core, self.asked = _after_a_loss()
        self.commands: list[Command] = []
        self.is_done = asyncio.Event()
        self.replanner = Replanner(Bulletin(), lambda _: None, lambda: self.core, self._do)

    def _do(self, commands: list[Command]) -> None:
        self.commands += commands
        self.is_done.set()


def test_the_loop_goes_on_while_a_plan_is_looked_for() -> None:
    async def use() -> None:
        told, may_end = _Told(), threading.Event()

        def find() -> Plan | None:
            assert may_end.wait(WAIT_S), "it holds up whoever would end it"
            return told.asked.find()

        told.replanner.told(FindPlan(told.asked.number, find))
        may_end.set()
        await asyncio.wait_for(told.is_done.wait(), WAIT_S)
        (made,) = (one for one in told.commands if isinstance(one, PlanMade))
        assert [(stage.worker, len(stage.span)) for stage in made.plan.stages] == [(1, 4)]

    asyncio.run(use())


def test_where_looking_for_one_goes_wrong_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    def find() -> Plan | None:
        raise ZeroDivisionError

    async def use() -> None:
        told = _Told()
        told.replanner.told(FindPlan(told.asked.number, find))
        await asyncio.wait_for(told.is_done.wait(), WAIT_S)
        assert isinstance(told.commands[0], PipelineDown)

    asyncio.run(use())
    assert "no other plan can be made" in caplog.text


def test_what_is_found_once_all_is_closed_counts_no_more() -> None:
    async def use() -> None:
        told = _Told()
        told.replanner.told(told.asked)
        told.replanner.close(RuntimeClosed("closed"))
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0)
        assert not told.commands

    asyncio.run(use())
