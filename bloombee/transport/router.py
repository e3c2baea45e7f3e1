"""Lanes that others dial: the one ROUTER of a process, who may come in, and whose connection is whose."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from bloombee.address import Address
from bloombee.errors import AddressInUse, AuthenticationError, BloomBeeError, ConfigError, ProtocolError, to_wire
from bloombee.transport.keys import KeyPair
from bloombee.transport.lanes import LanePort
from bloombee.transport.link_events import Counters, LinkEventKind
from bloombee.transport.outbox import Outbox
from bloombee.transport.sockets import Reader, bind, has_input, new_monitor, new_router
from bloombee.transport.strangers import Bucket, read_join
from bloombee.transport.zap import ZapHandler
from bloombee.types import Lane, WorkerId
from bloombee.wire.envelope import encode_envelope
from bloombee.wire.messages import Join, Refused

OnJoin = Callable[[bytes, bytes, Join], None]
Drain = Callable[[zmq.Socket[bytes], None], bool]
_RETRY_S = 0.002
_TURN_SKIPPED_FRAMES = 256
_STRANGERS_PER_S = 50


@dataclass(slots=True, eq=False, kw_only=True)
class AcceptedLane(LanePort):
    """
    Args:
        user_id: what ZAP must have attached to this peer's messages; None where nothing is checked.
        fd: of the connection that the last message came on.
    """

    accepted: ClassVar[bool] = True
    router: Router
    user_id: str | None = None
    fd: int = -1

    def close(self, linger_ms: int) -> None:
        """The ROUTER goes on."""
        LanePort.close(self, linger_ms)
        self.router.forget(self)


class Router:
    """Nothing listens before :meth:`bind`.

    Args:
        keys: None: nothing is encrypted and nobody's key is proven.
        on_join: as :class:`~bloombee.transport.endpoint.Endpoint`'s.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        loop: asyncio.AbstractEventLoop,
        keys: KeyPair | None,
        *,
        outbox: Outbox,
        on_join: OnJoin | None,
    ) -> None:
        self.strangers = Counters()
        self.accepted: dict[bytes, AcceptedLane] = {}
        """By routing id."""
        self.is_skipping = False
        """The rest of a multipart with too many frames has yet to be read past."""
        self._context = context
        self._loop = loop
        self._keys = keys
        self._outbox = outbox
        self._on_join = on_join
        self._zap: ZapHandler | None = None
        self._reader: Reader | None = None
        self._monitor: Reader | None = None
        self._allowed_keys: Counter[bytes] = Counter()
        self._by_fd: dict[int, AcceptedLane] = {}
        self._dead_fds: set[int] = set()
        self._bucket = Bucket(_STRANGERS_PER_S, loop.time())
        self._retry: asyncio.TimerHandle | None = None

    @property
    def is_bound(self) -> bool:
        return self._reader is not None

    def bind(self, wanted: Address, drain: Drain) -> Address:
        """Listen; ``drain`` reads what comes.

        Raises:
            AddressInUse: something else holds the port.
            ConfigError: it is not of this machine.
        """
        if self._keys is not None and self._zap is None:
            self._zap = ZapHandler(self._context, self._loop, self._may_enter)
        socket = new_router(self._context, self._keys)
        monitor = new_monitor(self._context, socket)
        try:
            bound = bind(socket, wanted)
        except zmq.ZMQError as error:
            socket.disable_monitor()
            monitor.close(0)
            socket.close(0)
            raise _cannot_listen(str(wanted), error) from None
        self._reader = Reader(self._loop, socket, partial(drain, socket, None))
        self._monitor = Reader(self._loop, monitor, self._drain_monitor)
        return bound

    def allow(self, link: bytes, key: bytes, worker: WorkerId) -> None:
        """A new link, of whoever proves ``key``."""
        user_id = z85.encode(key).decode("ascii") if self._keys is not None else None
        control, bulk = (
            AcceptedLane(link=link, lane=lane, key=key, worker=worker, router=self, user_id=user_id, reader=self._reader)
            for lane in Lane
        )
        for port in (control, bulk):
            self.accepted[port.routing_id] = port
            self._allowed_keys[key] += 1
        self._outbox.add(control, bulk, self._look)

    def forget(self, port: AcceptedLane) -> None:
        """The lane is closed; what it still says is a stranger's."""
        self.accepted.pop(port.routing_id, None)
        if self._by_fd.get(port.fd) is port:
            del self._by_fd[port.fd]
        self._allowed_keys[port.key] -= 1
        self._allowed_keys += Counter()  # forget keys without links

    def close(self, linger_ms: int) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._reader is not None and self._monitor is not None:
            self._reader.socket.disable_monitor()
            self._monitor.close()
            self._reader.close(linger_ms)
        if self._zap is not None:
            self._zap.close()

    # -- turns of the reader -------------------------------------------------------------------

    def turn_over(self, socket: zmq.Socket[bytes]) -> bool:
        """Send what waited; True: there is more to read."""
        if self._outbox.flush_accepted():
            self._retry_later()
        return not socket.closed and has_input(socket)

    def _retry_later(self) -> None:
        """ROUTER does not say which peer has room again, and the signal that one has may have been spent: look again."""
        if self._retry is None:
            self._retry = self._loop.call_later(_RETRY_S, self._again)

    def _again(self) -> None:
        self._retry = None
        if self._reader is not None and not self._reader.socket.closed:
            self._reader.again()

    def skip(self, socket: zmq.Socket[bytes]) -> bool:
        """Read past the rest of a multipart with too many frames, some per turn; True: past it."""
        for _ in range(_TURN_SKIPPED_FRAMES):
            if not socket.recv(zmq.NOBLOCK, copy=False).more:
                self.is_skipping = False
                return True
        return False

    # -- whose connection ----------------------------------------------------------------------

    def is_own(self, port: AcceptedLane, routing: zmq.Frame) -> bool:
        """A message was sent by the link's key; notes when its connection is a new one."""
        if port.user_id is not None and routing.get("User-Id") != port.user_id:
            return False
        fd = int(routing.get(zmq.SRCFD))
        if fd != port.fd:
            if fd in self._dead_fds:
                self._drain_monitor()
            if fd not in self._dead_fds:  # else: a last word from a connection that is gone
                if port.fd >= 0:  # handed over, the old one's end is yet to be told
                    port.connection_lost()
                port.fd, port.up, port.outage_told = fd, True, False
                self._by_fd[fd] = port
                self._drain_monitor()  # the other lane's connection may have ended with this one's
                self._outbox.say_again(port)
                self._outbox.tell(LinkEventKind.CONNECTED, port)
        return True

    def _look(self) -> None:
        if self._monitor is not None:
            self._drain_monitor()

    def _drain_monitor(self) -> bool:
        """Accepted connections are known by their file descriptor, which each message of theirs carries too."""
        assert self._monitor is not None
        monitor = self._monitor.socket
        while not monitor.closed and has_input(monitor):
            report = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            event, fd = report["event"], int(report["value"])
            if event == zmq.EVENT_ACCEPTED:
                self._dead_fds.discard(fd)
            elif event == zmq.EVENT_DISCONNECTED:
                self._disconnected(fd)
            elif event not in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_CLOSED):
                self.strangers.refused += 1
                if self._bucket.take(self._loop.time()):
                    error = AuthenticationError(
                        "an incoming connection failed its handshake: wrong or unknown key, or not ZeroMQ"
                    )
                    self._outbox.tell(LinkEventKind.HANDSHAKE_FAILED, None, error)
        return False

    def _disconnected(self, fd: int) -> None:
        self._dead_fds.add(fd)
        port = self._by_fd.pop(fd, None)
        if port is not None and port.fd == fd:
            port.fd, port.up = -1, False
            port.connection_lost()
            if self.accepted.get(port.routing_id) is port:
                self._outbox.tell(LinkEventKind.DISCONNECTED, port, "the peer closed the connection")

    # -- strangers -----------------------------------------------------------------------------

    def _may_enter(self, key: bytes) -> bool:
        return self._on_join is not None or self._allowed_keys[key] > 0

    def hear_stranger(self, routing: zmq.Frame, header: zmq.Frame, num_bytes: int, *, alone: bool) -> None:
        """A message on a link that was not allowed: Join is handed on, anything else is refused."""
        self.strangers.messages_in += 1
        self.strangers.bytes_in += num_bytes
        routing_id = routing.bytes
        try:
            if self._on_join is None:
                raise AuthenticationError("no such link here: it was not announced or has been dropped")
            join = read_join(routing_id, header.buffer, num_bytes, alone=alone)
        except ProtocolError as error:
            self.refuse(routing_id, error)
            return
        if not self._bucket.take(self._loop.time()):
            self.strangers.refused += 1
            return
        link = routing_id[:16]
        key = z85.decode(str(routing.get("User-Id")).encode("ascii")) if self._keys is not None else link + link
        self._on_join(link, key, join)

    def refuse(self, routing_id: bytes, error: BloomBeeError) -> None:
        """A stranger: count it; answer and report it as far as the bucket allows."""
        self.strangers.refused += 1
        if self._reader is None or not self._bucket.take(self._loop.time()):
            return
        header = encode_envelope(0, Refused(*to_wire(error)))
        try:
            self._reader.socket.send_multipart([routing_id, header], zmq.NOBLOCK)
        except zmq.ZMQError as problem:  # full or gone: it need not know
            if problem.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
        self._reader.recheck()
        self._outbox.tell(LinkEventKind.REFUSED, None, error)


def _cannot_listen(address: str, error: zmq.ZMQError) -> BloomBeeError:
    if error.errno == zmq.EADDRINUSE:
        what = f"{address} is in use by another process: choose another port, or port 0 for any free one"
        return AddressInUse(what, address=address)
    return ConfigError(
        f"cannot listen on {address}: {error.strerror}; give tcp://ADDRESS:PORT with an address of this machine, or tcp://*:PORT"
        " for all it has",
        address=address,
    )
