"""ZeroMQ sockets as this project sets them, and a reader that runs them on any asyncio loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from itertools import count

import zmq
from zmq.utils import z85

from bloombee.address import Address, read_listen
from bloombee.transport.keys import KeyPair
from bloombee.types import Lane
from bloombee.wire.envelope import MAX_TENSOR_BYTES

ZAP_DOMAIN = b"bloombee"
ROUTER_HWM = 16
"""Per peer and direction. Behind it the kernel's buffers and the sender's own queue hold the rest, so the most that a
hostile peer can make a stalled process keep is ROUTER_HWM * MAX_TENSOR_BYTES."""
LANE_HWM = {Lane.CONTROL: 64, Lane.BULK: 8}
"""Of dialled lanes. Low, so that ``Endpoint.pending_bytes`` sees a slow link early."""
MONITORED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED  # of dialled sockets: a try to connect failed
)
_monitor_number = count()


def new_router(context: zmq.Context[zmq.Socket[bytes]], keys: KeyPair | None) -> zmq.Socket[bytes]:
    """A ROUTER for incoming lanes; a CURVE server if ``keys`` are given."""
    socket = context.socket(zmq.ROUTER)
    _set_common(socket, ROUTER_HWM)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, z85.encode(keys.secret))
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    return socket


def new_dealer(
    context: zmq.Context[zmq.Socket[bytes]], lane: Lane, routing_id: bytes, keys: KeyPair | None, server_key: bytes
) -> zmq.Socket[bytes]:
    """A DEALER for one dialled lane; a CURVE client if ``keys`` are given. Not connected yet."""
    socket = context.socket(zmq.DEALER)
    _set_common(socket, LANE_HWM[lane])
    socket.setsockopt(zmq.ROUTING_ID, routing_id)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 5000)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_PUBLICKEY, z85.encode(keys.public))
        socket.setsockopt(zmq.CURVE_SECRETKEY, z85.encode(keys.secret))
        socket.setsockopt(zmq.CURVE_SERVERKEY, z85.encode(server_key))
    return socket


def _set_common(socket: zmq.Socket[bytes], hwm: int) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_TENSOR_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


def bind(socket: zmq.Socket[bytes], address: Address) -> Address:
    """Listen on ``address``; a name is an interface's, or stands for an address of this machine, IPv4 if it has both.

    Returns:
        It with its real port.

    Raises:
        zmq.ZMQError: it is in use, or not of this machine.
    """
    try:
        _use_ipv6(socket, (address.is_wildcard and address.family != 4) or address.family == 6)
        socket.bind(str(address))
    except zmq.ZMQError as error:
        if address.family is not None or address.is_wildcard or error.errno == zmq.EADDRINUSE:
            raise
        _use_ipv6(socket, True)
        socket.bind(str(address))
    return read_listen(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def connect(socket: zmq.Socket[bytes], address: Address, source: str | None = None) -> None:
    """Dial ``address``, an IP address, from the own IP address ``source``; None: what the system takes."""
    _use_ipv6(socket, address.family == 6)
    socket.connect(dialled_from(source, address))


def _use_ipv6(socket: zmq.Socket[bytes], wanted: bool) -> None:
    """On where nothing else will do: hosts without IPv6 exist. It lets ``*`` listen on both."""
    socket.setsockopt(zmq.IPV6, int(wanted))


def dialled_from(source: str | None, address: Address) -> str:
    """``address`` as ZeroMQ dials it from the own IP address ``source`` (any port), where that is of the same family."""
    if source is None or (6 if ":" in source else 4) != address.family:
        return str(address)
    own = Address(source, 0, ip_address(source))
    return f"{own};{str(address).removeprefix('tcp://')}"


def new_monitor(context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """The PAIR that reports handshakes and disconnections of ``socket``."""
    address = f"inproc://monitor-{next(_monitor_number)}"
    socket.monitor(address, MONITORED)
    pair = context.socket(zmq.PAIR)
    pair.setsockopt(zmq.LINGER, 0)
    # ZeroMQ's I/O thread blocks on a full monitor and with it all traffic: room for a flood of connections.
    pair.setsockopt(zmq.RCVHWM, 10_000)
    pair.connect(address)
    return pair


def has_input(socket: zmq.Socket[bytes]) -> bool:
    """Whether a receive would succeed now. Handles what ZeroMQ's I/O thread has reported, so the FD's signal is spent."""
    return int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN != 0


def has_room(socket: zmq.Socket[bytes]) -> bool:
    """Whether a DEALER would take a message now (of a ROUTER it says only that some peer has room)."""
    return int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT != 0


class Reader:
    """Runs ``ready`` whenever ``socket`` may have something, on the loop it was made on.

    ZeroMQ's FD is edge-triggered: it signals that something changed, once, and any call on the socket (a send
    too) may eat the signal. So ``ready`` must go on until there is nothing left, or return True to be called
    again; and after each send the owner calls :meth:`recheck`.

    Args:
        ready: drains the socket, a bounded number of messages at a time; True: there may be more.
    """

    __slots__ = ("_fd", "_loop", "_ready", "_scheduled", "socket")

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: zmq.Socket[bytes], ready: Callable[[], bool]) -> None:
        self.socket = socket
        self._loop = loop
        self._ready = ready
        self._scheduled = False
        self._fd = int(socket.getsockopt(zmq.FD))
        loop.add_reader(self._fd, self._run)
        self.again()

    def again(self) -> None:
        """Call ``ready`` soon, once."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def recheck(self) -> None:
        """To be called after a send: it may have eaten the signal that something came in."""
        if not self._scheduled and has_input(self.socket):
            self.again()

    def close(self, linger_ms: int = 0) -> None:
        """Stop reading and close the socket."""
        if not self.socket.closed:
            self._loop.remove_reader(self._fd)
            self.socket.close(linger_ms)

    def _run(self) -> None:
        self._scheduled = False
        if self.socket.closed:
            return
        more = True
        try:
            more = self._ready()
        finally:  # an exception of a callback goes to the loop's handler; what else came in is not lost
            if more and not self.socket.closed:
                self.again()
