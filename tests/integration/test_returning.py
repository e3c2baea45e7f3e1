"""A worker that the head has taken for lost, and that lives: it comes back with what it has loaded, and is the spare for that."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from relay_kit import Relay, free_port

import bloombee
from bloombee import SwarmEventKind
from bloombee.config import WorkerConfig
from bloombee.errors import LinkDown
from bloombee.roles.returning import MOST, Returning
from bloombee.roles.worker import WorkerRole
from bloombee.types import SwarmEvent
from bloombee.wire.token import decode_token, encode_token
from tests.ask_kit import PROMPTS, ask


class _Swarm:
    """A head of workers in this process, each behind a relay."""

    def __init__(self, runtime: bloombee.Runtime, port: int) -> None:
        self.runtime = runtime
        self.roles: dict[str, WorkerRole] = {}
        self.relays: dict[str, Relay] = {}
        self.events: list[SwarmEvent] = []
        self._port = port
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()

    async def start(self, name: str, token: str) -> None:
        relay = self.relays[name] = Relay(self._port)
        await relay.listen()
        join = encode_token(msgspec.structs.replace(decode_token(token), endpoints=(relay.endpoint,)))
        self.roles[name] = WorkerRole(WorkerConfig(join=join, name=name, threads=1))
        self._tasks[name] = asyncio.ensure_future(self.roles[name].serve())

    async def listen(self) -> None:
        async for event in self.runtime.events():
            self.events.append(event)
            self._news.set()

    async def until(self, kind: SwarmEventKind, count: int, name: str = "") -> None:
        async with asyncio.timeout(60):
            while sum(event.kind is kind and name in ("", event.name) for event in self.events) < count:
                self._news.clear()
                await self._news.wait()

    def layers(self, name: str) -> dict[int, int]:
        """Those that a worker holds: number -> whose memory."""
        stages = self.roles[name]._stages
        assert stages is not None
        return {number: id(layer.weights) for (_, number), layer in stages._loader.store._layers.items()}

    async def lose(self, name: str, how: str) -> None:
        """Have the head take a worker for lost, and let it hear that once another has its stage."""
        head, home = self.runtime._head, self.runtime._home
        assert home is not None
        relay, ups = self.relays[name], sum(event.kind is SwarmEventKind.UP for event in self.events)
        if how == "dark":
            relay.is_dark = True
        else:
            worker = head.members.named(name)
            assert worker is not None
            home.soon(head._gone, worker, "it was given up")
        await self.until(SwarmEventKind.UP, ups + 1)
        relay.is_dark = False

    async def kill(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)

    async def close(self) -> None:
        await self.runtime.close()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for relay in self.relays.values():
            relay.close()


@pytest.mark.parametrize("how", ["given up", "dark"])
def test_a_worker_that_was_taken_for_lost_comes_back_with_its_layers_and_gets_them_again(how: str) -> None:
    async def use() -> None:
        port = free_port()
        runtime = bloombee.Runtime(
            "demo", remote_workers=2, spares=2, split=(4, 4), dtype="float32", listen=f"tcp://127.0.0.1:{port}"
        )
        the = _Swarm(runtime, port)
        try:
            await runtime.prepare()
            for number, token in enumerate(runtime.join_tokens):
                await the.start(f"far-{number}", token)
            await runtime.ready()
            listening = asyncio.ensure_future(the.listen())
            await the.until(SwarmEventKind.JOINED, 4)
            undisturbed = await asyncio.gather(*(ask(runtime, number) for number in range(len(PROMPTS))))
            came: asyncio.Queue[int] = asyncio.Queue()
            asked = asyncio.gather(*(ask(runtime, number, came) for number in range(len(PROMPTS))))
            for _ in range(20):
                await came.get()
            lost = runtime.plan.stages[1]
            held = the.layers(lost.name)
            assert set(held) == set(range(lost.span.start, lost.span.stop))

            await the.lose(lost.name, how)
            assert await asked == undisturbed
            await the.until(SwarmEventKind.JOINED, 2, lost.name)
            await runtime._there(asyncio.sleep(0))  # the head has done all that comes with it
            back = runtime._head.members.named(lost.name)
            assert back is not None
            assert back != lost.worker
            assert runtime._head.core.members[back].had == lost.span
            assert the.layers(lost.name) == held

            await the.kill(runtime.plan.stages[1].name)
            await the.until(SwarmEventKind.UP, 3)
            assert runtime.plan.stages[1].worker == back, "there is another spare, which joined before"
            assert the.layers(lost.name) == held, "nothing is read again"
            assert list(await asyncio.gather(*(ask(runtime, number) for number in range(len(PROMPTS))))) == undisturbed
        finally:
            await the.close()
        await asyncio.wait_for(listening, 30)

    asyncio.run(asyncio.wait_for(use(), 200))


def test_how_long_a_worker_tries_to_come_back_is_by_how_it_lost_its_head() -> None:
    gone = LinkDown("gone")
    returning = Returning(5.0)
    assert (returning.begins(gone, has_state=False), returning.wait_s) == (True, 5.0)
    returning.ended("tcp://h:1")
    assert not returning.begins(gone, has_state=False)
    returning.ended("tcp://h:1")
    assert returning.begins(gone, has_state=True)
    never = Returning(0.0)
    assert not never.begins(gone, has_state=False)
    assert not never.begins(gone, has_state=True)
    tries = []
    for _ in range(MOST + 1):
        never.given_up("x")
        tries.append(never.begins(gone, has_state=False))
    assert tries == [True] * MOST + [False], "a head that gives it up again and again does not want it"
