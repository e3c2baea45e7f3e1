"""Endpoints over loopback with CURVE: what honest peers can rely on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from relay_kit import Relay
from transport_kit import SWARM, Side, forward, linked, sides

from bloombee.errors import (
    AddressInUse,
    AuthenticationError,
    ConfigError,
    LinkDown,
    LocalProtocolError,
    QueueFull,
    RemoteProtocolError,
)
from bloombee.transport import LinkEventKind
from bloombee.transport import keys as key_files
from bloombee.transport.keys import generate
from bloombee.types import Lane
from bloombee.wire.messages import Heartbeat, Join, Joined, Refused

Main = Callable[[], Coroutine[Any, Any, None]]
both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@both_loops
@pytest.mark.parametrize("curve", [True, False], ids=["curve", "plain"])
def test_both_lanes_carry_frames_both_ways(run: Callable[..., None], curve: bool) -> None:
    async def main() -> None:
        async with sides({"bind": True, "curve": curve}, {"curve": curve}) as (a, b):
            link = await linked(a, b)
            for lane in Lane:
                for size in (1, 4096, 65535, 65536, 3 << 20):
                    payload = os.urandom(size)
                    message, tensors = forward(size, size)
                    for source, target in ((b, a), (a, b)):
                        count = len(target.messages)
                        source.endpoint.send(link, lane, message, tensors, (payload,))
                        await target.until(lambda t=target, n=count: len(t.messages) > n, "the frame arrives")
                        got_link, got_lane, envelope, payloads = target.messages[-1]
                        assert (got_link, got_lane, payloads) == (link, lane, [payload])
                        assert (envelope.swarm, envelope.message, envelope.tensors) == (SWARM, message, tensors)
            assert a.kinds(link) == [LinkEventKind.CONNECTED] * 2
            counters = b.endpoint.counters(link, Lane.BULK)
            assert counters.messages_in == counters.messages_out == 5
            assert counters.bytes_out > 3 << 20
            assert a.endpoint.counters(link, Lane.BULK).bytes_in == counters.bytes_out

    run(main())


@both_loops
def test_ten_thousand_messages_in_order(run: Callable[..., None]) -> None:
    async def main() -> None:
        async with sides({"bind": True, "max_queued_messages": 10_000}, {"max_queued_messages": 10_000}) as (a, b):
            link = await linked(a, b)
            b.endpoint.send(link, Lane.CONTROL, Heartbeat(0))
            await a.until(lambda: a.messages, "the first message makes the way back known")
            for source, target in ((b, a), (a, b)):
                target.messages.clear()
                for number in range(10_000):
                    source.endpoint.send(link, Lane.CONTROL, Heartbeat(number))
                await target.until(lambda t=target: len(t.messages) == 10_000, "all arrive")
                assert [envelope.message.count for _, _, envelope, _ in target.messages] == list(range(10_000))
                assert source.endpoint.pending_bytes(link, Lane.CONTROL) == 0

    run(main())


def test_a_link_that_is_dialled_before_it_is_allowed_comes_up() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = os.urandom(16)
            b.endpoint.dial(link, a.address, a.keys.public)
            b.endpoint.send(link, Lane.CONTROL, Heartbeat(1))
            await b.until(lambda: b.event(LinkEventKind.HANDSHAKE_FAILED), "the unknown key is denied")
            failed = b.event(LinkEventKind.HANDSHAKE_FAILED)
            assert failed is not None
            assert isinstance(failed.error, AuthenticationError)
            assert b.endpoint.pending_bytes(link, Lane.CONTROL) > 0
            a.endpoint.allow(link, b.keys.public, 1)
            await a.until(lambda: a.said(Heartbeat), "what waited arrives")

    asyncio.run(main())


def test_a_wrong_server_key_is_a_typed_error() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = os.urandom(16)
            a.endpoint.allow(link, b.keys.public, 1)
            b.endpoint.dial(link, a.address, generate().public)
            await b.until(lambda: b.event(LinkEventKind.HANDSHAKE_FAILED), "the failure is reported")
            failed = b.event(LinkEventKind.HANDSHAKE_FAILED)
            assert failed is not None
            assert isinstance(failed.error, AuthenticationError)
            assert a.address in failed.error.message
            assert LinkEventKind.CONNECTED not in b.kinds()
            await a.until(lambda: a.endpoint.strangers.refused, "and counted by the listener")

    asyncio.run(main())


@pytest.mark.parametrize("curve", [True, False], ids=["curve", "plain"])
def test_joining_over_an_unknown_link(curve: bool) -> None:
    async def main() -> None:
        async with sides({"bind": True, "head": True, "curve": curve}, {"curve": curve}) as (head, worker):
            worker.endpoint.swarm = 0
            link = os.urandom(16)
            worker.endpoint.dial(link, head.address, head.keys.public)
            join = Join(1, bytes(16), "n", "s", "", "cpu", 1, ())
            worker.endpoint.send(link, Lane.CONTROL, join)
            await head.until(lambda: head.joins, "the head hears it")
            key = worker.keys.public if curve else link + link
            assert head.joins == [(link, key, join)]
            head.endpoint.allow(link, key, 1)
            head.endpoint.allow(link, key, 1)
            head.endpoint.send(link, Lane.CONTROL, Joined(1, SWARM, 0.5, 3.0, False))
            await worker.until(lambda: worker.said(Joined), "the answer arrives")
            worker.endpoint.swarm = SWARM
            worker.endpoint.send(link, Lane.CONTROL, join)
            worker.endpoint.send(link, Lane.CONTROL, Heartbeat(1))
            await head.until(lambda: head.said(Heartbeat), "from now on messages pass")
            assert len(head.joins) == 2
            assert head.events[0].kind is LinkEventKind.CONNECTED

    asyncio.run(main())


def test_reconnects_to_a_peer_that_was_restarted() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            b.endpoint.send(link, Lane.CONTROL, Heartbeat(1))
            await a.until(lambda: a.said(Heartbeat), "it works before")
            await a.endpoint.close(0)
            await b.until(lambda: b.kinds(link).count(LinkEventKind.DISCONNECTED) == 2, "the loss is seen on both lanes")
            error = b.event(LinkEventKind.DISCONNECTED)
            assert error is not None
            assert isinstance(error.error, LinkDown)
            b.endpoint.send(link, Lane.CONTROL, Heartbeat(2))
            again = Side(keys=a.keys)
            try:
                await again.endpoint.bind(a.address)
                again.endpoint.allow(link, b.keys.public, 1)
                await again.until(lambda: again.said(Heartbeat), "what was sent in between arrives")
                assert again.said(Heartbeat) == [Heartbeat(2)]
            finally:
                await again.endpoint.close(0)

    asyncio.run(main())


def test_a_peer_that_has_ended_is_told_from_a_connection_that_broke() -> None:
    """By its port: it refuses, or takes connections still."""

    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            relay = Relay(int(a.address.rpartition(":")[2]))
            await relay.listen()
            try:
                link = os.urandom(16)
                a.endpoint.allow(link, b.keys.public, 1)
                b.endpoint.dial(link, relay.endpoint, a.keys.public)
                await b.until(lambda: b.kinds(link).count(LinkEventKind.CONNECTED) == 2, "both lanes connect")
                relay.reset()
                await b.until(lambda: b.kinds(link).count(LinkEventKind.CONNECTED) == 4, "both lanes are back")
                assert LinkEventKind.PORT_REFUSES not in b.kinds()
                relay.close()
                await b.until(lambda: b.event(LinkEventKind.PORT_REFUSES), "nobody listens there any more")
                error = b.event(LinkEventKind.PORT_REFUSES)
                assert error is not None
                assert isinstance(error.error, LinkDown)
                assert relay.endpoint in str(error.error)
            finally:
                relay.close()

    asyncio.run(main())


def test_the_listener_sees_a_lost_peer_and_says_unreachable_once() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            for lane in Lane:
                b.endpoint.send(link, lane, Heartbeat(1))
            await a.until(lambda: len(a.messages) == 2, "both lanes were heard")
            b.endpoint.hang_up(link)
            await a.until(lambda: a.kinds(link).count(LinkEventKind.DISCONNECTED) == 2, "both lanes are seen to go")

            def is_refused() -> bool:  # ZeroMQ tells of the end a moment before it lets go of the pipe
                a.endpoint.send(link, Lane.CONTROL, Heartbeat(2))
                return a.endpoint.counters(link, Lane.CONTROL).dropped > 0

            await a.until(is_refused, "what is sent is known to be lost")
            before = a.endpoint.counters(link, Lane.CONTROL).dropped
            for _ in range(3):
                a.endpoint.send(link, Lane.CONTROL, Heartbeat(2))
            assert a.kinds(link).count(LinkEventKind.UNREACHABLE) == 1
            assert a.endpoint.counters(link, Lane.CONTROL).dropped == before + 3
            b.endpoint.dial(link, a.address, a.keys.public)
            b.endpoint.send(link, Lane.CONTROL, Heartbeat(3))
            await a.until(lambda: len(a.messages) == 3, "the link may come back")
            assert a.kinds(link).count(LinkEventKind.CONNECTED) == 3

    asyncio.run(main())


def test_queue_full_keeps_what_was_taken() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {"max_queued_messages": 5, "max_queued_bytes": 10_000}) as (a, b):
            link = os.urandom(16)
            b.endpoint.dial(link, a.address, a.keys.public)  # not allowed yet: nothing leaves
            for number in range(5):
                b.endpoint.send(link, Lane.CONTROL, Heartbeat(number))
            with pytest.raises(QueueFull):
                b.endpoint.send(link, Lane.CONTROL, Heartbeat(5))
            message, tensors = forward(0, 9000)
            b.endpoint.send(link, Lane.BULK, message, tensors, (bytes(9000),))
            with pytest.raises(QueueFull) as caught:
                b.endpoint.send(link, Lane.BULK, message, tensors, (bytes(9000),))
            assert caught.value.fields["pending_bytes"] == b.endpoint.pending_bytes(link, Lane.BULK)
            a.endpoint.allow(link, b.keys.public, 1)
            await a.until(lambda: len(a.messages) == 6, "what was taken arrives")
            assert [m.count for m in a.said(Heartbeat)] == list(range(5))

    asyncio.run(main())


def test_misuse_is_a_local_error() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            with pytest.raises(LocalProtocolError):
                b.endpoint.dial(link, a.address, a.keys.public)
            with pytest.raises(LocalProtocolError):
                a.endpoint.allow(link, generate().public, 2)
            with pytest.raises(LocalProtocolError):
                b.endpoint.allow(os.urandom(16), a.keys.public, 2)
            with pytest.raises(ConfigError):
                b.endpoint.dial(os.urandom(16), "nonsense", a.keys.public)
            with pytest.raises(LinkDown):
                b.endpoint.send(os.urandom(16), Lane.CONTROL, Heartbeat(1))
            message, tensors = forward(0, 10)
            for payloads in ((), (bytes(9),), (bytes(10), bytes(10))):
                with pytest.raises(LocalProtocolError):
                    b.endpoint.send(link, Lane.BULK, message, tensors, payloads)
            assert a.messages == []

    asyncio.run(main())


def test_addresses_that_cannot_be_bound() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            with pytest.raises(AddressInUse, match="port 0"):
                await b.endpoint.bind(a.address)
            with pytest.raises(ConfigError):
                await b.endpoint.bind("tcp://192.0.2.1:0")
            b.address = await b.endpoint.bind()
            await linked(b, a)

    asyncio.run(main())


def test_a_callback_that_raises_loses_nothing_else() -> None:
    async def main() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)

            def picky(message: Any) -> None:
                if message.count == 1:
                    raise RuntimeError("picky")

            a.react = picky
            for number in range(5):
                b.endpoint.send(link, Lane.CONTROL, Heartbeat(number))
            await a.until(lambda: len(a.messages) == 5, "the others arrive")
            assert [m.count for m in a.said(Heartbeat)] == list(range(5))
            assert [str(problem["exception"]) for problem in problems] == ["picky"]

    asyncio.run(main())


def _num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
@both_loops
def test_closing_leaves_no_thread_and_no_descriptor(run: Callable[..., None]) -> None:
    async def use() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            message, tensors = forward(0, 1 << 20)
            b.endpoint.send(link, Lane.BULK, message, tensors, (bytes(1 << 20),))
            await a.until(lambda: a.messages, "a large frame, which starts pyzmq's own collector")
            b.endpoint.dial(os.urandom(16), "tcp://127.0.0.1:1", a.keys.public)

    async def main() -> None:
        await use()  # pyzmq's collector thread stays for good: count from here
        threads, fds = {t.name for t in threading.enumerate()}, _num_fds()
        for _ in range(3):
            await use()
        assert {t.name for t in threading.enumerate()} == threads
        assert _num_fds() == fds

    run(main())


def test_close_sends_what_waits_and_is_idempotent() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            for number in range(500):
                b.endpoint.send(link, Lane.BULK, Heartbeat(number))
            assert b.endpoint.pending_bytes(link, Lane.BULK) > 0
            await b.endpoint.close(10)
            await b.endpoint.close(10)
            await a.until(lambda: len(a.messages) == 500, "all arrive")

    asyncio.run(main())


# -- key files ---------------------------------------------------------------------------------


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "key"
    keys = generate()
    key_files.save(path, keys)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_files.load(path) == keys
    assert keys.secret.hex() not in repr(keys)
    with pytest.raises(ConfigError, match="exists"):
        key_files.save(path, generate())
    assert key_files.load(path) == keys
    other = generate()
    key_files.save(path, other, overwrite=True)
    assert key_files.load(path) == other
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_key_files_that_others_can_use_are_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    key_files.save(path, generate())
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        key_files.load(path)


def test_who_breaks_a_rule_that_only_the_owner_knows_is_told_and_loses_the_link() -> None:
    async def use() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            b.endpoint.send(link, Lane.CONTROL, Heartbeat(1))
            await a.until(lambda: a.said(Heartbeat), "the link is known")
            a.endpoint.expel(link, RemoteProtocolError("beyond its credit", path="$.frame"))
            await b.until(lambda: b.said(Refused), "it is told why")
            assert b.said(Refused)[0].fields["message"] == "beyond its credit"
            assert a.event(LinkEventKind.REFUSED).link == link
            with pytest.raises(LinkDown):
                a.endpoint.send(link, Lane.CONTROL, Heartbeat(2))
            a.endpoint.expel(link, RemoteProtocolError("again"))  # changes nothing
            assert a.kinds(link).count(LinkEventKind.REFUSED) == 1

    asyncio.run(use())


def test_damaged_key_files(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match="keygen"):
        key_files.load(path)
    key_files.save(path, generate())
    lines = path.read_text().splitlines()
    swapped = [lines[0], lines[2], lines[1]]
    for damaged in (
        [],
        lines[:2],
        [*lines, "x"],
        ["other", *lines[1:]],
        [lines[0], lines[1][:-1], lines[2]],
        swapped,
        [*lines[:2], "\x00" * 40],
    ):
        path.write_text("\n".join(damaged))
        with pytest.raises(ConfigError, match="damaged"):
            key_files.load(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match="damaged"):
        key_files.load(path)
    with pytest.raises(ConfigError):
        key_files.save(tmp_path / "missing" / "key", generate())
