"""What an endpoint tells its owner besides messages."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bloombee.errors import BloomBeeError
from bloombee.types import Lane


class LinkEventKind(enum.StrEnum):
    CONNECTED = "connected"
    """A lane is up: encrypted, both keys proven. Dialled lanes say it at once (and again after each reconnection),
    accepted ones with their first message."""
    DISCONNECTED = "disconnected"
    """A lane that was up has lost its TCP connection. A dialled lane goes on trying until it is hung up."""
    HANDSHAKE_FAILED = "handshake_failed"
    """CURVE did not come to an end: wrong key, unknown key, or not ZeroMQ at all. Dialled lanes go on trying."""
    PORT_REFUSES = "port_refuses"
    """A dialled lane that had been up was dialled again, and nobody listens there any more."""
    UNREACHABLE = "unreachable"
    """Something was sent to an accepted lane whose peer is not there; it and what was queued are gone. Said once
    an outage. Or: a dialled lane's name stands for no address; it is asked for again and again."""
    REFUSED = "refused"
    """The peer broke a rule. On a known link it has been told so and the link has been dropped."""


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """
    Args:
        link: None where nobody knows it: strangers, failed handshakes of incoming connections.
        error: what went wrong, None for CONNECTED.
    """

    kind: LinkEventKind
    link: bytes | None
    lane: Lane | None
    error: BloomBeeError | None = None


@dataclass(slots=True)
class Counters:
    """Of one lane, or of all strangers together. Bytes are of frames before encryption, routing ids left out."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    refused: int = 0
    """Messages that were not delivered because they broke a rule."""
    dropped: int = 0
    """Outgoing messages lost because the peer was not there."""
