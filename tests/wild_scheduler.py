"""A scheduler that drafts wrongly, rolls back, preempts and forks at random, and no token may change for that.

It takes the place of the real one in a simulated cluster. What the application sees are the picks of a plain scheduler;
between them it sends rows of tokens that will not be, in the same frames and in later ones, over either lane, and takes them
back with Commits that overtake them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from bloombee.errors import LocalProtocolError
from bloombee.pipeline.commands import Command, Send, TellHead
from bloombee.pipeline.events import (
    Cancel,
    Emitted,
    Ended,
    FromStage,
    Moved,
    Open,
    PipelineLost,
    PlanBroken,
    PlanWired,
    StageRestored,
    Tick,
    Tune,
)
from bloombee.pipeline.frames import FrameReceiver, LinkSender
from bloombee.plan.plan import Ring
from bloombee.types import FinishReason, Kind, Lane, Priority, SequenceId
from bloombee.wire.messages import (
    Ack,
    Close,
    Closed,
    Commit,
    Committed,
    Cut,
    Fork,
    Forward,
    Gap,
    Holding,
    Item,
    Lost,
    Opening,
    Pick,
    Resume,
    Resumed,
    Verdict,
)

MOST_BACK = 64
Event = Open | Cancel | PlanWired | PlanBroken | PipelineLost | FromStage | StageRestored | Moved | Tune | Tick


@dataclass(slots=True)
class _Sequence:
    id: SequenceId
    tokens: list[int]
    max_new: int
    opening: Opening
    generation: int = 0
    num_sent: int = 0
    """Rows of the present generation, those that are no tokens of the sequence among them."""
    newest: int = 0
    """Most rows that were sent, since it last began."""
    fork: Fork | None = None
    """What it begins with, until its first rows have come home."""
    first_frame: int | None = None
    """The microbatch that they are in."""
    pins: dict[SequenceId, int] = field(default_factory=dict)
    """Forks of it that are under way, and their lengths."""
    sleeps_until: float = 0.0

    @property
    def num_prompt(self) -> int:
        return self.opening.num_prompt_tokens

    @property
    def least(self) -> int:
        """It cannot be cut further back than this, nor to it."""
        return max([0, *self.pins.values(), *([self.fork.length] if self.fork is not None else [])])


@dataclass(slots=True)
class _Waiting:
    """What stages have yet to confirm."""

    stages: set[int]
    asked_at: float


class WildScheduler:
    """events and commands as of SchedulerCore.

    Args:
        wildness: how likely a wrong draft, a rollback or a preemption is where one could be.
    """

    def __init__(self, rng: random.Random, *, wildness: float = 0.3, resend_after_s: float = 0.5, max_rows: int = 16) -> None:
        self.counts = dict.fromkeys(("drafts", "rollbacks", "preemptions", "forks", "lost"), 0)
        self.quickest_loop: tuple[float, int] | None = None
        self.decoded = (0, 0.0)
        self._rng = rng
        self._wildness = wildness
        self._resend_after_s = resend_after_s
        self._max_rows = max_rows
        self._ring: Ring | None = None
        self._is_open = False
        self._asked_at: float | None = None
        self._open: dict[SequenceId, _Sequence] = {}
        self._ended: set[SequenceId] = set()
        """Of which a fork is still under way: closed when that is home."""
        self._unasked: list[Open] = []
        self._cuts: dict[tuple[SequenceId, int], tuple[Cut, _Waiting]] = {}
        self._closing: dict[SequenceId, _Waiting] = {}
        self._next_sequence = 0
        self._num_microbatches = 0
        self._flights: set[int] = set()

    def handle(self, event: Event) -> list[Command]:
        match event:
            case PlanWired(ring=ring, now=now):
                return self._start(ring, now)
            case PlanBroken():
                self._is_open = False
                return []
            case Open():
                self._next_sequence = event.sequence + 1
                self._unasked.append(event)
                return self._schedule(event.now)
            case Cancel(sequence=sequence, now=now):
                return self._cancel(sequence, now)
            case FromStage(stage=stage, message=message, now=now):
                return self._from_stage(stage, message, now)
            case StageRestored(stage=stage, now=now):
                return [*(self._sender.resend(now) if stage == 0 and self._ring else ()), *self._repeat(now, {stage}, 0.0)]
            case Tick(now=now):
                return self._tick(now)
            case Moved() | Tune():
                return []
        raise LocalProtocolError(f"{event!r} is not expected here")

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_sequences(self) -> int:
        return len(self._open) + len(self._unasked)

    @property
    def is_idle(self) -> bool:
        return not (self._open or self._ended or self._unasked or self._closing or self._cuts or self._sender.num_kept)

    # -- sequences -------------------------------------------------------------------------

    def _admit(self, event: Open) -> None:
        prompt = [int.from_bytes(event.prompt[i : i + 4], "little") for i in range(0, len(event.prompt), 4)]
        opening = Opening(len(prompt), event.sampling, event.max_new_tokens, (), (), None, None)
        one = self._open[event.sequence] = _Sequence(event.sequence, prompt, event.max_new_tokens, opening)
        parents = [(parent, _shared(parent, prompt)) for parent in self._open.values() if parent is not one]
        parents = [(parent, most) for parent, most in parents if most > max(parent.least, parent.newest - MOST_BACK, 0)]
        if parents:
            parent, most = self._rng.choice(parents)
            length = self._rng.randint(max(1, parent.least, parent.newest - MOST_BACK), most)
            one.fork = Fork(parent.id, length, opening)
            one.num_sent, one.newest = length, parent.newest
            parent.pins[one.id] = length
            self.counts["forks"] += 1

    def _cancel(self, sequence: SequenceId, now: float) -> list[Command]:
        self._unasked = [event for event in self._unasked if event.sequence != sequence]
        one = self._open.get(sequence)
        return [TellHead(Ended(sequence, None)), *(self._end(one, now) if one is not None else ())]

    def _end(self, one: _Sequence, now: float) -> list[Command]:
        if one.pins:
            self._ended.add(one.id)
            one.sleeps_until = float("inf")
            return []
        self._ended.discard(one.id)
        del self._open[one.id]
        self._cuts = {name: cut for name, cut in self._cuts.items() if name[0] != one.id}
        commands = self._unpin(one, now)
        assert self._ring is not None
        stages = range(self._ring.num_stages)
        self._closing[one.id] = _Waiting(set(stages), now)
        return [*commands, *(self._ask_close(stage, one.id) for stage in stages)]

    def _ask_close(self, stage: int, sequence: SequenceId) -> Send:
        floor = min([*self._open, *self._closing, *(event.sequence for event in self._unasked)], default=self._next_sequence)
        return self._send(stage, Close(*self._address, (sequence,), floor))

    def _unpin(self, one: _Sequence, now: float) -> list[Command]:
        """Its first rows are home, or will not come."""
        fork, one.fork, one.first_frame = one.fork, None, None
        parent = self._open.get(fork.sequence) if fork is not None else None
        if parent is None:
            return []
        del parent.pins[one.id]
        return self._end(parent, now) if parent.id in self._ended and not parent.pins else []

    # -- going back ------------------------------------------------------------------------

    def _cut(self, one: _Sequence, length: int, now: float) -> list[Command]:
        one.generation += 1
        one.num_sent = length
        one.newest = one.newest if length else 0
        cut = Cut(one.id, one.generation, length, ())
        assert self._ring is not None
        stages = range(self._ring.num_stages)
        self._cuts[one.id, one.generation] = (cut, _Waiting(set(stages), now))
        return [self._send(stage, Commit(*self._address, (cut,))) for stage in stages]

    def _begin_again(self, one: _Sequence, now: float) -> list[Command]:
        """From its tokens, as another generation."""
        return [*self._unpin(one, now), *self._cut(one, 0, now)]

    def _go_wild(self, now: float) -> list[Command]:
        """Perhaps take something back of one sequence."""
        ready = [one for one in self._open.values() if one.sleeps_until <= now and one.num_sent]
        if not ready or self._rng.random() > self._wildness:
            return []
        one = self._rng.choice(ready)
        lowest, highest = max(one.least + 1, one.newest - MOST_BACK), min(len(one.tokens), one.num_sent) - 1
        if not one.least and self._rng.random() < 0.2:
            self.counts["preemptions"] += 1
            one.sleeps_until = now + self._rng.uniform(0, 0.3)
            return self._cut(one, 0, now)
        if lowest > highest:
            return []
        self.counts["rollbacks"] += 1
        return self._cut(one, self._rng.randint(lowest, highest), now)

    # -- rows out --------------------------------------------------------------------------

    def _schedule(self, now: float) -> list[Command]:
        if not self._is_open:
            return []
        for event in self._unasked:
            self._admit(event)
        self._unasked.clear()
        commands: list[Command] = []
        ready = [one for one in self._open.values() if one.sleeps_until <= now]
        self._rng.shuffle(ready)
        for lane in self._rng.sample(list(Lane), 2):
            while ready and self._sender.lanes[lane].can_send():
                count = self._rng.randint(1, len(ready))
                items: list[Item] = []
                room = self._max_rows
                for one in ready[:count]:
                    item = self._next_item(one, room) if room else None
                    if item is not None:
                        items.append(item)
                        room -= item.num_rows
                del ready[:count]
                commands += self._send_items(lane, items, now) if items else []
        return commands

    def _next_item(self, one: _Sequence, room: int) -> Item | None:
        """Up to ``room`` rows that are known, and perhaps some that are not; None: it waits for a pick."""
        start, known = one.num_sent, len(one.tokens)
        stop = min(known, start + room)
        picks = 1 if start < stop == known else 0
        drafted = 0
        if stop >= known and self._rng.random() < self._wildness:
            stop = max(start, known)
            drafted = min(self._rng.randint(1, 5), room - (stop - start))
            picks += drafted
            self.counts["drafts"] += drafted
        tokens = one.tokens[start:stop] + [self._rng.randrange(50_000) for _ in range(drafted)]
        if not tokens or start + len(tokens) > known + 12:
            return None
        one.num_sent = start + len(tokens)
        one.newest = max(one.newest, one.num_sent)
        begins: Opening | Fork | None = one.opening if start == 0 else None
        if one.fork is not None and start == one.fork.length and one.first_frame is None:
            begins = one.fork
        kind = Kind.DRAFT if drafted else Kind.DECODE
        packed = b"".join(token.to_bytes(4, "little") for token in tokens)
        return Item(one.id, one.generation, kind, start, packed, picks, begins, None)

    def _send_items(self, lane: Lane, items: list[Item], now: float) -> list[Command]:
        number = self._num_microbatches
        self._num_microbatches += 1
        self._flights.add(number)
        for item in items:
            if isinstance(item.opening, Fork):
                self._open[item.sequence].first_frame = number
        priority = self._rng.choice([Priority.NOW, Priority.PROMPT])

        def make(frame: int) -> Send:
            return Send(0, lane, Forward(*self._address, frame, number, lane, priority, tuple(items)))

        return list(self._sender.lanes[lane].push(make, now, num_rows=sum(item.num_rows for item in items)))

    # -- stages ----------------------------------------------------------------------------

    @property
    def _address(self) -> tuple[int, int]:
        assert self._ring is not None
        return self._ring.pipeline, self._ring.epoch

    @staticmethod
    def _send(stage: int, message: Close | Commit | Resume | Resumed | Ack) -> Send:
        return Send(stage, Lane.CONTROL, message)

    def _start(self, ring: Ring, now: float) -> list[Command]:
        self._ring = ring
        self._sender = LinkSender(limit=ring.num_microbatches, resend_after_s=self._resend_after_s, max_rows=self._max_rows)
        self._receiver = FrameReceiver(window=1 << 20)
        self._flights.clear()
        stages = set(range(ring.num_stages))
        for waiting in [*self._closing.values(), *(waiting for _, waiting in self._cuts.values())]:
            waiting.stages = set(stages)
        return [self._say_known(now), *self._repeat(now, stages, 0.0)]

    def _say_known(self, now: float) -> Send:
        assert self._ring is not None
        self._asked_at = now
        known = tuple([Holding(one.id, one.generation, len(one.tokens)) for one in self._open.values()])
        return self._send(self._ring.num_stages - 1, Resume(*self._address, known))

    def _from_stage(self, stage: int, message: object, now: float) -> list[Command]:
        assert self._ring is not None
        if (message.pipeline, message.epoch) != self._address:  # type: ignore[attr-defined]
            return []
        match message:
            case Ack():
                return [*self._sender.acknowledge(message, now), *self._schedule(now)]
            case Gap(sequence=sequence, have=have):
                return list(self._sender.resend_rows(sequence, have, now))
            case Verdict():
                return self._verdict(message, now)
            case Committed(cuts=cuts):
                self._confirm(stage, [(cut.sequence, cut.generation) for cut in cuts])
            case Closed(sequences=sequences):
                self._confirm_closed(stage, sequences)
            case Lost(holdings=holdings):
                return [*self._lost(holdings, now), *self._schedule(now)]
            case Resume():
                return self._resume(message, now)
            case Resumed():
                self._asked_at = None
        return []

    def _confirm(self, stage: int, names: list[tuple[SequenceId, int]]) -> None:
        for name in names:
            if name in self._cuts:
                self._cuts[name][1].stages.discard(stage)
                if not self._cuts[name][1].stages:
                    del self._cuts[name]

    def _confirm_closed(self, stage: int, sequences: Sequence[SequenceId]) -> None:
        for sequence in sequences:
            if sequence in self._closing:
                self._closing[sequence].stages.discard(stage)
                if not self._closing[sequence].stages:
                    del self._closing[sequence]

    def _lost(self, holdings: Sequence[Holding], now: float) -> list[Command]:
        commands: list[Command] = []
        for holding in holdings:
            one = self._open.get(holding.sequence)
            if one is not None and one.generation == holding.generation:
                self.counts["lost"] += 1
                commands += self._begin_again(one, now)
        return commands

    def _resume(self, message: Resume, now: float) -> list[Command]:
        answer = self._send(0, Resumed(*self._address))
        if self._is_open:
            return [answer]
        self._is_open = True
        commands: list[Command] = [answer]
        held = {holding.sequence: holding for holding in message.holdings}
        for one in list(self._open.values()):
            there = held.get(one.id)
            if there is not None and there.generation == one.generation and there.have <= one.num_sent:
                commands += self._unpin(one, now)
                one.num_sent = there.have
            else:
                commands += self._begin_again(one, now)
        return [*commands, *self._schedule(now)]

    def _verdict(self, verdict: Verdict, now: float) -> list[Command]:
        assert self._ring is not None
        last = self._ring.num_stages - 1
        commands: list[Command] = []
        if not self._receiver.holds(verdict.frame):
            self._receiver.hold(verdict.frame, now)
            self._receiver.retire([verdict.frame])
            for one in [one for one in self._open.values() if one.first_frame == verdict.microbatch]:
                commands += self._unpin(one, now)
            for pick in verdict.picks:
                commands += self._pick(pick, now)
            commands += [*self._go_wild(now), *self._schedule(now)]
        return [*commands, self._send(last, self._receiver.acknowledgement(*self._address, now, Lane.CONTROL))]

    def _pick(self, pick: Pick, now: float) -> list[Command]:
        one = self._open.get(pick.sequence)
        if one is None or one.id in self._ended or (pick.generation, pick.position) != (one.generation, len(one.tokens)):
            return []
        is_wrong = one.num_sent > len(one.tokens)
        commands: list[Command] = self._cut(one, len(one.tokens), now) if is_wrong else []
        one.tokens.append(pick.token)
        is_over = len(one.tokens) - one.num_prompt >= one.max_new
        commands.append(TellHead(Emitted(pick, FinishReason.LENGTH if is_over else None)))
        return [*commands, *(self._end(one, now) if is_over else ())]

    # -- time ------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Command]:
        if self._ring is None:
            return []
        is_unanswered = self._asked_at is not None and now - self._asked_at >= self._resend_after_s
        return [
            *([self._say_known(now)] if is_unanswered else []),
            *self._sender.tick(now),
            *self._repeat(now, set(range(self._ring.num_stages)), self._resend_after_s),
            *(self._go_wild(now) if self._is_open and self._rng.random() < 0.2 else ()),
            *self._schedule(now),
        ]

    def _repeat(self, now: float, stages: set[int], older_than_s: float) -> list[Command]:
        commands: list[Command] = []
        for cut, waiting in self._cuts.values():
            if now - waiting.asked_at >= older_than_s:
                waiting.asked_at = now
                commands += [self._send(stage, Commit(*self._address, (cut,))) for stage in waiting.stages & stages]
        for sequence, waiting in self._closing.items():
            if now - waiting.asked_at >= older_than_s:
                waiting.asked_at = now
                commands += [self._ask_close(stage, sequence) for stage in waiting.stages & stages]
        return commands


def _shared(parent: _Sequence, prompt: list[int]) -> int:
    """How many of the first rows that the parent has sent are those of the prompt; one row is left to send."""
    count = 0
    for one, other in zip(parent.tokens[: parent.num_sent], prompt[:-1], strict=False):
        if one != other:
            break
        count += 1
    return count
