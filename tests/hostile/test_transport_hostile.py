"""A raw pyzmq socket as attacker. Whatever it sends, the endpoint refuses it with a type, and honest peers go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgpack
import pytest
from transport_kit import SWARM, Attacker, EvilListener, Side, forward, linked, sides

from bloombee.errors import AuthenticationError, RemoteProtocolError, VersionMismatch, from_wire
from bloombee.transport import LinkEventKind
from bloombee.transport.strangers import MAX_JOIN_BYTES
from bloombee.types import Lane
from bloombee.wire.envelope import MAX_TENSOR_BYTES, decode_envelope, encode_envelope
from bloombee.wire.messages import Heartbeat, Hello, Join, Refused

HEARTBEAT = encode_envelope(SWARM, Heartbeat(1))
JOIN = Join(1, bytes(16), "n", "s", "", "cpu", 1, ())


@asynccontextmanager
async def attacker(
    side: Side, *, routing_id: bytes | None = None, key: bool = True, **options: object
) -> AsyncIterator[Attacker]:
    a = Attacker(side.address, side.keys.public if key else None, routing_id=routing_id or os.urandom(16) + b"\0", **options)  # type: ignore[arg-type]
    try:
        yield a
    finally:
        a.close()


async def still_works(listener: Side, dialler: Side) -> None:
    """A new honest link carries a message."""
    link = await linked(listener, dialler)
    count = len(listener.messages)
    dialler.endpoint.send(link, Lane.CONTROL, Heartbeat(99))
    await listener.until(lambda: len(listener.messages) > count, "honest peers go on")
    assert listener.messages[-1][0] == link


def refusal(frames: list[bytes] | None) -> Refused:
    assert frames is not None
    message = decode_envelope(frames).message
    assert isinstance(message, Refused)
    return message


async def answer(a: Attacker) -> Exception:
    refused = refusal(await a.hear())
    return from_wire(refused.code, refused.fields)


@pytest.mark.parametrize(
    "message", [Heartbeat(1), forward(0, 8)[0], Hello(1, SWARM, 0, "x", (), 0)], ids=["heartbeat", "forward", "hello"]
)
def test_an_unknown_key_may_say_nothing_but_join_to_a_head(message: object) -> None:
    async def main() -> None:
        async with sides({"bind": True, "head": True}, {}) as (head, honest), attacker(head) as a:
            a.say_message(message)
            assert isinstance(await answer(a), AuthenticationError)
            assert head.endpoint.strangers.refused == 1
            assert (head.messages, head.joins) == ([], [])
            event = head.event(LinkEventKind.REFUSED)
            assert event is not None
            assert event.link is None
            a.say_message(JOIN, swarm=0)
            await head.until(lambda: head.joins, "but it may say that")
            assert head.joins[0][1] == a.keys.public
            await still_works(head, honest)

    asyncio.run(main())


def test_a_join_that_is_too_big_or_on_the_wrong_lane() -> None:
    async def main() -> None:
        async with sides({"bind": True, "head": True}, {}) as (head, honest):
            for routing_id in (os.urandom(16) + b"\1", b"short", os.urandom(100)):
                async with attacker(head, routing_id=routing_id) as a:
                    a.say_message(JOIN)
                    assert isinstance(await answer(a), AuthenticationError)
            for frames in ([b"\x94\x01" + bytes(MAX_JOIN_BYTES)], [encode_envelope(0, JOIN), b"x"], [b""], [b"", b"", b""]):
                async with attacker(head) as a:
                    a.say(*frames)
                    assert isinstance(await answer(a), RemoteProtocolError)
            assert head.joins == []
            await still_works(head, honest)

    asyncio.run(main())


def test_a_flood_of_strangers_is_answered_within_bounds() -> None:
    async def main() -> None:
        async with sides({"bind": True, "head": True}, {}) as (head, honest), attacker(head) as a:
            for _ in range(2000):
                a.say_message(JOIN)
            await head.until(lambda: head.endpoint.strangers.messages_in == 2000, "all are read")
            assert 1 <= len(head.joins) <= 2000 - head.endpoint.strangers.refused
            assert head.endpoint.strangers.refused > 1000
            await still_works(head, honest)

    asyncio.run(main())


def test_a_worker_lets_no_unknown_key_in() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (worker, honest), attacker(worker) as a:
            a.say(HEARTBEAT)
            await worker.until(lambda: worker.event(LinkEventKind.HANDSHAKE_FAILED), "the handshake is denied")
            assert await a.hear(0.05) is None
            assert worker.messages == []
            await still_works(worker, honest)

    asyncio.run(main())


def test_without_curve_or_without_zeromq_nobody_comes_in() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (worker, honest):
            async with attacker(worker, key=False) as a:
                a.say(HEARTBEAT)
                await worker.until(lambda: worker.endpoint.strangers.refused, "plain ZeroMQ is refused")
            host, port = worker.address.removeprefix("tcp://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):
                    assert len(await reader.read()) < 200  # a greeting at most, then the connection is closed
            writer.close()
            assert worker.messages == []
            await still_works(worker, honest)

    asyncio.run(main())


def test_a_known_key_on_somebody_elses_link_is_not_heard() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}, {}) as (a, honest, traitor):
            link = await linked(a, honest)
            honest.endpoint.send(link, Lane.CONTROL, Heartbeat(1))
            await a.until(lambda: a.messages, "the link works")
            await linked(a, traitor)
            async with attacker(a, routing_id=link + b"\0", keys=traitor.keys) as thief:
                thief.say(HEARTBEAT)
                await a.until(lambda: a.event(LinkEventKind.REFUSED), "the theft is noticed")
                event = a.event(LinkEventKind.REFUSED)
                assert event is not None
                assert (event.link, type(event.error)) == (link, AuthenticationError)
                assert len(a.messages) == 1
                assert await thief.hear(0.05) is None
            await still_works(a, traitor)

    asyncio.run(main())


message, tensors = forward(3, 8)
LYING = encode_envelope(SWARM, message, tensors)
GARBAGE: dict[str, tuple[list[bytes], type[Exception]]] = {
    "noise": ([b"\xc1" * 40], RemoteProtocolError),
    "empty": ([b""], RemoteProtocolError),
    "truncated": ([HEARTBEAT[:-1]], RemoteProtocolError),
    "wrong tag": ([msgpack.packb([1, SWARM, [99, 1], []])], RemoteProtocolError),
    "surplus field": ([msgpack.packb([1, SWARM, [6, 1, 2], []])], RemoteProtocolError),
    "other version": ([b"\x94\x02" + HEARTBEAT[2:]], VersionMismatch),
    "other swarm": ([encode_envelope(SWARM + 1, Heartbeat(1))], RemoteProtocolError),
    "payload missing": ([LYING], RemoteProtocolError),
    "payload too short": ([LYING, bytes(7)], RemoteProtocolError),
    "payload too many": ([LYING, bytes(8), bytes(8)], RemoteProtocolError),
    "payload unannounced": ([HEARTBEAT, bytes(8)], RemoteProtocolError),
    "a thousand frames": ([HEARTBEAT, *[b"x"] * 1000], RemoteProtocolError),
    "oversized header": ([bytes(2 << 20)], RemoteProtocolError),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_on_an_allowed_link_is_answered_and_the_link_dropped(name: str) -> None:
    frames, error = GARBAGE[name]

    async def main() -> None:
        async with sides({"bind": True}, {}) as (worker, honest):
            link = os.urandom(16)
            async with attacker(worker, routing_id=link + b"\0") as a:
                worker.endpoint.allow(link, a.keys.public, 1)
                a.say(*frames)
                assert type(await answer(a)) is error
                event = worker.event(LinkEventKind.REFUSED)
                assert event is not None
                assert (event.link, type(event.error)) == (link, error)
                a.say(HEARTBEAT)
                assert isinstance(await answer(a), AuthenticationError)
                assert worker.messages == []
            await still_works(worker, honest)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["noise", "other version", "a thousand frames"])
def test_garbage_from_a_dialled_peer_drops_the_link(name: str) -> None:
    frames, error = GARBAGE[name]

    async def main() -> None:
        async with sides({}) as (b,):
            evil = EvilListener()
            try:
                link = os.urandom(16)
                b.endpoint.dial(link, evil.address, evil.keys.public)
                b.endpoint.send(link, Lane.CONTROL, Heartbeat(1))
                assert await evil.hear() == [link + b"\0", HEARTBEAT]
                evil.socket.send_multipart([link + b"\0", *frames])
                await b.until(lambda: b.event(LinkEventKind.REFUSED), "it is refused")
                event = b.event(LinkEventKind.REFUSED)
                assert event is not None
                assert (event.link, type(event.error)) == (link, error)
                refused = await evil.hear()
                assert refused is not None
                assert refusal(refused[1:]).code == error.__name__
            finally:
                evil.close()

    asyncio.run(main())


def test_an_oversized_frame_costs_the_connection() -> None:
    """ZeroMQ refuses it by the length in its head: no byte of it is delivered."""

    async def main() -> None:
        async with sides({"bind": True}, {}) as (worker, honest):
            link = os.urandom(16)
            async with attacker(worker, routing_id=link + b"\0") as a:
                worker.endpoint.allow(link, a.keys.public, 1)
                a.say(HEARTBEAT)
                await worker.until(lambda: worker.messages, "it is connected")
                a.socket.send_multipart([HEARTBEAT, bytes(MAX_TENSOR_BYTES + 1)], copy=False)
                await worker.until(lambda: worker.event(LinkEventKind.DISCONNECTED), "the connection is closed")
                assert worker.endpoint.counters(link, Lane.CONTROL).bytes_in == len(HEARTBEAT)
                assert len(worker.messages) == 1
            await still_works(worker, honest)

    asyncio.run(main())
