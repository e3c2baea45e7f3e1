"""A stage of a pipeline as a pure state machine: rows in, work for the device, rows out.

What outlives a plan - the sequences' KV (``sequences.py``), what left the stage (``log.py``), the order of works on the device -
is here; what one epoch wires is a seat (``seat.py``). A frame that comes in over a seat addresses rows by (sequence, generation,
position), and each of its items is one of

    generation older, or closed            dropped
    generation newer                       rolled back to the item's position, then taken
    ends at or before ``have``             held already, ignored
    starts at or before ``have``           its rows from ``have`` on are taken
    starts beyond ``have``                 Gap(have): the frame is not taken as held and will come again
    newer, further back than is kept       Gap(0): layers with a window have forgotten what its rows see

Every frame that is taken in becomes exactly one work and exactly one frame for the next stage, whatever became
of its sequences, so that a microbatch always comes home. A frame is acknowledged when its work is done and what it gave is
logged: from then on the next link is responsible for it. An illegal message leaves the state as it was.

A seat that is retired takes nothing in any more; what it had taken is computed all the same, logged, and said over the seats
that are left. Source: docs/wire.md; the tests in tests/sim run this very code.
"""

from __future__ import annotations

from collections.abc import Sequence

from bloombee.errors import BloomBeeError, LocalProtocolError, PoolExhausted, RemoteProtocolError, StalePlan, to_wire
from bloombee.pipeline.commands import Command, Compute, Gather, Send
from bloombee.pipeline.device_queue import DeviceQueue, Job
from bloombee.pipeline.events import (
    Computed,
    ComputeFailed,
    Gathered,
    GatherFailed,
    Greeted,
    LinkRestored,
    Moved,
    Port,
    Recoded,
    Spilled,
    StageReceived,
    Tick,
    Unsendable,
)
from bloombee.pipeline.frames import lane_of
from bloombee.pipeline.log import LOG_BYTES, BoundaryLog
from bloombee.pipeline.seat import Seat
from bloombee.pipeline.sequences import SequenceStore
from bloombee.pipeline.work import Outcome, Work
from bloombee.types import Epoch, Lane, Phase
from bloombee.wire.messages import Ack, Close, Closed, Forward, Gap, Item, Load, Pick, Resume, Resumed, Retire, StageFailed, Wire

_OF_A_SEAT = (Forward, Ack, Gap, Resume, Resumed)
_FOR_STAGES = (*_OF_A_SEAT, Close, Retire, Wire)
_PHASES = {int(phase): phase for phase in Phase}

_OfSeat = Greeted | Recoded | Unsendable | LinkRestored
Event = StageReceived | Computed | ComputeFailed | Gathered | GatherFailed | Spilled | Moved | Tick | _OfSeat


class StageCore:
    """events: see ``Event``. commands: Send, Compute, Gather, Spill.

    Args:
        log_bytes, log_disk_bytes: of what left the stage and is kept, in memory and in a file; 0: there is no file.
    """

    def __init__(self, load: Load, *, resend_after_s: float, log_bytes: int = LOG_BYTES, log_disk_bytes: int = 0) -> None:
        self.load = load
        self.store = SequenceStore(load)
        self.log = BoundaryLog(log_bytes, log_disk_bytes)
        self.seats: dict[Epoch, Seat] = {}
        """Those that are not retired, oldest first."""
        self.failed = False
        self._resend_after_s = resend_after_s
        self._device = DeviceQueue(self.store)
        self._num_works = 0
        self._num_gathers = 0
        self._newest_epoch = 0
        self._early: Resume | None = None

    # -- the one door ----------------------------------------------------------------------

    def handle(self, event: Event) -> list[Command]:
        """Raises RemoteProtocolError or StalePlan for a message the peer must not send; the state is as it was."""
        if type(event) is StageReceived:
            return self._received(event)
        if type(event) is Computed:
            return self._computed(event.outcome, event.now)
        match event:
            case Gathered() | GatherFailed():
                return self._gathered(event)
            case Spilled(number=number, stored=stored):
                return [*self.log.spilled(number, stored)]
            case ComputeFailed(error=error):
                self.failed = True
                return [self._fail(error)]
            case Tick(now=now):
                return [command for seat in self.seats.values() for command in seat.tick(now)]
            case Moved(now=now):
                for one in self.seats.values():
                    one.downstream.lanes[Lane.BULK].moved(now)
                return []
            case Greeted(epoch=epoch) | Recoded(epoch=epoch) | Unsendable(epoch=epoch) | LinkRestored(epoch=epoch):
                seat = self.seats.get(epoch)
                return [] if seat is None else self._of_seat(seat, event)
        raise LocalProtocolError(f"{event!r} is not an event of a stage")

    @staticmethod
    def _of_seat(seat: Seat, event: _OfSeat) -> list[Command]:
        match event:
            case Greeted(now=now):
                return seat.greeted(now)
            case Recoded(lane=lane, frame=frame, payload=payload, now=now):
                return list(seat.downstream.lanes[lane].replace(frame, payload, now))
            case Unsendable(lane=lane, frame=frame, now=now):
                return seat.blank(lane, frame, now)
            case LinkRestored(port=Port.DOWNSTREAM, now=now):
                return list(seat.downstream.resend(now))
            case LinkRestored(port=Port.UPSTREAM, now=now):
                return [seat.acknowledge(lane, now) for lane in Lane]
        return []

    def _received(self, event: StageReceived) -> list[Command]:
        message, now = event.message, event.now
        if not isinstance(message, _FOR_STAGES):
            raise RemoteProtocolError(f"{type(message).__name__} is not for a stage", message_type=type(message).__name__)
        if type(message) is Wire:
            return self._wire(message, now)
        if type(message) is Resume and message.epoch > self._newest_epoch:
            self._early = message  # the next stage was told of this epoch before this one is
            return []
        seat = self._seat_of(message.pipeline, message.epoch)
        if type(message) is Forward:
            return self._forward(seat, message, event.payload, now)
        match message:
            case Ack():
                sends = seat.acknowledged(message, now)
                return [*sends, *(self._pump(seat, now) if seat.is_behind else ()), *self._start()]
            case Gap(sequence=sequence, have=have):
                return list(seat.downstream.resend_rows(sequence, have, now))
            case Resume():
                return self._resume(seat, message, now)
            case Resumed():
                seat.answered()
                return []
            case Close():
                return self._close(message)
        return self._retire([message.epoch])

    # -- what people ask -------------------------------------------------------------------

    @property
    def num_sequences(self) -> int:
        return len(self.store)

    @property
    def pages_free(self) -> int:
        """Of all groups."""
        return self.store.kv.pages_free

    @property
    def is_idle(self) -> bool:
        """Nothing queued, on the device, held back or unacknowledged."""
        return self._device.is_idle and all(seat.is_idle for seat in self.seats.values())

    # -- epochs ----------------------------------------------------------------------------

    def _seat_of(self, pipeline: int, epoch: int) -> Seat:
        seat = self.seats.get(epoch) if pipeline == self.load.pipeline else None
        if seat is None:
            serves = ", ".join(map(str, self.seats)) or "none"
            raise StalePlan(
                f"pipeline {pipeline} epoch {epoch}: this stage serves pipeline {self.load.pipeline}, epoch {serves}",
                pipeline=pipeline,
                epoch=epoch,
            )
        return seat

    def _wire(self, wire: Wire, now: float) -> list[Command]:
        """A seat beside those that there are. Said again it changes nothing."""
        if wire.pipeline != self.load.pipeline or (wire.epoch <= self._newest_epoch and wire.epoch not in self.seats):
            raise StalePlan(
                f"pipeline {wire.pipeline} epoch {wire.epoch} is not newer than {self._newest_epoch}",
                pipeline=wire.pipeline,
                epoch=wire.epoch,
            )
        if wire.epoch not in self.seats:
            self._newest_epoch = wire.epoch
            self.seats[wire.epoch] = Seat(wire, self.store, self.log, resend_after_s=self._resend_after_s)
        commands = self._retire([epoch for epoch in self.seats if epoch < wire.oldest])
        if self._early is not None and self._early.epoch == wire.epoch:
            commands += self._resume(self.seats[wire.epoch], self._early, now)
            self._early = None
        return commands

    def _resume(self, seat: Seat, message: Resume, now: float) -> list[Command]:
        commands = seat.resume(message, now)
        return [*commands, *self._pump(seat, now), *self._start()]

    def _retire(self, epochs: list[Epoch]) -> list[Command]:
        for epoch in epochs:
            self.seats.pop(epoch).retired = True
        return self._start()  # what they had taken waits for no credit any more

    # -- rows in ---------------------------------------------------------------------------

    def _forward(self, seat: Seat, forward: Forward, payload: object | None, now: float) -> list[Command]:
        phase = _PHASES.get(forward.phase)
        if phase is None:
            raise RemoteProtocolError(f"phase {forward.phase} is none", path="$.phase")
        upstream = seat.upstream[lane_of(phase)]
        if upstream.holds(forward.frame):
            return [seat.acknowledge(lane_of(phase), now)]
        counts = [len(item.tokens) // 4 for item in forward.items]
        num_rows = sum(counts)
        upstream.check(forward.frame, num_rows)
        _check_items(forward.items)
        if gaps := self.store.gaps(forward.items):
            head = {"pipeline": forward.pipeline, "epoch": forward.epoch}
            return [
                Send(Port.UPSTREAM, Lane.CONTROL, Gap(sequence=gap.sequence, generation=gap.generation, have=gap.have, **head))
                for gap in gaps
            ]
        upstream.hold(forward.frame, now, num_rows)
        queue = self._device.queue_for(phase, forward.items)
        self._device.add(self._take(seat, forward, counts, queue, payload))
        return self._start()

    def _take(self, seat: Seat, forward: Forward, counts: Sequence[int], queue: Phase, payload: object | None) -> Job:
        """Update the sequences and make the work; every check has been passed."""
        store, stop = self.store, 0
        items: list[Item] = []
        spans: list[tuple[int, int]] = []
        for item, num_rows in zip(forward.items, counts, strict=True):
            start, stop = stop, stop + num_rows
            held = store.get(item.sequence)
            if held is None:
                if store.is_closed(item.sequence):
                    continue
                held = store.open(item)
            if item.generation > held.generation:
                self.log.truncate(item.sequence, item.position)
            skip = store.take(held, item, num_rows)
            if skip is None:
                continue
            if queue is Phase.PREFILL:
                held.num_prefill += 1
            items.append(_tail(item, skip) if skip else item)
            spans.append((start + skip, stop))
        work = Work(
            pipeline=self.load.pipeline,
            epoch=forward.epoch,
            number=self._num_works,
            microbatch=forward.microbatch,
            phase=_PHASES[forward.phase],
            segments=(),
            hidden=payload,
            hidden_rows=tuple(spans),
        )
        self._num_works += 1
        return Job(work, queue, forward.frame, tuple(items), seat)

    # -- the device ------------------------------------------------------------------------

    def _start(self) -> list[Command]:
        """Give the device its next works."""
        commands: list[Command] = []
        try:
            while not self.failed and (job := self._device.start()) is not None:
                commands.append(Compute(job.work))
        except PoolExhausted as error:
            self.failed = True
            commands.append(self._fail(error))
        return commands

    def _computed(self, outcome: Outcome, now: float) -> list[Command]:
        job = self._device.finish(outcome.number)
        seat, lane_in = job.seat, lane_of(job.work.phase)
        fresh = self.store.fresh(job.items)
        spills = self._keep(job, fresh, outcome)
        if seat.retired:
            return [*self._say_over_others(job, outcome, now), *self._start(), *spills]
        seat.upstream[lane_in].retire([job.frame])
        sends = seat.pass_on(job.work, job.items, fresh, outcome, now)
        if len(self.seats) > 1 or seat.is_behind:
            sends += self._say_over_others(job, outcome, now)
        return [*sends, *self._start(), seat.acknowledge(lane_in, now), *spills]

    def _keep(self, job: Job, fresh: Sequence[Item], outcome: Outcome) -> list[Command]:
        """In the log; on the last stage picks with their sequence."""
        if not job.seat.is_last:
            return [*self.log.append(job.items, fresh, outcome.hidden, outcome.num_bytes)]
        last: Pick | None = None
        for pick in outcome.picks:  # those of one sequence are neighbours
            one = self.store.get(pick.sequence)
            if one is not None and one.generation == pick.generation:
                is_more = last is not None and last.sequence == pick.sequence
                one.picks = (*one.picks, pick) if is_more else (pick,)
            last = pick
        return []

    def _say_over_others(self, job: Job, outcome: Outcome, now: float) -> list[Command]:
        """Over every open seat but the job's own, which are behind then; picks over one, if the job's own is gone."""
        others = [seat for seat in self.seats.values() if seat is not job.seat and seat.is_open]
        if job.seat.is_last:
            return others[-1].pass_on(job.work, job.items, (), outcome, now) if others and job.seat.retired else []
        commands: list[Command] = []
        for seat in others:
            for item in job.items:
                seat.catch_up(item.sequence)
            commands += self._pump(seat, now)
        if not job.seat.retired:
            commands += self._pump(job.seat, now)
        return commands

    def _pump(self, seat: Seat, now: float) -> list[Command]:
        commands = seat.pump(now, self._num_gathers)
        self._num_gathers += sum(isinstance(command, Gather) for command in commands)
        return commands

    def _gathered(self, event: Gathered | GatherFailed) -> list[Command]:
        seat = next((seat for seat in self.seats.values() if seat.has_gathering(event.number)), None)
        if seat is None:
            return []  # it was retired meanwhile
        return [*seat.gathered(event), *self._pump(seat, event.now)]

    # -- the head --------------------------------------------------------------------------

    def _close(self, close: Close) -> list[Command]:
        closed = self.store.close(close.sequences, close.floor)
        for sequence in closed:
            self.log.forget(sequence)
        for seat in self.seats.values():
            for sequence in (*closed, *close.sequences):  # some never came here
                seat.forget(sequence)
        answer = Closed(
            pipeline=close.pipeline,
            epoch=close.epoch,
            sequences=close.sequences,
            floor=close.floor,
            pages_free=self.pages_free,
        )
        return [Send(Port.HEAD, Lane.CONTROL, answer)]

    def _fail(self, error: BloomBeeError) -> Send:
        code, fields = to_wire(error)
        failed = StageFailed(pipeline=self.load.pipeline, epoch=self._newest_epoch, code=code, fields=fields)
        return Send(Port.HEAD, Lane.CONTROL, failed)


def _check_items(items: Sequence[Item]) -> None:
    """Raises RemoteProtocolError for what may not be in a frame."""
    if len({item.sequence for item in items if item.parents is None}) == len(items):
        return
    if any(item.parents is not None for item in items):
        raise RemoteProtocolError("rows in a tree are not spoken in this version", path="$.items[...].parents")
    raise RemoteProtocolError("a sequence twice in one frame", path="$.items")


def _tail(item: Item, skip: int) -> Item:
    """The item without its first ``skip`` rows."""
    num_rows = item.num_rows - skip
    return Item(
        sequence=item.sequence,
        generation=item.generation,
        position=item.position + skip,
        tokens=item.tokens[4 * skip :],
        num_picks=min(item.num_picks, num_rows),
        opening=None,
        parents=None,
    )
