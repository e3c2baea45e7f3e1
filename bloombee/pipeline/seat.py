"""One epoch's wiring of a stage: its neighbours' frame numbers and credit, and what goes to the next stage. Pure.

A seat opens when the next stage (after the last, the scheduler) has said what it holds: from there on rows are sent, first those
that the log has (they are **said again**), then each work's as it comes. Rows that the next stage holds are not sent at all. So
taking a lost neighbour's place, waking a new one and going on after a pause are the same thing.

What is still to be said of a sequence (``telling.py``) goes in frames of their own on the bulk lane, gathered from the log by the
device, a few hundred rows each. As long as one is under way nothing of that sequence may overtake it, so what its works give
meanwhile takes the same way; the frame of such a work goes on without rows, for a microbatch must come home whatever became of
it. A mark is a frame without rows that waits until nothing is left to be said: when it comes home, all stages have been told all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bloombee.pipeline.commands import Command, Gather, Send
from bloombee.pipeline.events import Gathered, GatherFailed, Port
from bloombee.pipeline.frames import FrameReceiver, LinkSender, lane_of
from bloombee.pipeline.gathering import Gathering
from bloombee.pipeline.log import BoundaryLog
from bloombee.pipeline.prefixes import say_short
from bloombee.pipeline.sequences import SequenceStore
from bloombee.pipeline.telling import Telling
from bloombee.pipeline.work import Outcome, Work
from bloombee.types import Lane, Priority, SequenceId
from bloombee.wire.messages import (
    MARK,
    MAX_ITEMS,
    REPLAY,
    Ack,
    AnyMessage,
    Cut,
    Follows,
    Forward,
    Holding,
    Item,
    Lost,
    Pick,
    Resume,
    Resumed,
    Verdict,
    Wire,
    Wired,
)

REPLAY_ROWS = 256
"""Most rows of a frame that says rows again: the next stage computes one while another travels."""
MOST_GATHERING = 2
"""Such frames that are being made at once."""
MOST_PICKS = 2048
"""Of a Verdict that says picks again: with twenty likely tokens each they must fit it."""
FOLLOWS_EVERY_S = 0.5
"""A shadow says how much it has."""
ASK_AGAIN_S = 2.0
"""Who has yet to be wired in an epoch may take no Resume of it."""


class Seat:
    """Of one stage in one epoch."""

    def __init__(self, wire: Wire, store: SequenceStore, log: BoundaryLog, *, resend_after_s: float) -> None:
        self.wire = wire
        self.is_last = wire.stage == wire.num_stages - 1
        self.upstream = {lane: FrameReceiver(wire.num_microbatches, wire.max_rows) for lane in Lane}
        self.downstream = LinkSender(limit=wire.num_microbatches, resend_after_s=resend_after_s, max_rows=wire.max_rows)
        self.retired = False
        self.follows = wire.shadow and wire.successor is None
        """It is of a worker that follows the stage: what it computes is logged and goes nowhere."""
        self.is_open = self.follows
        """The next stage has said what it holds."""
        self.wanted: dict[SequenceId, int] = {}
        """On the last stage: the first position of each sequence whose pick the scheduler lacked when this epoch began."""
        self.telling = Telling(store, log, to_shadow=wire.shadow)
        self._store = store
        self._resend_after_s = resend_after_s
        self._asked_at: float | None = None
        """When Resume was last said to the stage before; None: not yet, or it has been answered."""
        self.gathering = Gathering()
        self._num_marks = 0
        """That wait until there is nothing to be said again."""
        self._lost: dict[SequenceId, Holding] = {}
        """Reported as lost, until they come as another generation."""
        self._short: dict[SequenceId, Holding] = {}
        """Reported as begun on what is not here, likewise."""
        self._unsendable: dict[SequenceId, Holding] = {}
        """Reported as such, until they are closed."""
        self._lost_at = 0.0
        self._priority = Priority.SHADOW if wire.shadow else Priority.REPLAY
        self._said_at = -FOLLOWS_EVERY_S
        """How much a shadow has."""
        self._replays: dict[int, tuple[Item, ...]] = {}
        """By number on the bulk lane, until they are acknowledged."""

    @property
    def is_idle(self) -> bool:
        """Nothing to say again, held back or unacknowledged."""
        return not (
            self.telling.is_behind or self.gathering or self._num_marks or self.downstream.num_backlog or self.downstream.num_kept
        )

    def lane_out(self, work: Work) -> Lane:
        return Lane.CONTROL if self.is_last else lane_of(work.phase)

    def acknowledge(self, lane: Lane, now: float) -> Send:
        answer = self.upstream[lane].acknowledgement(self.wire.pipeline, self.wire.epoch, now, lane)
        return Send(Port.UPSTREAM, Lane.CONTROL, answer)

    # -- beginning -------------------------------------------------------------------------

    def greeted(self, now: float) -> list[Command]:
        """Both neighbours are there: say so, and to the one before what is held here."""
        wired = Send(Port.HEAD, Lane.CONTROL, Wired(self.wire.pipeline, self.wire.epoch))
        return [wired] if self.wire.shadow and not self.follows else [wired, self._ask(now)]

    def answered(self) -> None:
        """The stage before knows what is held here."""
        self._asked_at = None

    def _ask(self, now: float) -> Send:
        self._asked_at = now
        return Send(Port.UPSTREAM, Lane.CONTROL, Resume(self.wire.pipeline, self.wire.epoch, self._store.holdings()))

    def resume(self, message: Resume, now: float) -> list[Command]:
        """The next stage says what it holds. Said again it changes nothing. :meth:`pump` is to follow."""
        answer = Send(Port.DOWNSTREAM, Lane.CONTROL, Resumed(self.wire.pipeline, self.wire.epoch))
        if self.is_open:
            return [answer]
        self.is_open = True
        if self.is_last:
            self.wanted = {holding.sequence: holding.have for holding in message.holdings}
            return [answer, *self.pick_again(now)]
        self.telling.begin({holding.sequence: holding for holding in message.holdings})
        return [answer]

    def pick_again(self, now: float) -> list[Command]:
        """What the scheduler lacks of the newest picks, or may lack: those said over a seat that is retired may be lost."""
        wanted = [(held.picks, self.wanted.get(sequence, 0)) for sequence, held in self._store]
        found = [(pick, node) for newest, have in wanted for pick, node in newest if pick.position >= have]
        parts = [found[at : at + MOST_PICKS] for at in range(0, len(found), MOST_PICKS)]
        return [send for part in parts for send in self._push(Lane.CONTROL, _verdict_of(self.wire, part), None, now)]

    # -- rows out --------------------------------------------------------------------------

    def pass_on(
        self,
        work: Work,
        items: tuple[Item, ...],
        fresh: Sequence[Item],
        dead: Sequence[Item],
        outcome: Outcome,
        now: float,
    ) -> list[Command]:
        """What a work that came in over this seat gave: one frame, with its rows unless they have to wait their turn.

        Args:
            items: all of its rows, as they were computed.
            fresh, dead: those whose sequences were not closed, cut or begun anew meanwhile, and all others.
        """
        if self.follows:
            return []
        head = {"pipeline": self.wire.pipeline, "epoch": self.wire.epoch, "microbatch": work.microbatch}
        if self._lost or self._short:
            self._begun_anew(fresh)
        if self.is_last:
            nodes = None if outcome.failed else work.nodes
            return self._push(
                Lane.CONTROL, lambda number: Verdict(frame=number, picks=outcome.picks, nodes=nodes, **head), None, now
            )
        if work.microbatch == MARK:
            self._num_marks += 1
            return self._pass_marks(now)
        said = items if fresh and self.telling.in_turn(fresh, dead) else ()
        if not said:
            for item in fresh:
                self.telling.catch_up(item.sequence)
        lane = self.lane_out(work)

        def make(number: int) -> Forward:
            return Forward(frame=number, lane=lane, priority=work.priority, items=said, **head)

        num_rows = sum([len(item.tokens) for item in said]) // 4
        return self._push(lane, make, outcome.hidden if said else None, now, num_rows)

    def _begun_anew(self, items: Sequence[Item]) -> None:
        """Those that were lost and have come as another generation need no report any more."""
        for item in items:
            for reported in (self._lost, self._short):
                lost = reported.get(item.sequence)
                if lost is not None and item.generation > lost.generation:
                    del reported[item.sequence]

    def pump(self, now: float, number: int) -> list[Command]:
        """Have frames made of what is to be said again, as many as may be; the first is gathering ``number``."""
        commands: list[Command] = []
        lost: list[Holding] = []
        room, bulk = min(REPLAY_ROWS, self.wire.max_rows), self.downstream.lanes[Lane.BULK]
        while self.telling.is_behind and len(self.gathering) < MOST_GATHERING and not bulk.num_backlog:
            items, pieces = self.telling.next_rows(room, lost)
            if items:
                self.gathering[number] = items
                commands.append(Gather(number, tuple(pieces), sum(item.num_rows for item in items)))
                number += 1
        commands += self._pass_marks(now)
        return [*commands, *self.report_lost(lost, now)] if lost else commands

    def _pass_marks(self, now: float) -> list[Command]:
        """Once nothing is left to be said: what was said goes before them, on the same lane."""
        if self.telling.is_behind or self.gathering:
            return []
        count, self._num_marks = self._num_marks, 0
        wire = self.wire

        def make(frame: int) -> Forward:
            return Forward(wire.pipeline, wire.epoch, frame, MARK, Lane.BULK, Priority.REPLAY, ())

        return [command for _ in range(count) for command in self._push(Lane.BULK, make, None, now)]

    def report_lost(self, lost: Sequence[Holding], now: float) -> list[Command]:
        """To the scheduler, until these sequences come as another generation. A shadow does without."""
        if self.wire.shadow:
            return []
        self._lost |= {one.sequence: one for one in lost}
        return self._say_lost(now)

    def report_short(self, lacking: Sequence[Holding], now: float) -> list[Command]:
        """To the scheduler, until these sequences begin in another way."""
        self._short |= {one.sequence: one for one in lacking}
        self._lost_at = now
        return say_short(self.wire.pipeline, self.wire.epoch, lacking)

    def _say_lost(self, now: float) -> list[Command]:
        self._lost_at = now
        lacking = say_short(self.wire.pipeline, self.wire.epoch, self._short.values())
        said = ((self._lost, False), (self._unsendable, True))
        return lacking + [
            Send(
                Port.SCHEDULER,
                Lane.CONTROL,
                Lost(self.wire.pipeline, self.wire.epoch, tuple(which.values())[:MAX_ITEMS], is_final),
            )
            for which, is_final in said
            if which
        ]

    def blank(self, lane: Lane, frame: int, now: float) -> list[Command]:
        """A frame breaks a rule of the wire: it goes without its rows, whose sequences cannot go on."""
        sender = self.downstream.lanes[lane]
        sequences = list(sender.sequences(frame))
        return [*sender.blank(frame, now), *self.end(sequences, now)]

    def end(self, sequences: Iterable[SequenceId], now: float) -> list[Command]:
        """These cannot go on: the scheduler is told until it has ended them."""
        for sequence in sequences:
            held = self._store.get(sequence)
            if held is not None:
                self._unsendable[sequence] = Holding(sequence, held.generation, held.have)
        return self._say_lost(now)

    def gathered(self, event: Gathered | GatherFailed) -> list[Command]:
        """The rows of a frame that says rows again have been put together, or cannot be had. :meth:`pump` is to follow."""
        head = {"pipeline": self.wire.pipeline, "epoch": self.wire.epoch, "microbatch": REPLAY}

        def say(made: Gathered | GatherFailed, items: tuple[Item, ...]) -> list[Command]:
            if isinstance(made, GatherFailed):
                self.telling.give_up(items)
                return []

            def make(frame: int) -> Forward:
                self._replays[frame] = items
                return Forward(frame=frame, lane=Lane.BULK, priority=self._priority, items=items, **head)

            return self._push(Lane.BULK, make, made.payload, made.now, sum([item.num_rows for item in items]))

        return [command for made, items in self.gathering.made(event) for command in say(made, items)]

    def acknowledged(self, ack: Ack, now: float) -> list[Command]:
        """Raises RemoteProtocolError if it acknowledges what was never sent."""
        sends: list[Command] = [*self.downstream.acknowledge(ack, now)]
        if not self._replays:
            return sends
        bulk = self.downstream.lanes[Lane.BULK]
        for number in [number for number in self._replays if not bulk.is_kept(number)]:
            self.telling.came(self._replays.pop(number))
        return sends

    def cut(self, cut: Cut) -> None:
        """The sequence goes on as the cut's generation. :meth:`pump` is to follow."""
        self.telling.cut(cut)
        self._lost.pop(cut.sequence, None)
        self._short.pop(cut.sequence, None)
        if cut.sequence in self.wanted:
            self.wanted[cut.sequence] = min(self.wanted[cut.sequence], cut.length)

    def forget(self, sequence: SequenceId) -> None:
        """It is closed."""
        self.telling.forget(sequence)
        self._lost.pop(sequence, None)
        self._short.pop(sequence, None)
        self._unsendable.pop(sequence, None)
        self.wanted.pop(sequence, None)

    def lacks(self, sequence: SequenceId, generation: int, have: int, now: float) -> list[Command]:
        """The next stage holds no more of a sequence than ``have`` rows, and asks for those that follow."""
        if self.wire.shadow:
            self.telling.lacks(sequence, generation, have)
            return []
        return [*self.downstream.resend_rows(sequence, have, now)]

    def tick(self, now: float) -> list[Command]:
        commands: list[Command] = [*self.downstream.tick(now)]
        if self.follows and now - self._said_at >= FOLLOWS_EVERY_S:
            self._said_at = now
            rows = sum(held.have for _, held in self._store)
            commands.append(Send(Port.HEAD, Lane.CONTROL, Follows(self.wire.pipeline, self.wire.epoch, rows)))
        if self._asked_at is not None and now - self._asked_at >= min(self._resend_after_s, ASK_AGAIN_S):
            commands.append(self._ask(now))
        if (self._lost or self._short or self._unsendable) and now - self._lost_at >= self._resend_after_s:
            commands += self._say_lost(now)
        return commands

    def _push(
        self, lane: Lane, make: Callable[[int], AnyMessage], payload: object | None, now: float, num_rows: int = 0
    ) -> list[Command]:
        def frame(number: int) -> Send:
            return Send(Port.DOWNSTREAM, lane, make(number), payload)

        return list(self.downstream.lanes[lane].push(frame, now, num_rows=num_rows))


def _verdict_of(wire: Wire, said: Sequence[tuple[Pick, int]]) -> Callable[[int], Verdict]:
    """What makes the frame that says picks, with their nodes, again."""
    picks, nodes = tuple([pick for pick, _ in said]), tuple([node for _, node in said])
    return lambda number: Verdict(wire.pipeline, wire.epoch, number, REPLAY, picks, nodes if any(nodes) else None)
