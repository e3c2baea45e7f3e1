"""A worker is killed while requests run, and a spare takes its place: real processes, the same tokens."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest

import bloombee
from bloombee import SwarmEventKind
from bloombee.config import WorkerConfig
from bloombee.errors import DeviceError
from bloombee.roles.worker import WorkerRole
from tests.ask_kit import NEW, ask, lose


class _Events:
    """What a Runtime says that happened, until it is closed."""

    def __init__(self, runtime: bloombee.Runtime) -> None:
        self.kinds: list[SwarmEventKind] = []
        self.lost: list[str] = []
        self._news = asyncio.Condition()
        self.over = asyncio.ensure_future(self._listen(runtime))

    async def _listen(self, runtime: bloombee.Runtime) -> None:
        async for event in runtime.events():
            async with self._news:
                self.kinds.append(event.kind)
                self.lost += [event.name] if event.kind is SwarmEventKind.LOST else []
                self._news.notify_all()

    async def until(self, kind: SwarmEventKind, count: int) -> None:
        async with self._news:
            await self._news.wait_for(lambda: self.kinds.count(kind) >= count)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_requests_go_on_with_the_same_tokens_when_a_stage_is_killed(stage: int) -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=3, spares=1, dtype="float32", threads=1, silence_s=5.0) as runtime:
            events = _Events(runtime)
            (lost,), _ = await lose(runtime, [stage])
            assert runtime.plan.epoch == 2
            assert runtime.plan.stages[stage].worker != lost.worker
            assert await runtime.pages_free() == tuple(one.num_pages for one in runtime.plan.stages)
            await events.until(SwarmEventKind.JOINED, 5)
        await asyncio.wait_for(events.over, 10)
        others = {SwarmEventKind.JOINED, SwarmEventKind.RESTARTED, SwarmEventKind.DECIDED}
        assert [kind for kind in events.kinds if kind not in others] == [
            SwarmEventKind.PLANNED, *[SwarmEventKind.LOADED] * 3, SwarmEventKind.WIRING, SwarmEventKind.UP, SwarmEventKind.LOST,
            SwarmEventKind.PLANNED, SwarmEventKind.WIRING, SwarmEventKind.LOADED, SwarmEventKind.UP,
        ]  # fmt: skip
        assert events.kinds.count(SwarmEventKind.JOINED) == 5
        assert events.kinds.count(SwarmEventKind.RESTARTED) == 1

    asyncio.run(asyncio.wait_for(use(), 120))


def test_without_a_spare_the_others_share_out_what_a_lost_worker_had() -> None:
    async def use() -> None:
        async with bloombee.Runtime(
            "demo", workers=3, share_out=True, restarts=0, dtype="float32", threads=1, silence_s=5.0
        ) as runtime:
            (lost,), _ = await lose(runtime, [1])
            assert runtime.plan.stage_of(lost.worker) is None
            assert len(runtime.plan.stages) == 2
            assert await runtime.pages_free() == tuple(one.num_pages for one in runtime.plan.stages)

    asyncio.run(asyncio.wait_for(use(), 120))


def test_a_lost_spare_costs_nothing_and_without_one_the_next_loss_ends_requests_typed() -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=2, spares=1, dtype="float32", threads=1, restarts=0) as runtime:
            events = _Events(runtime)
            staged = {stage.worker for stage in runtime.plan.stages}
            await events.until(SwarmEventKind.JOINED, 3)
            (spare,) = set(runtime.worker_pids) - staged
            os.kill(runtime.worker_pids[spare], signal.SIGKILL)
            await events.until(SwarmEventKind.LOST, 1)
            assert len(await ask(runtime, 0)) == NEW
            came: asyncio.Queue[int] = asyncio.Queue()
            asked = asyncio.ensure_future(ask(runtime, 1, came))
            await came.get()
            os.kill(runtime.worker_pids[min(staged)], signal.SIGKILL)
            with pytest.raises(bloombee.BloomBeeError):
                await asyncio.wait_for(asked, 10)
        await asyncio.wait_for(events.over, 10)

    asyncio.run(asyncio.wait_for(use(), 120))


def test_a_worker_that_hangs_is_told_as_lost_and_a_spare_takes_its_place() -> None:
    async def use() -> None:
        async with bloombee.Runtime(
            "demo", workers=2, spares=1, dtype="float32", threads=1, heartbeat_s=0.1, silence_s=1.0
        ) as runtime:
            events = _Events(runtime)
            await events.until(SwarmEventKind.JOINED, 3)
            undisturbed = await ask(runtime, 0)
            hung = runtime.plan.stages[1]
            os.kill(runtime.worker_pids[hung.worker], signal.SIGSTOP)
            await events.until(SwarmEventKind.LOST, 1)
            await events.until(SwarmEventKind.UP, 2)
            assert await ask(runtime, 0) == undisturbed
        await asyncio.wait_for(events.over, 10)
        assert events.lost == [hung.name]

    asyncio.run(asyncio.wait_for(use(), 120))


def test_workers_found_lost_cost_nothing_when_their_processes_end_after_that() -> None:
    """Of two at once a neighbour may say so first; one that hung and goes on sees that it is out, and comes back as a spare."""

    async def use() -> None:
        async with bloombee.Runtime("demo", workers=3, spares=3, dtype="float32", threads=1) as runtime:
            events = _Events(runtime)
            await events.until(SwarmEventKind.JOINED, 6)
            _, undisturbed = await lose(runtime, [0, 2])

            hung = runtime.plan.stages[1]
            pid = runtime.worker_pids[hung.worker]
            os.kill(pid, signal.SIGSTOP)
            await events.until(SwarmEventKind.LOST, 3)
            os.kill(pid, signal.SIGCONT)
            await events.until(SwarmEventKind.JOINED, 9)  # those that died were started again; this one comes back by itself
            assert psutil.pid_exists(pid)
            await runtime._there(asyncio.sleep(0))  # the head has done all that comes with it
            assert [one.had for one in runtime._head.core.members.values() if one.name == hung.name] == [hung.span]
            assert await ask(runtime, 0) == undisturbed[0]
        await asyncio.wait_for(events.over, 10)
        assert events.kinds.count(SwarmEventKind.LOST) == 3

    asyncio.run(asyncio.wait_for(use(), 120))


def test_a_spare_that_ends_before_it_has_joined_costs_nothing() -> None:
    async def use() -> None:
        runtime = bloombee.Runtime("demo", workers=1, spares=1, dtype="float32", threads=1, silence_s=5.0)
        try:
            await runtime.prepare()
            start = asyncio.ensure_future(runtime.ready())
            while len(runtime._head.local.processes) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            (pid,) = (pid for pid, name in runtime._head.local.processes.items() if name == "local-1")
            os.kill(pid, signal.SIGKILL)
            await asyncio.wait_for(start, 100)
            while pid in runtime._head.local.processes:
                assert len(await ask(runtime, 0)) == NEW
            assert len(await ask(runtime, 0)) == NEW
        finally:
            await runtime.close()

    asyncio.run(asyncio.wait_for(use(), 120))


def _spawner(runtime: bloombee.Runtime) -> psutil.Process:
    process = runtime._head.local._spawner._process
    assert process is not None
    return psutil.Process(process.pid)


def test_workers_that_end_with_their_spawner_are_said_so_and_no_spare_is_tried() -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=2, spares=1, dtype="float32", threads=1, silence_s=5.0) as runtime:
            events = _Events(runtime)
            await events.until(SwarmEventKind.JOINED, 3)
            came: asyncio.Queue[int] = asyncio.Queue()
            asked = asyncio.ensure_future(ask(runtime, 0, came))
            await came.get()
            _spawner(runtime).kill()
            with pytest.raises(DeviceError, match="the process that starts workers has ended"):
                await asyncio.wait_for(asked, 10)
            await events.until(SwarmEventKind.DOWN, 1)
            with pytest.raises(DeviceError, match="the process that starts workers has ended"):
                await ask(runtime, 0)
        await asyncio.wait_for(events.over, 10)
        assert events.kinds.count(SwarmEventKind.PLANNED) == 1

    asyncio.run(asyncio.wait_for(use(), 120))


def test_workers_from_elsewhere_do_not_need_the_spawner_of_the_head() -> None:
    async def use() -> None:
        runtime = bloombee.Runtime("demo", remote_workers=1, split=(8,), dtype="float32")
        await runtime.prepare()
        worker = asyncio.ensure_future(WorkerRole(WorkerConfig(join=runtime.join_token, threads=1)).serve())
        try:
            await runtime.ready()
            spawner = _spawner(runtime)
            spawner.kill()
            await asyncio.to_thread(spawner.wait)
            assert len(await ask(runtime, 0)) == NEW
            assert len(await ask(runtime, 0)) == NEW
        finally:
            await runtime.close()
            await asyncio.gather(worker, return_exceptions=True)

    asyncio.run(asyncio.wait_for(use(), 120))
