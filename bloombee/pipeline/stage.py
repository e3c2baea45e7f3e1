"""A stage of a pipeline as a pure state machine: rows in, work for the device, rows out.

What outlives a plan - the sequences' KV (``sequences.py``), what left the stage (``log.py``), the order of works on the device -
is here; what one epoch wires is a seat (``seat.py``). How the rows of a frame are taken is told in ``intake.py``.

Every frame that is taken in becomes exactly one work and exactly one frame for the next stage, whatever became
of its sequences, so that a microbatch always comes home. A frame is acknowledged when its work is done and what it gave is
logged: from then on the next link is responsible for it. An illegal message leaves the state as it was.

A seat may be there to feed a shadow, a worker that follows the next stage in case it is lost: that one is told the rows which the
log has, a few frames with each tick of the clock, while nothing else waits. A shadow's own seat takes rows as any does, and sends
nothing; what it cannot take it does without.

A seat that is retired takes nothing in any more; what it had taken is computed all the same, logged, and said over the seats
that are left. Source: docs/wire.md; the tests in tests/sim run this very code.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from bloombee.errors import BloomBeeError, DeviceError, LocalProtocolError, PoolExhausted, RemoteProtocolError, to_wire
from bloombee.pipeline.commands import Command, Compute, Gather, Send
from bloombee.pipeline.commits import commit
from bloombee.pipeline.device_queue import DeviceQueue, Job
from bloombee.pipeline.events import (
    Computed,
    ComputeFailed,
    Gathered,
    GatherFailed,
    Greeted,
    HostRoom,
    LinkRestored,
    Moved,
    PagesCopied,
    Port,
    Recoded,
    Spilled,
    StageReceived,
    Tick,
    Unsendable,
)
from bloombee.pipeline.frames import lane_of
from bloombee.pipeline.intake import Intake
from bloombee.pipeline.log import LOG_BYTES, BoundaryLog
from bloombee.pipeline.paging import Paging
from bloombee.pipeline.prefixes import gone, keep, say_kept
from bloombee.pipeline.seat import Seat
from bloombee.pipeline.seats import Seats
from bloombee.pipeline.sequences import SequenceStore
from bloombee.pipeline.work import Outcome
from bloombee.types import Epoch, Lane
from bloombee.wire.messages import (
    Ack,
    Close,
    Closed,
    Commit,
    Forward,
    Gap,
    Item,
    Keep,
    Load,
    Pick,
    Resume,
    Resumed,
    Retire,
    Retired,
    StageFailed,
    Wire,
)
from bloombee.wire.spoken import check_spoken

_OF_A_SEAT = (Forward, Ack, Gap, Resume, Resumed)
_FOR_STAGES = (*_OF_A_SEAT, Close, Commit, Keep, Retire, Wire)
_LANES = tuple(Lane)

_OfSeat = Greeted | Recoded | Unsendable | LinkRestored
_OfDevice = Computed | ComputeFailed | Gathered | GatherFailed | Spilled | PagesCopied | HostRoom
Event = StageReceived | _OfDevice | Moved | Tick | _OfSeat


class StageCore:
    """events: see ``Event``. commands: Send, Compute, Gather, Spill, CopyPages.

    Args:
        log_bytes, log_disk_bytes: of what left the stage and is kept, in memory and in a file; 0: there is no file.
    """

    def __init__(self, load: Load, *, resend_after_s: float, log_bytes: int = LOG_BYTES, log_disk_bytes: int = 0) -> None:
        self.load = load
        self.store = SequenceStore(load)
        self.log = BoundaryLog(log_bytes, log_disk_bytes)
        self.seats = Seats(load.pipeline)
        self.failed = False
        self._resend_after_s = resend_after_s
        self._device = DeviceQueue(self.store)
        self._intake = Intake(load.pipeline, self.store, self.log, self._device)
        self._paging = Paging(self.store, self.log, self._device, self._intake)
        self._num_gathers = 0

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
            case PagesCopied():
                self._paging.copied(event)
                return self._start()
            case HostRoom():
                self._paging.opened(event)
                return []
            case ComputeFailed(error=error):
                self.failed = True
                return [self._fail(error)]
            case Tick(now=now, is_busy=is_busy):
                ticks = [command for seat in self.seats.values() for command in seat.tick(now)]
                fed = [seat for seat in self.seats.of_feeds() if not is_busy and self.seats.may_feed(seat)]
                return [*ticks, *(command for seat in fed for command in self._say_again(seat, now))]
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
            check_spoken(message)
            raise RemoteProtocolError(f"{type(message).__name__} is not for a stage", message_type=type(message).__name__)
        if type(message) is Wire:
            return self._wire(message, now)
        if type(message) is Retire and self.seats.is_retired(message):
            return [Send(Port.HEAD, Lane.CONTROL, Retired(message.pipeline, message.epoch))]
        if type(message) is Resume and self.seats.is_early(message):
            return []
        seat = self.seats.find(message.pipeline, message.epoch)
        if type(message) is Forward:
            return self._forward(seat, message, event.payload, now)
        match message:
            case Ack():
                sends = seat.acknowledged(message, now)
                return [*sends, *(self._pump(seat, now) if seat.telling.is_behind else ()), *self._start()]
            case Gap(sequence=sequence, generation=generation, have=have):
                return seat.lacks(sequence, generation, have, now)
            case Resume():
                return self._resume(seat, message, now)
            case Resumed():
                seat.answered()
                return []
            case Commit():
                return self._commit(message, now)
            case Keep():
                return [*keep(self.store, message), *self._start()]
            case Close():
                return self._close(message, now)
        return [*self._retire([message.epoch], now), Send(Port.HEAD, Lane.CONTROL, Retired(message.pipeline, message.epoch))]

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
        """Nothing queued, on the device, being copied, held back or unacknowledged."""
        return self._device.is_idle and self._paging.is_idle and all(seat.is_idle for seat in self.seats.values())

    # -- epochs ----------------------------------------------------------------------------

    def _wire(self, wire: Wire, now: float) -> list[Command]:
        """A seat beside those that there are. Said again it changes nothing."""
        if self.seats.is_new(wire):
            self.seats.add(Seat(wire, self.store, self.log, resend_after_s=self._resend_after_s))
        commands = self._retire(self.seats.older(wire.oldest), now)
        early = self.seats.early
        if early is not None and early.epoch == wire.epoch:
            commands += self._resume(self.seats[wire.epoch], early, now)
            self.seats.early = None
        return commands

    def _resume(self, seat: Seat, message: Resume, now: float) -> list[Command]:
        commands = [] if seat.is_open or not seat.is_last else say_kept(self.store, self.load.pipeline, message.epoch)
        commands += seat.resume(message, now)
        return [*commands, *self._pump(seat, now), *self._start()]

    def _retire(self, epochs: list[Epoch], now: float) -> list[Command]:
        gone = [self.seats.pop(epoch) for epoch in epochs]
        for seat in gone:
            seat.retired = True
        heirs = [seat for seat in self.seats.of_rings() if seat.is_open]
        picks = heirs[-1].pick_again(now) if heirs and any(seat.is_last for seat in gone) else []
        return [*picks, *self._start()]  # what they had taken waits for no credit any more

    # -- rows in ---------------------------------------------------------------------------

    def _forward(self, seat: Seat, forward: Forward, payload: object | None, now: float) -> list[Command]:
        if forward.lane not in seat.upstream:
            raise RemoteProtocolError(f"lane {forward.lane} is none", path="$.lane")
        lane = _LANES[forward.lane]
        upstream = seat.upstream[lane]
        if upstream.holds(forward.frame):
            return [seat.acknowledge(lane, now)]
        counts = [len(item.tokens) // 4 for item in forward.items]
        num_rows = sum(counts)
        upstream.check(forward.frame, num_rows)
        live, lost, lacking = self._intake.live(forward.items)
        reports: list[Command] = []
        if gaps := self.store.gaps(live, most_nodes=seat.wire.max_rows):
            head = {"pipeline": forward.pipeline, "epoch": forward.epoch}
            reports = [
                Send(Port.UPSTREAM, Lane.CONTROL, Gap(sequence=gap.sequence, generation=gap.generation, have=gap.have, **head))
                for gap in gaps
            ]
            if not seat.follows:
                return reports
            lacks = {gap.sequence for gap in gaps}
            live = [item for item in live if item.sequence not in lacks]
        upstream.hold(forward.frame, now, num_rows)
        if (lost or lacking) and not seat.follows:
            self._intake.refuse([*lost, *lacking])
            reports = [*(seat.report_lost(lost, now) if lost else ()), *(seat.report_short(lacking, now) if lacking else ())]
        self._device.add(self._intake.take(seat, forward, counts, live, payload))
        return [*reports, *self._start()]

    # -- the device ------------------------------------------------------------------------

    def _start(self) -> list[Command]:
        """Give the device its next works."""
        commands: list[Command] = []
        may_go_on = True
        try:
            while may_go_on:
                while not self.failed and (job := self._device.start()) is not None:
                    commands.append(Compute(job.work))
                copies, may_go_on = self._paging.pump(self.seats.of_ring)
                commands += copies
        except PoolExhausted as error:
            self.failed = True
            commands.append(self._fail(error))
        return [*commands, *self._gone()]

    def _gone(self) -> list[Command]:
        """What was kept of prefixes and is here no more."""
        seat = self.seats.of_ring
        return [] if seat is None else gone(self.store, self.load.pipeline, seat.wire.epoch)

    def _computed(self, outcome: Outcome, now: float) -> list[Command]:
        job = self._device.finish(outcome.number)
        seat, lane_in = job.seat, lane_of(job.work.phase)
        fresh = self.store.fresh(job.items) if not outcome.failed else ()
        dead = () if fresh is job.items else [item for item in job.items if item not in fresh]
        spills = self._keep(job, fresh, outcome) if not outcome.failed else []
        if seat.retired:
            ended = self._end(job, now) if outcome.failed else []
            return [*self._say_over_others(job, outcome, now), *ended, *self._start(), *spills]
        seat.upstream[lane_in].retire([job.frame])
        sends = seat.pass_on(job.work, job.said or job.items, fresh, dead, outcome, now)
        if outcome.failed and seat.follows:  # what it holds is not what was computed
            sends.append(self._fail(DeviceError("rows that a shadow was sent could not be computed")))
        elif outcome.failed:
            sends += self._end(job, now)
        if len(self.seats) > 1 or seat.telling.is_behind:
            sends += self._say_over_others(job, outcome, now)
        return [*sends, *self._start(), seat.acknowledge(lane_in, now), *spills]

    def _end(self, job: Job, now: float) -> list[Command]:
        """Its rows are not to be had: told over its seat, or the newest of a ring if that is retired."""
        seat = self.seats.of_ring if job.seat.retired else job.seat
        return [] if seat is None else seat.end((item.sequence for item in job.items), now)

    def _keep(self, job: Job, fresh: Sequence[Item], outcome: Outcome) -> list[Command]:
        """In the log; on the last stage picks with their sequence."""
        if not job.seat.is_last:
            return [*self.log.append(job.items, fresh, outcome.hidden, outcome.num_bytes)]
        last: Pick | None = None
        for pick, node in zip(outcome.picks, job.work.nodes or repeat(0), strict=False):  # those of one sequence are neighbours
            one = self.store.get(pick.sequence)
            if one is not None and one.generation == pick.generation:
                is_more = node or (last is not None and last.sequence == pick.sequence)
                one.picks = (*one.picks, (pick, node)) if is_more else ((pick, node),)
            last = pick
        return []

    def _say_over_others(self, job: Job, outcome: Outcome, now: float) -> list[Command]:
        """Over every open seat but the job's own, which are behind then; picks over one, if the job's own is gone."""
        if job.seat.is_last:
            others = [seat for seat in self.seats.of_rings() if seat is not job.seat and seat.is_open]
            return others[-1].pass_on(job.work, job.items, (), (), outcome, now) if others and job.seat.retired else []
        commands: list[Command] = []
        for seat in [seat for seat in self.seats.values() if seat is not job.seat and seat.is_open and not seat.follows]:
            for item in job.items:
                seat.telling.catch_up(item.sequence)
            commands += self._pump(seat, now)
        if not job.seat.retired:
            commands += self._pump(job.seat, now)
        return commands

    def _pump(self, seat: Seat, now: float) -> list[Command]:
        return [] if seat.wire.shadow else self._say_again(seat, now)

    def _say_again(self, seat: Seat, now: float) -> list[Command]:
        commands = seat.pump(now, self._num_gathers)
        self._num_gathers += sum(isinstance(command, Gather) for command in commands)
        return commands

    def _gathered(self, event: Gathered | GatherFailed) -> list[Command]:
        seat = next((seat for seat in self.seats.values() if event.number in seat.gathering), None)
        if seat is None:
            return []  # it was retired meanwhile
        return [*seat.gathered(event), *self._pump(seat, event.now)]

    # -- scheduler and head ----------------------------------------------------------------

    def _close(self, close: Close, now: float) -> list[Command]:
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
        marks = [command for seat in self.seats.values() for command in self._pump(seat, now)]  # nothing may be left to be said
        return [Send(Port.SCHEDULER, Lane.CONTROL, answer), *marks, *self._start()]

    def _commit(self, message: Commit, now: float) -> list[Command]:
        seats = sorted(self.seats.values(), key=lambda seat: not seat.wire.shadow)  # the newest of a ring speaks for all
        commands = commit(self.store, self.log, seats, self._device.jobs, message, now)
        return [*commands, *(one for seat in seats if seat.telling.is_behind for one in self._pump(seat, now)), *self._start()]

    def _fail(self, error: BloomBeeError) -> Send:
        code, fields = to_wire(error)
        epoch = self.seats.newest or max(self.seats, default=0)
        failed = StageFailed(pipeline=self.load.pipeline, epoch=epoch, code=code, fields=fields)
        return Send(Port.HEAD, Lane.CONTROL, failed)
