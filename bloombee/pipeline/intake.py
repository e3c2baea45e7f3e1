"""How a stage takes the rows of a frame. Pure.

A frame addresses rows by (sequence, generation, position), and each of its items is one of

    closed                                 dropped
    generation older                       its rows that are still alive are taken as below, the rest is dropped (``cuts.py``)
    generation newer, from position 0      the sequence begins anew, or as a fork of another
    generation newer, on a prefix          the sequence begins anew with rows that are kept here; if they are not, it is dropped
                                           and Have says how many there are, until it begins in another way
    generation newer, from further on      Gap(0): no Commit has said yet how it began; the frame will come again
    ends at or before ``have``             held already, ignored
    starts at or before ``have``           its rows from ``have`` on are taken
    starts beyond ``have``                 Gap(have): the frame is not taken as held and will come again

Nodes of a tree are taken likewise, in the order of their numbers, where their tree hangs on the last row that is held.
"""

from __future__ import annotations

from collections.abc import Sequence

from bloombee.errors import RemoteProtocolError
from bloombee.pipeline.commits import drop
from bloombee.pipeline.device_queue import DeviceQueue, Job
from bloombee.pipeline.held import Held
from bloombee.pipeline.log import BoundaryLog
from bloombee.pipeline.prefixes import short
from bloombee.pipeline.seat import Seat
from bloombee.pipeline.sequences import SequenceStore
from bloombee.pipeline.work import Work
from bloombee.types import Kind, Phase, PipelineId, Priority, SequenceId
from bloombee.wire.messages import Cut, Forward, Holding, Item
from bloombee.wire.spoken import check_item

_NOW, _SHADOW = int(Priority.NOW), int(Kind.SHADOW)
_PHASE_ON = (Phase.DECODE, Phase.PREFILL)
"""By lane: what a frame is to traces and to the device's tally."""


class Intake:
    """Of one stage: makes works of frames."""

    def __init__(self, pipeline: PipelineId, store: SequenceStore, log: BoundaryLog, device: DeviceQueue) -> None:
        self._pipeline = pipeline
        self._store = store
        self._log = log
        self._device = device
        self._num_works = 0
        self._refused: dict[SequenceId, int] = {}
        """Those that could not begin, and their generations: they come as another one."""

    def live(self, items: Sequence[Item]) -> tuple[Sequence[Item], list[Holding], list[Holding]]:
        """The items that may be taken, as their sequences are not closed; forks of what is here no more, and what is to begin on
        a prefix that is not here, which may not (:meth:`refuse`).

        Raises:
            RemoteProtocolError: what may not be in a frame. NotSpoken: what is not spoken yet.
        """
        if len({item.sequence for item in items}) < len(items):
            raise RemoteProtocolError("a sequence twice in one frame", path="$.items")
        odd = [item for item in items if item.opening is not None or item.kind == _SHADOW]
        for item in odd:
            check_item(item)
        live = self._store.live(items)
        if self._refused:
            live = [item for item in live if item.generation > self._refused.get(item.sequence, -1)]
        if not odd:
            return live, [], []
        odd = [item for item in odd if item in live]
        lost, lacking = self._store.lost(odd), short(self._store, odd)
        if lost or lacking:
            refused = {one.sequence for one in (*lost, *lacking)}
            live = [item for item in live if item.sequence not in refused]
        return live, lost, lacking

    def refuse(self, refused: Sequence[Holding]) -> None:
        """Rows of these, of :meth:`live`, are dropped from now on, until they begin as another generation."""
        store = self._store
        known = self._refused | {one.sequence: one.generation for one in refused}
        self._refused = {number: generation for number, generation in known.items() if not store.is_closed(number)}

    def take(self, seat: Seat, forward: Forward, counts: Sequence[int], live: Sequence[Item], payload: object | None) -> Job:
        """Update the sequences and make the work; every check has been passed.

        Args:
            counts: the rows of each item of ``forward``.
            live: as :meth:`live`.
        """
        queue = self._device.queue_for(Phase.PREFILL if forward.priority > _NOW else Phase.DECODE, live)
        store, stop = self._store, 0
        wanted = None if live is forward.items else {item.sequence for item in live}
        items: list[Item] = []
        spans: list[tuple[int, int]] = []
        for item, num_rows in zip(forward.items, counts, strict=True):
            start, stop = stop, stop + num_rows
            if wanted is not None and item.sequence not in wanted:
                continue
            held = self._held(item)
            if item.tree is not None:
                for part in store.take_nodes(held, item, item.tree):
                    assert part.item is not None
                    held.num_prefill += queue is Phase.PREFILL
                    items.append(part.item)
                    spans.append((start + part.start, start + part.stop))
                continue
            taken = store.take(held, item, num_rows)
            if taken is None:
                continue
            if queue is Phase.PREFILL:
                held.num_prefill += 1
            items.append(taken)
            start += taken.position - item.position
            spans.append((start, start + len(taken.tokens) // 4))
        work = Work(
            pipeline=self._pipeline,
            epoch=forward.epoch,
            number=self._num_works,
            microbatch=forward.microbatch,
            phase=_PHASE_ON[forward.lane],
            segments=(),
            hidden=payload,
            hidden_rows=tuple(spans),
            priority=forward.priority,
        )
        self._num_works += 1
        return Job(work, queue, forward.frame, tuple(items), seat)

    def _held(self, item: Item) -> Held:
        """The item's sequence; where the item begins it anew, what was held before is dropped."""
        held = self._store.get(item.sequence)
        if self._refused and item.generation > self._refused.get(item.sequence, item.generation):
            del self._refused[item.sequence]
        if held is None:
            return self._store.open(item)
        if item.generation > held.generation:
            drop(self._log, self._device.jobs, held, Cut(item.sequence, item.generation, 0, ()))
        return held
