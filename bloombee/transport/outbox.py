"""The links of one endpoint, what waits to be sent on them, and what their owner is told of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from bloombee.errors import AuthenticationError, BloomBeeError, LinkDown, to_wire
from bloombee.transport.bulk import Bulk
from bloombee.transport.gauging import Gauging
from bloombee.transport.lanes import LanePort, Unreachable
from bloombee.transport.link_events import LinkEvent, LinkEventKind
from bloombee.types import Lane
from bloombee.wire.envelope import encode_envelope
from bloombee.wire.messages import PieceAck, Probe, Refused
from bloombee.wire.schema import Buffer

OnEvent = Callable[[LinkEvent], None]
PROBE_MESSAGES = 8
"""Of a train of padding; ZeroMQ takes at least as many at once."""
_REFUSED_LINGER_MS = 500


class Outbox:
    """
    Args:
        swarm: number of the swarm, on all that leaves; 0 until joined.
        max_queued_messages, max_queued_bytes: of one lane, behind ZeroMQ's own high-water mark.
        whole_bytes: payloads up to this go in one piece on bulk lanes too.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        swarm: int,
        on_event: OnEvent,
        max_queued_messages: int,
        max_queued_bytes: int,
        whole_bytes: int,
    ) -> None:
        self.swarm = swarm
        self.links: dict[bytes, tuple[LanePort, LanePort]] = {}
        self.acks_due: set[bytes] = set()
        """Links of which pieces came that are not acknowledged yet."""
        self._backlog: set[LanePort] = set()
        self._flushed: asyncio.Event | None = None
        self._loop = loop
        self._on_event = on_event
        self._max_queued_messages = max_queued_messages
        self._max_queued_bytes = max_queued_bytes
        self._whole_bytes = whole_bytes

    # -- links ---------------------------------------------------------------------------------

    def add(self, control: LanePort, bulk: LanePort, look_for_breaks: Callable[[], None]) -> None:
        """A new link; ``look_for_breaks``: as :class:`Bulk`'s."""
        bulk.bulk = Bulk(self._whole_bytes, look_for_breaks, control.counters)
        self.links[control.link] = (control, bulk)

    def drop(self, link: bytes, linger_ms: int = 0) -> None:
        """Forget a link with all that waits; an unknown one changes nothing."""
        for port in self.links.pop(link, ()):
            self._backlog.discard(port)
            port.close(linger_ms)

    def refuse(self, port: LanePort, error: BloomBeeError) -> None:
        """The peer of a known link broke a rule: tell it, drop the link, say so."""
        port.counters.refused += 1
        if not isinstance(error, AuthenticationError):
            with contextlib.suppress(Unreachable):
                port.write(encode_envelope(self.swarm, Refused(*to_wire(error))), (), 0)
        self.drop(port.link, _REFUSED_LINGER_MS)
        self.tell(LinkEventKind.REFUSED, port, error)

    def tell(self, kind: LinkEventKind, port: LanePort | None, error: BloomBeeError | str | None = None) -> None:
        """The owner, of a link's lane or of a stranger; a sentence stands for a LinkDown."""
        if port is None:
            assert not isinstance(error, str)
            self._on_event(LinkEvent(kind, None, None, error))
            return
        if isinstance(error, str):
            where = f"link {port.link.hex()[:8]}, {port.lane.name.lower()} lane"
            error = LinkDown(f"{where}: {error}", link=port.link.hex(), worker=port.worker)
        self._on_event(LinkEvent(kind, port.link, port.lane, error))

    # -- sending -------------------------------------------------------------------------------

    def send(self, port: LanePort, header: bytes, payloads: Sequence[Buffer] = (), num_bytes: int | None = None) -> None:
        """Hand a multipart to ZeroMQ, or keep it until that can be.

        Args:
            num_bytes: of all of it; None: it is a header alone.

        Raises:
            QueueFull: the lane's queue is at its bound; nothing was sent.
            Unreachable: an accepted lane whose peer is not connected.
        """
        num_bytes = len(header) if num_bytes is None else num_bytes
        can_write = (port.accepted or port.up) and not port.queue and not port.cuts(payloads)
        if can_write and port.write(header, payloads, num_bytes):
            assert port.reader is not None
            port.reader.recheck()
        else:
            self.keep(port, header, payloads, num_bytes)

    # -- what waits ----------------------------------------------------------------------------

    def keep(self, port: LanePort, header: bytes, payloads: Sequence[Buffer], num_bytes: int) -> None:
        """What cannot go at once.

        Raises:
            QueueFull: the lane's queue is at its bound; nothing was kept.
        """
        port.enqueue(header, payloads, num_bytes, max_messages=self._max_queued_messages, max_bytes=self._max_queued_bytes)
        self._backlog.add(port)
        if port.bulk is not None and not port.is_held:
            self.flush(port)
        assert port.reader is not None
        port.reader.again()

    def flush(self, port: LanePort) -> None:
        """Hand ZeroMQ what waits, as far as it takes it."""
        if port.accepted or port.up:
            try:
                while port.queue and port.send_front(self.swarm):
                    pass
            except Unreachable:
                self.unreachable(port, 0)
        if port.bulk is not None:
            self._schedule(port, port.bulk)
        if not port.queue:
            self._backlog.discard(port)
            if self.acks_due:
                self.say_acks()
            if self._flushed is not None and not self._backlog:
                self._flushed.set()

    def flush_accepted(self) -> bool:
        """All accepted lanes; True: something still waits for ZeroMQ."""
        for port in [port for port in self._backlog if port.accepted and not port.is_held]:
            self.flush(port)
        return any(port.accepted and not port.is_held for port in self._backlog)

    async def flush_all(self, timeout_s: float) -> None:
        """Wait until nothing waits any more."""
        self._backlog = {port for port in self._backlog if port.queue}
        if self._backlog and timeout_s > 0:
            self._flushed = asyncio.Event()
            try:
                await asyncio.wait_for(self._flushed.wait(), timeout_s)
            except TimeoutError:
                return

    def unreachable(self, port: LanePort, num_dropped: int) -> None:
        """The peer of an accepted lane is not connected: what waited and so many messages more are lost."""
        port.counters.dropped += num_dropped
        port.clear()
        port.connection_lost()
        if not port.outage_told:
            port.outage_told = True
            self.tell(LinkEventKind.UNREACHABLE, port, "the peer is not connected")

    def _schedule(self, port: LanePort, bulk: Bulk) -> None:
        """After a flush of a bulk lane: when to go on."""
        bulk.cancel_timer()
        if not port.queue:
            bulk.wait_s = 0.0
            bulk.window.ran_dry()
        elif bulk.wait_s > 0:
            bulk.timer = self._loop.call_later(bulk.wait_s, self._resume, port)

    def _resume(self, port: LanePort) -> None:
        """The next pieces may go."""
        if port.reader is not None and not port.reader.socket.closed:
            self.flush(port)
            port.reader.again()

    def probe(self, control: LanePort, port: LanePort, idle_s: float) -> int:
        """Bytes of a train of padding that was sent on a bulk lane; as :meth:`Endpoint.probe`."""
        bulk = port.bulk
        assert bulk is not None
        is_busy = control.queue or port.queue or bulk.window.unacked_bytes or bulk.gauging is not None
        if is_busy or not (port.accepted or port.up):
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

    def measure(self, port: LanePort, *, fills: bool, done: Callable[[], None]) -> None:
        """Of a bulk lane; as :meth:`Endpoint.measure`."""
        bulk = port.bulk
        assert bulk is not None
        bulk.end_gauging()
        bulk.gauging = Gauging(self._loop, self, port, bulk, fills=fills, done=done)
        if port.queue or not (port.accepted or port.up):
            bulk.end_gauging()
        else:
            bulk.gauging.go_on()

    # -- acknowledgements of pieces ------------------------------------------------------------

    def acked(self, link: bytes, ack: PieceAck) -> None:
        """Raises RemoteProtocolError if no piece of such a number was sent."""
        port = self.links[link][Lane.BULK]
        assert port.bulk is not None
        port.bulk.acked(ack.upto, time.monotonic())
        if port.bulk.gauging is not None:
            port.bulk.gauging.acked(ack.upto, ack.read_us)
        if port.queue:
            self._resume(port)

    def say_acks(self) -> None:
        """One acknowledgement for all the pieces of a turn. Behind a queue it waits: the last one says it all."""
        for link in list(self.acks_due):
            ports = self.links.get(link)
            if ports is None:
                self.acks_due.discard(link)
                continue
            control, bulk = ports[Lane.CONTROL], ports[Lane.BULK].bulk
            assert bulk is not None
            if (control.accepted or control.up) and not control.queue:
                self.acks_due.discard(link)
                self._say_ack(control, PieceAck(bulk.assembly.acknowledged, bulk.read_us))

    def _say_ack(self, control: LanePort, ack: PieceAck) -> None:
        header = encode_envelope(self.swarm, ack)
        assert control.reader is not None
        try:
            if not control.write(header, (), len(header)):
                control.enqueue(header, (), len(header), max_messages=1, max_bytes=len(header))
                self._backlog.add(control)
                control.reader.again()
        except Unreachable:
            return  # it is said again when the lane is back
        control.reader.recheck()

    def say_again(self, port: LanePort) -> None:
        """A control lane is back: acknowledgements may have been lost with the connection before."""
        bulk = self.links[port.link][Lane.BULK].bulk if port.link in self.links else None
        if port.bulk is None and bulk is not None and bulk.assembly.acknowledged:
            self.acks_due.add(port.link)
