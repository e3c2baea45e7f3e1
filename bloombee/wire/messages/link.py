"""What the two ends of any link say to each other: greetings, signs of life, refusals, bulk in pieces. Tags 3 to 10."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from bloombee.wire.messages.base import U16, U32, U63, U64, Facts, Message, Name, Text


class Refused(Message, frozen=True, tag=3):
    """A typed error (errors.to_wire) in answer to whatever the peer sent."""

    code: Name
    fields: Facts


class Hello(Message, frozen=True, tag=4):
    """First message on each lane, from the side that dialled."""

    protocol: U16
    swarm: U64
    worker: U32
    software: Name
    codecs: Annotated[tuple[U16, ...], Meta(max_length=64)]
    sent_ns: U63


class Welcome(Message, frozen=True, tag=5):
    """Answer to Hello; with the dialler's receive time the four stamps give the clock offset."""

    protocol: U16
    codecs: Annotated[tuple[U16, ...], Meta(max_length=64)]
    hello_sent_ns: U63
    received_ns: U63
    sent_ns: U63


class Heartbeat(Message, frozen=True, tag=6):
    count: U63


class Goodbye(Message, frozen=True, tag=7):
    """The head ends the link: the swarm is over, or the worker is not wanted, or may leave."""

    reason: Text


class Piece(Message, frozen=True, tag=8):
    """The next bytes of the frame whose header came before, as one payload frame; bulk lanes only."""

    number: U63
    """Counts the pieces of this lane and direction from 0."""
    offset: U32
    """Of its first byte in the frame's payload."""


class PieceAck(Message, frozen=True, tag=9):
    """Every piece < upto that came on this link's bulk lane has been read. Control lanes only; cumulative."""

    upto: U63
    read_us: U63
    """When the last of them was read, by the reader's own monotonic clock: the way back may vary."""


class Probe(Message, frozen=True, tag=10):
    """Padding, to see how fast it comes; bulk lanes only, between frames. Acknowledged as a piece, and forgotten."""

    number: U63
    """Of the pieces' numbers the next."""
    padding: Annotated[bytes, Meta(min_length=1, max_length=1 << 17)]
