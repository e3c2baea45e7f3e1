"""A member of the swarm that lies in pieces: it loses its link, with a typed error; memory and honest peers stay."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgpack
import pytest
from transport_kit import SWARM, Attacker, Side, forward, linked, sides

from bloombee.errors import RemoteProtocolError
from bloombee.links.window import MAX_PIECE_BYTES
from bloombee.transport import LinkEventKind
from bloombee.transport.keys import generate
from bloombee.types import Lane
from bloombee.wire.envelope import MAX_TENSOR_BYTES, encode_envelope
from bloombee.wire.messages import Heartbeat, Piece, PieceAck, Probe


def begin(num_bytes: int) -> bytes:
    message, tensors = forward(0, num_bytes)
    return encode_envelope(SWARM, message, tensors)


def piece(number: int, offset: int) -> bytes:
    return encode_envelope(SWARM, Piece(number, offset))


def ack(upto: int) -> bytes:
    return encode_envelope(SWARM, PieceAck(upto, 0))


@asynccontextmanager
async def turncoat(side: Side, lane: Lane) -> AsyncIterator[tuple[bytes, Attacker]]:
    """A raw socket on one lane of a link that ``side`` has allowed."""
    link, keys = os.urandom(16), generate()
    side.endpoint.allow(link, keys.public, 9)
    a = Attacker(side.address, side.keys.public, routing_id=link + bytes([lane]), keys=keys)
    try:
        yield link, a
    finally:
        a.close()


def probe(number: int) -> bytes:
    return encode_envelope(SWARM, Probe(number, bytes(100)))


ATTACKS: dict[str, tuple[Lane, list[list[bytes]], str]] = {
    "a piece on the control lane": (Lane.CONTROL, [[piece(0, 0), b"x"]], "Piece"),
    "a beginning on the control lane": (Lane.CONTROL, [[begin(100)]], "tensors"),
    "an acknowledgement on the bulk lane": (Lane.BULK, [[ack(0)]], "PieceAck"),
    "an acknowledgement of nothing": (Lane.CONTROL, [[ack(1)]], "PieceAck.upto"),
    "an acknowledgement with a payload": (Lane.CONTROL, [[ack(0), b"x"]], "PieceAck"),
    "a piece without bytes": (Lane.BULK, [[begin(100)], [piece(0, 0), b""]], "Piece.payload"),
    "a piece without a payload": (Lane.BULK, [[begin(100)], [piece(0, 0)]], "Piece.payload"),
    "a piece with two": (Lane.BULK, [[begin(100)], [piece(0, 0), b"x", b"y"]], "Piece.payload"),
    "a piece that is too large": (
        Lane.BULK,
        [[begin(MAX_TENSOR_BYTES)], [piece(0, 0), bytes(MAX_PIECE_BYTES + 1)]],
        "Piece.payload",
    ),
    "more than was announced": (Lane.BULK, [[begin(10)], [piece(0, 0), bytes(11)]], "Piece.payload"),
    "a piece twice": (Lane.BULK, [[begin(10)], [piece(0, 0), b"x"], [piece(0, 0), b"x"]], "Piece.number"),
    "a piece is missing": (Lane.BULK, [[begin(10)], [piece(0, 0), b"x"], [piece(2, 1), b"x"]], "Piece.number"),
    "an offset that lies": (Lane.BULK, [[begin(10)], [piece(0, 0), b"x"], [piece(1, 5), b"x"]], "Piece.offset"),
    "a frame within a frame": (Lane.BULK, [[begin(10)], [begin(10)]], "Piece.number"),
    "a piece after the frame": (Lane.BULK, [[begin(1)], [piece(0, 0), b"x"], [piece(1, 1), b"x"]], "Piece.number"),
    "a number out of range": (Lane.BULK, [[msgpack.packb([1, SWARM, [8, -1, 0], []]), b"x"]], "Piece.number"),
    "an offset out of range": (Lane.BULK, [[msgpack.packb([1, SWARM, [8, 0, 2**32], []]), b"x"]], "Piece.offset"),
    "a probe within a frame": (Lane.BULK, [[begin(10)], [probe(0)]], "Probe.number"),
    "a probe twice": (Lane.BULK, [[probe(0)], [probe(0)]], "Probe.number"),
    "a probe with a payload": (Lane.BULK, [[probe(0), b"x"]], "Probe.payload"),
    "a probe without padding": (Lane.BULK, [[msgpack.packb([1, SWARM, [10, 0, b""], []])]], "Probe.padding"),
    "a probe that is too large": (Lane.BULK, [[msgpack.packb([1, SWARM, [10, 0, bytes((1 << 17) + 1)], []])]], "message"),
    "a probe on the control lane": (Lane.CONTROL, [[probe(0)]], "Probe"),
    "a piece of another swarm": (Lane.BULK, [[encode_envelope(1, Piece(0, 0)), b"x"]], "swarm"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_liar_loses_its_link_and_nothing_else(name: str) -> None:
    lane, multiparts, path = ATTACKS[name]

    async def main() -> None:
        async with sides({"bind": True}, {}) as (side, honest), turncoat(side, lane) as (link, a):
            for frames in multiparts:
                a.say(*frames)
            await side.until(lambda: side.event(LinkEventKind.REFUSED), "it is refused")
            event = side.event(LinkEventKind.REFUSED)
            assert event is not None
            assert event.link == link
            assert isinstance(event.error, RemoteProtocolError)
            assert path in str(event.error.fields["path"])
            assert side.endpoint.pending_bytes(link, Lane.BULK) == 0
            good = await linked(side, honest)
            message, tensors = forward(1, 1 << 20)
            payload = os.urandom(1 << 20)
            side.messages.clear()
            honest.endpoint.send(good, Lane.BULK, message, tensors, (payload,))
            await side.until(lambda: side.messages, "honest peers go on")
            assert [(m[0], m[3]) for m in side.messages] == [(good, [payload])]

    asyncio.run(main())


def test_a_frame_that_never_ends_holds_up_nobody() -> None:
    """What was announced and does not come takes address space and no memory; other lanes and links go on."""

    async def main() -> None:
        async with sides({"bind": True}, {}) as (side, honest), turncoat(side, Lane.BULK) as (link, a):
            a.say(begin(MAX_TENSOR_BYTES))
            a.say(piece(0, 0), b"x" * 1000)
            heard = side.endpoint.counters(link, Lane.BULK)
            await side.until(lambda: heard.bytes_in > 1000, "it was read")
            good = await linked(side, honest)
            honest.endpoint.send(good, Lane.CONTROL, Heartbeat(1))
            await side.until(lambda: side.said(Heartbeat), "honest peers go on")
            assert side.messages[0][0] == good
            assert not side.event(LinkEventKind.REFUSED)
            side.endpoint.forbid(link)
            assert side.kinds(link) == [LinkEventKind.CONNECTED]

    asyncio.run(main())


def test_pieces_from_before_a_frame_are_dropped_and_acknowledged() -> None:
    async def main() -> None:
        async with sides({"bind": True}) as (side,), turncoat(side, Lane.BULK) as (link, a):
            control = Attacker(side.address, side.keys.public, routing_id=link + b"\0", keys=a.keys)
            control.say_message(Heartbeat(1))
            await side.until(lambda: side.said(Heartbeat), "the control lane is known")
            a.say(piece(7, 7), b"left over")
            a.say(begin(4))
            a.say(piece(8, 0), b"four")
            await side.until(lambda: len(side.messages) == 2, "the frame arrives")
            assert side.messages[1][3] == [b"four"]
            upto = 0
            while upto < 9:
                frames = await control.hear()
                assert frames is not None
                tag, upto, _ = msgpack.unpackb(frames[0])[2]
                assert (tag, upto) in ((9, 8), (9, 9))
            control.close()

    asyncio.run(main())
