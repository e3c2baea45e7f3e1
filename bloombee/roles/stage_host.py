"""One assignment on a worker: its core, its device thread, its links to the neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import time
from collections.abc import Callable
from typing import Any

from bloombee.codec import api
from bloombee.codec.table import Table
from bloombee.errors import BloomBeeError, LinkDown, LocalProtocolError, QueueFull, RemoteProtocolError, to_wire
from bloombee.pipeline.commands import Command, Compute, Send
from bloombee.pipeline.events import Computed, ComputeFailed, LinkRestored, Moved, Port, Recoded, StageReceived, Tick, Unsendable
from bloombee.pipeline.frames import lane_of
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Outcome
from bloombee.plan.profile import Profile
from bloombee.roles.device import DeviceThread
from bloombee.roles.greeting import Greeter
from bloombee.roles.next_worker import NextWorker
from bloombee.roles.profiles import to_message
from bloombee.roles.tracing import StageTrace
from bloombee.transport.endpoint import Endpoint
from bloombee.transport.events import LinkEvent, LinkEventKind
from bloombee.transport.meter import LinkMeter
from bloombee.types import HEAD, VERSION, Lane, Phase, WorkerId
from bloombee.wire.handshake import ClockEstimate, Dialler, Listener
from bloombee.wire.liveness import Liveness
from bloombee.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    AnyMessage,
    Assign,
    Close,
    CodecTable,
    Forward,
    Gap,
    Hello,
    LinkReport,
    Measure,
    Measured,
    Progress,
    Ready,
    Refused,
    Retire,
    StageFailed,
    TableHeld,
    TableUnknown,
    Verdict,
    Welcome,
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
    Close: Port.HEAD,
    Retire: Port.HEAD,
    CodecTable: Port.UPSTREAM,
    TableHeld: Port.DOWNSTREAM,
    TableUnknown: Port.DOWNSTREAM,
}
_OF_CODEC = (CodecTable, TableHeld, TableUnknown)
_GREETINGS = (Hello, Welcome, Refused)


class StageHost:
    """Runs one stage from its Assign until :meth:`close`.

    Args:
        head_link: the worker's link to the head; stands in for a neighbour that this stage does not have.
        heartbeat_s, silence_s: how often the next worker is asked whether it is there, and how long one may say nothing.
        trace: where the stamps of its microbatches go, if anywhere; closed with the stage.
    """

    def __init__(
        self,
        assign: Assign,
        *,
        worker: WorkerId,
        swarm: int,
        endpoint: Endpoint,
        head_link: bytes,
        device: DeviceThread,
        heartbeat_s: float,
        silence_s: float,
        trace: StageTrace | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.assign = assign
        self.core = StageCore(assign, resend_after_s=RESEND_AFTER_S)
        self.clocks: dict[Port, ClockEstimate] = {}
        self._endpoint = endpoint
        self._device = device
        self._now = now
        self._trace = trace
        device.trace = trace
        self._reported_at = -REPORT_EVERY_S
        self._reported_frames = 0
        self._delivered_pieces = 0
        self._has_moved = False
        """Pieces have come on since the last report."""
        self._codec_choice = ""
        self._worked_at = now()
        self._profile_asked = False
        self._profile_over = False
        self._liveness = {port: Liveness() for port in (Port.UPSTREAM, Port.DOWNSTREAM)}
        self._next: NextWorker | None = None
        self._loaded: tuple[int, int] | None = None
        self._ready_said = False
        self._failed = False
        self.error: BloomBeeError | None = None
        """What this stage told the head when it could not go on."""
        upstream, downstream = assign.predecessor, assign.successor
        self._links = {
            Port.HEAD: head_link,
            Port.UPSTREAM: upstream.link if upstream else head_link,
            Port.DOWNSTREAM: downstream.link if downstream else head_link,
        }
        self.neighbours = {peer.link for peer in (upstream, downstream) if peer is not None}
        self._greeters: dict[Port, Greeter] = {}
        if upstream is not None:
            endpoint.allow(upstream.link, upstream.key, upstream.worker)
            listener = Listener(swarm=swarm, worker=upstream.worker, codecs=CODECS)
            self._greet(Port.UPSTREAM, listener)
        if downstream is not None:
            endpoint.dial(downstream.link, downstream.endpoint, downstream.key)
            hello = Hello(protocol=PROTOCOL_VERSION, swarm=swarm, worker=worker, software=VERSION, codecs=CODECS, sent_ns=0)
            self._greet(Port.DOWNSTREAM, Dialler(hello, peer=f"worker {downstream.worker} at {downstream.endpoint}"))
            self._next = NextWorker(
                self._liveness[Port.DOWNSTREAM],
                heartbeat_s=heartbeat_s,
                silence_s=silence_s,
                ask=lambda: self._greeters[Port.DOWNSTREAM].say_again(Lane.CONTROL),
                on_way_s=self._on_way_s,
                on_lost=self._lost_next,
                now=now(),
            )
        self._meter = LinkMeter(endpoint.estimator(self._links[Port.DOWNSTREAM]))
        device.load(assign, on_progress=self._progress, on_done=self._load_done, on_error=self.fail, on_table=self._ship)

    def port_of(self, link: bytes) -> Port | None:
        """Which neighbour of this stage ``link`` leads to, the head excepted."""
        for port in (Port.UPSTREAM, Port.DOWNSTREAM):
            if self._links[port] == link and link != self._links[Port.HEAD]:
                return port
        return None

    def close(self) -> None:
        """Hang up on the neighbours and end the device thread; nothing is sent any more."""
        self._failed = True
        for port in (Port.UPSTREAM, Port.DOWNSTREAM):
            link = self._links[port]
            if link != self._links[Port.HEAD]:
                self._endpoint.forbid(link) if port is Port.UPSTREAM else self._endpoint.hang_up(link)
        self._device.stop()
        if self._trace is not None:
            self._trace.tracer.close()

    # -- messages --------------------------------------------------------------------------

    def received(self, link: bytes, lane: Lane, message: AnyMessage, payload: Any) -> None:
        """A message of the ring, of this stage's plan, or of a neighbour's handshake.

        Raises:
            RemoteProtocolError: it came over a link that has no business saying it.
            StalePlan: it is of another epoch.
        """
        kind = type(message)
        if self._next is not None and link == self._links[Port.DOWNSTREAM]:
            self._next.heard(self._now())
        expected = _PORT_OF.get(kind)
        if expected is not None and self._links[expected] == link:
            if self._trace is not None and kind is Forward:
                self._trace.took(message.microbatch, self._endpoint.taken_ns)  # type: ignore[union-attr]
            now = self._now()
            if kind in _OF_CODEC:
                self._codec_said(message)
            elif payload is None or not self._lacks_table(message, payload):
                self._handle(StageReceived(message, now, payload))
                if kind is Ack:
                    self._meter.acked(message, now)  # type: ignore[arg-type]
        elif kind in _GREETINGS and (port := self.port_of(link)) is not None:
            self._greeted(port, lane, message)
        elif isinstance(message, Measure) and link == self._links[Port.HEAD]:
            self._measured(message)
        else:
            raise RemoteProtocolError(f"{kind.__name__} came over a link that may not say it", path="message.tag")

    # -- the codec's tables ------------------------------------------------------------------

    def _lacks_table(self, message: AnyMessage, payload: Any) -> bool:
        """A frame whose table is not here is not taken: it is asked for again in another coding."""
        receiver = self._device.receiver
        key = receiver.missing(payload) if receiver is not None else None
        if key is None or not isinstance(message, Forward):
            return False
        answer = TableUnknown(
            pipeline=self.assign.pipeline, epoch=self.assign.epoch, lane=lane_of(message.phase), frame=message.frame, key=key
        )
        self._send(Port.UPSTREAM, Lane.CONTROL, answer)
        return True

    def _codec_said(self, message: AnyMessage) -> None:
        sender, receiver = self._device.sender, self._device.receiver
        match message:
            case CodecTable(body=body) if receiver is not None:
                held = TableHeld(pipeline=self.assign.pipeline, epoch=self.assign.epoch, key=receiver.take(body))
                self._send(Port.UPSTREAM, Lane.CONTROL, held)
            case TableHeld(key=key) if sender is not None:
                sender.held(key)
            case TableUnknown(key=key, frame=frame, lane=number) if sender is not None:
                sender.unknown(key)
                lane = Lane(number)
                payload: Any = self.core.downstream.lanes[lane].payload(frame)
                if payload is not None and payload[0].codec == api.CODEC_ID:
                    self._device.recode(
                        payload, on_done=lambda new: self._handle(Recoded(lane, frame, new, self._now())), on_error=self.fail
                    )
            case _:
                raise RemoteProtocolError(f"{type(message).__name__}: this boundary carries no activations")

    def _ship(self, table: Table) -> None:
        if not self._failed:
            body = CodecTable(pipeline=self.assign.pipeline, epoch=self.assign.epoch, body=table.to_bytes())
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

    def link_event(self, port: Port, event: LinkEvent) -> None:
        """A neighbour's link broke or came back."""
        if event.kind is LinkEventKind.REFUSED:
            self.fail(event.error or RemoteProtocolError(f"the {port.value} link was refused"))
        elif event.lane is None or not self._greeters[port].is_open:
            return
        elif event.kind is LinkEventKind.CONNECTED:
            self._greeters[port].say_again(event.lane)
            if self._liveness[port].back(event.lane):
                self._restored(port)
        elif event.kind is LinkEventKind.PORT_REFUSES:
            self._lost_next("nobody listens there any more: it has ended")
        else:
            self._liveness[port].broke(event.lane, self._now())

    def head_restored(self) -> None:
        """The connection to the head came back: what went over it may have been lost."""
        for port in (Port.UPSTREAM, Port.DOWNSTREAM):
            if self._links[port] == self._links[Port.HEAD]:
                self._restored(port)
        if self.error is not None:
            self._say_failed(self.error)
        elif self._ready_said:
            self._send_ready()

    def _restored(self, port: Port) -> None:
        if port is Port.DOWNSTREAM:
            self._meter.restart()
        self._handle(LinkRestored(port, self._now()))

    def tick(self) -> None:
        now = self._now()
        for greeter in self._greeters.values():
            greeter.tick()
        self._look_for_pieces(now)
        self._handle(Tick(now))
        self._report(now)
        if self._ready_said and now - self._worked_at >= IDLE_S:
            self._measure_on()
            if not self._failed and not self._meter.num_unacknowledged:
                with contextlib.suppress(LinkDown):
                    self._endpoint.probe(self._links[Port.DOWNSTREAM], now - self._worked_at)
        if self._next is not None and not self._failed:
            self._next.tick(now)

    def _look_for_pieces(self, now: float) -> None:
        """A frame that crosses a slow wire piece by piece is neither lost nor stuck."""
        if self._failed:
            return
        with contextlib.suppress(LinkDown):
            delivered = self._endpoint.bulk_window(self._links[Port.DOWNSTREAM]).num_delivered
            if delivered > self._delivered_pieces:
                self._delivered_pieces, self._has_moved = delivered, True
                self._handle(Moved(now))

    def _on_way_s(self) -> float:
        """A decode frame of a wide model may cross a slow wire for many seconds, and all that is behind it waits."""
        bandwidth = self._meter.facts().bandwidth_bytes_per_s or SLOWEST_BYTES_PER_S
        return ON_WAY_FACTOR * self._meter.unacknowledged_bytes / bandwidth

    def _lost_next(self, why: str) -> None:
        peer = self.assign.successor
        assert peer is not None
        self.fail(LinkDown(f"worker {peer.worker} at {peer.endpoint}: {why}", peer=peer.worker, endpoint=peer.endpoint))

    # -- inside ----------------------------------------------------------------------------

    def _greet(self, port: Port, machine: Dialler | Listener) -> None:
        def opened(clock: ClockEstimate | None) -> None:
            if clock is not None:
                self.clocks[port] = clock
                if self._trace is not None and self.assign.successor is not None:
                    self._trace.tracer.clock(self.assign.successor.worker, clock.offset_ns, clock.error_ns)
                self._liveness[port].timed(clock.round_trip_ns / 1e9)
            # The greeter itself is not in the table yet if it opens at once.
            asyncio.get_running_loop().call_soon(self._say_ready)

        def timed(clock: ClockEstimate) -> None:
            self._liveness[port].timed(clock.round_trip_ns / 1e9)

        self._greeters[port] = Greeter(
            self._endpoint, self._links[port], machine, on_open=opened, on_error=self.fail, on_timed=timed
        )

    def _greeted(self, port: Port, lane: Lane, message: AnyMessage) -> None:
        greeter = self._greeters[port]
        if isinstance(message, Refused) and greeter.is_open:
            log.warning("%s link refused a message: %s %s", port.value, message.code, message.fields.get("message", ""))
            return
        greeter.received(lane, message)

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
            self._worked_at = self._now()
            if self._next is not None:
                self._next.works(self._worked_at)
            self._device.run(command.work, on_done=self._computed, on_error=self._compute_failed)
        elif type(command) is Send and isinstance(command.to, Port):
            self._send(command.to, command.lane, command.message, command.payload)
        else:
            raise LocalProtocolError(f"a stage's core asks for {command!r}")

    def _cannot(self, command: Command, error: BloomBeeError) -> None:
        """It belongs to the requests of a frame, to a lane that will be tried again, or to the stage."""
        message = command.message if isinstance(command, Send) else None
        is_frame = isinstance(message, Forward | Verdict)
        if isinstance(error, QueueFull):
            log.warning("not sent: %s", error.message)  # frames are kept and sent again, all else is said again
        elif is_frame and isinstance(error, LocalProtocolError) and _says_something(message):
            log.error("its requests end, for a frame of theirs cannot be sent: %s", error.message)
            self._handle(Unsendable(command.lane, message.frame, self._now()))  # type: ignore[union-attr]
        else:
            self.fail(error)

    def _send(self, port: Port, lane: Lane, message: AnyMessage, payload: Any = None) -> None:
        if not isinstance(message, Forward | Verdict):
            self._endpoint.send(self._links[port], lane, message)
            return
        now = self._now()
        sending = self._trace.now() if self._trace is not None else 0
        header, buffer = ((payload[0],), (payload[1],)) if payload is not None else ((), ())
        num_bytes = self._endpoint.send(self._links[port], lane, message, header, buffer)
        self._meter.sent(lane, message.frame, num_bytes, 1 + len(buffer), now)
        if self._trace is not None:
            self._trace.sent(message.microbatch, sending)

    def _computed(self, outcome: Outcome) -> None:
        self._handle(Computed(outcome, self._now()))

    def _compute_failed(self, error: BloomBeeError) -> None:
        self._handle(ComputeFailed(error, self._now()))

    def _progress(self, loaded: int, total: int) -> None:
        if not self._failed:
            message = Progress(pipeline=self.assign.pipeline, epoch=self.assign.epoch, loaded_bytes=loaded, total_bytes=total)
            self._send(Port.HEAD, Lane.CONTROL, message)

    def _load_done(self, weight_bytes: int, kv_bytes: int) -> None:
        self._loaded = (weight_bytes, kv_bytes)
        # What is there now stays; to walk it again and again would only make a step late now and then.
        gc.collect()
        gc.freeze()
        self._say_ready()

    def _say_ready(self) -> None:
        """Ready once the span is loaded and both neighbours have been greeted."""
        if self._loaded is None or self._ready_said or self._failed or not all(g.is_open for g in self._greeters.values()):
            return
        self._ready_said = True
        if Port.DOWNSTREAM in self._greeters and api.CODEC_ID not in self._greeters[Port.DOWNSTREAM].codecs:
            self._device.forgo_codec()
        log.info("stage %d: ready", self.assign.stage)
        self._send_ready()
        self._worked_at = self._now()
        self._measure_on()

    def _send_ready(self) -> None:
        assert self._loaded is not None
        weight_bytes, kv_bytes = self._loaded
        message = Ready(pipeline=self.assign.pipeline, epoch=self.assign.epoch, weight_bytes=weight_bytes, kv_bytes=kv_bytes)
        self._send(Port.HEAD, Lane.CONTROL, message)

    def _measure_on(self) -> None:
        """The next step of this stage's profile, unless a sequence has rows here."""
        all_free = all(pool.num_free == pool.num_pages for pool in self.core.pools)
        if not self._profile_asked and not self._profile_over and not self._failed and all_free:
            self._profile_asked = True
            self._device.profile(self._measured_step)

    def _measured_step(self, found: Profile | None, is_over: bool) -> None:
        self._profile_asked, self._profile_over = False, is_over
        if found is not None and not self._failed:
            self._send(Port.HEAD, Lane.CONTROL, to_message(found, self.assign.pipeline, self.assign.epoch))
        elif self._now() - self._worked_at >= IDLE_S:
            self._measure_on()

    def _report(self, now: float) -> None:
        """What is known of the link to the next stage, if there is news."""
        facts = self._meter.facts()
        sender, choice = self._device.sender, ""
        if sender is not None:
            sender.set_link(facts.bandwidth_bytes_per_s, facts.base_rtt_s or self._greeting_rtt_s())
            choice = sender.explain()
        if choice[:3] != self._codec_choice[:3]:
            self._codec_choice = choice
            log.info("codec to the next stage %s", choice)
        is_news = self._has_moved or facts.num_frames != self._reported_frames
        if self._failed or not is_news or now - self._reported_at < REPORT_EVERY_S:
            return
        self._reported_at, self._reported_frames, self._has_moved = now, facts.num_frames, False
        target = self.assign.successor.worker if self.assign.successor is not None else HEAD
        report = LinkReport(
            pipeline=self.assign.pipeline, epoch=self.assign.epoch, target=target, codec=choice, **dataclasses.asdict(facts)
        )
        self._send(Port.HEAD, Lane.CONTROL, report)

    def _greeting_rtt_s(self) -> float | None:
        clock = self.clocks.get(Port.DOWNSTREAM)
        return None if clock is None else clock.round_trip_ns / 1e9

    def fail(self, error: BloomBeeError) -> None:
        """Tell the head why this stage cannot go on; said once, and again if it may have been lost."""
        if self._failed:
            return
        self._failed = True
        self.error = error
        log.debug("stage %d failed: %s", self.assign.stage, error)
        self._say_failed(error)

    def _say_failed(self, error: BloomBeeError) -> None:
        code, fields = to_wire(error)
        failed = StageFailed(pipeline=self.assign.pipeline, epoch=self.assign.epoch, code=code, fields=fields)
        self._send(Port.HEAD, Lane.CONTROL, failed)


def _says_something(message: AnyMessage | None) -> bool:
    return bool(message.items if isinstance(message, Forward) else isinstance(message, Verdict) and message.picks)
