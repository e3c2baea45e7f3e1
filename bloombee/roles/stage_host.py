"""A span on a worker from its Load on: its core, its device thread, its links to whoever are its neighbours in each epoch."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bloombee.codec import api
from bloombee.codec.table import Table
from bloombee.errors import (
    BloomBeeError,
    ConfigError,
    LinkDown,
    LocalProtocolError,
    QueueFull,
    RemoteProtocolError,
    StalePlan,
    to_wire,
)
from bloombee.links.frames import LinkMeter
from bloombee.pipeline.commands import Command, Compute, Gather, Send
from bloombee.pipeline.events import (
    Computed,
    ComputeFailed,
    Gathered,
    Greeted,
    LinkRestored,
    Moved,
    Port,
    Recoded,
    StageReceived,
    Tick,
    Unsendable,
)
from bloombee.pipeline.frames import lane_of
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Outcome
from bloombee.plan.profile import Profile
from bloombee.roles.coding import Payload
from bloombee.roles.executor import DeviceThread
from bloombee.roles.greeting import Greeter
from bloombee.roles.next_worker import NextWorker
from bloombee.roles.profiles import to_message
from bloombee.roles.tracing import StageTrace
from bloombee.transport.endpoint import Endpoint
from bloombee.transport.link_events import LinkEvent, LinkEventKind
from bloombee.types import HEAD, VERSION, Epoch, Lane, Phase, WorkerId
from bloombee.wire.handshake import ClockEstimate, Dialler, Listener
from bloombee.wire.liveness import Liveness
from bloombee.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    AnyMessage,
    Close,
    CodecTable,
    Forward,
    Gap,
    Hello,
    LinkReport,
    Load,
    Loaded,
    Loading,
    Measure,
    Measured,
    Peer,
    Refused,
    Resume,
    Resumed,
    Retire,
    StageFailed,
    TableHeld,
    TableUnknown,
    Verdict,
    Welcome,
    Wire,
)

log = logging.getLogger(__name__)
CODECS = (0, api.CODEC_ID)
REPORT_EVERY_S = 0.5
IDLE_S = 0.5
"""A stage without work for so long may measure itself."""
SLOWEST_BYTES_PER_S = 12_500.0
"""A link is taken for no slower while its bandwidth is not known."""
ON_WAY_FACTOR = 4
"""What is on its way may take so many times as long as the link says."""
RESEND_AFTER_S = 30.0
"""TCP loses nothing while it stands; what a broken connection lost is resent when it is back."""

_PORT_OF: dict[type, Port] = {
    Forward: Port.UPSTREAM,
    Ack: Port.DOWNSTREAM,
    Gap: Port.DOWNSTREAM,
    Resume: Port.DOWNSTREAM,
    Resumed: Port.UPSTREAM,
    Close: Port.HEAD,
    Retire: Port.HEAD,
    CodecTable: Port.UPSTREAM,
    TableHeld: Port.DOWNSTREAM,
    TableUnknown: Port.DOWNSTREAM,
}
_OF_CODEC = (CodecTable, TableHeld, TableUnknown)
_GREETINGS = (Hello, Welcome, Refused)


@dataclass(slots=True)
class _Neighbour:
    """A worker -> worker link, for as long as an epoch needs it."""

    peer: Peer
    port: Port
    liveness: Liveness = field(default_factory=Liveness)
    greeter: Greeter | None = None
    clock: ClockEstimate | None = None
    watch: NextWorker | None = None
    """Of one that this side dialled, until it is taken for lost."""
    num_delivered: int = 0
    """Pieces of bulk that have come to it so far."""

    @property
    def is_open(self) -> bool:
        return self.greeter is not None and self.greeter.is_open


@dataclass(slots=True)
class _Seating:
    """What an epoch wires: which link each neighbour is on, and how the next one is doing."""

    wire: Wire
    links: dict[Port, bytes]
    meter: LinkMeter
    is_greeted: bool = False


class StageHost:
    """Runs one span until :meth:`close`.

    Args:
        head_link: the worker's link to the head; stands in for a neighbour that a stage does not have.
        heartbeat_s, silence_s: how often the next worker is asked whether it is there, and how long one may say nothing.
        open_trace: where the stamps of its microbatches go, once a Wire asks for them; None: nowhere.
    """

    def __init__(
        self,
        load: Load,
        *,
        worker: WorkerId,
        swarm: int,
        endpoint: Endpoint,
        head_link: bytes,
        device: DeviceThread,
        heartbeat_s: float,
        silence_s: float,
        open_trace: Callable[[Wire, Load], StageTrace | None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.load = load
        self.core = StageCore(load, resend_after_s=RESEND_AFTER_S)
        self.error: BloomBeeError | None = None
        """What this stage told the head when it could not go on."""
        self._worker = worker
        self._swarm = swarm
        self._endpoint = endpoint
        self._head_link = head_link
        self._device = device
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s
        self._open_trace = open_trace
        self._now = now
        self._trace: StageTrace | None = None
        self._neighbours: dict[bytes, _Neighbour] = {}
        self._seatings: dict[Epoch, _Seating] = {}
        """Those that are not retired, oldest first."""
        self._reported_at = -REPORT_EVERY_S
        self._reported_frames = 0
        self._has_moved = False
        """Pieces have come on since the last report."""
        self._codec_choice = ""
        self._worked_at = now()
        self._profile_asked = False
        self._profile_over = False
        self._loaded: tuple[int, int] | None = None
        self._failed = False
        device.load(load, on_progress=self._progress, on_done=self._load_done, on_error=self.fail, on_table=self._ship)

    def knows(self, link: bytes) -> bool:
        """Whether ``link`` leads to a neighbour of this stage."""
        return link in self._neighbours

    def close(self) -> None:
        """Hang up on the neighbours and end the device thread; nothing is sent any more."""
        self._failed = True
        for link in list(self._neighbours):
            self._leave(link)
        self._device.stop()
        if self._trace is not None:
            self._trace.tracer.close()

    # -- orders ----------------------------------------------------------------------------

    def asked_to_load(self, load: Load) -> None:
        """The order came again: answer it if there is an answer.

        Raises:
            RemoteProtocolError: it is another order.
        """
        if load != self.load:
            raise RemoteProtocolError(f"pipeline {load.pipeline}: other layers are loaded for it here", path="Load.start")
        if self._loaded is not None:
            self._say_loaded()

    def wire(self, wire: Wire) -> None:
        """Take the seat of an epoch. Said again it is answered again.

        Raises:
            StalePlan: of an epoch that has been retired.
        """
        if (wire.stage == 0, wire.stage == wire.num_stages - 1) != (
            self.load.start == 0,
            self.load.stop == self.load.num_layers,
        ):
            raise RemoteProtocolError(f"stage {wire.stage} of {wire.num_stages} does not hold these layers", path="Wire.stage")
        known = self._seatings.get(wire.epoch)
        if known is not None:
            self._greeted_all(known, again=True)
            return
        if wire.trace and self._trace is None:
            self._trace = self._device.trace = self._open_trace(wire, self.load)
        previous = self._newest
        commands = self.core.handle(StageReceived(wire, self._now()))
        try:
            links = self._links_of(wire)
        except ConfigError as error:
            self.fail(error)  # it was told an address that is none
            return
        seating = _Seating(wire, links, LinkMeter(self._endpoint.estimator(links[Port.DOWNSTREAM])))
        self._seatings[wire.epoch] = seating
        if previous is not None and previous.links[Port.DOWNSTREAM] != links[Port.DOWNSTREAM]:
            self._device.next_stage_changed()
        self._retire_before(wire.oldest)
        self._do(commands)
        self._greeted_all(seating)

    def _links_of(self, wire: Wire) -> dict[Port, bytes]:
        """Greets neighbours that are new."""
        if wire.predecessor is not None and wire.predecessor.link not in self._neighbours:
            peer = wire.predecessor
            self._endpoint.allow(peer.link, peer.key, peer.worker)
            self._greet(peer, Port.UPSTREAM, Listener(swarm=self._swarm, worker=peer.worker, codecs=CODECS))
        if wire.successor is not None and wire.successor.link not in self._neighbours:
            peer = wire.successor
            self._endpoint.dial(peer.link, peer.endpoint, peer.key)
            hello = Hello(
                protocol=PROTOCOL_VERSION, swarm=self._swarm, worker=self._worker, software=VERSION, codecs=CODECS, sent_ns=0
            )
            self._greet(peer, Port.DOWNSTREAM, Dialler(hello, peer=f"worker {peer.worker} at {peer.endpoint}"))
        return {
            Port.HEAD: self._head_link,
            Port.UPSTREAM: self._link_to(wire.predecessor),
            Port.DOWNSTREAM: self._link_to(wire.successor),
        }

    def _link_to(self, peer: Peer | None) -> bytes:
        return self._head_link if peer is None else peer.link

    def _retire_before(self, oldest: Epoch) -> None:
        """Forget older epochs, and neighbours that only they had."""
        for epoch in [epoch for epoch in self._seatings if epoch < oldest]:
            del self._seatings[epoch]
        needed = {link for seating in self._seatings.values() for link in seating.links.values()}
        for link in [link for link in self._neighbours if link not in needed]:
            self._leave(link)

    def _leave(self, link: bytes) -> None:
        neighbour = self._neighbours.pop(link)
        self._endpoint.forbid(link) if neighbour.port is Port.UPSTREAM else self._endpoint.hang_up(link)

    # -- neighbours ------------------------------------------------------------------------

    def _greet(self, peer: Peer, port: Port, machine: Dialler | Listener) -> None:
        neighbour = self._neighbours[peer.link] = _Neighbour(peer, port)

        def timed(clock: ClockEstimate) -> None:
            neighbour.liveness.timed(clock.round_trip_ns / 1e9)

        def opened(clock: ClockEstimate | None) -> None:
            neighbour.clock = clock
            if clock is not None:
                timed(clock)
            if clock is not None and self._trace is not None:
                self._trace.tracer.clock(peer.worker, clock.offset_ns, clock.error_ns)
            # The greeter itself is not in the table yet if it opens at once.
            asyncio.get_running_loop().call_soon(self._look_who_is_here)

        def failed(error: BloomBeeError) -> None:
            self._complain(error)

        greeter = Greeter(self._endpoint, peer.link, machine, on_open=opened, on_error=failed, on_timed=timed)
        neighbour.greeter = greeter
        if port is Port.DOWNSTREAM:
            neighbour.watch = NextWorker(
                neighbour.liveness,
                heartbeat_s=self._heartbeat_s,
                silence_s=self._silence_s,
                ask=lambda: greeter.say_again(Lane.CONTROL),
                on_way_s=self._on_way_s,
                on_lost=lambda why: self._lost_next(neighbour, why),
                now=self._now(),
            )

    def _on_way_s(self) -> float:
        """A decode frame of a wide model may cross a slow wire for many seconds, and all that is behind it waits."""
        newest = self._newest
        if newest is None:
            return 0.0
        bandwidth = newest.meter.facts().bandwidth_bytes_per_s or SLOWEST_BYTES_PER_S
        return ON_WAY_FACTOR * newest.meter.unacknowledged_bytes / bandwidth

    def _lost_next(self, neighbour: _Neighbour, why: str) -> None:
        """Said once: the head gives another next worker, or none."""
        neighbour.watch = None
        peer = neighbour.peer
        self._complain(LinkDown(f"worker {peer.worker} at {peer.endpoint}: {why}", peer=peer.worker, endpoint=peer.endpoint))

    def _look_who_is_here(self) -> None:
        for seating in list(self._seatings.values()):
            self._greeted_all(seating)

    def _greeted_all(self, seating: _Seating, *, again: bool = False) -> None:
        """Once all neighbours of an epoch are there."""
        neighbours = [self._neighbours[link] for link in seating.links.values() if link != self._head_link]
        if (seating.is_greeted and not again) or self._failed or not all(one.is_open for one in neighbours):
            return
        seating.is_greeted = True
        for one in neighbours:
            if one.port is Port.DOWNSTREAM and one.greeter is not None and api.CODEC_ID not in one.greeter.codecs:
                self._device.forgo_codec()
        self._worked_at = self._now()
        self._handle(Greeted(seating.wire.epoch, self._now()))
        self._measure_on()

    @property
    def _epoch(self) -> Epoch:
        """The newest; 0 before there is one."""
        newest = self._newest
        return newest.wire.epoch if newest is not None else 0

    @property
    def _newest(self) -> _Seating | None:
        return next(reversed(self._seatings.values()), None)

    def link_event(self, link: bytes, event: LinkEvent) -> None:
        """Of a neighbour's connection."""
        neighbour = self._neighbours[link]
        greeter = neighbour.greeter
        if event.kind is LinkEventKind.REFUSED:
            self._complain(event.error or RemoteProtocolError(f"the {neighbour.port.value} link was refused"))
        elif event.lane is None or greeter is None or not greeter.is_open:
            return
        elif event.kind is LinkEventKind.CONNECTED:
            greeter.say_again(event.lane)
            if neighbour.liveness.back(event.lane):
                self._restored(link)
        elif event.kind is LinkEventKind.PORT_REFUSES:
            if neighbour.watch is not None:
                self._lost_next(neighbour, "nobody listens there any more: it has ended")
        else:
            neighbour.liveness.broke(event.lane, self._now())

    def head_restored(self) -> None:
        """The connection to the head came back: what went over it may have been lost. Orders come again by themselves."""
        self._restored(self._head_link)
        if self._failed and self.error is not None:
            self._say_failed(self.error, self._epoch)

    def _restored(self, link: bytes) -> None:
        for epoch, seating in list(self._seatings.items()):
            for port in (Port.UPSTREAM, Port.DOWNSTREAM):
                if seating.links[port] == link:
                    if port is Port.DOWNSTREAM:
                        seating.meter.restart()
                    self._handle(LinkRestored(epoch, port, self._now()))

    # -- messages --------------------------------------------------------------------------

    def received(self, link: bytes, lane: Lane, message: AnyMessage, payload: Any) -> None:
        """A message of the ring, of this pipeline, or of a neighbour's handshake.

        Raises:
            RemoteProtocolError: it came over a link that has no business saying it.
            StalePlan: it is of another epoch.
        """
        kind = type(message)
        self._heard(link)
        if kind in _GREETINGS and link in self._neighbours:
            self._greeted(self._neighbours[link], lane, message)
            return
        if isinstance(message, Measure) and link == self._head_link:
            self._measured(message)
            return
        expected = _PORT_OF.get(kind)
        seating = self._seating_for(message, link)
        if expected is None or seating.links[expected] != link:
            raise RemoteProtocolError(f"{kind.__name__} came over a link that may not say it", path="message.tag")
        if self._trace is not None and kind is Forward:
            self._trace.took(message.microbatch, self._endpoint.taken_ns)  # type: ignore[union-attr]
        now = self._now()
        if kind in _OF_CODEC:
            self._codec_said(seating, message)
        elif payload is None or not self._lacks_table(message, payload):
            self._handle(StageReceived(message, now, payload))
            if kind is Ack:
                seating.meter.acked(message, now)  # type: ignore[arg-type]
            elif kind is Retire:
                self._retire_before(seating.wire.epoch + 1)

    def _heard(self, link: bytes) -> None:
        neighbour = self._neighbours.get(link)
        if neighbour is not None and neighbour.watch is not None:
            neighbour.watch.heard(self._now())

    def _seating_for(self, message: Any, link: bytes) -> _Seating:
        """Of the message's epoch; a neighbour may have been told of the next epoch before this worker is."""
        seating = self._seatings.get(message.epoch)
        newest = self._newest
        if seating is None and newest is not None and isinstance(message, Resume) and message.epoch > newest.wire.epoch:
            return newest
        if seating is None:
            raise StalePlan(
                f"pipeline {message.pipeline} epoch {message.epoch} is not served here",
                pipeline=message.pipeline,
                epoch=message.epoch,
            )
        return seating

    def _greeted(self, neighbour: _Neighbour, lane: Lane, message: AnyMessage) -> None:
        assert neighbour.greeter is not None
        if isinstance(message, Refused) and neighbour.is_open:
            log.log(
                logging.DEBUG if message.code == StalePlan.__name__ else logging.WARNING,
                "%s link refused a message: %s %s",
                neighbour.port.value,
                message.code,
                message.fields.get("message", ""),
            )
            return
        neighbour.greeter.received(lane, message)

    # -- the codec's tables ------------------------------------------------------------------

    def _lacks_table(self, message: AnyMessage, payload: Any) -> bool:
        """A frame whose table is not here is not taken: it is asked for again in another coding."""
        receiver = self._device.receiver
        key = receiver.missing(payload) if receiver is not None else None
        if key is None or not isinstance(message, Forward):
            return False
        answer = TableUnknown(
            pipeline=message.pipeline, epoch=message.epoch, lane=lane_of(message.phase), frame=message.frame, key=key
        )
        self._send(Port.UPSTREAM, Lane.CONTROL, answer)
        return True

    def _codec_said(self, seating: _Seating, message: AnyMessage) -> None:
        sender, receiver = self._device.sender, self._device.receiver
        wire = seating.wire
        match message:
            case CodecTable(body=body) if receiver is not None:
                held = TableHeld(pipeline=wire.pipeline, epoch=wire.epoch, key=receiver.take(body))
                self._send(Port.UPSTREAM, Lane.CONTROL, held)
            case TableHeld(key=key) if sender is not None:
                sender.held(key)
            case TableUnknown(key=key, frame=frame, lane=number) if sender is not None:
                sender.unknown(key)
                self._recode(wire.epoch, Lane(number), frame)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__}: this boundary carries no activations")

    def _recode(self, epoch: Epoch, lane: Lane, frame: int) -> None:
        payload: Any = self.core.seats[epoch].downstream.lanes[lane].payload(frame)
        if payload is not None and payload[0].codec == api.CODEC_ID:
            self._device.recode(
                payload, on_done=lambda new: self._handle(Recoded(epoch, lane, frame, new, self._now())), on_error=self.fail
            )

    def _ship(self, table: Table) -> None:
        newest = self._newest
        if not self._failed and newest is not None and newest.is_greeted:
            body = CodecTable(pipeline=newest.wire.pipeline, epoch=newest.wire.epoch, body=table.to_bytes())
            self._send(Port.DOWNSTREAM, Lane.BULK, body)

    def _measured(self, asked: Measure) -> None:
        sender = self._device.sender
        answer = Measured(
            pipeline=asked.pipeline,
            epoch=asked.epoch,
            decode=self._device.tally(Phase.DECODE),
            prefill=self._device.tally(Phase.PREFILL),
            pages_free=self.core.pages_free,
            encoded_frames=sender.num_encoded if sender is not None else 0,
            raw_bytes=sender.raw_bytes if sender is not None else 0,
            sent_bytes=sender.sent_bytes if sender is not None else 0,
        )
        self._send(Port.HEAD, Lane.CONTROL, answer)

    # -- time ------------------------------------------------------------------------------

    def tick(self) -> None:
        now = self._now()
        for neighbour in list(self._neighbours.values()):
            if neighbour.greeter is not None:
                neighbour.greeter.tick()
        self._look_for_pieces(now)
        self._handle(Tick(now))
        newest = self._newest
        if newest is not None:
            self._report(newest, now)
            if newest.is_greeted and now - self._worked_at >= IDLE_S:
                self._idle(newest, now)
        for neighbour in list(self._neighbours.values()):
            if neighbour.watch is not None and not self._failed:
                neighbour.watch.tick(now)

    def _look_for_pieces(self, now: float) -> None:
        """A frame that crosses a slow wire piece by piece is neither lost nor stuck."""
        for link, neighbour in self._neighbours.items():
            if neighbour.port is Port.DOWNSTREAM and not self._failed:
                delivered = self._endpoint.bulk_window(link).num_delivered
                if delivered > neighbour.num_delivered:
                    neighbour.num_delivered, self._has_moved = delivered, True
                    self._handle(Moved(now))

    def _idle(self, newest: _Seating, now: float) -> None:
        self._measure_on()
        if not self._failed and not newest.meter.num_unacknowledged:
            with contextlib.suppress(LinkDown):
                self._endpoint.probe(newest.links[Port.DOWNSTREAM], now - self._worked_at)

    # -- inside ----------------------------------------------------------------------------

    def _handle(self, event: Any) -> None:
        if self._failed:
            return
        self._do(self.core.handle(event))

    def _do(self, commands: list[Command]) -> None:
        """One that cannot be carried out costs none of the others.

        Raises:
            Exception: a bug, the first there was; after the last command.
        """
        bug: Exception | None = None
        for command in commands:
            try:
                self._carry_out(command)
            except BloomBeeError as error:
                self._cannot(command, error)
            except Exception as error:
                bug = bug or error
        if bug is not None:
            raise bug

    def _carry_out(self, command: Command) -> None:
        if type(command) is Compute:
            self._works()
            self._device.run(command.work, on_done=self._computed, on_error=self._compute_failed)
        elif type(command) is Send and isinstance(command.to, Port):
            self._send(command.to, command.lane, command.message, command.payload)
        elif type(command) is Gather:
            self._works()
            self._gather(command)
        else:
            raise LocalProtocolError(f"a stage's core asks for {command!r}")

    def _works(self) -> None:
        self._worked_at = self._now()
        newest = self._newest
        neighbour = self._neighbours.get(newest.links[Port.DOWNSTREAM]) if newest is not None else None
        if neighbour is not None and neighbour.watch is not None:
            neighbour.watch.works(self._worked_at)

    def _cannot(self, command: Command, error: BloomBeeError) -> None:
        """It belongs to the requests of a frame, to a lane that will be tried again, or to the stage."""
        message: Any = command.message if isinstance(command, Send) else None
        is_frame = isinstance(message, Forward | Verdict)
        if isinstance(error, QueueFull):
            log.warning("not sent: %s", error.message)  # frames are kept and sent again, all else is said again
        elif isinstance(error, LinkDown):
            log.debug("not sent: %s", error.message)  # to a neighbour of an epoch that is over
        elif is_frame and isinstance(error, LocalProtocolError) and _says_something(message):
            log.error("its requests end, for a frame of theirs cannot be sent: %s", error.message)
            assert isinstance(command, Send)
            self._handle(Unsendable(message.epoch, command.lane, message.frame, self._now()))
        else:
            self.fail(error)

    def _send(self, port: Port, lane: Lane, message: Any, payload: Any = None) -> None:
        """Over the link that the port has in the message's epoch; what is of no epoch that is left goes nowhere."""
        seating = self._seatings.get(message.epoch)
        if port is Port.HEAD or seating is None:
            if port is Port.HEAD:
                self._endpoint.send(self._head_link, lane, message)
            return
        link = seating.links[port]
        if not isinstance(message, Forward | Verdict):
            self._endpoint.send(link, lane, message)
            return
        now = self._now()
        sending = self._trace.now() if self._trace is not None else 0
        header, buffer = ((payload[0],), (payload[1],)) if payload is not None else ((), ())
        num_bytes = self._endpoint.send(link, lane, message, header, buffer)
        seating.meter.sent(lane, message.frame, num_bytes, 1 + len(buffer), now)
        if self._trace is not None:
            self._trace.sent(message.microbatch, sending)

    def _gather(self, gather: Gather) -> None:
        def done(payload: Payload) -> None:
            self._handle(Gathered(gather.number, payload, self._now()))

        self._device.gather(gather.pieces, on_done=done, on_error=self._compute_failed)

    def _computed(self, outcome: Outcome) -> None:
        self._handle(Computed(outcome, self._now()))

    def _compute_failed(self, error: BloomBeeError) -> None:
        self._handle(ComputeFailed(error, self._now()))

    def _progress(self, loaded: int, total: int) -> None:
        if not self._failed:
            message = Loading(pipeline=self.load.pipeline, loaded_bytes=loaded, total_bytes=total)
            self._endpoint.send(self._head_link, Lane.CONTROL, message)

    def _load_done(self, weight_bytes: int, kv_bytes: int) -> None:
        self._loaded = (weight_bytes, kv_bytes)
        # What is there now stays; to walk it again and again would only make a step late now and then.
        gc.collect()
        gc.freeze()
        log.info("layers %d-%d: loaded", self.load.start, self.load.stop - 1)
        self._say_loaded()

    def _say_loaded(self) -> None:
        if self._loaded is not None and not self._failed:
            weight_bytes, kv_bytes = self._loaded
            message = Loaded(pipeline=self.load.pipeline, weight_bytes=weight_bytes, kv_bytes=kv_bytes)
            self._endpoint.send(self._head_link, Lane.CONTROL, message)

    def _measure_on(self) -> None:
        """The next step of this stage's profile, unless a sequence has rows here."""
        all_free = all(pool.num_free == pool.num_pages for pool in self.core.store.pools)
        if not self._profile_asked and not self._profile_over and not self._failed and all_free:
            self._profile_asked = True
            self._device.profile(self._measured_step)

    def _measured_step(self, found: Profile | None, is_over: bool) -> None:
        self._profile_asked, self._profile_over = False, is_over
        newest = self._newest
        if found is not None and not self._failed and newest is not None:
            self._send(Port.HEAD, Lane.CONTROL, to_message(found, newest.wire.pipeline, newest.wire.epoch))
        elif self._now() - self._worked_at >= IDLE_S:
            self._measure_on()

    def _report(self, newest: _Seating, now: float) -> None:
        """What is known of the link to the next stage, if there is news."""
        facts = newest.meter.facts()
        sender, choice = self._device.sender, ""
        if sender is not None:
            sender.set_link(facts.bandwidth_bytes_per_s, facts.base_rtt_s or self._greeting_rtt_s(newest))
            choice = sender.explain()
        if choice[:3] != self._codec_choice[:3]:
            self._codec_choice = choice
            log.info("codec to the next stage %s", choice)
        is_news = self._has_moved or facts.num_frames != self._reported_frames
        if self._failed or not is_news or now - self._reported_at < REPORT_EVERY_S:
            return
        self._reported_at, self._reported_frames, self._has_moved = now, facts.num_frames, False
        wire = newest.wire
        target = wire.successor.worker if wire.successor is not None else HEAD
        report = LinkReport(pipeline=wire.pipeline, epoch=wire.epoch, target=target, codec=choice, **dataclasses.asdict(facts))
        self._send(Port.HEAD, Lane.CONTROL, report)

    def _greeting_rtt_s(self, newest: _Seating) -> float | None:
        neighbour = self._neighbours.get(newest.links[Port.DOWNSTREAM])
        clock = neighbour.clock if neighbour is not None else None
        return None if clock is None else clock.round_trip_ns / 1e9

    def _complain(self, error: BloomBeeError) -> None:
        """Tell the head that a neighbour is not there; this stage goes on with whoever comes in its place."""
        newest = self._newest
        if not self._failed and newest is not None:
            self.error = error
            self._say_failed(error, newest.wire.epoch)

    def fail(self, error: BloomBeeError) -> None:
        """Tell the head why this stage cannot go on; said once."""
        if self._failed:
            return
        self._failed = True
        self.error = error
        self._say_failed(error, self._epoch)

    def _say_failed(self, error: BloomBeeError, epoch: Epoch) -> None:
        log.debug("layers %d-%d failed: %s", self.load.start, self.load.stop - 1, error)
        code, fields = to_wire(error)
        failed = StageFailed(pipeline=self.load.pipeline, epoch=epoch, code=code, fields=fields)
        self._endpoint.send(self._head_link, Lane.CONTROL, failed)


def _says_something(message: Any) -> bool:
    return bool(message.items if isinstance(message, Forward) else message.picks)
