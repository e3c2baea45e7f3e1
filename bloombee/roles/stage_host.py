"""A span on a worker from its Load on: its core and what that asks for - the device, the log's file, and messages to whoever are
its neighbours in each epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from bloombee.codec.table import Table
from bloombee.errors import (
    BloomBeeError,
    LinkDown,
    LocalProtocolError,
    QueueFull,
    RemoteProtocolError,
)
from bloombee.links.frames import LinkMeter
from bloombee.pipeline.acting import each
from bloombee.pipeline.commands import Command, Compute, CopyPages, Gather, Send, Spill
from bloombee.pipeline.events import (
    Computed,
    ComputeFailed,
    Greeted,
    LinkRestored,
    Moved,
    Port,
    StageReceived,
    Tick,
    Unsendable,
)
from bloombee.pipeline.log import LOG_BYTES
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Outcome
from bloombee.roles.coding import Payload
from bloombee.roles.courier import Courier
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.log_file import LogFile
from bloombee.roles.neighbours import Neighbour, Neighbours
from bloombee.roles.reporting import Reporter
from bloombee.roles.scheduler_host import SchedulerHost
from bloombee.roles.seat_host import Seating, Seatings
from bloombee.roles.storing import Storing
from bloombee.roles.tables import OF_CODEC, TableExchange
from bloombee.roles.tracing import StageTrace
from bloombee.transport.endpoint import Endpoint
from bloombee.types import Epoch, Lane
from bloombee.wire.messages import (
    Ack,
    AnyMessage,
    Close,
    CodecTable,
    Commit,
    Forward,
    Gap,
    Keep,
    Load,
    Measure,
    Resume,
    Resumed,
    Retire,
    TableHeld,
    TableUnknown,
    Verdict,
    Wire,
)
from bloombee.wire.spoken import check_spoken

log = logging.getLogger(__name__)
RESEND_AFTER_S = 30.0
"""TCP loses nothing while it stands; what a broken connection lost is resent when it is back."""

_PORT_OF: dict[type, Port] = {
    Forward: Port.UPSTREAM,
    Ack: Port.DOWNSTREAM,
    Gap: Port.DOWNSTREAM,
    Resume: Port.DOWNSTREAM,
    Resumed: Port.UPSTREAM,
    Close: Port.SCHEDULER,
    Commit: Port.SCHEDULER,
    Keep: Port.SCHEDULER,
    CodecTable: Port.UPSTREAM,
    TableHeld: Port.DOWNSTREAM,
    TableUnknown: Port.DOWNSTREAM,
}


class StageHost:
    """Runs one span until :meth:`close`.

    Args:
        head_link: the worker's link to the head.
        device: where it is loaded, and runs.
        neighbours: the worker's.
        log_file: of what left the span and has no room in memory.
        log_bytes, log_disk_bytes: room for that in memory and in the file.
        open_trace: where the stamps of its microbatches go, once a Wire asks for them; None: nowhere.
    """

    def __init__(
        self,
        load: Load,
        *,
        endpoint: Endpoint,
        head_link: bytes,
        device: SpanExecutor,
        neighbours: Neighbours,
        log_file: LogFile,
        log_bytes: int = LOG_BYTES,
        log_disk_bytes: int = 0,
        open_trace: Callable[[Wire, Load], StageTrace | None] = lambda *_: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.load = load
        self.core = StageCore(load, resend_after_s=RESEND_AFTER_S, log_bytes=log_bytes, log_disk_bytes=log_disk_bytes)
        self.now = now
        self.seatings = Seatings(neighbours, head_link, lambda link: LinkMeter(endpoint.estimator(link)), now)
        self.courier = Courier(endpoint, head_link, self.seatings)
        self.reporter = Reporter(
            load, endpoint, device, self.seatings, self.courier, is_empty=lambda: self.core.store.kv.is_empty
        )
        self.fail = self.reporter.fail
        self.complain = self.reporter.complain
        self._endpoint = endpoint
        self._head_link = head_link
        self._device = device
        self._neighbours = neighbours
        self._storing = Storing(device, log_file, self.handle, now)
        self._open_trace = open_trace
        self._trace: StageTrace | None = None
        self._scheduler: SchedulerHost | None = None
        """Beside this stage, if it is."""
        self._tables = TableExchange(self, device)
        neighbours.users.append(self)
        device.load(
            load,
            on_progress=self.reporter.progress,
            on_done=self._loaded,
            on_error=self.reporter.fail,
            on_table=self._ship,
        )

    def close(self) -> None:
        """Let the span go, and neighbours that nobody else needs; nothing is sent any more."""
        self.reporter.is_over = True
        if self in self._neighbours.users:
            self._neighbours.users.remove(self)
            self._neighbours.leave()
        self._device.stop()
        self._storing.close()
        self.core.log.clear()
        if self._trace is not None:
            self._trace.tracer.close()

    # -- orders ----------------------------------------------------------------------------

    @property
    def links(self) -> set[bytes]:
        """To the neighbours that some epoch has."""
        return self.seatings.links

    def wire(self, wire: Wire) -> None:
        """Take the seat of an epoch. Said again it is answered again.

        Raises:
            StalePlan: of an epoch that has been retired.
            RemoteProtocolError: another stage than this span's.
        """
        ends = self.load.start == 0, self.load.stop == self.load.num_layers
        if (wire.stage == 0, wire.stage == wire.num_stages - 1) != ends:
            raise RemoteProtocolError(f"stage {wire.stage} of {wire.num_stages} does not hold these layers", path="Wire.stage")
        if self.reporter.is_over:  # what it said of that may have been taken for a word of an epoch before
            self.reporter.say_failed(wire.epoch)
            return
        if (known := self.seatings.get(wire.epoch)) is not None:
            self._greeted_all(known, again=True)
            return
        if wire.trace and self._trace is None:
            self._trace = self.courier.trace = self._device.trace = self._open_trace(wire, self.load)
        previous = self.seatings.newest
        commands = self.core.handle(StageReceived(wire, self.now()))
        try:
            seating = self.seatings.seat(wire)
        except LinkDown as error:
            self.complain(error, wire.epoch)
            return
        if not wire.shadow and previous is not None and previous.links[Port.DOWNSTREAM] != seating.links[Port.DOWNSTREAM]:
            self._device.next_stage_changed()
        self.seatings.retire_before(wire.oldest)
        each(self._do, commands)
        self._greeted_all(seating)

    def schedule_with(self, scheduler: SchedulerHost) -> None:
        """It is beside this stage, the first one."""
        self._scheduler, self.courier.say_here = scheduler, scheduler.said_here
        scheduler.stage = self

    def retire_before(self, oldest: Epoch) -> None:
        """Leave the seats of older epochs, of which nobody says anything any more."""
        for seating in self.seatings.older(oldest):
            self.handle(StageReceived(Retire(self.load.pipeline, seating.wire.epoch), self.now()))
        self.seatings.retire_before(oldest)

    # -- neighbours ------------------------------------------------------------------------

    def opened(self, neighbour: Neighbour) -> None:
        """One has been greeted."""
        if neighbour.clock is not None and self._trace is not None:
            self._trace.tracer.clock(neighbour.peer.worker, neighbour.clock.offset_ns, neighbour.clock.error_ns)
        self._look_who_is_here()

    def _loaded(self, weight_bytes: int, kv_bytes: int) -> None:
        self.reporter.loaded(weight_bytes, kv_bytes)
        self._storing.loaded()
        self._look_who_is_here()

    def _look_who_is_here(self) -> None:
        for seating in self.seatings:
            self._greeted_all(seating)

    def _greeted_all(self, seating: Seating, *, again: bool = False) -> None:
        """Once all neighbours of an epoch are there, and the span: a worker that loads may hold its interpreter's lock for long,
        so nobody is to expect work of it."""
        is_early = not self.reporter.is_loaded or not self.seatings.all_open(seating)
        if (seating.is_greeted and not again) or self.reporter.is_over or is_early:
            return
        seating.is_greeted = True
        following = self.seatings.following(seating)
        if following is not None and following.lacks_codec and not seating.wire.shadow:
            self._device.forgo_codec()
        self.reporter.works()
        if self._scheduler is not None:
            self._scheduler.wired(seating)
        self.handle(Greeted(seating.wire.epoch, self.now()))
        self.reporter.measure_on()

    def restored(self, link: bytes) -> None:
        """A link's connections stand again: what went over it may have been lost. The head's orders come again by themselves."""
        for seating in self.seatings:
            for port in (Port.UPSTREAM, Port.DOWNSTREAM):
                if seating.links[port] == link:
                    if port is Port.DOWNSTREAM:
                        seating.meter.restart()
                    self.handle(LinkRestored(seating.wire.epoch, port, self.now()))
        if self._scheduler is not None:
            self._scheduler.restored(link)

    def moved(self, now: float) -> None:
        """Pieces of a frame have come on."""
        self.reporter.moved()
        self.handle(Moved(now))
        if self._scheduler is not None:
            self._scheduler.moved(now)

    # -- messages --------------------------------------------------------------------------

    def received(self, link: bytes, message: AnyMessage, payload: Any) -> None:
        """A message of the ring, or of this pipeline.

        Raises:
            RemoteProtocolError: it came over a link that has no business saying it.
            StalePlan: it is of another epoch.
        """
        kind = type(message)
        if isinstance(message, Measure) and link == self._head_link:
            self.reporter.measured(message, self.core.pages_free)
            return
        if isinstance(message, Retire) and link == self._head_link:
            self.handle(StageReceived(message, self.now()))
            self.seatings.retire(message.epoch)
            return
        expected = _PORT_OF.get(kind)
        if expected is None:
            check_spoken(message)
            raise RemoteProtocolError(f"{kind.__name__} is not for a stage", path="message.tag")
        seating = self.seatings.of(message, link)
        if seating.links[expected] != link:
            raise RemoteProtocolError(f"{kind.__name__} came over a link that may not say it", path="message.tag")
        if self._trace is not None and kind is Forward:
            self._trace.took(message.microbatch, self._endpoint.taken_ns)  # type: ignore[union-attr]
        now = self.now()
        if kind in OF_CODEC:
            self._tables.said(seating, message)
        elif payload is None or not (self._is_damaged(link, message, payload) or self._tables.lacks(message, payload)):
            self.handle(StageReceived(message, now, payload))
            if kind is Ack:
                seating.meter.acked(message, now)  # type: ignore[arg-type]

    def _is_damaged(self, link: bytes, message: Any, payload: Payload) -> bool:
        """A frame that came with another checksum than it left with is not taken: its rows are asked for again.

        Raises:
            RemoteProtocolError: it is none of this boundary's; or one after the other is damaged: that is no fault of the way.
        """
        receiver, neighbour = self._device.receiver, self._neighbours.get(link)
        if receiver is None or neighbour is None:
            raise RemoteProtocolError("activations came to the stage that holds the embedding", path="tensors[0]")
        if receiver.is_whole(payload):
            neighbour.num_damaged = 0
            return False
        neighbour.damaged()
        first = message.items[0]  # who sends it still has the whole frame
        again = Gap(
            pipeline=message.pipeline,
            epoch=message.epoch,
            sequence=first.sequence,
            generation=first.generation,
            have=first.position,
        )
        self.courier.send(Port.UPSTREAM, Lane.CONTROL, again)
        return True

    def tick(self) -> None:
        """Time has passed."""
        now = self.now()
        self.handle(Tick(now, self.seatings.is_busy()))
        self.reporter.tick(now)

    # -- what the core asks for ------------------------------------------------------------

    def handle(self, event: Any) -> None:
        """Give the core an event, and do what it asks for.

        Raises:
            Exception: a bug, the first there was; after the last command.
        """
        if not self.reporter.is_over:
            each(self._do, self.core.handle(event))

    def _do(self, command: Command) -> None:
        try:
            if type(command) is Compute:
                self.reporter.works()
                self._device.run(command.work, on_done=self._computed, on_error=self._compute_failed)
            elif type(command) is Send and isinstance(command.to, Port):
                self.courier.send(command.to, command.lane, command.message, command.payload)
            elif isinstance(command, Gather | Spill | CopyPages):
                self.reporter.works()
                self._storing.do(command)
            else:
                raise LocalProtocolError(f"a stage's core asks for {command!r}")
        except BloomBeeError as error:
            self._cannot(command, error)

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
            self.handle(Unsendable(message.epoch, command.lane, message.frame, self.now()))
        else:
            self.fail(error)

    # -- what comes back -------------------------------------------------------------------

    def _computed(self, outcome: Outcome) -> None:
        self.handle(Computed(outcome, self.now()))

    def _compute_failed(self, error: BloomBeeError) -> None:
        self.handle(ComputeFailed(error, self.now()))

    def _ship(self, table: Table) -> None:
        newest = self.seatings.newest
        if not self.reporter.is_over and newest is not None and newest.is_greeted:
            self._tables.ship(newest, table)


def _says_something(message: Any) -> bool:
    return bool(message.items if isinstance(message, Forward) else message.picks)
