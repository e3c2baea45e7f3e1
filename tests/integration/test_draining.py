"""Workers that leave a running swarm: real processes that hand over and exit 0, requests that lose no token."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_kit import VOCABULARY, make_checkpoint

import bloombee
from bloombee import SwarmEventKind
from bloombee.config import WorkerConfig
from bloombee.roles.worker import WorkerRole
from bloombee.types import SwarmEvent

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    "warm": {"temperature": 0.8, "top_p": 0.95, "seed": 5},
    "warm with penalties": {"temperature": 0.8, "top_k": 40, "seed": 6, "repetition_penalty": 1.2},
}
NEW = 64
Answer = tuple[list[int], list[float | None]]


@pytest.fixture(autouse=True)
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "session"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


class Events:
    """What a Runtime says that happened."""

    def __init__(self, runtime: bloombee.Runtime) -> None:
        self.said: list[SwarmEvent] = []
        self._news = asyncio.Event()
        self.listening = asyncio.ensure_future(self._listen(runtime))

    async def _listen(self, runtime: bloombee.Runtime) -> None:
        async for event in runtime.events():
            self.said.append(event)
            self._news.set()

    async def until(self, holds: Callable[[SwarmEvent], bool], count: int = 1) -> None:
        async with asyncio.timeout(60):
            while sum(map(holds, self.said)) < count:
                self._news.clear()
                await self._news.wait()

    def count(self, kind: SwarmEventKind) -> int:
        return sum(event.kind is kind for event in self.said)


async def answer(runtime: bloombee.Runtime, fields: dict[str, Any], came: asyncio.Queue[None] | None = None) -> Answer:
    """Token ids, and their log-probabilities."""
    ids: list[int] = []
    logprobs: list[float | None] = []
    prompt = [number % VOCABULARY for number in range(3, 90)]
    async for token in runtime.stream(prompt, max_new_tokens=NEW, ignore_eos=True, logprobs=2, **fields):
        ids.append(token.token_id)
        logprobs.append(token.logprob)
        if came is not None:
            came.put_nowait(None)
    return ids, logprobs


async def answers(runtime: bloombee.Runtime, came: asyncio.Queue[None] | None = None) -> list[Answer]:
    return await asyncio.gather(*(answer(runtime, fields, came) for fields in KINDS.values()))


def terminate(runtime: bloombee.Runtime, stage: int) -> subprocess.Popen[str] | None:
    os.kill(runtime.worker_pids[runtime.plan.stages[stage].worker], signal.SIGTERM)
    return None


def command(runtime: bloombee.Runtime, stage: int) -> subprocess.Popen[str]:
    return bloombee_process("drain", runtime.plan.stages[stage].name)


def bloombee_process(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "bloombee", *words], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("model", "stage", "act"),
    [("demo", 0, terminate), ("demo", 1, command), ("demo", 2, terminate), ("windows", 1, terminate)],
)
def test_a_worker_leaves_in_the_middle_and_no_token_is_lost(
    model: str, stage: int, act: Callable[[bloombee.Runtime, int], subprocess.Popen[str] | None], tmp_path: Path
) -> None:
    """With penalties, noise and log-probabilities, and where layers see a window."""
    if model == "windows":
        model = str(tmp_path / "model")
        make_checkpoint("gemma3_text", tmp_path / "model", sizes={"max_position_embeddings": 512})

    async def use() -> None:
        async with bloombee.Runtime(model, workers=3, spares=1, dtype="float32", threads=1, silence_s=5.0) as runtime:
            events = Events(runtime)
            await events.until(lambda event: event.kind is SwarmEventKind.JOINED, 4)
            undisturbed = await answers(runtime)
            came: asyncio.Queue[None] = asyncio.Queue()
            asked = asyncio.ensure_future(answers(runtime, came))
            for _ in range(30):
                await came.get()
            leaver = runtime.plan.stages[stage]
            pid = runtime.worker_pids[leaver.worker]
            done = act(runtime, stage)
            for (ids, logprobs), (expected, expected_logprobs) in zip(await asked, undisturbed, strict=True):
                assert ids == expected
                assert logprobs == pytest.approx(expected_logprobs, abs=1e-4)
            await events.until(lambda event: event.kind is SwarmEventKind.LEFT and event.name == leaver.name)
            while psutil.pid_exists(pid):
                assert len((await answer(runtime, {}))[0]) == NEW
            assert leaver.worker not in {one.worker for one in runtime.plan.stages}
            assert await runtime.pages_free() == tuple(one.num_pages for one in runtime.plan.stages)
            if done is not None:
                _, said = await asyncio.to_thread(done.communicate)
                assert said.splitlines() == [f"worker {leaver.name} hands over what it serves", f"worker {leaver.name} has left"]
                assert done.returncode == 0
            assert (events.count(SwarmEventKind.LOST), events.count(SwarmEventKind.RESTARTED)) == (0, 0)

    asyncio.run(asyncio.wait_for(use(), 200))


@asynccontextmanager
async def swarm_of(
    count: int, spares: int, scheduler: str = "auto"
) -> AsyncIterator[tuple[bloombee.Runtime, Events, dict[str, subprocess.Popen[str]]]]:
    """Workers from elsewhere, each a process of its own."""
    runtime = bloombee.Runtime("demo", remote_workers=count, spares=spares, split=(4, 4), scheduler=scheduler, dtype="float32")
    workers: dict[str, subprocess.Popen[str]] = {}
    try:
        await runtime.prepare()
        for number, token in enumerate(runtime.join_tokens):
            words = ("worker", "--join", token, "--name", f"far-{number}", "--threads", "1", "--log-level", "warning")
            workers[f"far-{number}"] = bloombee_process(*words)
        await runtime.ready()
        events = Events(runtime)
        await events.until(lambda event: event.kind is SwarmEventKind.JOINED, count + spares)
        yield runtime, events, workers
    finally:
        await runtime.close()
        for worker in workers.values():
            worker.kill()
            worker.wait()


def test_a_worker_from_elsewhere_that_is_terminated_exits_0_and_its_spare_serves() -> None:
    async def use() -> None:
        async with swarm_of(2, 1) as (runtime, events, workers):
            undisturbed = await answers(runtime)
            came: asyncio.Queue[None] = asyncio.Queue()
            asked = asyncio.ensure_future(answers(runtime, came))
            await came.get()
            leaver = workers[runtime.plan.stages[0].name]
            leaver.send_signal(signal.SIGTERM)
            assert [ids for ids, _ in await asked] == [ids for ids, _ in undisturbed]
            assert await asyncio.to_thread(leaver.wait, 60) == 0
            await events.until(lambda event: event.kind is SwarmEventKind.UP, 2)
            spare = next(name for name in workers if name not in {stage.name for stage in runtime.plan.stages})
            assert workers[spare] is leaver

    asyncio.run(asyncio.wait_for(use(), 200))


def test_without_a_spare_the_other_takes_its_layers_over_and_it_exits_0() -> None:
    async def use() -> None:
        async with swarm_of(2, 0) as (runtime, _, workers):
            undisturbed = await answers(runtime)
            came: asyncio.Queue[None] = asyncio.Queue()
            asked = asyncio.ensure_future(answers(runtime, came))
            await came.get()
            workers["far-0"].send_signal(signal.SIGTERM)
            assert [ids for ids, _ in await asked] == [ids for ids, _ in undisturbed]
            assert await asyncio.to_thread(workers["far-0"].wait, 60) == 0
            assert [stage.name for stage in runtime.plan.stages] == ["far-1"]

    asyncio.run(asyncio.wait_for(use(), 200))


def test_one_that_nobody_can_replace_says_so_and_serves_on_until_it_is_told_twice() -> None:
    """The scheduler is beside the first stage, which no hand-over can follow."""

    async def use() -> None:
        async with swarm_of(2, 0, "stage0") as (runtime, _, workers):
            needed = workers["far-1"]
            needed.send_signal(signal.SIGTERM)
            assert needed.stderr is not None
            said = await asyncio.to_thread(needed.stderr.readline)
            assert "asks the head to hand over what it serves" in said
            said = await asyncio.to_thread(needed.stderr.readline)
            assert "cannot leave, and serves on: nobody can take layers" in said
            assert "there is no spare" in said
            assert len((await answer(runtime, {}))[0]) == NEW
            assert runtime.plan.epoch == 1
            asked = bloombee_process("drain", "far-1")
            _, said = await asyncio.to_thread(asked.communicate)
            assert asked.returncode == 1
            assert "of worker 'far-1': there is no spare, and the others cannot share them out: a hand-over keeps" in said
            assert "have another worker join first ('bloombee token' prints how)" in said
            unknown = bloombee_process("drain", "far-7")
            _, said = await asyncio.to_thread(unknown.communicate)
            assert (unknown.returncode, said) == (2, "bloombee: no worker 'far-7' is in the swarm; there are: far-0, far-1\n")
            needed.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(needed.wait, 60) == 143
            with pytest.raises(bloombee.BloomBeeError, match="it leaves: interrupted"):
                await answer(runtime, {})

    asyncio.run(asyncio.wait_for(use(), 200))


def test_of_workers_with_one_name_one_is_told_by_its_number() -> None:
    async def use() -> None:
        runtime = bloombee.Runtime("standin:256x4", remote_workers=2, spares=1, split=(2, 2))
        await runtime.prepare()
        configs = [
            WorkerConfig(join=token, name=name, pace="1,0,0") for token, name in zip(runtime.join_tokens, "bb1", strict=True)
        ]
        serving = [asyncio.ensure_future(WorkerRole(config).serve()) for config in configs]
        try:
            await runtime.ready()
            events = Events(runtime)
            await events.until(lambda event: event.kind is SwarmEventKind.JOINED, 3)
            asked = bloombee_process("drain", "b")
            _, said = await asyncio.to_thread(asked.communicate)
            numbers = sorted(worker.id for worker in runtime._head.core.members.values() if worker.name == "b")
            assert (asked.returncode, len(numbers)) == (2, 2)
            assert f"several workers are called 'b': say which by its number: {numbers[0]}, {numbers[1]}" in said
            asked = bloombee_process("drain", str(numbers[0]))
            _, said = await asyncio.to_thread(asked.communicate)
            assert (asked.returncode, said.splitlines()[-1]) == (0, "worker b has left")
            assert numbers[0] not in runtime._head.core.members
        finally:
            await runtime.close()
            await asyncio.gather(*serving, return_exceptions=True)

    asyncio.run(asyncio.wait_for(use(), 200))
