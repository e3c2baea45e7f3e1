"""All sockets of one process: at most one ROUTER that others dial, two DEALERs per link that we dial.

Theory of operation. Everything runs on one asyncio loop without tasks: a socket's FD wakes a
:class:`~bloombee.transport.sockets.Reader`, which drains it (:mod:`~bloombee.transport.inbox`) and calls ``on_message``; ``send``
writes to the socket at once or, where ZeroMQ is at its high-water mark or the lane is not up, keeps the message in the lane's own
bounded queue (:mod:`~bloombee.transport.outbox`), which the same reader empties. Nothing blocks and nothing is copied
on the way except frames below 64 KB. Large frames of a bulk lane go in pieces, no more of them than the link's window
(:mod:`bloombee.links.window`) at a time: acknowledgements and a timer empty that queue.

Who is at the other end is proven by CURVE on every connection; a lane's messages are delivered only if
the key that ZAP saw is the key that the link was made for. The rest of the rules: docs/wire.md. How connections come and go:
:mod:`~bloombee.transport.router` for those that others open, :mod:`~bloombee.transport.dealer` for those that this process does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import zmq

from bloombee.address import Address, read_dialled, read_listen
from bloombee.errors import BloomBeeError, ConfigError, LinkDown, LocalProtocolError, RemoteProtocolError
from bloombee.links.estimator import LinkEstimator
from bloombee.links.window import BulkWindow
from bloombee.transport.bulk import WHOLE_BYTES, Bulk
from bloombee.transport.dealer import Dealers, DialledLane
from bloombee.transport.inbox import Inbox, OnMessage
from bloombee.transport.keys import KeyPair
from bloombee.transport.lanes import LanePort, Unreachable
from bloombee.transport.link_events import Counters
from bloombee.transport.outbox import OnEvent, Outbox
from bloombee.transport.router import OnJoin, Router
from bloombee.types import Lane, WorkerId
from bloombee.wire.envelope import Envelope, TensorHeader, check_payloads, encode_envelope
from bloombee.wire.messages import AnyMessage
from bloombee.wire.schema import Buffer

MAX_QUEUED_MESSAGES = 4096
MAX_QUEUED_BYTES = 1 << 28


class Endpoint:
    """The sockets of one process. Must be made, used and closed on one running asyncio loop.

    Args:
        keys: this process's key pair; not used if ``curve`` is off.
        swarm: number of the swarm; 0 until joined, then set :attr:`swarm`.
        on_message: (link, lane, envelope, payloads) for each message of a known link, everything but the payloads'
            checksum checked. A payload is a view of ZeroMQ's own memory, which lives as long as the view.
        on_event: what happens to links and lanes.
        on_join: head only: (link, key, join) when a key that has no link yet says Join, or an allowed link says it
            again. If given, any key may connect, and may say nothing else. If not, only keys of allowed links may.
        curve: off: plain TCP, nothing is encrypted and nobody's key is proven. ``key`` of on_join is then the link, twice.
        max_queued_messages, max_queued_bytes: of one lane, behind ZeroMQ's own high-water mark.
        whole_bytes: payloads up to this go in one piece on bulk lanes too.
        source: own IP address to dial from; None: what the system takes.

    The callbacks may call any method. What they raise goes to the loop's exception handler; other messages go on.
    """

    def __init__(
        self,
        keys: KeyPair,
        *,
        swarm: int,
        on_message: OnMessage,
        on_event: OnEvent,
        on_join: OnJoin | None = None,
        curve: bool = True,
        max_queued_messages: int = MAX_QUEUED_MESSAGES,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        whole_bytes: int = WHOLE_BYTES,
        source: str | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        used_keys = keys if curve else None
        self._outbox = Outbox(
            self._loop,
            swarm=swarm,
            on_event=on_event,
            max_queued_messages=max_queued_messages,
            max_queued_bytes=max_queued_bytes,
            whole_bytes=whole_bytes,
        )
        self._links = self._outbox.links
        self._router = Router(self._context, self._loop, used_keys, outbox=self._outbox, on_join=on_join)
        self._inbox = Inbox(self._outbox, self._router, on_message=on_message, on_join=on_join)
        self._dealers = Dealers(self._context, self._loop, used_keys, source=source, outbox=self._outbox, inbox=self._inbox)
        self._closed = False

    @property
    def swarm(self) -> int:
        return self._outbox.swarm

    @swarm.setter
    def swarm(self, swarm: int) -> None:
        self._outbox.swarm = swarm

    @property
    def stamps(self) -> bool:
        """Whether :attr:`taken_ns` is kept."""
        return self._inbox.stamps

    @stamps.setter
    def stamps(self, wanted: bool) -> None:
        self._inbox.stamps = wanted

    @property
    def taken_ns(self) -> int:
        """When the message being delivered was taken off its socket, by the monotonic clock."""
        return self._inbox.taken_ns

    @property
    def strangers(self) -> Counters:
        """Messages of those who have no link, and failed handshakes (``refused``)."""
        return self._router.strangers

    # -- being dialled -------------------------------------------------------------------------

    async def bind(self, address: str = "tcp://127.0.0.1:0") -> str:
        """Listen; port 0 takes a free one.

        Returns:
            The endpoint with its real port.

        Raises:
            AddressInUse: something else holds the port.
            ConfigError: not an endpoint, or not of this machine.
        """
        try:
            wanted = read_listen(address)
        except ValueError as error:
            raise ConfigError(f"cannot listen on {address!r}: {error}", address=address) from None
        if self._router.is_bound:
            raise LocalProtocolError("this endpoint is bound already")
        return str(self._router.bind(wanted, self._inbox.drain))

    def allow(self, link: bytes, key: bytes, worker: WorkerId) -> None:
        """Take ``link`` from whoever proves ``key``. Allowing the same again changes nothing.

        Raises:
            LocalProtocolError: the link exists with another key, or is dialled, or nothing is bound.
        """
        if not self._router.is_bound:
            raise LocalProtocolError("allow() before bind()")
        known = self._links.get(link)
        if known is None:
            self._router.allow(link, key, worker)
        elif not known[0].accepted or known[0].key != key:
            raise LocalProtocolError(f"link {link.hex()[:8]} exists already")

    def forbid(self, link: bytes) -> None:
        """Forget an allowed link; what it still says is refused as a stranger's. An unknown link changes nothing."""
        self._outbox.drop(link)

    def expel(self, link: bytes, error: BloomBeeError) -> None:
        """Its peer broke a rule that only the owner knows: as if this endpoint had found it. An unknown link changes nothing."""
        ports = self._links.get(link)
        if ports is not None:
            self._outbox.refuse(ports[Lane.CONTROL], error)

    def refuse(self, link: bytes, error: BloomBeeError) -> None:
        """Tell somebody who said Join that it is not let in; at most 50 such answers a second are sent."""
        self._router.refuse(link + bytes([Lane.CONTROL]), error)

    # -- dialling ------------------------------------------------------------------------------

    def dial(self, link: bytes, endpoint: str, server_key: bytes) -> None:
        """Open both lanes to ``endpoint`` and keep them open until :meth:`hang_up`; events tell how it goes.

        Args:
            link: 16 unguessable bytes that the other end allows, or hears first with Join.
            server_key: public key that the other end must prove.

        Raises:
            LocalProtocolError: the link exists.
            ConfigError: ``endpoint`` is not tcp://host:port.

        A name may stand for several addresses: they are tried in turn, and looked up again for each new connection.
        """
        if link in self._links:
            raise LocalProtocolError(f"link {link.hex()[:8]} exists already")
        try:
            target = read_dialled(endpoint)
        except ValueError as error:
            raise ConfigError(f"cannot dial {endpoint!r}: {error}", endpoint=endpoint) from None
        self._dealers.dial(link, target, server_key)

    def address(self, link: bytes) -> Address | None:
        """The IP address at which a dialled link's control lane found its peer, or is being tried now; None: none yet."""
        ports = self._links.get(link)
        port = ports[Lane.CONTROL] if ports is not None else None
        return port.address if isinstance(port, DialledLane) else None

    def hang_up(self, link: bytes) -> None:
        """Close a dialled link at once, with all that waits to be sent. An unknown link changes nothing."""
        self._outbox.drop(link)

    # -- sending -------------------------------------------------------------------------------

    def send(
        self,
        link: bytes,
        lane: Lane,
        message: AnyMessage,
        tensors: tuple[TensorHeader, ...] = (),
        payloads: Sequence[Buffer] = (),
    ) -> int:
        """Send a message; never blocks. Order is kept within a lane.

        Args:
            payloads: one byte buffer per tensor header. Large ones are not copied, and go in pieces on a bulk lane: leave
                them unchanged until the peer has acknowledged the frame.

        Returns:
            Its bytes, before encryption.

        Raises:
            LinkDown: no such link at this endpoint.
            QueueFull: the lane's queue is at its bound; nothing was sent.
            LocalProtocolError: the peer would refuse this message.

        What is sent to an accepted link whose peer is not connected is lost, and UNREACHABLE says so.
        """
        ports = self._links.get(link)
        if ports is None:
            raise _no_link(link)
        outbox = self._outbox
        header = encode_envelope(outbox.swarm, message, tensors)
        num_bytes = len(header)
        if payloads or tensors:
            lengths = [len(payload) for payload in payloads]
            num_bytes += sum(lengths)
            try:
                check_payloads(Envelope(outbox.swarm, message, tensors), lengths)
            except RemoteProtocolError as error:
                raise LocalProtocolError(f"not sent: {error.message}", **error.fields) from None
        try:
            outbox.send(ports[lane], header, payloads, num_bytes)
        except Unreachable:
            outbox.unreachable(ports[lane], 1)
        return num_bytes

    def probe(self, link: bytes, idle_s: float) -> int:
        """Send a train of padding if the link is up, its bandwidth is not known, and it may cost that (links/prober.py).

        Args:
            idle_s: since the caller had anything on its way over it.

        Returns:
            Its bytes; 0: none was sent.

        Raises:
            LinkDown: no such link at this endpoint.
        """
        return self._outbox.probe(*self._ports(link), idle_s)

    def measure(self, link: bytes, *, fills: bool, done: Callable[[], None]) -> None:
        """Find out how long this side's direction of a link is, or how wide (links/gauge.py); its :meth:`estimator` learns it.

        Args:
            fills: keep it full for a moment; nothing else of this side's should be on its way.
            done: called once, when no more will be known; within some seconds.

        Raises:
            LinkDown: no such link at this endpoint.
        """
        self._outbox.measure(self._ports(link)[Lane.BULK], fills=fills, done=done)

    def pending_bytes(self, link: bytes, lane: Lane) -> int:
        """Bytes in the lane's own queue: what ZeroMQ has not taken yet. 0 for an unknown link."""
        ports = self._links.get(link)
        return ports[lane].pending_bytes if ports is not None else 0

    def counters(self, link: bytes, lane: Lane) -> Counters:
        """The lane's running counters (the object itself).

        Raises:
            LinkDown: no such link at this endpoint.
        """
        return self._ports(link)[lane].counters

    def bulk_window(self, link: bytes) -> BulkWindow:
        """What bounds this side's bulk on the link, with its live estimates of bandwidth and round trip; to be read only.

        Raises:
            LinkDown: no such link at this endpoint.
        """
        return self._bulk(link).window

    def estimator(self, link: bytes) -> LinkEstimator:
        """What this side's pieces show of the link; whoever sends whole frames on it shows them too (links/frames.py).

        Raises:
            LinkDown: no such link at this endpoint.
        """
        return self._bulk(link).estimator

    def _ports(self, link: bytes) -> tuple[LanePort, LanePort]:
        ports = self._links.get(link)
        if ports is None:
            raise _no_link(link)
        return ports

    def _bulk(self, link: bytes) -> Bulk:
        bulk = self._ports(link)[Lane.BULK].bulk
        assert bulk is not None
        return bulk

    async def close(self, linger_s: float = 1.0) -> None:
        """Close every socket; at most ``linger_s`` is spent on what waits to be sent. Closing twice changes nothing.

        Cancelled while it waits, it leaves the sockets closed and the context's last thread to end by itself.
        """
        if self._closed:
            return
        self._closed = True
        deadline = self._loop.time() + linger_s
        try:
            await self._outbox.flush_all(linger_s)
        finally:
            linger_ms = max(0, int((deadline - self._loop.time()) * 1000))
            for link in list(self._links):
                self._outbox.drop(link, linger_ms)
            self._router.close(linger_ms)
            ended = self._loop.create_future()
            thread = threading.Thread(
                target=_end_context, args=(self._context, self._loop, ended), name="zmq-context-end", daemon=True
            )
            thread.start()
        await ended
        thread.join()  # it has said its last word; only its return is left


def _no_link(link: bytes) -> LinkDown:
    return LinkDown(f"no link {link.hex()[:8]}: it was never made here or has been dropped", link=link.hex())


def _end_context(context: zmq.Context[zmq.Socket[bytes]], loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
    """In a thread: term() blocks until lingering messages are sent or given up."""
    context.term()
    if not loop.is_closed():
        loop.call_soon_threadsafe(_end, ended)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():  # the waiter may have been cancelled
        future.set_result(None)
