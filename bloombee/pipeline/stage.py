"""One stage of a pipeline as a pure state machine: rows in, work for the device, rows out.

Theory of operation. A Forward frame addresses rows by (sequence, generation, position). What the stage holds of a
sequence is a prefix [0, have) within a generation, so each item of a frame is one of

    generation older, or closed            dropped
    generation newer                       rolled back to the item's position, then taken
    ends at or before ``have``             held already, ignored
    starts at or before ``have``           its rows from ``have`` on are taken
    starts beyond ``have``                 Gap(have): the frame is not taken as held and will come again
    newer, further back than is kept       Gap(0): layers with a window have forgotten what its rows see

Every frame that is taken in becomes exactly one work and exactly one frame for the next stage, whatever became
of its sequences, so that a microbatch always comes home. A frame is acknowledged when its work is done: from
then on the next link is responsible for it. An illegal message leaves the state as it was.

Pages are given out when a work goes to the device, not when its frame comes: what waits holds none, and what a work gives
back can be had by the next, which the device runs after it.
Source: docs/wire.md; the tests in tests/sim run this very code.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from msgspec.structs import replace

from bloombee.errors import BloomBeeError, LocalProtocolError, PoolExhausted, RemoteProtocolError, StalePlan, to_wire
from bloombee.kv.pool import PagePool, PageTable, can_go_back
from bloombee.pipeline.commands import Command, Compute, Send
from bloombee.pipeline.events import Computed, ComputeFailed, LinkRestored, Moved, Port, Recoded, StageReceived, Tick, Unsendable
from bloombee.pipeline.frames import FrameReceiver, LinkSender, lane_of
from bloombee.pipeline.work import Outcome, Pages, Segment, Work
from bloombee.types import Lane, Phase, SequenceId
from bloombee.wire.messages import Ack, Assign, Close, Closed, Forward, Gap, Item, Opening, Retire, StageFailed, Verdict

_FOR_STAGES = (Forward, Ack, Gap, Close, Retire)
_PHASES = {int(phase): phase for phase in Phase}
DEVICE_DEPTH = 2
"""Works given to the device at once: it never waits for the event loop, and little is committed early."""
MOST_OVERTAKES = 8
"""Decode works in a row that pass a waiting prefill work; then it has its turn, however much there is to decode."""


@dataclass(slots=True)
class _Sequence:
    generation: int
    opening: Opening
    tables: tuple[PageTable, ...]
    """One a group; of what the device has been given so far."""
    have: int = 0
    newest: int = 0
    """The most that was ever held of it, since it last began at 0: how far back it can go depends on that."""
    tokens: bytearray = field(default_factory=bytearray)
    """All token ids that the device has been given, kept on the last stage for penalties."""
    num_prefill: int = 0
    """Works in the prefill queue: decode of the same sequence must not overtake them."""

    @property
    def is_decoding(self) -> bool:
        """All of its prompt is here; what comes is decode."""
        return self.have >= self.opening.num_prompt_tokens


@dataclass(slots=True)
class _Job:
    """A work and what its outgoing frame must say. Before it goes to the device the work has no segments."""

    work: Work
    queue: Phase
    frame: int
    items: tuple[Item, ...]


class StageCore:
    """events: StageReceived, Computed, ComputeFailed, Recoded, Unsendable, LinkRestored, Moved,
    Tick. commands: Send, Compute."""

    def __init__(self, assign: Assign, *, resend_after_s: float) -> None:
        self.assign = assign
        self.is_last = assign.stage == assign.num_stages - 1
        self.pools = tuple(PagePool(group.num_pages, assign.page_size) for group in assign.groups)
        self.upstream = {lane: FrameReceiver(window=assign.num_microbatches) for lane in Lane}
        self.downstream = LinkSender(limit=assign.num_microbatches, resend_after_s=resend_after_s)
        self._sequences: dict[SequenceId, _Sequence] = {}
        self._closed: set[SequenceId] = set()
        self._floor = 0
        self._queues: dict[Phase, deque[_Job]] = {Phase.DECODE: deque(), Phase.PREFILL: deque()}
        self._on_device: deque[_Job] = deque()
        self._num_works = 0
        self._num_overtakes = 0
        self.retired = False
        self.failed = False

    # -- the one door ----------------------------------------------------------------------

    def handle(
        self, event: StageReceived | Computed | ComputeFailed | Recoded | Unsendable | LinkRestored | Moved | Tick
    ) -> list[Command]:
        """Raises RemoteProtocolError or StalePlan for a message the peer must not send; the state is as it was."""
        if type(event) is StageReceived:
            return self._received(event)
        if type(event) is Computed:
            return self._computed(event.outcome, event.now)
        match event:
            case ComputeFailed(error=error):
                self.failed = True
                return [self._fail(error)]
            case Recoded(lane=lane, frame=frame, payload=payload, now=now):
                return list(self.downstream.lanes[lane].replace(frame, payload, now))
            case Unsendable(lane=lane, frame=frame, now=now):
                return list(self.downstream.lanes[lane].blank(frame, now))
            case LinkRestored(port=Port.DOWNSTREAM, now=now):
                return list(self.downstream.resend(now))
            case LinkRestored(port=Port.UPSTREAM, now=now):
                return [self._acknowledge(lane, now) for lane in Lane]
            case LinkRestored():
                return []
            case Moved(now=now):
                self.downstream.lanes[Lane.BULK].moved(now)
                return []
            case Tick(now=now):
                return list(self.downstream.tick(now))
        raise LocalProtocolError(f"{event!r} is not an event of a stage")

    def _received(self, event: StageReceived) -> list[Command]:
        message = event.message
        if not isinstance(message, _FOR_STAGES):
            raise RemoteProtocolError(f"{type(message).__name__} is not for a stage", message_type=type(message).__name__)
        self._check_address(message.pipeline, message.epoch)
        if type(message) is Forward:
            return self._forward(message, event.payload, event.now)
        if type(message) is Ack:
            return [*self.downstream.acknowledge(message, event.now), *self._start()]
        if type(message) is Gap:
            return list(self.downstream.resend_rows(message.sequence, message.have, event.now))
        if type(message) is Close:
            return self._close(message)
        self.retired = True
        return []

    # -- what people ask -------------------------------------------------------------------

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    @property
    def pages_free(self) -> int:
        """Of all groups."""
        return sum(pool.num_free for pool in self.pools)

    @property
    def is_idle(self) -> bool:
        """Nothing queued, on the device, held back or unacknowledged."""
        return not (any(self._queues.values()) or self._on_device or self.downstream.num_backlog or self.downstream.num_kept)

    # -- rows in ---------------------------------------------------------------------------

    def _check_address(self, pipeline: int, epoch: int) -> None:
        if pipeline != self.assign.pipeline or epoch != self.assign.epoch or self.retired:
            raise StalePlan(
                f"pipeline {pipeline} epoch {epoch}: this stage serves pipeline {self.assign.pipeline} epoch {self.assign.epoch}"
                + (", retired" if self.retired else ""),
                pipeline=pipeline,
                epoch=epoch,
            )

    def _forward(self, forward: Forward, payload: object | None, now: float) -> list[Command]:
        phase = _PHASES.get(forward.phase)
        if phase is None:
            raise RemoteProtocolError(f"phase {forward.phase} is none", path="$.phase")
        upstream = self.upstream[lane_of(phase)]
        if upstream.holds(forward.frame):
            return [self._acknowledge(lane_of(phase), now)]
        upstream.check(forward.frame)
        live = self._live(forward)
        gaps = [gap for item in live if (gap := self._gap(item)) is not None]
        if gaps:
            return [Send(Port.UPSTREAM, Lane.CONTROL, gap) for gap in gaps]
        upstream.hold(forward.frame, now)
        queue = self._queue_for(phase, live)
        self._queues[queue].append(self._take(forward, phase, queue, live, payload))
        return self._start()

    def _live(self, forward: Forward) -> list[Item]:
        """The items whose sequences are not closed. Raises RemoteProtocolError for what may not be in a frame."""
        live, seen = [], set()
        for item in forward.items:
            if item.sequence in seen:
                raise RemoteProtocolError("a sequence twice in one frame", path="$.items")
            if item.parents is not None:
                raise RemoteProtocolError("rows in a tree are not spoken in this version", path="$.items[...].parents")
            seen.add(item.sequence)
            if not self._is_closed(item.sequence):
                live.append(item)
        return live

    def _is_closed(self, sequence: SequenceId) -> bool:
        return sequence < self._floor or sequence in self._closed

    def _gap(self, item: Item) -> Gap | None:
        """What to answer if the item starts beyond what is held."""
        held = self._sequences.get(item.sequence)
        if held is None:
            have, generation = 0, item.generation
        elif item.generation < held.generation:
            return None
        else:
            have, generation = held.have, item.generation
            if item.generation > held.generation and not self._can_go_back(held, item.position):
                have = 0
        if item.position <= have and (held is not None or item.opening is not None):
            return None
        return Gap(
            pipeline=self.assign.pipeline, epoch=self.assign.epoch, sequence=item.sequence, generation=generation, have=have
        )

    def _can_go_back(self, held: _Sequence, position: int) -> bool:
        return all(can_go_back(position, held.newest, group.window) for group in self.assign.groups)

    def _take(self, forward: Forward, phase: Phase, queue: Phase, live: list[Item], payload: object | None) -> _Job:
        """Update the sequences and make the work; every check has been passed."""
        rows: dict[SequenceId, tuple[int, int]] = {}
        start = 0
        for item in forward.items:
            rows[item.sequence] = (start, start + item.num_rows)
            start += item.num_rows
        items, spans = [], []
        for item in live:
            held = self._sequences.get(item.sequence)
            if held is None:
                assert item.opening is not None
                held = self._sequences[item.sequence] = _Sequence(item.generation, item.opening, self._new_tables())
            if item.generation < held.generation:
                continue
            if item.generation > held.generation:
                held.generation = item.generation
                held.have = item.position
                held.newest = held.newest if item.position else 0
            skip = held.have - item.position
            if skip >= item.num_rows:
                continue
            held.have = item.position + item.num_rows
            held.newest = max(held.newest, held.have)
            held.num_prefill += queue is Phase.PREFILL
            begin, end = rows[item.sequence]
            items.append(_tail(item, skip))
            spans.append((begin + skip, end))
        work = Work(
            pipeline=self.assign.pipeline,
            epoch=self.assign.epoch,
            number=self._num_works,
            microbatch=forward.microbatch,
            phase=phase,
            segments=(),
            hidden=payload,
            hidden_rows=tuple(spans),
        )
        self._num_works += 1
        return _Job(work, queue, forward.frame, tuple(items))

    def _new_tables(self) -> tuple[PageTable, ...]:
        return tuple(PageTable(pool, group.window) for pool, group in zip(self.pools, self.assign.groups, strict=True))

    # -- pages -----------------------------------------------------------------------------

    def _place(self, job: _Job) -> None:
        """Fill in the job's segments with pages for their rows: it goes to the device now. What was closed meanwhile is left out.

        Raises:
            PoolExhausted: the scheduler has admitted more than there is room for.
        """
        items, segments, spans, placed = [], [], [], []
        for item, span in zip(job.items, job.work.hidden_rows, strict=True):
            held = self._sequences.get(item.sequence)
            if held is None:
                continue
            held.num_prefill -= job.queue is Phase.PREFILL
            items.append(item)
            segments.append(self._segment(held, item))
            spans.append(span)
            placed.append((held, item.position + item.num_rows))
        for held, stop in placed:
            for table in held.tables:
                table.slide(stop)
        job.items = tuple(items)
        job.work = replace(job.work, segments=tuple(segments), hidden_rows=tuple(spans))

    def _segment(self, held: _Sequence, item: Item) -> Segment:
        stop = item.position + item.num_rows
        sources = [table.place(item.position, stop) for table in held.tables]
        sampling = held.opening.sampling if self.is_last else None
        history = b""
        if sampling is not None and (self.assign.rules is not None or _has_penalty(held.opening)):
            del held.tokens[4 * item.position :]
            held.tokens += item.tokens
            history = bytes(held.tokens)
        return Segment(
            sequence=item.sequence,
            generation=item.generation,
            position=item.position,
            tokens=item.tokens,
            num_picks=item.num_picks if self.is_last else 0,
            pages=tuple([Pages(table.pages, table.start, source) for table, source in zip(held.tables, sources, strict=True)]),
            sampling=sampling,
            num_prompt_tokens=held.opening.num_prompt_tokens,
            history=history,
            max_new_tokens=held.opening.max_new_tokens,
            end_tokens=held.opening.end_tokens,
        )

    # -- the device ------------------------------------------------------------------------

    def _queue_for(self, phase: Phase, items: list[Item]) -> Phase:
        """Decode goes ahead of prefill, but not ahead of prefill of its own sequences."""
        held = (self._sequences.get(item.sequence) for item in items)
        return Phase.PREFILL if any(h.num_prefill for h in held if h) else phase

    def _start(self) -> list[Command]:
        """Give the device its next works."""
        commands: list[Command] = []
        while len(self._on_device) < DEVICE_DEPTH and not self.failed and (queue := self._next_queue()) is not None:
            job = self._queues[queue].popleft()
            waits = queue is Phase.DECODE and self._queues[Phase.PREFILL]
            self._num_overtakes = self._num_overtakes + 1 if waits else 0
            try:
                self._place(job)
            except PoolExhausted as error:
                self.failed = True
                return [*commands, self._fail(error)]
            self._on_device.append(job)
            commands.append(Compute(job.work))
        return commands

    def _next_queue(self) -> Phase | None:
        """Decode first, now and then prefill; each only where the next stage has room for what comes of it."""
        can_prefill = self._can_go(Phase.PREFILL)
        if self._can_go(Phase.DECODE) and not (can_prefill and self._num_overtakes >= MOST_OVERTAKES):
            return Phase.DECODE
        return Phase.PREFILL if can_prefill and self._may_prefill() else None

    def _can_go(self, queue: Phase) -> bool:
        jobs = self._queues[queue]
        return bool(jobs) and not self.downstream.lanes[self._lane_out(jobs[0].work)].num_backlog

    def _may_prefill(self) -> bool:
        """A work that is on the device cannot be overtaken: while anything decodes, decode waits for one that runs at most."""
        return not self._on_device or not any(held.is_decoding for held in self._sequences.values())

    def _lane_out(self, work: Work) -> Lane:
        return Lane.CONTROL if self.is_last else lane_of(work.phase)

    def _computed(self, outcome: Outcome, now: float) -> list[Command]:
        if not self._on_device or self._on_device[0].work.number != outcome.number:
            raise LocalProtocolError(f"work {outcome.number} came back out of turn")
        job = self._on_device.popleft()
        lane_in, lane_out = lane_of(job.work.phase), self._lane_out(job.work)
        self.upstream[lane_in].retire([job.frame])
        sends = self.downstream.lanes[lane_out].push(lambda number: self._outgoing(job, outcome, number), now)
        return [*sends, *self._start(), self._acknowledge(lane_in, now)]

    def _outgoing(self, job: _Job, outcome: Outcome, number: int) -> Send:
        work = job.work
        lane = self._lane_out(work)
        head = {"pipeline": work.pipeline, "epoch": work.epoch, "frame": number, "microbatch": work.microbatch}
        if self.is_last:
            return Send(Port.DOWNSTREAM, lane, Verdict(**head, picks=outcome.picks))
        return Send(Port.DOWNSTREAM, lane, Forward(**head, phase=work.phase, items=job.items), outcome.hidden)

    # -- the head --------------------------------------------------------------------------

    def _close(self, close: Close) -> list[Command]:
        """Free at once all that they hold: works that still read it are on the device already, before any that is to come."""
        self._floor = max(self._floor, close.floor)
        self._closed = {s for s in self._closed.union(close.sequences) if s >= self._floor}
        for sequence in [s for s in self._sequences if self._is_closed(s)]:
            for table in self._sequences.pop(sequence).tables:
                table.truncate(0)
        answer = Closed(
            pipeline=self.assign.pipeline,
            epoch=self.assign.epoch,
            sequences=close.sequences,
            floor=close.floor,
            pages_free=self.pages_free,
        )
        return [Send(Port.HEAD, Lane.CONTROL, answer)]

    def _acknowledge(self, lane: Lane, now: float) -> Send:
        answer = self.upstream[lane].acknowledgement(self.assign.pipeline, self.assign.epoch, now, lane)
        return Send(Port.UPSTREAM, Lane.CONTROL, answer)

    def _fail(self, error: BloomBeeError) -> Send:
        code, fields = to_wire(error)
        return Send(
            Port.HEAD,
            Lane.CONTROL,
            StageFailed(pipeline=self.assign.pipeline, epoch=self.assign.epoch, code=code, fields=fields),
        )


def _tail(item: Item, skip: int) -> Item:
    """The item without its first ``skip`` rows."""
    if skip == 0:
        return item
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


def _has_penalty(opening: Opening) -> bool:
    s = opening.sampling
    return s.repetition_penalty != 1.0 or s.presence_penalty != 0.0 or s.frequency_penalty != 0.0
