"""A serving swarm under attack goes on answering with the right tokens, in bounded memory."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psutil
import pytest
from transport_kit import Attacker

import bloombee
from bloombee.config import WorkerConfig
from bloombee.errors import RemoteProtocolError
from bloombee.roles.head_search import Found
from bloombee.roles.worker import WorkerRole
from bloombee.types import Lane
from bloombee.wire.envelope import encode_envelope
from bloombee.wire.messages import (
    Close,
    Forward,
    Hardware,
    Introduce,
    Item,
    Load,
    MeasureLink,
    Peer,
    Pick,
    Profile,
    Profiled,
    Refused,
    StageFailed,
    Times,
    Verdict,
)
from bloombee.wire.token import decode_token

MAX_GROWTH_BYTES = 64 << 20
TIMES = Times(0.0, 0.0, 0.0, 0.0, None)
HARDWARE = Hardware((0, 0, 0), None, None, None, None, 0, "")
PROMPT = "class Stack:\n    def push(self"


def _garbage(rng: random.Random) -> list[bytes]:
    """A multipart that no peer of ours would send."""
    item = Item(1, 0, 1, 5, bytes(4), 1, None, None)
    whole = encode_envelope(rng.getrandbits(63), Forward(1, 1, 0, 0, 0, 0, (item,)))
    kind = rng.randrange(6)
    if kind == 0:
        return [rng.randbytes(rng.randrange(200))]
    if kind == 1:
        return [whole[: rng.randrange(len(whole))]]
    if kind == 2:
        return [whole, rng.randbytes(1 << 16)]
    if kind == 3:
        return [b"\x94\x01" + rng.randbytes(30)]
    if kind == 4:
        return [whole] * 50
    return [rng.randbytes(1 << 20)]


def test_strangers_change_nothing() -> None:
    async def use() -> None:
        rng = random.Random(1)
        async with bloombee.Runtime("demo", workers=2, dtype="float32") as runtime:
            want = (await runtime.generate(PROMPT, max_new_tokens=60)).token_ids
            token = decode_token(runtime.join_token)
            before = psutil.Process().memory_info().rss
            attackers = [Attacker(token.endpoints[0], token.key, routing_id=rng.randbytes(17)) for _ in range(8)]
            try:
                for _ in range(6):
                    serving = asyncio.ensure_future(runtime.generate(PROMPT, max_new_tokens=60))
                    for attacker in attackers:
                        for _ in range(100):
                            attacker.say(*_garbage(rng))
                    assert (await serving).token_ids == want
                growth = psutil.Process().memory_info().rss - before
                assert growth < MAX_GROWTH_BYTES
            finally:
                for attacker in attackers:
                    attacker.close()
            assert (await runtime.generate(PROMPT, max_new_tokens=60)).token_ids == want

    asyncio.run(use())


class _Turncoat(WorkerRole):
    """A worker that joined with a good token and then says what it must not."""

    def __init__(self, config: WorkerConfig, says: list[Any]) -> None:
        super().__init__(config)
        self.says = says
        self.heard: list[Refused] = []

    def _from_head(self, lane: Lane, message: Any, payload: Any) -> None:
        if isinstance(message, Load):
            for said in self.says:
                self._endpoint.send(self._head_link, Lane.CONTROL, said)
            return
        if isinstance(message, Refused):
            self.heard.append(message)
        super()._from_head(lane, message, payload)


@pytest.mark.parametrize(
    "message",
    [
        Verdict(1, 1, 0, 0, (Pick(1, 0, 1, 7, None, ()),), None),
        Verdict(9, 9, 0, 0, (), None),
        Close(1, 1, (1,), 5),
        Forward(1, 1, 0, 0, 0, 0, ()),
        Introduce(Peer(1, "tcp://127.0.0.1:1", bytes(32), bytes(16), True, None)),
        MeasureLink(1, 0, True),
        Profile("demo", bytes(16), "float32"),
        Profiled(bytes(16), "float32", "cpu", 1, TIMES, TIMES, TIMES, 0.0, 0.0, 0, 0, None, None, (), HARDWARE),
    ],
    ids=[
        "verdict before ready",
        "other pipeline",
        "close",
        "forward",
        "introduce",
        "measure",
        "question for a profile",
        "profile of another model",
    ],
)
def test_a_worker_that_says_what_it_must_not_is_told_why_and_is_in_no_longer_and_the_head_lives(message: Any) -> None:
    async def use() -> None:
        runtime = bloombee.Runtime("demo", remote_workers=1, split=(8,), dtype="float32", load_deadline_s=60)
        await runtime.prepare()
        turncoat = _Turncoat(
            WorkerConfig(join=runtime.join_token), [message, StageFailed(1, 1, "DeviceError", {"message": "enough"})]
        )
        serving = asyncio.ensure_future(turncoat.serve())
        try:
            with pytest.raises(bloombee.BloomBeeError) as caught:
                await asyncio.wait_for(runtime.ready(), 30)
            is_late = isinstance(message, Profiled | Verdict)  # of an epoch that does not run: that costs nothing
            assert ("enough" if is_late else "it broke the protocol") in str(caught.value)
            if isinstance(message, Profiled):
                return  # it is ignored
            async with asyncio.timeout(10):
                while not turncoat.heard:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert turncoat.heard[0].code == ("StalePlan" if is_late else "RemoteProtocolError")
        finally:
            await runtime.close()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(use())


class _Liar(WorkerRole):
    """Tells others to dial what cannot be dialled."""

    def __init__(self, config: WorkerConfig, told: str) -> None:
        super().__init__(config)
        self._lie = told

    async def _join(self, head: Found) -> None:
        self._told = self._lie
        await super()._join(head)


LIES = ("tcp://x", "inproc://x", "ipc://x", "tcp://a:99999", "tcp://0.0.0.0:5", "tcp://a\x1b[2J:1", "tcp://" + "a" * 65536)


def test_an_endpoint_that_nobody_can_dial_is_refused_at_the_door_and_ends_no_other_worker() -> None:
    async def use() -> None:
        runtime = bloombee.Runtime("standin:256x4", remote_workers=2, split=(2, 2))
        await runtime.prepare()
        first, second = (WorkerConfig(join=token, pace="1,0,0") for token in runtime.join_tokens)
        honest = [asyncio.ensure_future(WorkerRole(first).serve())]
        try:
            for lie in LIES:
                with pytest.raises(RemoteProtocolError) as caught:
                    await _Liar(second, lie).serve()
                assert caught.value.fields["path"] in ("Join.endpoint", "header")
            honest.append(asyncio.ensure_future(WorkerRole(second).serve()))
            await asyncio.wait_for(runtime.ready(), 60)
            assert len((await runtime.generate([1, 2, 3], max_new_tokens=4)).token_ids) == 4
        finally:
            await runtime.close()
            await asyncio.gather(*honest, return_exceptions=True)

    asyncio.run(use())
