"""One epoch of a plan as the scheduler has it: frames to stage 0, verdicts from the last stage, what is under way. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from bloombee.pipeline.commands import Send
from bloombee.pipeline.frames import FrameReceiver, LinkSender, lane_of
from bloombee.pipeline.patience import Patience
from bloombee.pipeline.scheduler.closing import Place
from bloombee.pipeline.scheduler.pages import PageLedger
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.plan.plan import Ring
from bloombee.types import Lane, Phase, Priority, SequenceId
from bloombee.wire.messages import MAX_ITEMS, Ack, Close, Commit, Cut, Forward, Holding, Item, Resume, Resumed, Verdict

VERDICT_WINDOW = 1 << 20
"""Verdicts are tiny and the scheduler never makes the last stage wait."""


@dataclass(slots=True)
class Flight:
    """A microbatch under way."""

    phase: Phase
    sent_at: float
    num_rows: int
    prefill_share: float
    """Of the rows of prompts that may be under way."""
    lane: Lane
    sequences: tuple[SequenceId, ...]
    positions: tuple[int, ...]
    """Of the first row of each."""
    is_more: bool
    """Of drafts, of which a part went before: it takes no other's turn."""
    overtaken_at: float | None = None
    """When one that was sent later on the same lane had come home."""


class Epoch:
    """Wired, and open once stage 0 has said what it holds.

    Args:
        pages: that the sequences take, of whatever epoch.
        max_rows: of a microbatch.
        only: of a shadow, the stage that it follows: no other is of this epoch.
        patience: of the pipeline; what steps have shown goes on from epoch to epoch.
        resend_after_s: silence after which a frame, or what is known here, is said again.
    """

    def __init__(
        self,
        ring: Ring,
        pages: PageLedger,
        patience: Patience,
        *,
        max_rows: int,
        resend_after_s: float,
        only: int | None = None,
    ) -> None:
        self.ring = ring
        self.stages = range(ring.num_stages) if only is None else range(only, only + 1)
        self.is_shadow = only is not None
        self.pages = pages
        self.patience = patience
        self.sender = LinkSender(limit=ring.num_microbatches, resend_after_s=resend_after_s, max_rows=max_rows)
        self.is_open = False
        """Stage 0 has said what it holds."""
        self.is_broken = False
        """It has lost a stage: nothing enters it any more."""
        self.last = ring.num_stages - 1
        self.max_rows = max_rows
        self._resend_after_s = resend_after_s
        self._receiver = FrameReceiver(window=VERDICT_WINDOW)
        self._asked_at: float | None = None
        """When the last stage was last told what is known here; None: it has answered."""
        self._flights: dict[int, Flight] = {}
        self._late: dict[int, Flight] = {}
        """Given up; they may come home yet, and show how long it took."""
        self._moved_at = -math.inf
        """When there last was a sign that anything comes on."""

    @property
    def places(self) -> list[Place]:
        return [(self.ring.epoch, stage) for stage in self.stages]

    @property
    def is_idle(self) -> bool:
        return not (self._flights or self.sender.num_kept)

    @property
    def has_arrived(self) -> bool:
        """All that was sent is with stage 0."""
        return not (self.sender.num_kept or self.sender.num_backlog)

    def can_send(self, phase: Phase) -> bool:
        return self.sender.lanes[lane_of(phase)].can_send()

    def moved(self, now: float) -> None:
        """There is a sign that something comes on."""
        self._moved_at = now

    # -- beginning and end -----------------------------------------------------------------

    def open(self, now: float) -> None:
        self.is_open, self._moved_at = True, now

    def break_off(self) -> None:
        self.is_open, self.is_broken = False, True
        self._flights.clear()
        self._late.clear()

    def resumed(self) -> Send:
        """To stage 0: what it holds is known."""
        return Send(0, Lane.CONTROL, Resumed(pipeline=self.ring.pipeline, epoch=self.ring.epoch))

    def say_known(self, sequences: Iterable[SequenceState], now: float) -> Send:
        """To the last stage, so that it says again which picks are lacking here."""
        self._asked_at = now
        known = tuple([Holding(one.id, one.generation, one.num_tokens) for one in sequences])
        return Send(self.last, Lane.CONTROL, Resume(pipeline=self.ring.pipeline, epoch=self.ring.epoch, holdings=known))

    def answered(self) -> None:
        """The last stage has heard what is known here."""
        self._asked_at = None

    def is_unanswered(self, now: float) -> bool:
        return self._asked_at is not None and now - self._asked_at >= self._resend_after_s

    def close(self, stage: int, sequences: tuple[SequenceId, ...], floor: SequenceId) -> Send:
        message = Close(pipeline=self.ring.pipeline, epoch=self.ring.epoch, sequences=sequences, floor=floor)
        return Send(stage, Lane.CONTROL, message)

    def commit(self, stage: int, cuts: Sequence[Cut]) -> list[Send]:
        """A stage is to know of these."""
        head = {"pipeline": self.ring.pipeline, "epoch": self.ring.epoch}
        parts = [tuple(cuts[at : at + MAX_ITEMS]) for at in range(0, len(cuts), MAX_ITEMS)]
        return [Send(stage, Lane.CONTROL, Commit(cuts=part, **head)) for part in parts]

    # -- there and back --------------------------------------------------------------------

    @property
    def num_decoding(self) -> int:
        """Microbatches that decode under way."""
        return sum([flight.phase is Phase.DECODE and not flight.is_more for flight in self._flights.values()])

    @property
    def prefill_share(self) -> float:
        """Under way of the rows of prompts that may be."""
        return sum(flight.prefill_share for flight in self._flights.values())

    def send(
        self,
        microbatch: int,
        phase: Phase,
        items: list[Item],
        now: float,
        *,
        travels_as: Phase,
        prefill_share: float,
        is_more: bool = False,
    ) -> list[Send]:
        lane = lane_of(travels_as)
        num_rows = sum([item.num_rows for item in items])
        self._flights[microbatch] = Flight(
            phase,
            now,
            num_rows=num_rows,
            prefill_share=prefill_share,
            lane=lane,
            sequences=tuple([item.sequence for item in items]),
            positions=tuple([item.position for item in items]),
            is_more=is_more,
        )

        def make(number: int) -> Send:
            message = Forward(
                pipeline=self.ring.pipeline,
                epoch=self.ring.epoch,
                frame=number,
                microbatch=microbatch,
                lane=lane,
                priority=Priority.NOW if travels_as is Phase.DECODE else Priority.PROMPT,
                items=tuple(items),
            )
            return Send(0, lane, message)

        return self.sender.lanes[lane].push(make, now, num_rows=num_rows)

    def take(self, verdict: Verdict, now: float) -> bool:
        """Whether it is new. Raises RemoteProtocolError if its sender has no credit for it; nothing changed."""
        if self._receiver.holds(verdict.frame):
            return False
        self._receiver.check(verdict.frame)
        self._receiver.hold(verdict.frame, now)
        self._receiver.retire([verdict.frame])
        return True

    def acknowledge(self, now: float) -> Send:
        """Verdicts, to the last stage."""
        ack: Ack = self._receiver.acknowledgement(self.ring.pipeline, self.ring.epoch, now, Lane.CONTROL)
        return Send(self.last, Lane.CONTROL, ack)

    def came_home(self, microbatch: int, now: float) -> Flight | None:
        """What came home, unless it is known to have."""
        flight = self._flights.pop(microbatch, None) or self._late.pop(microbatch, None)
        if flight is None:
            return None
        for number, other in self._flights.items():
            if number > microbatch:
                break
            if other.lane is flight.lane and other.overtaken_at is None:
                other.overtaken_at = now
        self.patience.came_home(flight.phase, flight.num_rows, now - flight.sent_at)
        return flight

    # -- what does not come ----------------------------------------------------------------

    def not_home(self) -> list[tuple[SequenceId, int]]:
        """What is under way: whose rows, from where on."""
        return [pair for flight in self._flights.values() for pair in zip(flight.sequences, flight.positions, strict=True)]

    @property
    def patience_s(self) -> float | None:
        """Without a sign of life; None while nothing is under way."""
        flights = [*self._flights.values(), *self._late.values()]
        return self.patience.allows_s((flight.phase, flight.num_rows) for flight in flights) if flights else None

    def stuck(self, sequences: Iterable[SequenceState], patience_s: float, now: float) -> set[SequenceId]:
        """What waits in order waits for as long as anything comes on; what has been overtaken on its own lane, where nothing
        overtakes, has no such excuse."""
        found: set[SequenceId] = set()
        for flight in self._flights.values():
            if flight.overtaken_at is not None and now - flight.overtaken_at > patience_s:
                found.update(flight.sequences)
        if now - self._moved_at > patience_s:
            found.update(one.id for one in sequences if now - one.waits_since > patience_s)
        return found

    def give_up(self, ended: Collection[SequenceId], still_open: Collection[SequenceId]) -> None:
        """Whoever comes next tries the pipeline again: flights that only some of ``ended`` were on are none any more."""
        for microbatch, flight in list(self._flights.items()):
            on_it = flight.sequences
            if any(number in ended for number in on_it) and not any(number in still_open for number in on_it):
                self._late[microbatch] = self._flights.pop(microbatch)
