"""What strangers may say, how often, and what a failed handshake means in words."""

from __future__ import annotations

import zmq

from bloombee.errors import AuthenticationError, RemoteProtocolError
from bloombee.types import Lane
from bloombee.wire.envelope import decode_header
from bloombee.wire.messages import Join
from bloombee.wire.schema import Buffer

MAX_JOIN_BYTES = 1 << 14
"""Largest header of a stranger."""


class Bucket:
    """A token bucket: ``rate`` a second, ``rate`` at once."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = self._level = rate
        self._then = now

    def take(self, now: float) -> bool:
        self._level = min(self._rate, self._level + (now - self._then) * self._rate)
        self._then = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


def read_join(routing_id: bytes, header: Buffer, num_bytes: int, *, alone: bool) -> Join:
    """The Join that a stranger said.

    Args:
        num_bytes: of the whole multipart; ``alone``: it has no other frame.

    Raises:
        AuthenticationError: a stranger said something else, or said it where none may.
        RemoteProtocolError: too much, or not readable.
    """
    if len(routing_id) != 17 or routing_id[16] != Lane.CONTROL:
        raise AuthenticationError("a stranger may say Join on a control lane and nothing else")
    if not alone or len(header) > MAX_JOIN_BYTES:
        raise RemoteProtocolError(f"{num_bytes} bytes from a stranger: at most {MAX_JOIN_BYTES} in one frame", path="header")
    message = decode_header(header).message
    if type(message) is not Join:
        raise AuthenticationError(f"{type(message).__name__} from a key that has not joined: say Join first")
    return message


def handshake_error(endpoint: str, key: bytes, event: int) -> AuthenticationError:
    """The typed error for a handshake of a dialled lane that did not come to an end."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        what = "does not let this key in (yet): join with a token first, or wait until the head has told it of this worker"
    elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        what = "does not speak CURVE: one side was started with encryption off, or the port is not a BloomBee process"
    else:
        what = "broke off the handshake: it does not have the key this side was told (an old token?), or it is something else"
    return AuthenticationError(f"{endpoint} {what}", endpoint=endpoint, key=key.hex())
