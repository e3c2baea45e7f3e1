"""What comes in at an endpoint: taken off its sockets, checked, and handed to its owner."""

from __future__ import annotations

import time
from collections.abc import Callable

import zmq

from bloombee.errors import AuthenticationError, ProtocolError, RemoteProtocolError
from bloombee.transport.bulk import LINK_MESSAGES, wrong_lane
from bloombee.transport.lanes import LanePort
from bloombee.transport.outbox import Outbox
from bloombee.transport.router import OnJoin, Router
from bloombee.transport.sockets import has_input, has_room
from bloombee.types import Lane
from bloombee.wire.envelope import MAX_TENSORS, Envelope, check_payloads, decode_header
from bloombee.wire.messages import Join, Joined, PieceAck, Refused

OnMessage = Callable[[bytes, Lane, Envelope, list[memoryview]], None]
_TURN_MESSAGES = 64
_TURN_BYTES = 1 << 23
"""A reader gives the loop back after so much."""
_ANY_SWARM = (Join, Joined, Refused)
"""What is said before both ends know the swarm's number."""


class Inbox:
    """
    Args:
        on_message, on_join: as :class:`~bloombee.transport.endpoint.Endpoint`'s.
    """

    def __init__(self, outbox: Outbox, router: Router, *, on_message: OnMessage, on_join: OnJoin | None) -> None:
        self.stamps = False
        """Whether :attr:`taken_ns` is kept."""
        self.taken_ns = 0
        """When the message being delivered was taken off its socket, by the monotonic clock."""
        self._outbox = outbox
        self._router = router
        self._accepted = router.accepted
        self._on_message = on_message
        self._on_join = on_join

    def drain(self, socket: zmq.Socket[bytes], port: LanePort | None) -> bool:
        """Receive what is there, then send what waited; True: there may be more.

        Args:
            port: the dialled lane of the socket; None: it is the ROUTER.
        """
        num_bytes = 0
        for _ in range(_TURN_MESSAGES):
            if socket.closed:
                return False
            if not has_input(socket):
                break
            if port is None and self._router.is_skipping:
                if not self._router.skip(socket):
                    return True
                continue
            num_bytes += self._receive(socket, port)
            if num_bytes > _TURN_BYTES:
                break
        if self._outbox.acks_due:
            self._outbox.say_acks()
        if socket.closed:
            return False
        if port is None:
            return self._router.turn_over(socket)
        if not port.is_held:
            self._outbox.flush(port)
        if socket.closed:
            return False
        return has_input(socket) or (bool(port.queue) and port.up and not port.is_held and has_room(socket))

    def _receive(self, socket: zmq.Socket[bytes], port: LanePort | None) -> int:
        """Take one multipart off the socket and deliver or refuse it; returns its bytes."""
        if self.stamps:
            self.taken_ns = time.monotonic_ns()
        routing: zmq.Frame | None = None
        if port is None:
            routing = socket.recv(zmq.NOBLOCK, copy=False)
            if not routing.more:
                return 0
        header = socket.recv(zmq.NOBLOCK, copy=False)
        num_bytes = len(header)
        payloads: list[memoryview] = []
        more = header.more
        while more and len(payloads) < MAX_TENSORS:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            payloads.append(frame.buffer)
            num_bytes += len(frame)
            more = frame.more
        if routing is not None:
            self._router.is_skipping = more
            accepted = self._accepted.get(routing.bytes)
            if accepted is None:
                self._router.hear_stranger(routing, header, num_bytes, alone=not payloads)
                return num_bytes
            if not self._router.is_own(accepted, routing):
                # Whoever this is now owns the routing id (handover): to go on would be to send to them.
                what = f"link {accepted.link.hex()[:8]} was taken by another key"
                self._outbox.refuse(accepted, AuthenticationError(what, link=accepted.link.hex()))
                return num_bytes
            port = accepted
        assert port is not None
        port.counters.messages_in += 1
        port.counters.bytes_in += num_bytes
        try:
            envelope = decode_header(header.buffer)
            if more:
                raise RemoteProtocolError(f"more than {MAX_TENSORS} payload frames in a multipart", path="tensors")
            kind = type(envelope.message)
            if envelope.swarm != self._outbox.swarm and kind not in _ANY_SWARM:
                raise RemoteProtocolError("a message of another swarm", path="swarm")
            if kind in LINK_MESSAGES or (port.bulk is not None and envelope.tensors and not payloads):
                whole = self._receive_bulk(port, envelope, payloads)
                if whole is None:
                    return num_bytes
                envelope, payloads = whole
            elif payloads or envelope.tensors:
                check_payloads(envelope, [len(payload) for payload in payloads])
        except ProtocolError as error:
            self._outbox.refuse(port, error)
            return num_bytes
        if self._on_join is not None and type(envelope.message) is Join:
            self._on_join(port.link, port.key, envelope.message)
        else:
            self._on_message(port.link, port.lane, envelope, payloads)
        return num_bytes

    def _receive_bulk(
        self, port: LanePort, envelope: Envelope, payloads: list[memoryview]
    ) -> tuple[Envelope, list[memoryview]] | None:
        """A piece, a frame's beginning or an acknowledgement came; the frame, if that made one whole.

        Raises:
            RemoteProtocolError: as docs/wire.md section 9 says.
        """
        message = envelope.message
        if isinstance(message, PieceAck):
            if port.bulk is not None or payloads:
                raise wrong_lane(message)
            self._outbox.acked(port.link, message)
            return None
        if port.bulk is None:
            raise wrong_lane(message)
        if not envelope.tensors:  # a piece; the frame was counted with its beginning
            port.counters.messages_in -= 1
            port.bulk.read_us = time.monotonic_ns() // 1000
            self._outbox.acks_due.add(port.link)
        return port.bulk.take(envelope, payloads)
