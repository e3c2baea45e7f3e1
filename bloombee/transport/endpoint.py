"""All sockets of one process: at most one ROUTER that others dial, two DEALERs per link that we dial.

Theory of operation. Everything runs on one asyncio loop without tasks: a socket's FD wakes a
:class:`~bloombee.transport.sockets.Reader`, which drains it and calls ``on_message``; ``send`` writes
to the socket at once or, where ZeroMQ is at its high-water mark or the lane is not up, keeps the
message in the lane's own bounded queue, which the same reader empties. Nothing blocks and nothing is copied
on the way except frames below 64 KB. Large frames of a bulk lane go in pieces, no more of them than the link's window
(:mod:`bloombee.links.window`) at a time: acknowledgements and a timer empty that queue.

Who is at the other end is proven by CURVE on every connection; a lane's messages are delivered only if
the key that ZAP saw is the key that the link was made for. The rest of the rules: docs/wire.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from bloombee.address import Address, read_dialled, read_listen
from bloombee.errors import (
    AddressInUse,
    AuthenticationError,
    BloomBeeError,
    ConfigError,
    LinkDown,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    to_wire,
)
from bloombee.links.estimator import LinkEstimator
from bloombee.links.window import BulkWindow
from bloombee.transport.bulk import LINK_MESSAGES, WHOLE_BYTES, Bulk, wrong_lane
from bloombee.transport.gone import PortWatch
from bloombee.transport.interfaces import look_up
from bloombee.transport.keys import KeyPair
from bloombee.transport.lanes import LanePort, Unreachable
from bloombee.transport.link_events import Counters, LinkEvent, LinkEventKind
from bloombee.transport.sockets import Reader, bind, has_input, has_room, new_dealer, new_monitor, new_router
from bloombee.transport.strangers import Bucket, handshake_error, read_join
from bloombee.transport.zap import ZapHandler
from bloombee.types import Lane, WorkerId
from bloombee.wire.envelope import MAX_TENSORS, Envelope, TensorHeader, check_payloads, decode_header, encode_envelope
from bloombee.wire.messages import AnyMessage, Join, Joined, PieceAck, Probe, Refused
from bloombee.wire.schema import Buffer

OnMessage = Callable[[bytes, Lane, Envelope, list[memoryview]], None]
OnEvent = Callable[[LinkEvent], None]
OnJoin = Callable[[bytes, bytes, Join], None]

MAX_QUEUED_MESSAGES = 4096
MAX_QUEUED_BYTES = 1 << 28
PROBE_MESSAGES = 8
"""Of a train of padding; ZeroMQ takes at least as many at once."""
_TURN_MESSAGES = 64
_TURN_BYTES = 1 << 23
"""A reader gives the loop back after so much."""
_TURN_SKIPPED_FRAMES = 256
_MAX_RETRY_S = 2.0
_ROUTER_RETRY_S = 0.002
_REFUSED_LINGER_MS = 500
_ANY_SWARM = (Join, Joined, Refused)
"""What is said before both ends know the swarm's number."""


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
        self.swarm = swarm
        self.stamps = False
        """Whether :attr:`taken_ns` is kept."""
        self.taken_ns = 0
        """When the message being delivered was taken off its socket, by the monotonic clock."""
        self.strangers = Counters()
        """Messages of those who have no link, and failed handshakes (``refused``)."""
        self._loop = asyncio.get_running_loop()
        self._keys = keys if curve else None
        self._on_message = on_message
        self._on_event = on_event
        self._on_join = on_join
        self._max_queued_messages = max_queued_messages
        self._max_queued_bytes = max_queued_bytes
        self._whole_bytes = whole_bytes
        self._source = source
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap: ZapHandler | None = None
        self._router: Reader | None = None
        self._router_monitor: Reader | None = None
        self._links: dict[bytes, tuple[LanePort, LanePort]] = {}
        self._accepted: dict[bytes, LanePort] = {}
        self._allowed_keys: Counter[bytes] = Counter()
        self._backlog: set[LanePort] = set()
        self._acks_due: set[bytes] = set()
        self._by_fd: dict[int, LanePort] = {}
        self._dead_fds: set[int] = set()
        self._skipping: set[zmq.Socket[bytes]] = set()
        self._bucket = Bucket(50, self._loop.time())
        self._flushed: asyncio.Event | None = None
        self._router_retry: asyncio.TimerHandle | None = None
        self._closed = False

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
        if self._router is not None:
            raise LocalProtocolError("this endpoint is bound already")
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
            if error.errno == zmq.EADDRINUSE:
                raise AddressInUse(
                    f"{address} is in use by another process: choose another port, or port 0 for any free one", address=address
                ) from None
            raise ConfigError(
                f"cannot listen on {address}: {error.strerror}; give tcp://ADDRESS:PORT with an address of this machine, or"
                " tcp://*:PORT for all it has",
                address=address,
            ) from None
        self._router = Reader(self._loop, socket, self._drain_router)
        self._router_monitor = Reader(self._loop, monitor, self._drain_router_monitor)
        return str(bound)

    def allow(self, link: bytes, key: bytes, worker: WorkerId) -> None:
        """Take ``link`` from whoever proves ``key``. Allowing the same again changes nothing.

        Raises:
            LocalProtocolError: the link exists with another key, or is dialled, or nothing is bound.
        """
        if self._router is None:
            raise LocalProtocolError("allow() before bind()")
        known = self._links.get(link)
        if known is not None:
            if known[0].accepted and known[0].key == key:
                return
            raise LocalProtocolError(f"link {link.hex()[:8]} exists already")
        user_id = z85.encode(key).decode("ascii") if self._keys is not None else None
        ports = tuple(
            LanePort(link, lane, accepted=True, key=key, user_id=user_id, worker=worker, reader=self._router) for lane in Lane
        )
        ports[Lane.BULK].bulk = Bulk(self._whole_bytes, self._look_at_router, ports[Lane.CONTROL].counters)
        self._links[link] = (ports[0], ports[1])
        self._allowed_keys[key] += 1
        for port in ports:
            self._accepted[port.routing_id] = port

    def forbid(self, link: bytes) -> None:
        """Forget an allowed link; what it still says is refused as a stranger's. An unknown link changes nothing."""
        self._drop(link, 0)

    def refuse(self, link: bytes, error: BloomBeeError) -> None:
        """Tell somebody who said Join that it is not let in; at most 50 such answers a second are sent."""
        self._refuse_stranger(link + bytes([Lane.CONTROL]), error)

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
        ports = tuple(LanePort(link, lane, accepted=False, key=server_key, target=target) for lane in Lane)
        look = partial(self._look_at_dealer, ports[Lane.BULK])
        ports[Lane.BULK].bulk = Bulk(self._whole_bytes, look, ports[Lane.CONTROL].counters)
        self._links[link] = (ports[0], ports[1])
        for port in ports:
            self._dial(port)

    def address(self, link: bytes) -> Address | None:
        """The IP address at which a dialled link's control lane found its peer, or is being tried now; None: none yet."""
        ports = self._links.get(link)
        return ports[Lane.CONTROL].address if ports is not None else None

    def hang_up(self, link: bytes) -> None:
        """Close a dialled link at once, with all that waits to be sent. An unknown link changes nothing."""
        self._drop(link, 0)

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
            raise LinkDown(f"no link {link.hex()[:8]}: it was never made here or has been dropped", link=link.hex())
        header = encode_envelope(self.swarm, message, tensors)
        num_bytes = len(header)
        if payloads or tensors:
            lengths = [len(payload) for payload in payloads]
            num_bytes += sum(lengths)
            try:
                check_payloads(Envelope(self.swarm, message, tensors), lengths)
            except RemoteProtocolError as error:
                raise LocalProtocolError(f"not sent: {error.message}", **error.fields) from None
        port = ports[lane]
        reader = port.reader
        assert reader is not None
        try:
            can_write = (port.accepted or port.up) and not port.queue and not port.cuts(payloads)
            if can_write and port.write(header, payloads, num_bytes):
                reader.recheck()
                return num_bytes
        except Unreachable:
            self._unreachable(port, 1)
            return num_bytes
        port.enqueue(header, payloads, num_bytes, max_messages=self._max_queued_messages, max_bytes=self._max_queued_bytes)
        self._backlog.add(port)
        if port.bulk is not None and not port.is_held:
            self._flush(port)
        reader.again()
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
        bulk, ports = self._bulk(link), self._links[link]
        port = ports[Lane.BULK]
        if not (port.accepted or port.up) or ports[Lane.CONTROL].queue or port.queue or bulk.window.unacked_bytes:
            return 0
        now, facts = time.monotonic(), bulk.estimator.facts()
        wanted = bulk.prober.wants(
            now,
            idle_s=idle_s,
            sampled_at=bulk.estimator.sampled_at,
            bandwidth=facts.bandwidth_bytes_per_s,
            least_train_s=bulk.estimator.least_train_s,
        )
        padding, sent = bytes(-(-wanted // PROBE_MESSAGES)), 0
        with contextlib.suppress(Unreachable):
            for _ in range(PROBE_MESSAGES if wanted else 0):
                header = encode_envelope(self.swarm, Probe(bulk.window.next_number, padding))
                if not port.write(header, (), len(header)):
                    break
                bulk.probe_sent(len(header), now)
                sent += len(header)
        if sent:
            bulk.prober.sent(sent, now)
            assert port.reader is not None
            port.reader.recheck()
        return sent

    def pending_bytes(self, link: bytes, lane: Lane) -> int:
        """Bytes in the lane's own queue: what ZeroMQ has not taken yet. 0 for an unknown link."""
        ports = self._links.get(link)
        return ports[lane].pending_bytes if ports is not None else 0

    def counters(self, link: bytes, lane: Lane) -> Counters:
        """The lane's running counters (the object itself).

        Raises:
            LinkDown: no such link at this endpoint.
        """
        ports = self._links.get(link)
        if ports is None:
            raise LinkDown(f"no link {link.hex()[:8]}", link=link.hex())
        return ports[lane].counters

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

    def _bulk(self, link: bytes) -> Bulk:
        ports = self._links.get(link)
        if ports is None:
            raise LinkDown(f"no link {link.hex()[:8]}", link=link.hex())
        bulk = ports[Lane.BULK].bulk
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
            await self._flush_all(linger_s)
        finally:
            linger_ms = max(0, int((deadline - self._loop.time()) * 1000))
            for link in list(self._links):
                self._drop(link, linger_ms)
            if self._router_retry is not None:
                self._router_retry.cancel()
            if self._router is not None and self._router_monitor is not None:
                self._router.socket.disable_monitor()
                self._router_monitor.close()
                self._router.close(linger_ms)
            if self._zap is not None:
                self._zap.close()
            ended = self._loop.create_future()
            thread = threading.Thread(target=self._end_context, args=(ended,), name="zmq-context-end", daemon=True)
            thread.start()
        await ended
        thread.join()  # it has said its last word; only its return is left

    def _end_context(self, ended: asyncio.Future[None]) -> None:
        """In a thread: term() blocks until lingering messages are sent or given up."""
        self._context.term()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_end, ended)

    async def _flush_all(self, timeout_s: float) -> None:
        self._backlog = {port for port in self._backlog if port.queue}
        if self._backlog and timeout_s > 0:
            self._flushed = asyncio.Event()
            try:
                await asyncio.wait_for(self._flushed.wait(), timeout_s)
            except TimeoutError:
                return

    # -- receiving -----------------------------------------------------------------------------

    def _drain_router(self) -> bool:
        assert self._router is not None
        return self._drain(self._router.socket, None)

    def _drain(self, socket: zmq.Socket[bytes], port: LanePort | None) -> bool:
        """Receive what is there, then send what waited; True: there may be more."""
        num_bytes = 0
        for _ in range(_TURN_MESSAGES):
            if socket.closed:
                return False
            if not has_input(socket):
                break
            if socket in self._skipping:
                if not self._skip(socket):
                    return True
                continue
            num_bytes += self._receive(socket, port)
            if num_bytes > _TURN_BYTES:
                break
        if self._acks_due:
            self._say_acks()
        if socket.closed:
            return False
        if port is not None:
            if not port.is_held:
                self._flush(port)
            if socket.closed:
                return False
            return has_input(socket) or (bool(port.queue) and port.up and not port.is_held and has_room(socket))
        for waiting in [waiting for waiting in self._backlog if waiting.accepted and not waiting.is_held]:
            self._flush(waiting)
        if any(waiting.accepted and not waiting.is_held for waiting in self._backlog):
            self._retry_router()
        return not socket.closed and has_input(socket)

    def _retry_router(self) -> None:
        """ROUTER does not say which peer has room again, and the signal that one has may have been spent: look again."""
        if self._router_retry is None and self._router is not None:
            self._router_retry = self._loop.call_later(_ROUTER_RETRY_S, self._router_again)

    def _router_again(self) -> None:
        self._router_retry = None
        if self._router is not None and not self._router.socket.closed:
            self._router.again()

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
        while more:
            if len(payloads) == MAX_TENSORS:
                self._skipping.add(socket)
                break
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            payloads.append(frame.buffer)
            num_bytes += len(frame)
            more = frame.more
        if routing is not None:
            port = self._accepted.get(routing.bytes)
            if port is None:
                self._hear_stranger(routing, header, num_bytes, alone=not payloads)
                return num_bytes
            if not self._is_own_connection(port, routing):
                return num_bytes
        assert port is not None
        port.counters.messages_in += 1
        port.counters.bytes_in += num_bytes
        try:
            envelope = decode_header(header.buffer)
            if more:
                raise RemoteProtocolError(f"more than {MAX_TENSORS} payload frames in a multipart", path="tensors")
            kind = type(envelope.message)
            if envelope.swarm != self.swarm and kind not in _ANY_SWARM:
                raise RemoteProtocolError("a message of another swarm", path="swarm")
            if kind in LINK_MESSAGES or (port.bulk is not None and envelope.tensors and not payloads):
                whole = self._receive_bulk(port, envelope, payloads)
                if whole is None:
                    return num_bytes
                envelope, payloads = whole
            elif payloads or envelope.tensors:
                check_payloads(envelope, [len(payload) for payload in payloads])
        except ProtocolError as error:
            self._refuse(port, error)
            return num_bytes
        if self._on_join is not None and type(envelope.message) is Join:
            self._on_join(port.link, port.key, envelope.message)
        else:
            self._on_message(port.link, port.lane, envelope, payloads)
        return num_bytes

    # -- bulk in pieces ------------------------------------------------------------------------

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
            bulk_port = self._links[port.link][Lane.BULK]
            assert bulk_port.bulk is not None
            bulk_port.bulk.acked(message.upto, time.monotonic())
            if bulk_port.queue:
                self._resume(bulk_port)
            return None
        if port.bulk is None:
            raise wrong_lane(message)
        if not envelope.tensors:  # a piece; the frame was counted with its beginning
            port.counters.messages_in -= 1
            self._acks_due.add(port.link)
        return port.bulk.take(envelope, payloads)

    def _say_acks(self) -> None:
        """One acknowledgement for all the pieces of a turn. Behind a queue it waits: the last one says it all."""
        for link in list(self._acks_due):
            ports = self._links.get(link)
            if ports is None:
                self._acks_due.discard(link)
                continue
            control, bulk = ports[Lane.CONTROL], ports[Lane.BULK].bulk
            assert bulk is not None
            if (control.accepted or control.up) and not control.queue:
                self._acks_due.discard(link)
                self._say_ack(control, bulk.assembly.upto)

    def _say_ack(self, control: LanePort, upto: int) -> None:
        header = encode_envelope(self.swarm, PieceAck(upto))
        assert control.reader is not None
        try:
            if not control.write(header, (), len(header)):
                control.enqueue(header, (), len(header), max_messages=1, max_bytes=len(header))
                self._backlog.add(control)
                control.reader.again()
        except Unreachable:
            return  # it is said again when the lane is back
        control.reader.recheck()

    def _say_again(self, port: LanePort) -> None:
        """A control lane is back: acknowledgements may have been lost with the connection before."""
        bulk = self._links[port.link][Lane.BULK].bulk if port.link in self._links else None
        if port.bulk is None and bulk is not None and bulk.has_carried:
            self._acks_due.add(port.link)

    def _resume(self, port: LanePort) -> None:
        """The next pieces may go."""
        if port.reader is not None and not port.reader.socket.closed:
            self._flush(port)
            port.reader.again()

    def _look_at_router(self) -> None:
        if self._router_monitor is not None:
            self._drain_router_monitor()

    def _look_at_dealer(self, port: LanePort) -> None:
        if port.monitor is not None:
            self._drain_monitor(port.monitor.socket, port)

    def _skip(self, socket: zmq.Socket[bytes]) -> bool:
        """Read past the rest of a multipart with too many frames, some per turn; True: past it."""
        for _ in range(_TURN_SKIPPED_FRAMES):
            if not socket.recv(zmq.NOBLOCK, copy=False).more:
                self._skipping.discard(socket)
                return True
        return False

    def _is_own_connection(self, port: LanePort, routing: zmq.Frame) -> bool:
        """The message was sent by the link's key; notes when its connection is a new one."""
        if port.user_id is not None and routing.get("User-Id") != port.user_id:
            # Whoever this is now owns the routing id (handover): to go on would be to send to them.
            self._refuse(port, AuthenticationError(f"link {port.link.hex()[:8]} was taken by another key", link=port.link.hex()))
            return False
        fd = int(routing.get(zmq.SRCFD))
        if fd != port.fd:
            if fd in self._dead_fds:
                self._drain_router_monitor()
            if fd not in self._dead_fds:  # else: a last word from a connection that is gone
                if port.fd >= 0:  # handed over, the old one's end is yet to be told
                    port.connection_lost()
                port.fd, port.up, port.outage_told = fd, True, False
                self._by_fd[fd] = port
                self._say_again(port)
                self._tell(LinkEventKind.CONNECTED, port)
        return True

    def _hear_stranger(self, routing: zmq.Frame, header: zmq.Frame, num_bytes: int, *, alone: bool) -> None:
        """A message on a link that was not allowed: Join is handed on, anything else is refused."""
        self.strangers.messages_in += 1
        self.strangers.bytes_in += num_bytes
        routing_id = routing.bytes
        try:
            if self._on_join is None:
                raise AuthenticationError("no such link here: it was not announced or has been dropped")
            join = read_join(routing_id, header.buffer, num_bytes, alone=alone)
        except ProtocolError as error:
            self._refuse_stranger(routing_id, error)
            return
        if not self._bucket.take(self._loop.time()):
            self.strangers.refused += 1
            return
        link = routing_id[:16]
        key = z85.decode(str(routing.get("User-Id")).encode("ascii")) if self._keys is not None else link + link
        self._on_join(link, key, join)

    # -- refusing ------------------------------------------------------------------------------

    def _refuse(self, port: LanePort, error: BloomBeeError) -> None:
        """The peer of a known link broke a rule: tell it, drop the link, say so."""
        port.counters.refused += 1
        if not isinstance(error, AuthenticationError):
            with contextlib.suppress(Unreachable):
                port.write(encode_envelope(self.swarm, Refused(*to_wire(error))), (), 0)
        self._drop(port.link, _REFUSED_LINGER_MS)
        self._tell(LinkEventKind.REFUSED, port, error)

    def _refuse_stranger(self, routing_id: bytes, error: BloomBeeError) -> None:
        """Count it; answer and report it as far as the bucket allows."""
        self.strangers.refused += 1
        if self._router is None or not self._bucket.take(self._loop.time()):
            return
        header = encode_envelope(0, Refused(*to_wire(error)))
        try:
            self._router.socket.send_multipart([routing_id, header], zmq.NOBLOCK)
        except zmq.ZMQError as problem:  # full or gone: it need not know
            if problem.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
        self._router.recheck()
        self._on_event(LinkEvent(LinkEventKind.REFUSED, None, None, error))

    def _may_enter(self, key: bytes) -> bool:
        return self._on_join is not None or self._allowed_keys[key] > 0

    # -- connections come and go ---------------------------------------------------------------

    def _dial(self, port: LanePort) -> None:
        socket = new_dealer(self._context, port.lane, port.routing_id, self._keys, port.key)
        monitor = new_monitor(self._context, socket)
        port.reader = Reader(self._loop, socket, partial(self._drain, socket, port))
        port.monitor = Reader(self._loop, monitor, partial(self._drain_monitor, monitor, port))
        if port.untried or not port.is_name:
            port.connect(self._source)
        else:
            assert port.target is not None
            look_up(self._loop, port.target, partial(self._looked_up, port, socket))

    def _looked_up(self, port: LanePort, socket: zmq.Socket[bytes], found: list[Address]) -> None:
        """What the name of a dialled lane stands for; ``socket`` is the one it was asked for."""
        if socket.closed:
            return
        port.untried = found
        if found:
            port.connect(self._source)
            return
        what = f"{port.endpoint} cannot be resolved here: is the name right, and known to this machine's DNS?"
        self._redial_later(port)
        self._tell(LinkEventKind.UNREACHABLE, port, self._link_down(port, what))

    def _redial_later(self, port: LanePort) -> None:
        if port.retry is None:
            port.retry = self._loop.call_later(port.retry_s, self._redial, port)
            port.retry_s = min(_MAX_RETRY_S, 2 * port.retry_s)

    def _redial(self, port: LanePort) -> None:
        """With a new socket, unless ZeroMQ has come through meanwhile, or whoever heard of it has hung up."""
        self._look_at_dealer(port)
        if not port.up and port.reader is not None and not port.reader.socket.closed:
            port.close(0)
            self._dial(port)

    def _drain_monitor(self, monitor: zmq.Socket[bytes], port: LanePort) -> bool:
        """What became of a dialled lane's connection."""
        while not monitor.closed and has_input(monitor):
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                port.came_up()
                port.watch = PortWatch(str(port.address), partial(self._port_refuses, port))
                self._say_again(port)
                self._tell(LinkEventKind.CONNECTED, port)
                self._flush(port)
                if port.reader is not None:
                    port.reader.again()
            elif event == zmq.EVENT_DISCONNECTED and port.up:
                port.up = False
                port.connection_lost()
                self._tell(LinkEventKind.DISCONNECTED, port, self._link_down(port, f"{port.endpoint} closed the connection"))
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

    def _handshake_failed(self, port: LanePort, event: int) -> None:
        """Told once no address of the name is left to try."""
        if not port.untried:
            self._tell(LinkEventKind.HANDSHAKE_FAILED, port, handshake_error(port, event))

    def _port_refuses(self, port: LanePort) -> None:
        if not port.up and port.link in self._links:
            error = self._link_down(port, f"nobody listens at {port.endpoint} any more")
            self._tell(LinkEventKind.PORT_REFUSES, port, error)

    def _drain_router_monitor(self) -> bool:
        """Accepted connections are known by their file descriptor, which each message of theirs carries too."""
        assert self._router_monitor is not None
        monitor = self._router_monitor.socket
        while not monitor.closed and has_input(monitor):
            report = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            event, fd = report["event"], int(report["value"])
            if event == zmq.EVENT_ACCEPTED:
                self._dead_fds.discard(fd)
            elif event == zmq.EVENT_DISCONNECTED:
                self._dead_fds.add(fd)
                port = self._by_fd.pop(fd, None)
                if port is not None and port.fd == fd:
                    port.fd, port.up = -1, False
                    port.connection_lost()
                    if self._accepted.get(port.routing_id) is port:
                        self._tell(LinkEventKind.DISCONNECTED, port, self._link_down(port, "the peer closed the connection"))
            elif event not in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_CLOSED):
                self.strangers.refused += 1
                if self._bucket.take(self._loop.time()):
                    error = AuthenticationError(
                        "an incoming connection failed its handshake: wrong or unknown key, or not ZeroMQ"
                    )
                    self._on_event(LinkEvent(LinkEventKind.HANDSHAKE_FAILED, None, None, error))
        return False

    def _flush(self, port: LanePort) -> None:
        """Hand ZeroMQ what waits, as far as it takes it."""
        if port.accepted or port.up:
            try:
                while port.queue and port.send_front(self.swarm):
                    pass
            except Unreachable:
                self._unreachable(port, 0)
        if port.bulk is not None:
            self._schedule(port, port.bulk)
        if not port.queue:
            self._backlog.discard(port)
            if self._acks_due:
                self._say_acks()
            if self._flushed is not None and not self._backlog:
                self._flushed.set()

    def _schedule(self, port: LanePort, bulk: Bulk) -> None:
        """After a flush of a bulk lane: when to go on."""
        bulk.cancel_timer()
        if not port.queue:
            bulk.wait_s = 0.0
            bulk.window.ran_dry()
        elif bulk.wait_s > 0:
            bulk.timer = self._loop.call_later(bulk.wait_s, self._resume, port)

    def _unreachable(self, port: LanePort, num_dropped: int) -> None:
        port.counters.dropped += num_dropped
        port.clear()
        port.connection_lost()
        if not port.outage_told:
            port.outage_told = True
            self._tell(LinkEventKind.UNREACHABLE, port, self._link_down(port, "the peer is not connected"))

    def _drop(self, link: bytes, linger_ms: int) -> None:
        ports = self._links.pop(link, None)
        if ports is None:
            return
        for port in ports:
            port.up = False
            self._backlog.discard(port)
            if port.reader is not None and not port.accepted:
                self._skipping.discard(port.reader.socket)
            port.close(linger_ms)
            port.queue.clear()
            port.pending_bytes = 0
            self._accepted.pop(port.routing_id, None)
            if self._by_fd.get(port.fd) is port:
                del self._by_fd[port.fd]
        if ports[0].accepted:
            self._allowed_keys[ports[0].key] -= 1
            self._allowed_keys += Counter()  # forget keys without links

    def _tell(self, kind: LinkEventKind, port: LanePort, error: BloomBeeError | None = None) -> None:
        self._on_event(LinkEvent(kind, port.link, port.lane, error))

    def _link_down(self, port: LanePort, what: str) -> LinkDown:
        return LinkDown(
            f"link {port.link.hex()[:8]}, {port.lane.name.lower()} lane: {what}", link=port.link.hex(), worker=port.worker
        )


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():  # the waiter may have been cancelled
        future.set_result(None)
