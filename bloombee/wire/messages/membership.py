"""Who is in the swarm, and who knows whom. Tags 1 and 2, 11 to 15."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from bloombee.wire.messages.base import U16, U32, U63, U64, Facts, Key, LinkId, Message, Name, Part, Path, Real, Text


class Join(Message, frozen=True, tag=1):
    """The only message that a head reads from an unknown key."""

    protocol: U16
    secret: Annotated[bytes, Meta(min_length=16, max_length=64)]
    name: Name
    software: Name
    endpoint: Path
    """Where other workers reach this one (``tcp://host:port``); empty if they cannot."""
    device: Name
    memory_bytes: U63
    """What a span (weights + KV) may use on this worker."""
    codecs: Annotated[tuple[U16, ...], Meta(max_length=64)]


class Joined(Message, frozen=True, tag=2):
    worker: U32
    swarm: U64
    heartbeat_s: Real
    silence_s: Real
    """A side that hears nothing for this long declares the other gone."""
    returns: bool
    """When this head's process has ended another one may go on in its place, under the same key and at the same address."""


class Leave(Message, frozen=True, tag=11):
    """The worker ends, on purpose and now. Repeated until Goodbye comes; its key may join again at once."""

    reason: Text


class Drain(Message, frozen=True, tag=12):
    """The worker wants to leave and serves on until it has nothing any more. Repeated until Drained comes."""

    number: U63
    reason: Text


class Drained(Message, frozen=True, tag=13):
    """Answer to Drain: nothing of the swarm's is on the worker any more, it may Leave."""

    number: U63


class Peer(Part, frozen=True):
    """One end of a worker -> worker link, as the head tells it to the other end."""

    worker: U32
    endpoint: Path
    key: Key
    link: LinkId
    """One for each pair of workers, whatever they are to each other."""
    dials: bool
    """Whoever is told this dials the peer; else the peer dials."""
    through: U32 | None
    """The worker that passes the link's bytes on, without reading them; None: nobody stands between."""


class Introduce(Message, frozen=True, tag=14):
    """Make a link to ``peer``, whether or not a plan needs one. Said again it is answered again; with another link id it takes
    the place of what was made of the one before."""

    peer: Peer


class Introduced(Message, frozen=True, tag=15):
    """Answer to Introduce: the peer has been greeted, or cannot be reached."""

    link: LinkId
    code: Name
    fields: Facts
    """Why it cannot be reached, as in Refused; empty, both: it has been greeted."""
