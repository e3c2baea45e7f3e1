"""Lanes that this process dials: a DEALER each, dialled again and again until somebody hangs up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial

import zmq
from zmq.utils.monitor import parse_monitor_message

from bloombee.address import Address
from bloombee.transport.gone import PortWatch
from bloombee.transport.inbox import Inbox
from bloombee.transport.interfaces import look_up
from bloombee.transport.keys import KeyPair
from bloombee.transport.lanes import LanePort
from bloombee.transport.link_events import LinkEventKind
from bloombee.transport.outbox import Outbox
from bloombee.transport.sockets import Reader, connect, has_input, new_dealer, new_monitor
from bloombee.transport.strangers import handshake_error
from bloombee.types import Lane

_FIRST_RETRY_S, _MAX_RETRY_S = 0.1, 2.0


@dataclass(slots=True, eq=False, kw_only=True)
class DialledLane(LanePort):
    """
    Args:
        target: where it goes, perhaps a name.
        untried: addresses that the name stands for and that have not been tried since it was looked up.
        address: where the lane's connection goes, or is being tried.
        watch: of a lane that was up, whether its port is still there.
    """

    target: Address
    untried: list[Address] = field(default_factory=list)
    address: Address | None = None
    monitor: Reader | None = None
    watch: PortWatch | None = None
    retry_s: float = _FIRST_RETRY_S
    retry: asyncio.TimerHandle | None = None

    @property
    def is_name(self) -> bool:
        return self.target.ip is None

    @property
    def endpoint(self) -> str:
        """For people: where the lane goes, as it was told."""
        return str(self.target)

    def connect(self, source: str | None) -> None:
        """Dial the address that is next, from the own IP address ``source``."""
        assert self.reader is not None
        self.address = self.untried.pop(0) if self.untried else self.target
        connect(self.reader.socket, self.address, source)

    def came_up(self) -> None:
        """The handshake has come to its end."""
        self.up, self.retry_s = True, _FIRST_RETRY_S
        self.untried.clear()
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None

    def hang_up(self, linger_ms: int) -> None:
        """Close the socket; what waits to be sent is kept."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        if self.bulk is not None:
            self.bulk.cancel_timer()
        if self.watch is not None:
            self.watch.close()
        if self.monitor is not None:
            if self.reader is not None and not self.reader.socket.closed:
                self.reader.socket.disable_monitor()
            self.monitor.close()
        if self.reader is not None:
            self.reader.close(linger_ms)

    def close(self, linger_ms: int) -> None:
        self.hang_up(linger_ms)
        LanePort.close(self, linger_ms)


class Dealers:
    """Makes dialled links and keeps them up.

    Args:
        keys: None: nothing is encrypted.
        source: own IP address to dial from; None: what the system takes.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        loop: asyncio.AbstractEventLoop,
        keys: KeyPair | None,
        *,
        source: str | None,
        outbox: Outbox,
        inbox: Inbox,
    ) -> None:
        self._context = context
        self._loop = loop
        self._keys = keys
        self._source = source
        self._outbox = outbox
        self._inbox = inbox

    def dial(self, link: bytes, target: Address, server_key: bytes) -> None:
        """Open both lanes of a new link."""
        control, bulk = (DialledLane(link=link, lane=lane, key=server_key, target=target) for lane in Lane)
        self._outbox.add(control, bulk, partial(self._look, bulk))
        self._open(control)
        self._open(bulk)

    def _open(self, port: DialledLane) -> None:
        socket = new_dealer(self._context, port.lane, port.routing_id, self._keys, port.key)
        monitor = new_monitor(self._context, socket)
        port.reader = Reader(self._loop, socket, partial(self._inbox.drain, socket, port))
        port.monitor = Reader(self._loop, monitor, partial(self._drain_monitor, monitor, port))
        if port.untried or not port.is_name:
            port.connect(self._source)
        else:
            look_up(self._loop, port.target, partial(self._looked_up, port, socket))

    def _looked_up(self, port: DialledLane, socket: zmq.Socket[bytes], found: list[Address]) -> None:
        """What the name of a lane stands for; ``socket`` is the one it was asked for."""
        if socket.closed:
            return
        port.untried = found
        if found:
            port.connect(self._source)
            return
        self._redial_later(port)
        what = f"{port.endpoint} cannot be resolved here: is the name right, and known to this machine's DNS?"
        self._outbox.tell(LinkEventKind.UNREACHABLE, port, what)

    def _redial_later(self, port: DialledLane) -> None:
        if port.retry is None:
            port.retry = self._loop.call_later(port.retry_s, self._redial, port)
            port.retry_s = min(_MAX_RETRY_S, 2 * port.retry_s)

    def _redial(self, port: DialledLane) -> None:
        """With a new socket, unless ZeroMQ has come through meanwhile, or whoever heard of it has hung up."""
        self._look(port)
        if not port.up and port.reader is not None and not port.reader.socket.closed:
            port.hang_up(0)
            self._open(port)

    def _look(self, port: DialledLane) -> None:
        if port.monitor is not None:
            self._drain_monitor(port.monitor.socket, port)

    def _drain_monitor(self, monitor: zmq.Socket[bytes], port: DialledLane) -> bool:
        """What became of a lane's connection."""
        while not monitor.closed and has_input(monitor):
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._came_up(port)
            elif event == zmq.EVENT_DISCONNECTED and port.up:
                port.up = False
                port.connection_lost()
                self._outbox.tell(LinkEventKind.DISCONNECTED, port, f"{port.endpoint} closed the connection")
            elif event == zmq.EVENT_CLOSED and not port.up and port.watch is not None:
                port.watch.ask()
            elif event in (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
                # ZeroMQ gives up for good after these two; but the peer may hear of our key a moment after us.
                self._redial_later(port)
                self._handshake_failed(port, event)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._handshake_failed(port, event)
            elif event == zmq.EVENT_CONNECT_RETRIED and port.is_name:
                self._redial_later(port)
        return False

    def _came_up(self, port: DialledLane) -> None:
        port.came_up()
        port.watch = PortWatch(str(port.address), partial(self._port_refuses, port))
        self._outbox.say_again(port)
        self._outbox.tell(LinkEventKind.CONNECTED, port)
        self._outbox.flush(port)
        if port.reader is not None:
            port.reader.again()

    def _handshake_failed(self, port: DialledLane, event: int) -> None:
        """Told once no address of the name is left to try."""
        if not port.untried:
            error = handshake_error(port.endpoint, port.key, event)
            self._outbox.tell(LinkEventKind.HANDSHAKE_FAILED, port, error)

    def _port_refuses(self, port: DialledLane) -> None:
        if not port.up and port.link in self._outbox.links:
            self._outbox.tell(LinkEventKind.PORT_REFUSES, port, f"nobody listens at {port.endpoint} any more")
