"""One direction-pair of a link at this end: its socket, its own bounded queue, its counters."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import zmq

from bloombee.errors import QueueFull
from bloombee.transport.bulk import Bulk
from bloombee.transport.link_events import Counters
from bloombee.transport.sockets import Reader
from bloombee.types import Lane, WorkerId
from bloombee.wire.envelope import encode_envelope
from bloombee.wire.messages import Piece
from bloombee.wire.schema import Buffer

COPY_BELOW_BYTES = 1 << 16
"""pyzmq's own threshold: below it a copy is cheaper than telling Python when ZeroMQ is done with the buffer."""


class Unreachable(Exception):
    """ROUTER has no connection of that routing id."""


@dataclass(slots=True, eq=False, kw_only=True)
class LanePort:
    """What accepted and dialled lanes have in common (:mod:`bloombee.transport.router`, :mod:`bloombee.transport.dealer`).

    Args:
        key: the peer's public key.
        routing_id: link + one byte lane; prefixed to what is sent on accepted lanes.
        bulk: what only bulk lanes have.
    """

    accepted: ClassVar[bool] = False
    """The peer dialled; the socket is the ROUTER, shared by all."""
    link: bytes
    lane: Lane
    key: bytes
    worker: WorkerId = 0
    routing_id: bytes = b""
    reader: Reader | None = None
    up: bool = False
    outage_told: bool = False
    bulk: Bulk | None = None
    queue: deque[tuple[bytes, Sequence[Buffer], int]] = field(default_factory=deque)
    pending_bytes: int = 0
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.routing_id = self.link + bytes([self.lane])

    def enqueue(self, header: bytes, payloads: Sequence[Buffer], num_bytes: int, *, max_messages: int, max_bytes: int) -> None:
        """Keep a multipart until ZeroMQ takes it.

        Raises:
            QueueFull: the bound is reached; nothing was kept.
        """
        if len(self.queue) >= max_messages or self.pending_bytes + num_bytes > max_bytes:
            raise QueueFull(
                f"the {self.lane.name.lower()} lane of link {self.link.hex()[:8]} has {len(self.queue)} messages "
                f"({self.pending_bytes} bytes) waiting: at most {max_messages} ({max_bytes} bytes) may",
                link=self.link.hex(),
                num_messages=len(self.queue),
                pending_bytes=self.pending_bytes,
            )
        self.queue.append((header, payloads, num_bytes))
        self.pending_bytes += num_bytes

    @property
    def is_held(self) -> bool:
        """What waits is waiting for an acknowledgement or for its time, not for ZeroMQ."""
        return self.bulk is not None and self.bulk.wait_s > 0

    def cuts(self, payloads: Sequence[Buffer]) -> bool:
        """Whether a frame goes in pieces on this lane."""
        return self.bulk is not None and self.bulk.cuts(payloads)

    def send_front(self, swarm: int) -> bool:
        """Hand ZeroMQ the oldest multipart that waits, or as many pieces of it as may go; True: all of it is out.

        Raises:
            Unreachable: as :meth:`write`.
        """
        header, payloads, num_bytes = self.queue[0]
        bulk = self.bulk
        if bulk is None or not bulk.cuts(payloads):
            if not self.write(header, payloads, num_bytes):
                return False
        elif not self._send_pieces(bulk, swarm, header, memoryview(payloads[0])):
            return False
        self._pop_front()
        return True

    def _send_pieces(self, bulk: Bulk, swarm: int, header: bytes, payload: memoryview) -> bool:
        total = len(payload)
        while bulk.offset < total:
            size = min(bulk.window.piece_bytes, total - bulk.offset)
            num_bytes = size if bulk.offset else size + len(header)
            now = time.monotonic()
            bulk.wait_s = bulk.window.wait_s(now, num_bytes)
            if bulk.wait_s > 0:
                return False
            if not bulk.is_begun:
                if not self.write(header, (), len(header)):
                    return False
                bulk.is_begun = True
            piece = encode_envelope(swarm, Piece(bulk.window.next_number, bulk.offset))
            if not self.write(piece, (payload[bulk.offset : bulk.offset + size],), len(piece) + size, num_messages=0):
                return False
            bulk.sent(num_bytes, 2 if bulk.offset else 3, now, overhead_bytes=len(piece))
            bulk.offset += size
            self.pending_bytes -= size
        return True

    def _pop_front(self) -> None:
        self.pending_bytes -= self.queue.popleft()[2]
        if self.bulk is not None and self.bulk.is_begun:
            self.pending_bytes += self.bulk.offset  # counted piece by piece
            self.bulk.is_begun, self.bulk.offset = False, 0

    def connection_lost(self) -> None:
        """What was on its way is lost, and of a frame sent in pieces the rest is of no use."""
        if self.bulk is not None:
            self.bulk.connection_lost()
            if self.bulk.is_begun:
                self._pop_front()
                self.counters.dropped += 1

    def write(self, header: bytes, payloads: Sequence[Buffer], num_bytes: int, *, num_messages: int = 1) -> bool:
        """Hand one multipart to ZeroMQ; False: it is at its high-water mark.

        The first part decides: once ZeroMQ has taken it, it takes the rest.

        Raises:
            Unreachable: an accepted lane whose peer is not connected.
        """
        assert self.reader is not None
        socket = self.reader.socket
        try:
            if self.accepted:
                socket.send(self.routing_id, zmq.SNDMORE | zmq.NOBLOCK)
            if not payloads:
                socket.send(header, zmq.NOBLOCK)
            else:
                socket.send(header, zmq.SNDMORE | zmq.NOBLOCK)
                for payload in payloads[:-1]:
                    _send_payload(socket, payload, zmq.SNDMORE | zmq.NOBLOCK)
                _send_payload(socket, payloads[-1], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise Unreachable from None
            raise
        self.counters.messages_out += num_messages
        self.counters.bytes_out += num_bytes
        return True

    def clear(self) -> None:
        """Forget what waits."""
        self.counters.dropped += len(self.queue)
        self.queue.clear()
        self.pending_bytes = 0
        if self.bulk is not None:
            self.bulk.is_begun, self.bulk.offset = False, 0

    def close(self, linger_ms: int) -> None:
        """Nothing is sent or received any more; what waited is forgotten. ZeroMQ may take so long for what it has."""
        self.up = False
        self.queue.clear()
        self.pending_bytes = 0
        if self.bulk is not None:
            self.bulk.cancel_timer()
            self.bulk.end_gauging()


def _send_payload(socket: zmq.Socket[bytes], payload: Buffer, flags: int) -> None:
    if len(payload) < COPY_BELOW_BYTES:
        socket.send(payload, flags)
    else:
        socket.send(payload, flags, copy=False)
