"""The order in which a stage's device gets its works: one for all seats. Pure.

Decode goes ahead of prefill, though not of prefill of its own sequences, and not for ever. A work waits while the next stage has
no room for what comes of it. It gets pages when it goes to the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from bloombee.errors import LocalProtocolError
from bloombee.pipeline.arrivals import has_room, is_here
from bloombee.pipeline.seat import Seat
from bloombee.pipeline.sequences import SequenceStore
from bloombee.pipeline.trees import parts_after, some_rows
from bloombee.pipeline.work import Work
from bloombee.types import Phase, SequenceId
from bloombee.wire.messages import Cut, Item

DEVICE_DEPTH = 2
"""Works given to the device at once: it never waits for the event loop, and little is committed early."""
MOST_OVERTAKES = 8
"""Decode works in a row that pass a waiting prefill work; then it has its turn, however much there is to decode."""


@dataclass(slots=True, eq=False)
class Job:
    """A work and what its outgoing frame must say. Before it goes to the device the work has no segments."""

    work: Work
    queue: Phase
    frame: int
    items: tuple[Item, ...]
    """Rows that are alive bear the generation that their sequence has now."""
    seat: Seat
    said: tuple[Item, ...] | None = None
    """The items as they were computed, where those above were cut since: what comes of the work has all their rows."""

    def cut_waiting(self, cut: Cut) -> int:
        """Not on the device yet: dead rows are not computed. Returns by how many there are fewer items of the sequence."""
        items, spans, num_gone = list[Item](), list[tuple[int, int]](), 0
        for item, span in zip(self.items, self.work.hidden_rows, strict=True):
            if item.sequence != cut.sequence:
                items.append(item)
                spans.append(span)
                continue
            num_gone += 1
            for part in parts_after(item, cut):
                if part.item is not None:
                    items.append(part.item)
                    spans.append((span[0] + part.start, span[0] + part.stop))
                    num_gone -= 1
        self.items = tuple(items)
        self.work = replace(self.work, hidden_rows=tuple(spans))
        return num_gone

    def cut_running(self, cut: Cut) -> None:
        """On the device: what is alive of the sequence's rows parts from what is dead, which keeps its generation."""
        items: list[Item] = []
        for item in self.items:
            if item.sequence != cut.sequence:
                items.append(item)
                continue
            items += [part.item or some_rows(item, part.start, part.stop) for part in parts_after(item, cut)]
        self.said = self.said or self.items
        self.items = tuple(items)


Jobs = tuple[Sequence[Job], Sequence[Job]]
"""Those that wait for the device, and those that it has."""


class DeviceQueue:
    """Works that wait, and those that the device has.

    Args:
        store: of the sequences whose rows they are.
    """

    def __init__(self, store: SequenceStore) -> None:
        self._store = store
        self._waiting: dict[Phase, deque[Job]] = {Phase.DECODE: deque(), Phase.PREFILL: deque()}
        self._running: deque[Job] = deque()
        self._num_overtakes = 0
        self.num_started = 0
        """Works that the device was given so far; ``num_ended``: that it was done with."""
        self.num_ended = 0

    @property
    def is_idle(self) -> bool:
        return not (self._running or any(self._waiting.values()))

    @property
    def jobs(self) -> Jobs:
        return [job for queue in self._waiting.values() for job in queue], self._running

    def queue_for(self, phase: Phase, items: Sequence[Item]) -> Phase:
        """Where a work of ``phase`` with rows of these sequences waits. To be asked before the rows are taken."""
        if phase is Phase.PREFILL or not self._waiting[Phase.PREFILL]:
            return phase
        held = (self._store.get(item.sequence) for item in items)
        return Phase.PREFILL if any(one.num_prefill for one in held if one is not None) else phase

    def add(self, job: Job) -> None:
        self._waiting[job.queue].append(job)

    def start(self) -> Job | None:
        """The next job for the device, with pages for its rows; None while it has enough, or nothing may go.

        Raises:
            PoolExhausted: the scheduler has admitted more than there is room for.
        """
        if len(self._running) >= DEVICE_DEPTH or (job := self._next()) is None or not self._finds_room(job):
            return None
        self._waiting[job.queue].remove(job)
        waits = job.queue is Phase.DECODE and self._waiting[Phase.PREFILL]
        self._num_overtakes = self._num_overtakes + 1 if waits else 0
        self._place(job)
        self._running.append(job)
        self.num_started += 1
        return job

    def finish(self, number: int) -> Job:
        """The device is done with its oldest work, which must be ``number``. Raises LocalProtocolError if it is not."""
        if not self._running or self._running[0].work.number != number:
            raise LocalProtocolError(f"work {number} came back out of turn")
        self.num_ended += 1
        return self._running.popleft()

    def _next(self) -> Job | None:
        """Decode first, now and then prefill; each only where the next stage has room for what comes of it."""
        prefill, decode = self._first(Phase.PREFILL), self._first(Phase.DECODE)
        if prefill is not None and not (self._can_go(prefill) and self._follows(prefill)):
            prefill = None
        if decode is not None and self._can_go(decode) and not (prefill is not None and self._num_overtakes >= MOST_OVERTAKES):
            return decode
        return prefill if prefill is not None and self._may_prefill() else None

    def _first(self, queue: Phase) -> Job | None:
        """The first job that waits for no rows which are on their way to the device; none passes another of its sequences."""
        jobs = self._waiting[queue]
        if not jobs or not self._store.kv.prefixes.tiers.has_arrivals:
            return jobs[0] if jobs else None
        late = set[SequenceId]()
        for job in jobs:
            sequences = {item.sequence for item in job.items}
            if late.isdisjoint(sequences) and all(is_here(self._store, sequence) for sequence in sequences):
                return job
            late |= sequences
        return None

    def _finds_room(self, job: Job) -> bool:
        return not self._store.kv.prefixes.tiers.is_busy or has_room(self._store, job.items)

    def _follows(self, job: Job) -> bool:
        """Whether all rows before the job's have been given to the device: some may wait with decode."""
        helds = ((item, self._store.get(item.sequence)) for item in job.items)
        return not self._waiting[Phase.DECODE] or all(held is None or item.position <= held.placed for item, held in helds)

    @staticmethod
    def _can_go(job: Job) -> bool:
        seat = job.seat
        return seat.retired or (seat.is_open and not seat.downstream.lanes[seat.lane_out(job.work)].num_backlog)

    def _may_prefill(self) -> bool:
        """A work that is on the device cannot be overtaken: while anything decodes, decode waits for one that runs at most."""
        return not self._running or not self._store.any_decodes

    def _place(self, job: Job) -> None:
        """Fill in the job's segments with pages for their rows: it goes to the device now. What was closed is left out."""
        store, seat, wanted = self._store, job.seat, job.seat.wanted
        items, spans = job.items, job.work.hidden_rows
        held = [store.get(item.sequence) for item in items]
        if not all(held):
            items = tuple([item for item, one in zip(items, held, strict=True) if one is not None])
            spans = tuple([span for span, one in zip(spans, held, strict=True) if one is not None])
        placed = [one for one in held if one is not None]
        if job.queue is Phase.PREFILL:
            for one in placed:
                one.num_prefill -= 1
        segments = []
        for one, item, (start, stop) in zip(placed, items, spans, strict=True):
            least = wanted.get(item.sequence, 0) if wanted else 0
            segments.append(store.place(one, item, stop - start, is_last=seat.is_last, wanted=least))
        store.slide(zip(placed, items, strict=True))
        job.items = items
        job.work = replace(job.work, segments=tuple(segments), hidden_rows=spans)
