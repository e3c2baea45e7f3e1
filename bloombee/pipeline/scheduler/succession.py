"""The epochs that a scheduler speaks with: the one that runs, and during a hand-over the one to come or the one before. Pure.

What is to come is wired beside what runs (:meth:`Succession.prepare`). Its stages tell each other what they lack, out of their
logs; a first stage that begins with nothing is fed all rows that the running one gets (:class:`Coming`). A mark follows those and
comes home when every stage has been told all: then rows go over the new epoch (:meth:`Succession.switch`). What is under way in
the old one may come home over either; when it has, or takes far longer than a loop, the old one is over.

Picks count whichever epoch they come over: the same rows give the same tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from bloombee.errors import LocalProtocolError, StalePlan
from bloombee.pipeline.beginnings import has_room
from bloombee.pipeline.commands import Command, Send, TellSwarm
from bloombee.pipeline.events import EpochBegan, EpochOver, StageRestored
from bloombee.pipeline.patience import Patience
from bloombee.pipeline.scheduler.batching import Batcher
from bloombee.pipeline.scheduler.closing import Closings, Place
from bloombee.pipeline.scheduler.commits import Commits
from bloombee.pipeline.scheduler.epoch import Epoch
from bloombee.pipeline.scheduler.pages import PageLedger
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.plan.plan import Ring
from bloombee.types import Epoch as EpochNumber
from bloombee.types import Kind, Lane, Priority, SequenceId
from bloombee.wire.messages import MARK, MAX_ITEMS, REPLAY, Cut, Forward, Holding, Item, Lost, Resume

LEAVES_LOOPS = 3.0
"""What has not come home after so many loops is asked for over the next epoch."""
FEED_ROWS = 256
"""Most rows of a frame that feeds a new first stage."""


@dataclass(slots=True)
class Coming:
    """An epoch that is to follow.

    Args:
        feeds: its first stage begins with nothing.
    """

    epoch: Epoch
    feeds: bool
    upto: dict[SequenceId, tuple[int, int]] = field(default_factory=dict)
    """Generation, and the rows of it that the first stage has been sent."""
    lost: list[Lost] = field(default_factory=list)
    """What logs do not reach back to; looked at when the epoch runs."""
    is_marked: bool = False

    def resume(self, holdings: Iterable[Holding], now: float) -> None:
        """The first stage holds this much."""
        self.epoch.open(now)
        self.upto = {one.sequence: (one.generation, one.have) for one in holdings}

    def pump(self, sequences: Iterable[SequenceState], now: float, *, at_once: bool = False) -> list[Send]:
        """Rows for a new first stage, as far as credit goes or ``at_once``; then the mark."""
        if not self.epoch.is_open:
            return []
        lane, sends, items = self.epoch.sender.lanes[Lane.BULK], list[Send](), tuple[Item, ...]()
        behind = [one for one in sequences if self._told(one) < one.num_sent] if self.feeds else []
        while behind and (at_once or lane.can_send()):
            items = self._items(behind)
            sends += self._push(REPLAY, items, now)
        if not behind and not self.is_marked and not at_once:
            self.is_marked = True
            sends += self._push(MARK, (), now)
        return sends

    def cut(self, cut: Cut) -> None:
        """The first stage is told so too."""
        _, upto = self.upto.get(cut.sequence, (0, 0))
        self.upto[cut.sequence] = cut.generation, min(upto, cut.length)

    def _told(self, sequence: SequenceState) -> int:
        generation, upto = self.upto.get(sequence.id, (0, 0))
        return upto if generation == sequence.generation else 0

    def _items(self, behind: list[SequenceState]) -> tuple[Item, ...]:
        """Of a frame; sequences that have been told all are taken out of ``behind``."""
        items: list[Item] = []
        room = min(FEED_ROWS, self.epoch.max_rows)
        while room and behind and len(items) < MAX_ITEMS:
            sequence = behind[-1]
            start = self._told(sequence)
            if start == 0 and not has_room(items, sequence.opening):
                break
            stop = min(sequence.num_sent, start + room)
            items.append(_again(sequence, start, stop))
            self.upto[sequence.id] = sequence.generation, stop
            room -= stop - start
            if stop == sequence.num_sent:
                behind.pop()
        return tuple(items)

    def _push(self, microbatch: int, items: tuple[Item, ...], now: float) -> list[Send]:
        ring = self.epoch.ring

        def make(number: int) -> Send:
            message = Forward(ring.pipeline, ring.epoch, number, microbatch, Lane.BULK, Priority.REPLAY, items)
            return Send(0, Lane.BULK, message)

        rows = sum(item.num_rows for item in items)
        return self.epoch.sender.lanes[Lane.BULK].push(make, now, num_rows=rows)


@dataclass(slots=True)
class _Leaving:
    """``has_fed``: all of its rows have been sent over the next epoch as well."""

    epoch: Epoch
    since: float
    has_fed: bool


class Succession:
    """Of one scheduler.

    Args:
        open_sequences: all that are open, kept by the owner.
        closings: what has ended, and which stages have yet to confirm it.
        batcher: gets what has to be sent again.
        max_rows, resend_after_s, step_deadline_s: as of SchedulerCore.
    """

    def __init__(
        self,
        open_sequences: Mapping[SequenceId, SequenceState],
        closings: Closings,
        batcher: Batcher,
        *,
        max_rows: int,
        resend_after_s: float,
        step_deadline_s: float,
    ) -> None:
        self.running: Epoch | None = None
        self.coming: Coming | None = None
        self._leaving: _Leaving | None = None
        self._open = open_sequences
        self._closings = closings
        self.commits = Commits()
        """Cuts that stages have yet to confirm."""
        self._batcher = batcher
        self._new_epoch = partial(Epoch, max_rows=max_rows, resend_after_s=resend_after_s)
        self._max_rows = max_rows
        self._step_deadline_s = step_deadline_s

    def _epochs(self) -> Iterator[Epoch]:
        if self.running is not None:
            yield self.running
        if self.coming is not None:
            yield self.coming.epoch
        if self._leaving is not None:
            yield self._leaving.epoch

    def find(self, pipeline: int, number: EpochNumber) -> Epoch:
        """Raises StalePlan if it is none of these."""
        for epoch in self._epochs():
            if (epoch.ring.pipeline, epoch.ring.epoch) == (pipeline, number):
                return epoch
        raise StalePlan(f"pipeline {pipeline} epoch {number} is not running", epoch=number)

    @property
    def is_changing(self) -> bool:
        """There is more than the epoch that runs."""
        return self.coming is not None or self._leaving is not None

    @property
    def holds_prompts(self) -> bool:
        """Rows of prompts that the first stage may lack are on their way over the epoch before: none may go ahead of them, for a
        frame that it cannot take keeps its credit, which those may need."""
        leaving = self._leaving
        return leaving is not None and not leaving.has_fed and not leaving.epoch.has_arrived

    # -- what has ended --------------------------------------------------------------------

    @property
    def _places(self) -> list[Place]:
        return [place for epoch in self._epochs() for place in epoch.places]

    def close(self, sequence: SequenceState, now: float) -> list[Command]:
        """Every stage is to let go of it."""
        self.commits.forget(sequence.id)
        self._closings.begin(sequence.id, sequence.num_pages, self._places, now)
        return [epoch.close(stage, (sequence.id,), self._closings.floor) for epoch in self._epochs() for stage in epoch.stages]

    def close_again(self, places: Collection[Place] | None, now: float, *, older_than_s: float) -> list[Command]:
        """Ask those of ``places`` (None: all) again that have not confirmed for so long."""
        asked = self._closings.ask_again(self._places if places is None else places, now, older_than_s=older_than_s)
        return [
            epoch.close(stage, ended[at : at + MAX_ITEMS], self._closings.floor)
            for epoch in self._epochs()
            for (number, stage), ended in asked
            if number == epoch.ring.epoch
            for at in range(0, len(ended), MAX_ITEMS)
        ]

    # -- what is cut -----------------------------------------------------------------------

    def cut(self, cuts: Sequence[Cut], now: float) -> list[Command]:
        """Every stage is to know what becomes of rows."""
        if not cuts:
            return []
        self.commits.begin(cuts, self._places, now)
        if self.coming is not None:
            for cut in cuts:
                self.coming.cut(cut)
        return [send for epoch in self._epochs() for stage in epoch.stages for send in epoch.commit(stage, cuts)]

    def cut_again(self, now: float, *, older_than_s: float) -> list[Command]:
        """Tell stages again that have not confirmed for so long."""
        if not self.commits:
            return []
        asked = self.commits.ask_again(self._places, now, older_than_s=older_than_s)
        epochs = {epoch.ring.epoch: epoch for epoch in self._epochs()}
        return [send for (number, stage), cuts in asked for send in epochs[number].commit(stage, cuts)]

    # -- coming and going ------------------------------------------------------------------

    def start(self, ring: Ring, now: float) -> list[Command]:
        """In the place of whatever there was: what was under way is forgotten here, the stages say what they hold."""
        old = self.running
        if old is not None and ring.epoch <= old.ring.epoch:
            raise LocalProtocolError(f"epoch {ring.epoch} after epoch {old.ring.epoch}")
        pages = PageLedger(ring.groups, ring.page_size, max_rows=self._max_rows)
        for need in [*(one.num_pages for one in self._open.values()), *self._closings.pages(pages.all)]:
            pages.take(need)
        patience = old.patience if old is not None else Patience(self._step_deadline_s)
        self.running, self.coming, self._leaving = self._new_epoch(ring, pages, patience), None, None
        self._closings.rewire(self.running.places)
        self.commits.rewire(self.running.places)
        return [
            self.running.say_known(self._open.values(), now),
            *self.cut_again(now, older_than_s=0.0),
            *self.close_again(None, now, older_than_s=0.0),
            *self.cut(self._batcher.abandon_rounds(), now),
        ]

    def clear(self) -> None:
        self.commits.clear()
        self.running, self.coming, self._leaving = None, None, None

    def prepare(self, ring: Ring, feeds: bool, now: float) -> list[Command]:
        """Beside the one that runs, with the same pages: each sequence has its own on the stages of both.

        Raises:
            LocalProtocolError: there is another already, or none runs, or it has other KV memory.
        """
        old = self.running
        if old is None or old.is_broken or self.is_changing:
            raise LocalProtocolError(f"epoch {ring.epoch} cannot be prepared now")
        if (ring.groups, ring.page_size) != (old.ring.groups, old.ring.page_size):
            raise LocalProtocolError(f"epoch {ring.epoch} has other KV memory than the one that runs")
        epoch = self._new_epoch(ring, old.pages, old.patience)
        self.coming = Coming(epoch, feeds)
        self._closings.join(epoch.places)
        self.commits.join(epoch.places)
        return [
            epoch.say_known(self._open.values(), now),
            *self.cut_again(now, older_than_s=0.0),
            *self.close_again(epoch.places, now, older_than_s=0.0),
        ]

    def resume(self, epoch: Epoch, message: Resume, now: float) -> list[Command]:
        """Stage 0 says what it holds: the rest is sent again. Said again it changes nothing."""
        if epoch.is_open or epoch.is_broken:
            return [epoch.resumed()]
        if self.coming is not None and self.coming.epoch is epoch:
            self.coming.resume(message.holdings, now)
            return [epoch.resumed(), *self.pump(now)]
        epoch.open(now)
        held = {holding.sequence: holding for holding in message.holdings}
        for sequence in self._open.values():
            sequence.waits_since = now
            there = held.get(sequence.id)
            have = sequence.alive(there) if there is not None else 0
            if have < sequence.num_sent:
                self._batcher.send_again(sequence, have)
        return [epoch.resumed()]

    def restored(self, event: StageRestored) -> list[Command]:
        """The connection to a stage came back."""
        for epoch in self._epochs():
            if epoch.ring.epoch == event.epoch or (not event.epoch and epoch is self.running):
                again = epoch.sender.resend(event.now) if event.stage == 0 else []
                return [*again, *self.close_again([(epoch.ring.epoch, event.stage)], event.now, older_than_s=0.0)]
        return []

    def lost_later(self, epoch: Epoch, message: Lost) -> bool:
        """Whether it is of the epoch to come: then it is looked at when that runs."""
        if self.coming is None or self.coming.epoch is not epoch:
            return False
        self.coming.lost.append(message)
        return True

    def tick(self, now: float) -> list[Command]:
        """What has not been answered, of every epoch, is said again."""
        known = [epoch.say_known(self._open.values(), now) for epoch in self._epochs() if epoch.is_unanswered(now)]
        return [*known, *(send for epoch in self._epochs() for send in epoch.sender.tick(now)), *self.pump(now)]

    def pump(self, now: float) -> list[Command]:
        """Feed the epoch to come."""
        return [] if self.coming is None else [*self.coming.pump(self._open.values(), now)]

    def switch(self, now: float) -> tuple[list[Command], list[Lost]]:
        """Run what was to come. Returns what is to be sent, and what its stages have found lost."""
        coming, running = self.coming, self.running
        assert coming is not None
        assert running is not None
        rest = coming.pump(self._open.values(), now, at_once=True)
        self.running, self.coming, self._leaving = coming.epoch, None, _Leaving(running, now, coming.feeds)
        began = TellSwarm(EpochBegan(coming.epoch.ring.epoch, now))
        # A stage to which rows were slow to come may have had no room for the cuts that it heard of before them.
        again = self.cut_again(now, older_than_s=0.0)
        return [began, *rest, *again, *self.cut(self._batcher.abandon_rounds(), now)], coming.lost

    def part(self, now: float, loop_s: float | None) -> list[Command]:
        """From the epoch before, if it is time: when nothing of it is under way, or far longer than a loop, ``loop_s``."""
        leaving = self._leaving
        if leaving is None:
            return []
        is_late = loop_s is not None and now - leaving.since >= LEAVES_LOOPS * loop_s
        return self.drop(leaving.epoch.ring.epoch, now) if leaving.epoch.is_idle or is_late else []

    def drop(self, number: EpochNumber, now: float) -> list[Command]:
        """An epoch that does not run is over. What has not come home over it is sent again, which stages that hold it take for
        nothing."""
        coming, leaving = self.coming, self._leaving
        if coming is not None and coming.epoch.ring.epoch == number:
            self.coming = None
            self._let_go(coming.epoch)
            return []
        if leaving is None or leaving.epoch.ring.epoch != number:
            return []
        self._leaving = None
        self._let_go(leaving.epoch)
        for sequence, position in [] if leaving.has_fed else leaving.epoch.not_home():
            one = self._open.get(sequence)
            if one is not None and one.round is None and position < one.num_sent:
                self._batcher.send_again(one, position)
        return [TellSwarm(EpochOver(number, now))]

    def _let_go(self, epoch: Epoch) -> None:
        self.commits.leave(epoch.places)
        for pages in self._closings.leave(epoch.places, epoch.pages.all):
            epoch.pages.give(pages)


def _again(sequence: SequenceState, start: int, stop: int) -> Item:
    """Rows [start, stop), which the running epoch has been sent."""
    return Item(
        sequence=sequence.id,
        generation=sequence.generation,
        kind=Kind.REPLAY,
        position=start,
        tokens=bytes(sequence.tokens[4 * start : 4 * stop]),
        num_picks=int(stop == sequence.num_tokens),
        opening=sequence.opening if start == 0 else None,
        tree=None,
    )
