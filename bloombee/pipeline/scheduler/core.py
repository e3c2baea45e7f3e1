"""The scheduler: what enters the next step. Pure; speaks with the head core in messages only.

Sequences are opened by the head, admitted when every stage has KV pages for what they will probably need (``admission.py``),
which they may have to give up for a while (``room.py``), cut into rows and packed into microbatches for stage 0
(``batching.py``); verdicts come back from the last stage (``epoch.py``), and who has ended is closed on every stage
(``closing.py``). What prompts have in common is computed once (``prefixes.py``). At most ``num_microbatches`` microbatches that
decode are under way. Chunks of prompts have a lane and credit of their own, so that neither waits for the other here; stages let
decode pass, and with it the short prompt of a newcomer. Admission and prefill are shared out fairly between clients
(``fair.py``).

What picks come to is told in ``picks.py``; rows of tokens that may follow go with those that do (``rounds.py``).
"""

from __future__ import annotations

from bloombee.errors import BloomBeeError, LocalProtocolError, RemoteProtocolError
from bloombee.pipeline.commands import Command, TellHead
from bloombee.pipeline.events import (
    Cancel,
    Drafted,
    DrafterSeen,
    Ended,
    FromStage,
    Moved,
    Open,
    PipelineLost,
    PlanBeside,
    PlanBroken,
    PlanDropped,
    PlanWired,
    Priced,
    ShadowBegan,
    StageRestored,
    Tick,
    Tune,
)
from bloombee.pipeline.scheduler.admission import Admission, Way
from bloombee.pipeline.scheduler.batching import Batcher
from bloombee.pipeline.scheduler.closing import Closings
from bloombee.pipeline.scheduler.epoch import Epoch, Flight
from bloombee.pipeline.scheduler.fragments import Parts
from bloombee.pipeline.scheduler.picks import Picks
from bloombee.pipeline.scheduler.prefixes import Prefixes
from bloombee.pipeline.scheduler.room import Room
from bloombee.pipeline.scheduler.rounds import Rounds
from bloombee.pipeline.scheduler.sequence import SequenceState, cannot_be_sent, overdue, too_long
from bloombee.pipeline.scheduler.succession import Succession
from bloombee.spec.speculator import Speculator
from bloombee.types import Phase, SequenceId
from bloombee.wire.messages import (
    MARK,
    Ack,
    Closed,
    Committed,
    Cut,
    Gap,
    Have,
    Item,
    Kept,
    Lost,
    Resume,
    Resumed,
    Verdict,
)

CLOSE_AGAIN_S = 2.0
"""Who has yet to be wired in the newest epoch takes no Close of it."""
LOOP_FORGETS = 1.001
"""By how much the quickest loop is doubted with each slower one."""
Event = (
    Open
    | Cancel
    | Tune
    | PlanWired
    | PlanBroken
    | PlanBeside
    | ShadowBegan
    | PlanDropped
    | PipelineLost
    | FromStage
    | StageRestored
    | Moved
    | Priced
    | DrafterSeen
    | Drafted
    | Tick
)


class SchedulerCore:
    """events: see ``Event``. commands: Send (to a stage index of its message's epoch), TellHead, TellSwarm.

    Args:
        max_rows: most rows of one microbatch; longer prompts go in chunks.
        resend_after_s: silence after which a frame or a Close is repeated.
        step_deadline_s: how long there may be no sign of life until steps have shown how long they take (patience.py).
        takes_over: it begins in the place of one that is gone, whose sequences stages may still hold. Its own have higher
            numbers, and none of them begins before every stage has let go of those.
        speculator: drafts what may follow; None: each row of a sequence that decodes goes alone.
        prefix_cache: have stages keep what they have computed for others that begin alike.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        resend_after_s: float,
        step_deadline_s: float,
        takes_over: bool = False,
        speculator: Speculator | None = None,
        prefix_cache: bool = True,
    ) -> None:
        self._resend_after_s = resend_after_s
        self._open: dict[SequenceId, SequenceState] = {}
        self._admission = Admission(max_rows=max_rows)
        self._rounds = Rounds(speculator, Parts())
        self._batcher = Batcher(self._open, self._rounds, max_rows=max_rows)
        self._prefixes = Prefixes(self._open, self._batcher, is_on=prefix_cache)
        self._picks = Picks(self._open, self._batcher, self._prefixes, self._close)
        self._closings = Closings(takes_over=takes_over)
        self._succession = Succession(
            self._open,
            self._closings,
            self._batcher,
            max_rows=max_rows,
            resend_after_s=resend_after_s,
            step_deadline_s=step_deadline_s,
        )
        self._room = Room(self._open, self._batcher, self._prefixes, self._closings, self._succession)
        self._num_microbatches = 0
        self.quickest_loop: tuple[float, int] | None = None
        """Seconds and rows of the decode microbatch that came home quickest of late."""
        self.decoded: tuple[int, float] = (0, 0.0)
        """Tokens that came of decode microbatches so far, and when the last of these came home."""

    def handle(self, event: Event) -> list[Command]:
        """Raises RemoteProtocolError for a message that its sender must not send; the state is as it was."""
        if type(event) is FromStage:
            return self._from_stage(event.stage, event.message, event.now)
        match event:
            case PlanWired(ring=ring):
                self._prefixes.restart(ring)
                self._rounds.page_size = ring.page_size
                return self._succession.start(ring, event.now)
            case PlanBroken():
                if self._epoch is not None:
                    self._epoch.break_off()
                return []
            case PlanBeside(ring=ring):
                self._prefixes.restart(None)  # until it is clear which stages there are
                return self._succession.prepare(ring, event.feeds, event.now)
            case ShadowBegan(now=now) | PlanDropped(now=now):
                return [*self._succession.changed(event), *self._schedule(now)]
            case Open():
                return self._admit_later(event)
            case Cancel():
                return self._cancel(event)
            case Tune():
                self._batcher.tune(event)
                self._admission.max_open = event.max_sequences
                return self._schedule(event.now)
            case Priced() | DrafterSeen() | Drafted():
                self._batcher.informed(event)
                return self._schedule(event.now)
            case StageRestored():
                return [*self._succession.restored(event), *self._prefixes.asks(self._epoch, event.now, older_than_s=0.0)]
            case Moved(now=now):
                if self._epoch is not None:
                    self._epoch.moved(now)
                return []
            case PipelineLost(error=error):
                return self._lose(error)
            case Tick(now=now):
                return self._tick(now)
        raise LocalProtocolError(f"{event!r} is not an event of the scheduler")

    # -- what people ask -------------------------------------------------------------------

    @property
    def num_sequences(self) -> int:
        """Open or waiting."""
        return len(self._open) + len(self._admission)

    @property
    def num_open(self) -> int:
        """Admitted: in prefill or decoding."""
        return len(self._open)

    @property
    def num_rows(self) -> int:
        """Of open sequences, that have been given to stage 0."""
        return sum(sequence.num_sent for sequence in self._open.values())

    def is_admitted(self, sequence: SequenceId) -> bool:
        return sequence in self._open

    @property
    def is_idle(self) -> bool:
        epoch = self._epoch
        is_done = epoch is None or (epoch.is_idle and not self._closings and not self._succession.is_changing)
        return not self.num_sequences and is_done

    @property
    def _epoch(self) -> Epoch | None:
        """That runs."""
        return self._succession.running

    # -- sequences -------------------------------------------------------------------------

    def _admit_later(self, event: Open) -> list[Command]:
        if not self._closings.may_open(event.sequence):
            raise LocalProtocolError(f"sequence {event.sequence} was opened before")
        if self._closings.opened(event.sequence) and self._epoch is not None:
            self._epoch.pages.take(self._epoch.pages.all)  # until stages have let go of what another scheduler had there
        self._admission.wait(SequenceState.of(event))
        return self._schedule(event.now)

    def _admit(self, epoch: Epoch, now: float) -> list[Command]:
        """Who was admitted comes to the prompts; some go out at once."""
        commands: list[Command] = []
        for sequence, way in self._admission.admit(epoch.pages, self._prefixes, self._room, now):
            if way is Way.REFUSED:
                self._closings.never_began(sequence.id)
                commands.append(TellHead(Ended(sequence.id, too_long(sequence, epoch.ring))))
                continue
            self._open[sequence.id] = sequence
            if way is Way.IN_TURN:
                self._batcher.go_on(sequence)
            for item in self._batcher.whole_prompt(sequence) if way is Way.PAST_OTHERS else ():
                commands += self._send(epoch, Phase.PREFILL, [item], Phase.DECODE, now)
        return commands

    def _cancel(self, event: Cancel) -> list[Command]:
        if self._admission.withdraw(event.sequence):
            self._closings.never_began(event.sequence)
            return [TellHead(Ended(event.sequence, None))]
        if (sequence := self._open.get(event.sequence)) is None:
            return []  # it ended by itself meanwhile
        sequence.met_stop = event.is_finished
        return [TellHead(Ended(sequence.id, None)), *self._close(sequence, event.now), *self._schedule(event.now)]

    def _end(self, sequence: SequenceState, error: BloomBeeError, now: float) -> list[Command]:
        """Of one that cannot go on."""
        return [TellHead(Ended(sequence.id, error)), *self._close(sequence, now)]

    def _close(self, sequence: SequenceState, now: float) -> list[Command]:
        kept = self._prefixes.ended(sequence, self._epoch, now)
        del self._open[sequence.id]
        for part in (self._admission.closed, self._batcher.remove, self._room.ended):
            part(sequence)
        self._rounds.closed(sequence.id)
        return [*kept, *self._succession.close(sequence, now)]

    def _lost(self, lost: Lost, now: float) -> list[Command]:
        """Of those that are still of that generation: no log reaches back far enough, so they go from the start, as another
        generation; or, finally, a stage could not compute or pass on their rows, and they end. Said again it changes nothing."""
        known = [(self._open.get(holding.sequence), holding.generation) for holding in lost.holdings]
        meant = [sequence for sequence, generation in known if sequence is not None and sequence.generation == generation]
        if lost.is_final:
            return [command for one in meant for command in self._end(one, cannot_be_sent(one), now)]
        return self._send_anew(meant, now)

    def _send_anew(self, meant: list[SequenceState], now: float) -> list[Command]:
        for sequence in meant:
            sequence.begin_again()
            self._batcher.send_again(sequence, 0)
            self._prefixes.sent_anew(sequence.id)
        anew = [Cut(sequence.id, sequence.generation, 0, ()) for sequence in meant]
        return [*self._succession.cut(anew, now), *self._schedule(now)]

    def _lose(self, error: BloomBeeError) -> list[Command]:
        ended = [*self._open, *(sequence.id for sequence in self._admission)]
        self._prefixes.restart(None)
        self._open.clear()
        for part in (self._admission, self._batcher, self._closings, self._rounds, self._succession, self._room):
            part.clear()
        return [TellHead(Ended(sequence, error)) for sequence in ended]

    # -- to stage 0 ------------------------------------------------------------------------

    def _schedule(self, now: float) -> list[Command]:
        """Admit what fits, then send microbatches while there are rows and credit."""
        epoch, batcher, parts = self._epoch, self._batcher, self._rounds.parts
        if epoch is None or not epoch.is_open:
            return []
        commands = [*self._room.make(epoch, now), *self._admit(epoch, now), *self._prefixes.asks(epoch, now)]
        batcher.ask_for_drafts(epoch, now)
        while batcher.may_decode(epoch):
            commands += self._send(epoch, Phase.DECODE, batcher.decode_items(epoch), Phase.DECODE, now)
        while epoch.can_send(Phase.DECODE) and (part := parts.next(batcher.prompts, epoch)) is not None:
            commands += self._send(epoch, Phase.DECODE, [part], Phase.DECODE, now, is_more=True)
        while not self._succession.holds_prompts and batcher.may_prefill(epoch, now):
            items = batcher.prefill_items()
            commands += self._send(epoch, Phase.PREFILL, items, Phase.PREFILL, now)
            batcher.space_chunks(items, _seconds(self.quickest_loop), now)
        commands += self._rounds.say()
        return [*commands, *self._succession.pump(now)] if self._succession.coming is not None else commands

    def _send(
        self, epoch: Epoch, phase: Phase, items: list[Item], travels_as: Phase, now: float, *, is_more: bool = False
    ) -> list[Command]:
        """``is_more``: of drafts, of which a part is under way."""
        microbatch = self._num_microbatches
        self._num_microbatches += 1
        for item in items:
            self._open[item.sequence].waits_since = now
        share = self._batcher.share_of_prompts(items) if phase is Phase.PREFILL else 0.0
        return [*epoch.send(microbatch, phase, items, now, travels_as=travels_as, prefill_share=share, is_more=is_more)]

    # -- from the stages -------------------------------------------------------------------

    def _from_stage(self, stage: int, message: object, now: float) -> list[Command]:
        if not isinstance(message, Verdict | Ack | Gap | Closed | Committed | Resume | Resumed | Lost | Have | Kept):
            raise RemoteProtocolError(f"{type(message).__name__} from stage {stage} is not expected")
        epoch = self._succession.find(message.pipeline, message.epoch)
        _check_sender(type(message), stage, epoch)
        match message:
            case Verdict():
                return self._verdict(epoch, message, now)
            case Ack():
                epoch.moved(now)
                return [*epoch.sender.acknowledge(message, now), *self._schedule(now)]
            case Gap():
                return self._succession.gap(epoch, message, now)
            case Closed():
                return self._closed(epoch, stage, message, now)
            case Committed(cuts=cuts):
                self._succession.commits.confirm((epoch.ring.epoch, stage), cuts)
                return self._schedule(now) if self._room.is_short else []
            case Have() | Kept() if not epoch.is_shadow:
                return self._send_anew(self._prefixes.heard(stage, message), now)
            case Resume():
                return [*self._succession.resume(epoch, message, now), *self._schedule(now)]
            case Lost():
                return [] if self._succession.lost_later(epoch, message) else self._lost(message, now)
        epoch.answered()  # Resumed, or what is kept by who is no stage
        return []

    def _verdict(self, epoch: Epoch, verdict: Verdict, now: float) -> list[Command]:
        if not epoch.take(verdict, now):
            return [epoch.acknowledge(now)]
        epoch.moved(now)
        flight = epoch.came_home(verdict.microbatch, now)
        told, cuts = self._picks.take(verdict, now)
        if flight is not None and flight.phase is Phase.DECODE:
            self.quickest_loop = self.quickest_loop if flight.is_more else _quickest(self.quickest_loop, flight, now)
            self.decoded = (self.decoded[0] + sum(isinstance(one, TellHead) for one in told), now)
        if epoch is not self._epoch:
            told += self._move_over(verdict.microbatch == MARK, now)
        return [*self._succession.cut(cuts, now), *self._schedule(now), *told, epoch.acknowledge(now)]

    def _move_over(self, is_mark: bool, now: float) -> list[Command]:
        """Something came home over an epoch that does not run."""
        commands = self._succession.part(now, _seconds(self.quickest_loop))
        if is_mark and self._succession.coming is not None:
            moved, lost = self._succession.switch(now)
            commands += [*moved, *(command for one in lost for command in self._lost(one, now))]
        return commands

    def _closed(self, epoch: Epoch, stage: int, message: Closed, now: float) -> list[Command]:
        for sequence_id in message.sequences:
            if (freed := self._closings.confirm((epoch.ring.epoch, stage), sequence_id, epoch.pages.all)) is not None:
                epoch.pages.give(freed)
        return self._schedule(now)

    # -- time ------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Command]:
        if (epoch := self._epoch) is None or epoch.is_broken:
            return []
        self._prefixes.resume(None if self._succession.is_changing else epoch.ring)
        return [
            *self._give_up_overdue(epoch, now),
            *self._succession.tick(now),
            *self._succession.cut_again(now, older_than_s=self._resend_after_s),
            *self._prefixes.asks(epoch, now, older_than_s=self._resend_after_s),
            *self._succession.close_again(None, now, older_than_s=min(self._resend_after_s, CLOSE_AGAIN_S)),
            *self._succession.part(now, _seconds(self.quickest_loop)),
            *self._schedule(now),
        ]

    def _give_up_overdue(self, epoch: Epoch, now: float) -> list[Command]:
        """End the sequences that wait for what does not come."""
        if (patience_s := epoch.patience_s) is None:
            return []
        late = epoch.stuck(self._open.values(), patience_s, now) & self._open.keys()
        ended = [command for one in sorted(late) for command in self._end(self._open[one], overdue(patience_s), now)]
        epoch.give_up(late, self._open)
        return ended


def _seconds(loop: tuple[float, int] | None) -> float | None:
    return loop[0] if loop is not None else None


def _check_sender(kind: type, stage: int, epoch: Epoch) -> None:
    if epoch.is_shadow and kind in (Verdict, Lost):
        raise RemoteProtocolError(f"{kind.__name__} comes from a stage, not from a worker that follows one")
    places: dict[type, int] = {Verdict: epoch.last, Resumed: epoch.last, Kept: epoch.last, Ack: 0, Gap: 0, Resume: 0}
    allowed = places.get(kind, stage)
    if stage != allowed:
        raise RemoteProtocolError(f"{kind.__name__} comes from stage {allowed}, not {stage}")


def _quickest(known: tuple[float, int] | None, flight: Flight, now: float) -> tuple[float, int]:
    """The quickest loop of late: what waited for others says nothing of the links."""
    seconds = now - flight.sent_at
    if known is None or seconds <= LOOP_FORGETS * known[0]:
        return seconds, flight.num_rows
    return LOOP_FORGETS * known[0], known[1]
