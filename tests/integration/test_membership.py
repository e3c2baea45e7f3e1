"""Who is in a swarm: workers that leave before all are there, and workers that take another's key."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import bloombee
from bloombee.config import WorkerConfig
from bloombee.errors import AuthenticationError, DeviceError, LinkDown, LocalProtocolError
from bloombee.roles.worker import WorkerRole
from bloombee.transport.keys import generate, save
from bloombee.types import LoadProgress, SwarmEventKind


class _Heard:
    """What the head says of its workers, to be waited for."""

    def __init__(self) -> None:
        self.said: list[LoadProgress] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def __call__(self, progress: LoadProgress) -> None:
        self._loop.call_soon_threadsafe(self._take, progress)

    def _take(self, progress: LoadProgress) -> None:
        self.said.append(progress)
        self._news.set()

    async def until(self, holds: Callable[[LoadProgress], bool]) -> LoadProgress:
        async with asyncio.timeout(60):
            while not any(map(holds, self.said)):
                self._news.clear()
                await self._news.wait()
        return next(filter(holds, self.said))


def test_the_token_of_a_worker_lost_before_the_plan_is_valid_again_and_the_head_says_so() -> None:
    async def use() -> None:
        heard = _Heard()
        runtime = bloombee.Runtime("demo", remote_workers=2, split=(4, 4), dtype="float32", on_progress=heard)
        workers: list[asyncio.Task[None]] = []

        def start(token: str, name: str) -> None:
            workers.append(asyncio.ensure_future(WorkerRole(WorkerConfig(join=token, name=name, threads=1)).serve()))

        try:
            await runtime.prepare()
            start(runtime.join_tokens[0], "first")
            joined = await heard.until(lambda said: said.phase == "joined")
            assert (joined.name, joined.num_missing) == ("first", 1)
            workers[0].cancel()  # its connections end, as those of a process that was killed
            start(runtime.join_tokens[0], "again")  # it asks for as long as nobody knows whether the first comes back
            left = await heard.until(lambda said: said.phase == "left")
            assert (left.name, left.num_missing) == ("first", 2)
            start(runtime.join_tokens[1], "second")
            await asyncio.wait_for(runtime.ready(), 100)
            assert {stage.name for stage in runtime.plan.stages} == {"again", "second"}
            assert len((await runtime.generate("import os\n", max_new_tokens=4)).token_ids) == 4
        finally:
            await runtime.close()
            await asyncio.gather(*workers, return_exceptions=True)

    asyncio.run(use())


def test_a_second_worker_with_the_same_key_is_refused_and_nothing_else_changes(tmp_path: Path) -> None:
    key = tmp_path / "key"
    save(key, generate())

    async def use() -> None:
        runtime = bloombee.Runtime("demo", remote_workers=1, split=(8,), dtype="float32")
        await runtime.prepare()
        config = WorkerConfig(join=runtime.join_token, key=str(key), name="the first", threads=1)
        first = asyncio.ensure_future(WorkerRole(config).serve())
        try:
            await asyncio.wait_for(runtime.ready(), 100)
            wanted = (await runtime.generate("import ", max_new_tokens=60, ignore_eos=True)).token_ids
            running = [asyncio.ensure_future(runtime.generate("import ", max_new_tokens=60, ignore_eos=True)) for _ in range(8)]
            with pytest.raises(AuthenticationError) as caught:
                await asyncio.wait_for(WorkerRole(config).serve(), 60)
            assert "this key is in use by worker 'the first': give each worker a key of its own" in str(caught.value)
            assert [answer.token_ids for answer in await asyncio.gather(*running)] == [wanted] * 8
            assert await runtime.pages_free() == (runtime.plan.groups[0].num_pages,)
        finally:
            await runtime.close()
            await asyncio.wait_for(first, 30)

    asyncio.run(use())


def test_a_local_worker_that_dies_while_others_are_awaited_ends_the_start() -> None:
    killed: list[str] = []

    def kill(progress: LoadProgress) -> None:
        if not killed:
            killed.append(progress.name)
            spawners = [child for child in psutil.Process().children() if "bloombee.roles.spawner" in " ".join(child.cmdline())]
            newest = max(spawners, key=lambda process: (process.create_time(), process.pid))
            workers = sorted(newest.children(), key=lambda process: (process.create_time(), process.pid))
            os.kill(workers[int(progress.name.rpartition("-")[2])].pid, signal.SIGKILL)

    async def use() -> None:
        async with bloombee.Runtime("demo", workers=3, dtype="float32", on_progress=kill):
            raise AssertionError("it came up")

    with pytest.raises((DeviceError, LinkDown)) as caught:  # LinkDown: all had joined by the time
        asyncio.run(asyncio.wait_for(use(), 120))
    assert f"'{killed[0]}'" in str(caught.value)
    assert "SIGKILL" in str(caught.value)


def test_a_token_issued_while_it_runs_lets_a_spare_in_and_another_once_that_is_lost() -> None:
    async def use() -> None:
        heard = _Heard()
        workers: list[asyncio.Task[None]] = []

        async def start(token: str, name: str) -> None:
            workers.append(asyncio.ensure_future(WorkerRole(WorkerConfig(join=token, name=name, threads=1)).serve()))
            await heard.until(lambda said: said.phase == "joined" and said.name == name)

        async with bloombee.Runtime("demo", workers=1, dtype="float32", threads=1, on_progress=heard) as runtime:
            try:
                expected = (await runtime.generate("import os\n", max_new_tokens=8)).token_ids
                token = await runtime.issue_token()
                assert token not in runtime.join_tokens
                await start(token, "first")
                workers[0].cancel()  # its connections end, as those of a process that was killed
                await start(token, "again")
                (stage,) = runtime.plan.stages
                os.kill(runtime.worker_pids[stage.worker], signal.SIGKILL)
                await heard.until(lambda said: said.phase == "ready" and said.name == "again")
                assert (await runtime.generate("import os\n", max_new_tokens=8)).token_ids == expected
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    asyncio.run(asyncio.wait_for(use(), 120))


def test_who_cannot_load_before_the_first_plan_runs_is_said_why_and_another_is_awaited(tmp_path: Path) -> None:
    """Its copy of the model has no weights."""
    copy = tmp_path / "model"
    shutil.copytree(Path(bloombee.__file__).parent / "demo_model" / "target", copy)
    (copy / "model.safetensors").write_bytes(b"")

    async def use() -> None:
        workers: list[asyncio.Task[None]] = []

        def start(token: str, name: str, model: str | None = None) -> None:
            config = WorkerConfig(join=token, name=name, model=model, threads=1)
            workers.append(asyncio.ensure_future(WorkerRole(config).serve()))

        runtime = bloombee.Runtime("demo", remote_workers=2, split=(4, 4), wait_for_worker_s=60.0, dtype="float32")
        try:
            await runtime.prepare()
            start(runtime.join_tokens[0], "broken", str(copy))
            start(runtime.join_tokens[1], "whole")
            ready = asyncio.ensure_future(runtime.ready())
            lost = await anext(event async for event in runtime.events() if event.kind is SwarmEventKind.LOST)
            assert lost.name == "broken"
            assert "model.safetensors" in lost.reason
            start(await runtime.issue_token(), "another")
            await asyncio.wait_for(ready, 100)
            assert {stage.name for stage in runtime.plan.stages} == {"whole", "another"}
            assert len((await runtime.generate("import os\n", max_new_tokens=4)).token_ids) == 4
        finally:
            await runtime.close()
            await asyncio.gather(*workers, return_exceptions=True)

    asyncio.run(use())


@pytest.mark.parametrize("place", ["loop", "tick", "choice"])
def test_what_an_internal_error_abandons_does_not_decode_on(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong where it is chosen how to run costs a choice, and no request."""

    async def use() -> None:
        async with bloombee.Runtime("demo", workers=1, dtype="float32", threads=1) as runtime:
            begun = asyncio.Event()

            async def read() -> None:
                async for _ in runtime.stream("import ", max_new_tokens=1900, ignore_eos=True):
                    begun.set()

            reading = asyncio.ensure_future(read())
            await begun.wait()

            def bug() -> None:
                raise ValueError("what nobody thought of")

            assert runtime._home is not None
            head = runtime._head
            if place == "loop":
                runtime._home.loop.call_soon_threadsafe(bug)
            elif place == "tick":
                monkeypatch.setattr(head.helm, "look", lambda *_: bug())
            else:
                seen = asyncio.Event()
                loop = asyncio.get_running_loop()

                def fail(_: object) -> None:
                    loop.call_soon_threadsafe(seen.set)
                    bug()

                monkeypatch.setattr(head.helm.core, "handle", fail)
                await asyncio.wait_for(seen.wait(), 30)
                monkeypatch.undo()
                assert not reading.done()
                reading.cancel()
            with pytest.raises((LocalProtocolError, asyncio.CancelledError)):
                await asyncio.wait_for(reading, 30)
            monkeypatch.undo()
            assert len((await runtime.generate("import ", max_new_tokens=2)).token_ids) == 2
            assert await runtime.pages_free() == (runtime.plan.groups[0].num_pages,)

    asyncio.run(use())
