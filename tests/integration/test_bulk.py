"""Large frames in pieces, through real sockets with CURVE: whole, in order, overtaken by control, bounded by the window."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from collections.abc import Callable

import pytest
import uvloop
from transport_kit import Side, forward, linked, sides

from bench.profiles import load_profile
from bloombee.errors import LinkDown
from bloombee.links.window import BulkWindow
from bloombee.transport import LinkEventKind
from bloombee.transport.bulk import WHOLE_BYTES
from bloombee.types import Lane
from bloombee.wire.messages import Forward, Heartbeat
from tools.wan import Link, Wan

both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def watched(window: BulkWindow) -> list[int]:
    """How far the window was exceeded after each piece."""
    over: list[int] = []
    sent = window.sent

    def noted(num_bytes: int, now: float) -> int:
        number = sent(num_bytes, now)
        over.append(window.unacked_bytes - window.window_bytes)
        return number

    window.sent = noted  # type: ignore[method-assign]
    return over


async def drained(side: Side, link: bytes) -> None:
    window = side.endpoint.bulk_window(link)
    await side.until(lambda: window.unacked_bytes == 0, "every piece is acknowledged")
    assert side.endpoint.pending_bytes(link, Lane.BULK) == 0


@both_loops
@pytest.mark.parametrize("way", ["dialler sends", "listener sends"])
def test_a_hundred_megabytes_in_order_with_control_beside(run: Callable[..., None], way: str) -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (listener, dialler):
            link = await linked(listener, dialler)
            for lane in Lane:
                dialler.endpoint.send(link, lane, Heartbeat(0))
            await listener.until(lambda: len(listener.messages) == 2, "both lanes are known to the listener")
            source, target = (dialler, listener) if way == "dialler sends" else (listener, dialler)
            target.messages.clear()
            over = watched(source.endpoint.bulk_window(link))
            sizes = [WHOLE_BYTES, 5 << 20, 1, WHOLE_BYTES + 1, 20 << 20, 33 << 20, 100, 42 << 20]
            content = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
            for number, payload in enumerate(content):
                message, tensors = forward(number, len(payload))
                source.endpoint.send(link, Lane.BULK, message, tensors, (payload,))
            count = 0
            while len([m for m in target.messages if m[1] is Lane.BULK]) < len(sizes):
                source.endpoint.send(link, Lane.CONTROL, Heartbeat(count))
                count += 1
                await target.until(lambda n=count: len(target.said(Heartbeat)) == n, "control goes on")
            bulk = [(envelope.message.frame, payloads) for _, lane, envelope, payloads in target.messages if lane is Lane.BULK]
            assert [frame for frame, _ in bulk] == list(range(len(sizes)))
            assert [hashlib.sha256(payloads[0]).digest() for _, payloads in bulk] == [hashlib.sha256(c).digest() for c in content]
            assert count > 1
            assert [beat.count for beat in target.said(Heartbeat)] == list(range(count))
            await drained(source, link)
            assert len(over) > 100
            assert max(over) <= 0
            counters, theirs = source.endpoint.counters(link, Lane.BULK), target.endpoint.counters(link, Lane.BULK)
            assert (counters.messages_out, counters.bytes_out) == (theirs.messages_in, theirs.bytes_in)
            assert counters.dropped == theirs.refused == 0

    run(main())


def test_a_small_frame_behind_a_large_one_stays_behind() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            for number, size in enumerate((8 << 20, 10, 8 << 20, 10)):
                message, tensors = forward(number, size)
                b.endpoint.send(link, Lane.BULK, message, tensors, (bytes(size),))
            assert b.endpoint.pending_bytes(link, Lane.BULK) > 15 << 20
            await a.until(lambda: len(a.messages) == 4, "all arrive")
            assert [message.frame for message in a.said(Forward)] == [0, 1, 2, 3]
            await drained(b, link)

    asyncio.run(main())


def test_who_hangs_up_and_dials_again_is_told_nothing_of_what_it_sent_before() -> None:
    """Its numbers begin anew, while the listener has had the link all the time."""

    async def main() -> None:
        async with sides({"bind": True}, {}) as (listener, dialler):
            link = await linked(listener, dialler)
            for number in range(3):
                dialler.endpoint.send(link, Lane.CONTROL, Heartbeat(number))
                message, tensors = forward(number, 1 << 20)
                dialler.endpoint.send(link, Lane.BULK, message, tensors, (bytes(1 << 20),))
                await listener.until(lambda: len(listener.messages) == 2, "both arrive")
                await drained(dialler, link)
                listener.messages.clear()
                dialler.events.clear()
                dialler.endpoint.hang_up(link)
                dialler.endpoint.dial(link, listener.address, listener.keys.public)
                await dialler.until(lambda: dialler.kinds(link).count(LinkEventKind.CONNECTED) == 2, "both lanes connect")
            dialler.endpoint.send(link, Lane.CONTROL, Heartbeat(3))
            await listener.until(lambda: listener.messages, "it arrives")
            listener.endpoint.send(link, Lane.CONTROL, Heartbeat(4))
            await dialler.until(lambda: dialler.messages, "and what is said after it was heard")
            assert LinkEventKind.REFUSED not in dialler.kinds(link)

    asyncio.run(main())


def test_an_idle_link_is_probed_and_frames_follow() -> None:
    """Nobody above the endpoints sees a probe; pieces go on with its numbers; a link that is in use is left alone."""

    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            b.endpoint.send(link, Lane.CONTROL, Heartbeat(0))
            await a.until(lambda: a.said(Heartbeat), "the link is known")
            assert b.endpoint.probe(link, 0.0) == 0
            sent = b.endpoint.probe(link, 10.0)
            assert sent > 0
            assert b.endpoint.probe(link, 10.0) == 0
            window = b.endpoint.bulk_window(link)
            numbers = window.next_number
            assert numbers > 1
            message, tensors = forward(0, 1 << 20)
            payload = os.urandom(1 << 20)
            b.endpoint.send(link, Lane.BULK, message, tensors, (payload,))
            assert b.endpoint.probe(link, 10.0) == 0
            await a.until(lambda: a.said(Forward), "a frame arrives")
            await drained(b, link)
            assert window.next_number > numbers
            assert window.unacked_bytes == 0
            assert [m[3] for m in a.messages if m[1] is Lane.BULK] == [[payload]]
            assert LinkEventKind.REFUSED not in a.kinds() + b.kinds()
            with pytest.raises(LinkDown):
                b.endpoint.probe(bytes(16), 10.0)

    asyncio.run(main())


def test_off_where_it_is_not_wanted() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {"whole_bytes": 1 << 26}) as (a, b):
            link = await linked(a, b)
            message, tensors = forward(0, 3 << 20)
            b.endpoint.send(link, Lane.BULK, message, tensors, (bytes(3 << 20),))
            await a.until(lambda: a.messages, "it arrives")
            assert b.endpoint.bulk_window(link).next_number == 0
            with pytest.raises(LinkDown):
                b.endpoint.bulk_window(bytes(16))

    asyncio.run(main())


@pytest.mark.parametrize("way", ["dialler sends", "listener sends"])
def test_a_connection_that_breaks_within_a_frame(way: str) -> None:
    """What was on its way is lost, nothing torn is delivered, and frames sent again arrive."""

    async def main() -> None:
        async with sides({"bind": True}, {}) as (listener, dialler):
            link = os.urandom(16)
            listener.endpoint.allow(link, dialler.keys.public, 1)
            slow = load_profile("20M-100ms").link(0).forward
            target_address = listener.address.removeprefix("tcp://")
            with Wan([Link("link", target_address, forward=slow)]) as wan:
                dialler.endpoint.dial(link, f"tcp://{wan.address('link')}", listener.keys.public)
                for lane in Lane:
                    dialler.endpoint.send(link, lane, Heartbeat(0))
                await listener.until(lambda: len(listener.messages) == 2, "both lanes are known")
                source, target = (dialler, listener) if way == "dialler sends" else (listener, dialler)
                payload = os.urandom(2 << 20)
                message, tensors = forward(1, len(payload))
                source.endpoint.send(link, Lane.BULK, message, tensors, (payload,))
                window = source.endpoint.bulk_window(link)
                await source.until(lambda: window.next_number > 20, "it is under way")
                port = wan.address("link")
            # the relay has ended, and every connection through it
            await source.until(lambda: source.event(LinkEventKind.DISCONNECTED), "the loss is seen")
            await source.until(lambda: source.endpoint.pending_bytes(link, Lane.BULK) == 0, "the rest of the frame is dropped")
            assert source.endpoint.counters(link, Lane.BULK).dropped == 1
            assert window.unacked_bytes == 0
            assert not target.said(Forward)
            listen_port = int(port.rpartition(":")[2])
            with Wan([Link("link", target_address, listen_port=listen_port)]):
                count = dialler.kinds(link).count(LinkEventKind.CONNECTED)
                await dialler.until(lambda: dialler.kinds(link).count(LinkEventKind.CONNECTED) >= count + 2, "it is back")
                for lane in Lane:
                    dialler.endpoint.send(link, lane, Heartbeat(1))
                await listener.until(lambda: len(listener.said(Heartbeat)) == 4, "both lanes are known again")
                for frame in (1, 2):
                    message, tensors = forward(frame, len(payload))
                    source.endpoint.send(link, Lane.BULK, message, tensors, (payload,))
                await target.until(lambda: len(target.said(Forward)) == 2, "frames arrive again")
                assert [message.frame for message in target.said(Forward)] == [1, 2]
                assert [m[3] for m in target.messages if m[1] is Lane.BULK and m[3]] == [[payload], [payload]]
                await drained(source, link)
            assert LinkEventKind.REFUSED not in source.kinds() + target.kinds()

    asyncio.run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulator is built on epoll")
def test_over_a_long_thin_link_the_window_holds() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = os.urandom(16)
            a.endpoint.allow(link, b.keys.public, 1)
            profile = load_profile("20M-100ms").link(0)
            with Wan([Link.of("link", a.address.removeprefix("tcp://"), profile)]) as wan:
                b.endpoint.dial(link, f"tcp://{wan.address('link')}", a.keys.public)
                over = watched(b.endpoint.bulk_window(link))
                payload = random.Random(5).randbytes(8 << 20)
                message, tensors = forward(0, len(payload))
                b.endpoint.send(link, Lane.BULK, message, tensors, (payload,))
                count = 0
                while not a.said(Forward):
                    b.endpoint.send(link, Lane.CONTROL, Heartbeat(count))
                    count += 1
                    await asyncio.sleep(0.02)
                await a.until(lambda: len(a.said(Heartbeat)) == count, "all control arrives")
                await drained(b, link)
                queued = wan.stats()["link"].forward
            assert next(payloads for _, _, envelope, payloads in a.messages if type(envelope.message) is Forward) == [payload]
            assert [beat.count for beat in a.said(Heartbeat)] == list(range(count))
            assert len(over) > 100
            assert max(over) <= 0
            assert queued.bytes_out >= len(payload)

    asyncio.run(main())


@pytest.mark.parametrize("dialled", [True, False])
def test_a_link_is_measured_when_asked_and_frames_follow(dialled: bool) -> None:
    """Either end may: it is told once that it is over, and its estimator has learned."""

    async def use() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            for lane in Lane:
                b.endpoint.send(link, lane, Heartbeat(1))
            await a.until(lambda: len(a.said(Heartbeat)) == 2, "the listener has heard of both lanes")
            sender, receiver = (b, a) if dialled else (a, b)
            done: list[bool] = []
            for fills in (False, True):
                sender.endpoint.measure(link, fills=fills, done=lambda fills=fills: done.append(fills))
                await sender.until(lambda fills=fills: fills in done, "it is over")
            facts = sender.endpoint.estimator(link).facts()
            assert facts.base_rtt_s is not None
            assert facts.bandwidth_bytes_per_s is not None
            message, tensors = forward(0, 1 << 20)
            sender.endpoint.send(link, Lane.BULK, message, tensors, (bytes(1 << 20),))
            await receiver.until(lambda: receiver.said(Forward), "the frame comes")
            assert done == [False, True]

    asyncio.run(use())


def test_a_measurement_ends_with_its_link() -> None:
    async def use() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            link = await linked(a, b)
            done: list[int] = []
            b.endpoint.measure(link, fills=True, done=lambda: done.append(1))
            b.endpoint.hang_up(link)
            await b.until(lambda: done, "it is over")
            with pytest.raises(LinkDown):
                b.endpoint.measure(link, fills=True, done=lambda: done.append(2))
            unanswered = await linked(a, b)
            b.endpoint.measure(unanswered, fills=False, done=lambda: done.append(3))
            b.endpoint.measure(unanswered, fills=False, done=lambda: done.append(4))  # in its place
            await b.until(lambda: 4 in done, "both are over")
            assert done == [1, 3, 4]

    asyncio.run(use())
