"""The scheduler: what enters the next step. Pure; speaks with the head core in messages only.

Sequences are opened by the head, admitted when every stage has KV pages for their whole length, cut into rows and
packed into microbatches for stage 0; verdicts come back from the last stage. At most ``num_microbatches`` microbatches
that decode are under way, and the decoding sequences are spread evenly over them, so that with several in flight
every stage has work while others travel. Chunks of prompts have a lane and credit of their own, so that neither waits
for the other here; stages let decode pass, and with it the short prompt of a newcomer. Admission and prefill are
shared out fairly between clients (``fair.py``).

A token is believed once: a pick counts iff its sequence is open, its generation is the current one and its
position is the next. So repeated, late or stale verdicts change nothing.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bloombee.control.chunks import Chunks, chunks_at
from bloombee.control.operate import apart
from bloombee.errors import (
    BloomBeeError,
    DeadlineExceeded,
    DeviceError,
    Infeasible,
    LocalProtocolError,
    RemoteProtocolError,
    SequenceLost,
    StalePlan,
)
from bloombee.kv.pool import most_pages
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
from bloombee.pipeline.fair import FairQueue
from bloombee.pipeline.frames import FrameReceiver, LinkSender, lane_of
from bloombee.pipeline.patience import Patience
from bloombee.plan.plan import Plan
from bloombee.types import FinishReason, Lane, Phase, SequenceId
from bloombee.wire.messages import (
    MAX_ITEMS,
    NO_TOKEN,
    Ack,
    Close,
    Closed,
    Forward,
    Gap,
    Holding,
    Item,
    Lost,
    Opening,
    Pick,
    Resume,
    Resumed,
    Sampling,
    Verdict,
)

VERDICT_WINDOW = 1 << 20
"""Verdicts are tiny and the scheduler never makes the last stage wait."""
LEAST_ROOM, MOST_ROOM = 1 / 16, 1 / 4
"""Shares of the pages between which lies what a client leaves to others; see :meth:`SchedulerCore._leaves_room`."""
MOST_PASSING_ROWS = 128
"""Of a prompt that passes others; see :meth:`SchedulerCore._may_pass`."""
BESIDE_DECODE = 0.25
"""Of the rows of prompts that may be under way, while sequences decode: half of what fills the ring. With more of them
prompts are quicker and decode is slower: ``bench/prefill.py beside``."""
LOOP_FORGETS = 1.001
"""By how much the quickest loop is doubted with each slower one."""
MOST_ITEMS = 2048
"""Sequences of one microbatch: their picks, with twenty likely tokens each, must fit a verdict."""
Event = Open | Cancel | Tune | PlanWired | PlanBroken | PipelineLost | FromStage | StageRestored | Moved | Tick


@dataclass(slots=True)
class _Sequence:
    id: SequenceId
    tokens: bytearray
    """[num_tokens] little-endian uint32: prompt, then output."""
    num_prompt_tokens: int
    sampling: Sampling
    max_new_tokens: int
    end_tokens: frozenset[int]
    client: str
    priority: int
    late_at: float
    """From then on it gets no more tokens."""
    num_pages: tuple[int, ...] = ()
    """Kept free for it on every stage, one a group."""
    num_sent: int = 0
    """Rows given to stage 0."""
    num_to_fill: int = 0
    """Rows that go as those of a prompt do: the prompt's, and whatever has to be sent again."""
    generation: int = 0
    waits_since: float = 0.0
    """When it last was admitted, sent on or given a token."""

    def __post_init__(self) -> None:
        self.num_to_fill = self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // 4

    @property
    def num_output(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def opening(self) -> Opening:
        ends = tuple(sorted(self.end_tokens))
        return Opening(self.num_prompt_tokens, self.sampling, self.max_new_tokens, ends)

    @property
    def in_prefill(self) -> bool:
        return self.num_sent < self.num_to_fill

    def go_back(self, position: int) -> None:
        """Rows from ``position`` on are to be sent again, up to the newest that is known."""
        self.num_sent = position
        self.num_to_fill = self.num_tokens


@dataclass(slots=True)
class _Flight:
    phase: Phase
    sent_at: float
    num_rows: int
    prefill_share: float
    """Of the rows of prompts that may be under way."""
    lane: Lane
    sequences: tuple[SequenceId, ...]
    overtaken_at: float | None = None
    """When one that was sent later on the same lane had come home."""


@dataclass(slots=True)
class _Closing:
    num_pages: tuple[int, ...]
    waiting: set[int]
    """Stages that have not confirmed."""
    asked_at: float


@dataclass(slots=True)
class _Pipeline:
    """Everything that belongs to one epoch of a plan."""

    plan: Plan
    sender: LinkSender
    receiver: FrameReceiver
    pages_free: list[int]
    """Of each group, on whichever stages have it."""
    patience: Patience
    is_open: bool = False
    """Stage 0 has said what it holds."""
    is_broken: bool = False
    """It has lost a stage: nothing enters it any more."""
    asked_at: float | None = None
    """When the last stage was last told what is known here; None: it has answered."""
    flights: dict[int, _Flight] = field(default_factory=dict)
    late: dict[int, _Flight] = field(default_factory=dict)
    """Given up; they may come home yet, and show how long it took."""
    moved_at: float = -math.inf
    """When there last was a sign that anything comes on."""
    closing: dict[SequenceId, _Closing] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return len(self.plan.stages) - 1

    @property
    def num_decoding(self) -> int:
        """Microbatches that decode under way."""
        return sum(flight.phase is Phase.DECODE for flight in self.flights.values())

    @property
    def prefill_share(self) -> float:
        """Under way of the rows of prompts that may be."""
        return sum(flight.prefill_share for flight in self.flights.values())

    def can_send(self, phase: Phase) -> bool:
        return self.sender.lanes[lane_of(phase)].can_send()


class SchedulerCore:
    """events: see ``Event``. commands: Send (to a stage index), TellHead.

    Args:
        max_rows: most rows of one microbatch; longer prompts go in chunks.
        resend_after_s: silence after which a frame or a Close is repeated.
        step_deadline_s: how long there may be no sign of life until steps have shown how long they take (patience.py).
    """

    def __init__(self, *, max_rows: int, resend_after_s: float, step_deadline_s: float) -> None:
        self._max_rows = max_rows
        self._chunks: tuple[Chunks, ...] = (Chunks(0, max_rows, max_rows, math.inf),)
        self._resend_after_s = resend_after_s
        self._step_deadline_s = step_deadline_s
        self._pipe: _Pipeline | None = None
        self._waiting: FairQueue[_Sequence] = FairQueue()
        self._open: dict[SequenceId, _Sequence] = {}
        self._prefill: FairQueue[_Sequence] = FairQueue()
        self._decode: deque[_Sequence] = deque()
        self._num_open_of: Counter[str] = Counter()
        """Open sequences by client."""
        self._is_shared = False
        """Some request has named its client: there may be others."""
        self._num_microbatches = 0
        self._is_large_turn = False
        self._max_flights: int | None = None
        self._next_chunk_at = -math.inf
        self._max_open: int | None = None
        self._sizes_apart = False
        self._next_sequence = 0
        self.quickest_loop: tuple[float, int] | None = None
        """Seconds and rows of the decode microbatch that came home quickest of late."""
        self.decoded: tuple[int, float] = (0, 0.0)
        """Tokens that came of decode microbatches so far, and when the last of these came home."""

    def handle(self, event: Event) -> list[Command]:
        """Raises RemoteProtocolError for a message that its sender must not send; the state is as it was."""
        if type(event) is FromStage:
            return self._from_stage(event.stage, event.message, event.now)
        match event:
            case PlanWired(plan=plan):
                return self._start(plan, event.now)
            case PlanBroken():
                self._break()
                return []
            case Open():
                return self._admit_later(event)
            case Cancel(sequence=sequence, now=now):
                return self._cancel(sequence, now)
            case Tune():
                self._max_flights = max(1, event.num_microbatches)
                self._chunks = event.chunks
                self._max_open = event.max_sequences
                self._sizes_apart = event.sizes_apart
                return self._schedule(event.now)
            case StageRestored(stage=stage, now=now):
                return self._restored(stage, now)
            case Moved(now=now):
                self._moved(now)
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
        return len(self._open) + len(self._waiting)

    @property
    def num_open(self) -> int:
        """Admitted: in prefill or decoding."""
        return len(self._open)

    @property
    def is_idle(self) -> bool:
        pipe = self._pipe
        return not self.num_sequences and not (pipe and (pipe.flights or pipe.closing or pipe.sender.num_kept))

    # -- sequences -------------------------------------------------------------------------

    def _admit_later(self, event: Open) -> list[Command]:
        if event.sequence < self._next_sequence:
            raise LocalProtocolError(f"sequence {event.sequence} was opened before")
        self._next_sequence = event.sequence + 1
        num_prompt_tokens = len(event.prompt) // 4
        sequence = _Sequence(
            id=event.sequence,
            tokens=bytearray(event.prompt),
            num_prompt_tokens=num_prompt_tokens,
            sampling=event.sampling,
            max_new_tokens=event.max_new_tokens,
            end_tokens=event.end_tokens,
            client=event.client,
            priority=event.priority,
            late_at=math.inf if event.max_time_s is None else event.now + event.max_time_s,
        )
        self._waiting.push(sequence)
        self._is_shared = self._is_shared or bool(event.client)
        return self._schedule(event.now)

    def _admit(self, pipe: _Pipeline, now: float) -> list[Command]:
        """Move sequences from waiting to open while every stage has pages for their whole length; some go out at once."""
        commands: list[Command] = []
        full: set[str] = set()
        while (sequence := self._waiting.first(without=full)) is not None:
            # The last token is never fed back, so it needs no slot.
            need = self._pages_of(pipe.plan, sequence.num_prompt_tokens + sequence.max_new_tokens - 1)
            if any(count > group.num_pages for count, group in zip(need, pipe.plan.groups, strict=True)):
                self._waiting.remove(sequence)
                commands.append(TellHead(Ended(sequence.id, _too_long(sequence, pipe.plan))))
                continue
            if not self._leaves_room(pipe, sequence.client, need):
                full.add(sequence.client)
                continue
            if any(count > free for count, free in zip(need, pipe.pages_free, strict=True)):
                break
            pipe.pages_free = [free - count for count, free in zip(need, pipe.pages_free, strict=True)]
            sequence.num_pages = need
            sequence.waits_since = now
            self._waiting.charge(sequence, sequence.num_prompt_tokens + sequence.max_new_tokens)
            self._waiting.remove(sequence)
            passes = self._may_pass(sequence)
            self._open[sequence.id] = sequence
            self._num_open_of[sequence.client] += 1
            if passes:
                commands += self._send_past(pipe, sequence, now)
            else:
                self._prefill.push(sequence)
        return commands

    def _send_past(self, pipe: _Pipeline, sequence: _Sequence, now: float) -> list[Command]:
        """The whole prompt in even chunks, as decode travels."""
        commands: list[Command] = []
        count = sequence.num_prompt_tokens
        rows = -(-count // -(-count // self._rows_at(0, is_gentle=True)))
        while sequence.in_prefill:
            items = [self._item(sequence, min(rows, count - sequence.num_sent))]
            commands += self._send(pipe, Phase.PREFILL, items, now, travels_as=Phase.DECODE)
        return commands

    def _may_pass(self, sequence: _Sequence) -> bool:
        """Whether a prompt goes at once and as decode does, past the chunks of others that wait and are under way.

        A short one of a client that has nothing open, while others have: whoever asks for one thing at a time waits for no
        burst of somebody else's, and costs their decode a few works of a size that it meets anyway.
        """
        is_short = sequence.num_prompt_tokens <= min(MOST_PASSING_ROWS, self._max_rows)
        return is_short and bool(self._open) and not self._num_open_of[sequence.client]

    def _pages_of(self, plan: Plan, num_tokens: int) -> tuple[int, ...]:
        """The most pages that a sequence of ``num_tokens`` will hold, one a group."""
        return tuple(most_pages(num_tokens, plan.page_size, window=group.window, rows=self._max_rows) for group in plan.groups)

    def _leaves_room(self, pipe: _Pipeline, client: str, need: tuple[int, ...]) -> bool:
        """Whether ``client`` may open a sequence of ``need`` pages and a newcomer still finds a place.

        A client with nothing open always may. One that has must leave pages for a sequence as large (a sixteenth of
        them at least, a quarter at most, in each group), and stays within ``max_open``; else whoever comes after a burst that
        fills the pool would wait until somebody's text has ended. Where no request ever names its client nothing is left over.
        """
        if not self._num_open_of[client]:
            return True
        if self._max_open is not None and len(self._open) >= self._max_open:
            return False
        return not self._is_shared or all(
            count + min(max(count, int(LEAST_ROOM * group.num_pages)), int(MOST_ROOM * group.num_pages)) <= free
            for count, group, free in zip(need, pipe.plan.groups, pipe.pages_free, strict=True)
        )

    def _cancel(self, sequence_id: SequenceId, now: float) -> list[Command]:
        for sequence in self._waiting:
            if sequence.id == sequence_id:
                self._waiting.remove(sequence)
                return [TellHead(Ended(sequence_id, None))]
        if sequence_id not in self._open:
            return []  # it ended by itself meanwhile
        return [TellHead(Ended(sequence_id, None)), *self._close(self._open[sequence_id], now), *self._schedule(now)]

    def _end(self, sequence: _Sequence, error: BloomBeeError, now: float) -> list[Command]:
        """Of one that cannot go on."""
        return [TellHead(Ended(sequence.id, error)), *self._close(sequence, now)]

    def _close(self, sequence: _Sequence, now: float) -> list[Command]:
        del self._open[sequence.id]
        self._num_open_of[sequence.client] -= 1
        if not self._num_open_of[sequence.client]:
            del self._num_open_of[sequence.client]
        if not self._prefill.remove(sequence) and sequence in self._decode:
            self._decode.remove(sequence)
        pipe = self._pipe
        if pipe is None:
            return []
        stages = range(len(pipe.plan.stages))
        pipe.closing[sequence.id] = _Closing(sequence.num_pages, set(stages), now)
        return [self._ask_close(pipe, stage, (sequence.id,)) for stage in stages]

    def _ask_close(self, pipe: _Pipeline, stage: int, sequences: tuple[SequenceId, ...]) -> Send:
        floor = min([*self._open, *(s.id for s in self._waiting), *pipe.closing], default=self._next_sequence)
        message = Close(pipeline=pipe.plan.pipeline, epoch=pipe.plan.epoch, sequences=sequences, floor=floor)
        return Send(stage, Lane.CONTROL, message)

    # -- the pipeline ----------------------------------------------------------------------

    def _start(self, plan: Plan, now: float) -> list[Command]:
        """Take over what is open from the epoch before: what was under way is forgotten here, the stages say what they hold."""
        old = self._pipe
        if old is not None and plan.epoch <= old.plan.epoch:
            raise LocalProtocolError(f"epoch {plan.epoch} after epoch {old.plan.epoch}")
        sender = LinkSender(limit=plan.num_microbatches, resend_after_s=self._resend_after_s)
        pages = [group.num_pages for group in plan.groups]
        patience = old.patience if old is not None else Patience(self._step_deadline_s)
        pipe = _Pipeline(plan, sender, FrameReceiver(window=VERDICT_WINDOW), pages, patience)
        stages = range(len(plan.stages))
        pipe.closing = (
            {sequence: replace(one, waiting=set(stages), asked_at=now) for sequence, one in old.closing.items()} if old else {}
        )
        held = [*(one.num_pages for one in self._open.values()), *(one.num_pages for one in pipe.closing.values())]
        for need in held:
            pipe.pages_free = [free - count for count, free in zip(need, pipe.pages_free, strict=True)]
        self._pipe = pipe
        return [self._say_known(pipe, now), *self._repeat_closes(pipe, set(stages), now, older_than_s=0.0)]

    def _say_known(self, pipe: _Pipeline, now: float) -> Send:
        """To the last stage, so that it says again which picks are lacking here."""
        pipe.asked_at = now
        known = tuple([Holding(one.id, one.generation, one.num_tokens) for one in self._open.values()])
        return Send(pipe.last, Lane.CONTROL, Resume(pipeline=pipe.plan.pipeline, epoch=pipe.plan.epoch, holdings=known))

    def _break(self) -> None:
        if self._pipe is not None:
            self._pipe.is_open, self._pipe.is_broken = False, True
            self._pipe.flights.clear()
            self._pipe.late.clear()

    def _resume(self, pipe: _Pipeline, message: Resume, now: float) -> list[Command]:
        """Stage 0 says what it holds: the rest is sent again. Said again it changes nothing."""
        answer = Send(0, Lane.CONTROL, Resumed(pipeline=pipe.plan.pipeline, epoch=pipe.plan.epoch))
        if pipe.is_open or pipe.is_broken:
            return [answer]
        pipe.is_open, pipe.moved_at = True, now
        held = {holding.sequence: holding for holding in message.holdings}
        for sequence in self._open.values():
            sequence.waits_since = now
            there = held.get(sequence.id)
            have = there.have if there is not None and there.generation == sequence.generation else 0
            if have < sequence.num_sent:
                self._send_again(sequence, have)
        return [answer, *self._schedule(now)]

    def _send_again(self, sequence: _Sequence, position: int) -> None:
        """Rows from ``position`` on, in turn with prompts."""
        if not sequence.in_prefill:
            if sequence in self._decode:
                self._decode.remove(sequence)
            self._prefill.push(sequence)
        sequence.go_back(position)

    def _lost(self, holdings: Sequence[Holding], now: float) -> list[Command]:
        """No log reaches back far enough: from the start, as another generation. Said again it changes nothing."""
        for sequence in self._meant(holdings):
            sequence.generation += 1
            self._send_again(sequence, 0)
        return self._schedule(now)

    def _cannot_go_on(self, holdings: Sequence[Holding], now: float) -> list[Command]:
        """A stage could not pass on what it had computed of them, and went on without."""
        return [command for one in self._meant(holdings) for command in self._end(one, _cannot_be_sent(one), now)]

    def _meant(self, holdings: Sequence[Holding]) -> list[_Sequence]:
        """Those that are open and still of that generation."""
        known = [(self._open.get(holding.sequence), holding.generation) for holding in holdings]
        return [sequence for sequence, generation in known if sequence is not None and sequence.generation == generation]

    def _lose(self, error: BloomBeeError) -> list[Command]:
        ended = [*self._open, *(sequence.id for sequence in self._waiting)]
        self._open.clear()
        self._num_open_of.clear()
        self._waiting.clear()
        self._prefill.clear()
        self._decode.clear()
        self._pipe = None
        return [TellHead(Ended(sequence, error)) for sequence in ended]

    def _schedule(self, now: float) -> list[Command]:
        """Admit what fits, then send microbatches while there are rows and credit."""
        pipe = self._pipe
        if pipe is None or not pipe.is_open:
            return []
        commands = self._admit(pipe, now)
        while self._may_decode(pipe) and pipe.can_send(Phase.DECODE):
            commands += self._send(pipe, Phase.DECODE, self._decode_items(pipe), now)
        while self._may_prefill(pipe, now):
            items = self._prefill_items()
            commands += self._send(pipe, Phase.PREFILL, items, now)
            self._space_chunks(items, now)
        return commands

    def _may_decode(self, pipe: _Pipeline) -> bool:
        """When fewer are to be under way than are, small ones come home: they go on as soon as they make a large one."""
        if not self._decode:
            return False
        return pipe.num_decoding < self._most_flights(pipe) or len(self._decode) >= self._largest(pipe)

    def _most_flights(self, pipe: _Pipeline) -> int:
        """Microbatches that may decode at once: so many as hold everybody in even shares. More would be smaller ones, and each
        costs a forward whatever it holds: 24 of 1 or 2 sequences are slower than 16 of 2."""
        return -(-self._num_decoding // self._share(pipe)) if self._num_decoding else self._credit(pipe)

    def _credit(self, pipe: _Pipeline) -> int:
        return min(self._max_flights or pipe.plan.num_microbatches, pipe.plan.num_microbatches)

    @property
    def _num_decoding(self) -> int:
        return sum(not sequence.in_prefill for sequence in self._open.values())

    @property
    def _is_gentle(self) -> bool:
        """Whether prompts make way for decode: at full speed they would hold up each sequence that decodes, gently each of them
        takes longer itself. So those of a burst do not while they are more than what decodes."""
        num_started = sum(sequence.num_output > 0 for sequence in self._open.values())
        return num_started > 0 and num_started >= len(self._prefill)

    def _may_prefill(self, pipe: _Pipeline, now: float) -> bool:
        if not self._prefill or not pipe.can_send(Phase.PREFILL):
            return False
        # What makes sure that no wire runs dry also makes decode wait.
        is_gentle = self._is_gentle
        has_room = pipe.prefill_share < (BESIDE_DECODE if is_gentle else 1) - 1e-9
        return has_room and (not is_gentle or now >= self._next_chunk_at)

    def _space_chunks(self, items: list[Item], now: float) -> None:
        """Beside decode chunks go spread over a loop: all that fill the ring at once would meet each microbatch everywhere."""
        if self._is_gentle and self.quickest_loop is not None:
            apart_s = self.quickest_loop[0] * self._share_of_prompts(items) / BESIDE_DECODE
            self._next_chunk_at = max(self._next_chunk_at, now - apart_s) + apart_s

    def _share_of_prompts(self, items: list[Item]) -> float:
        return sum(item.num_rows / chunks_at(self._chunks, item.position).under_way for item in items)

    def _rows_at(self, position: int, *, is_gentle: bool) -> int:
        """Most rows of a chunk that begins at ``position``."""
        chunks = chunks_at(self._chunks, position)
        return min(chunks.gentle if is_gentle else chunks.fast, self._max_rows)

    def _prefill_items(self) -> list[Item]:
        """A chunk of the prompt whose turn it is, filled up with others where their position allows that many rows."""
        items: list[Item] = []
        rows, is_gentle = 0, self._is_gentle
        while self._prefill and len(items) < MOST_ITEMS:
            sequence = self._prefill.peek()
            room = self._rows_at(sequence.num_sent, is_gentle=is_gentle) - rows
            if room <= 0:
                break
            count = min(room, sequence.num_to_fill - sequence.num_sent)
            items.append(self._item(sequence, count))
            rows += count
            if sequence.in_prefill:
                self._prefill.charge(sequence, count)
            else:
                self._prefill.pop(count)
        return items

    def _decode_items(self, pipe: _Pipeline) -> list[Item]:
        """About an even share of the decoding sequences for each microbatch that may be in flight.

        By turns more and less while that is asked for (``control/operate.py`` says why). What came home together goes on
        together, so nothing waits for the sake of that.
        """
        share = self._share(pipe)
        count, most = len(self._decode), self._largest(pipe)
        if count > most:
            self._is_large_turn = not self._is_large_turn
            count = most if self._is_large_turn else max(1, 2 * share - most)
        elif pipe.num_decoding + 1 < self._most_flights(pipe):
            count = min(count, share)  # those that met on the way part again
        return [self._item(self._decode.popleft(), 1) for _ in range(min(count, self._max_rows, MOST_ITEMS))]

    def _share(self, pipe: _Pipeline) -> int:
        """Sequences of a microbatch when all that decode are spread evenly over those that may be under way."""
        return min(self._max_rows, MOST_ITEMS, -(-self._num_decoding // self._credit(pipe)))

    def _largest(self, pipe: _Pipeline) -> int:
        share = self._share(pipe)
        return max(1, min(self._max_rows, MOST_ITEMS, share + (apart(share) if self._sizes_apart else 0)))

    def _item(self, sequence: _Sequence, count: int) -> Item:
        start = sequence.num_sent
        sequence.num_sent += count
        return Item(
            sequence=sequence.id,
            generation=sequence.generation,
            position=start,
            tokens=bytes(sequence.tokens[4 * start : 4 * sequence.num_sent]),
            num_picks=0 if sequence.in_prefill else 1,
            opening=sequence.opening if start == 0 else None,
            parents=None,
        )

    def _send(
        self, pipe: _Pipeline, phase: Phase, items: list[Item], now: float, travels_as: Phase | None = None
    ) -> list[Command]:
        microbatch = self._num_microbatches
        self._num_microbatches += 1
        share = self._share_of_prompts(items) if phase is Phase.PREFILL else 0.0
        travels_as = phase if travels_as is None else travels_as
        lane = lane_of(travels_as)
        pipe.flights[microbatch] = _Flight(
            phase,
            now,
            num_rows=sum(item.num_rows for item in items),
            prefill_share=share,
            lane=lane,
            sequences=tuple(item.sequence for item in items),
        )
        for item in items:
            self._open[item.sequence].waits_since = now

        def make(number: int) -> Send:
            message = Forward(
                pipeline=pipe.plan.pipeline,
                epoch=pipe.plan.epoch,
                frame=number,
                microbatch=microbatch,
                phase=travels_as,
                items=tuple(items),
            )
            return Send(0, lane, message)

        return list(pipe.sender.lanes[lane].push(make, now))

    # -- from the stages -------------------------------------------------------------------

    def _from_stage(self, stage: int, message: object, now: float) -> list[Command]:
        pipe = self._pipe
        if not isinstance(message, Verdict | Ack | Gap | Closed | Resume | Resumed | Lost):
            raise RemoteProtocolError(f"{type(message).__name__} from stage {stage} is not expected")
        if pipe is None or (message.pipeline, message.epoch) != (pipe.plan.pipeline, pipe.plan.epoch):
            raise StalePlan(f"pipeline {message.pipeline} epoch {message.epoch} is not running", epoch=message.epoch)
        allowed = {Verdict: pipe.last, Resumed: pipe.last, Ack: 0, Gap: 0, Resume: 0}.get(type(message), stage)
        if stage != allowed:
            raise RemoteProtocolError(f"{type(message).__name__} comes from stage {allowed}, not {stage}")
        match message:
            case Verdict():
                return self._verdict(pipe, message, now)
            case Ack():
                self._moved(now)
                return [*pipe.sender.acknowledge(message, now), *self._schedule(now)]
            case Gap(sequence=sequence, have=have):
                return list(pipe.sender.resend_rows(sequence, have, now))
            case Closed():
                return self._closed(pipe, stage, message, now)
            case Resume():
                return self._resume(pipe, message, now)
            case Lost(holdings=holdings, is_final=is_final):
                return self._cannot_go_on(holdings, now) if is_final else self._lost(holdings, now)
        pipe.asked_at = None  # Resumed
        return []

    def _verdict(self, pipe: _Pipeline, verdict: Verdict, now: float) -> list[Command]:
        if pipe.receiver.holds(verdict.frame):
            return [self._acknowledge(pipe, now)]
        pipe.receiver.check(verdict.frame)
        pipe.receiver.hold(verdict.frame, now)
        pipe.receiver.retire([verdict.frame])
        self._home(pipe, verdict, now)
        told: list[Command] = []
        for pick in verdict.picks:
            told += self._pick(pick, now)
        return [*self._schedule(now), *told, self._acknowledge(pipe, now)]

    def _home(self, pipe: _Pipeline, verdict: Verdict, now: float) -> None:
        """What came home, unless it is known to have."""
        self._moved(now)
        flight = pipe.flights.pop(verdict.microbatch, None)
        if flight is None:
            flight = pipe.late.pop(verdict.microbatch, None)
        if flight is None:
            return
        for number, other in pipe.flights.items():
            if number > verdict.microbatch:
                break
            if other.lane is flight.lane and other.overtaken_at is None:
                other.overtaken_at = now
        pipe.patience.came_home(flight.phase, flight.num_rows, now - flight.sent_at)
        if flight.phase is Phase.DECODE:
            self._note_loop(flight, now)
            self.decoded = (self.decoded[0] + len(verdict.picks), now)

    def _note_loop(self, flight: _Flight, now: float) -> None:
        """Keep the quickest loop of late: what waited for others says nothing of the links."""
        seconds = now - flight.sent_at
        if self.quickest_loop is None or seconds <= LOOP_FORGETS * self.quickest_loop[0]:
            self.quickest_loop = (seconds, flight.num_rows)
        else:
            self.quickest_loop = (LOOP_FORGETS * self.quickest_loop[0], self.quickest_loop[1])

    def _acknowledge(self, pipe: _Pipeline, now: float) -> Send:
        ack = pipe.receiver.acknowledgement(pipe.plan.pipeline, pipe.plan.epoch, now, Lane.CONTROL)
        return Send(pipe.last, Lane.CONTROL, ack)

    def _pick(self, pick: Pick, now: float) -> list[Command]:
        sequence = self._open.get(pick.sequence)
        if sequence is None or pick.generation != sequence.generation or pick.position != sequence.num_tokens:
            return []
        if pick.token == NO_TOKEN:
            return self._end(sequence, _not_finite(sequence), now)
        sequence.waits_since = now
        sequence.tokens += pick.token.to_bytes(4, "little")
        finish = None
        if pick.token in sequence.end_tokens:
            finish = FinishReason.STOP
        elif sequence.num_output >= sequence.max_new_tokens or now > sequence.late_at:
            finish = FinishReason.LENGTH
        told: list[Command] = [TellHead(Emitted(pick, finish))]
        if finish is None:
            if sequence.in_prefill:  # it is being sent again, and this was known further on
                sequence.num_to_fill = sequence.num_tokens
            else:
                self._decode.append(sequence)
            return told
        return [*told, *self._close(sequence, now)]

    def _closed(self, pipe: _Pipeline, stage: int, message: Closed, now: float) -> list[Command]:
        for sequence_id in message.sequences:
            closing = pipe.closing.get(sequence_id)
            if closing is None:
                continue
            closing.waiting.discard(stage)
            if not closing.waiting:
                pipe.pages_free = [free + count for free, count in zip(pipe.pages_free, closing.num_pages, strict=True)]
                del pipe.closing[sequence_id]
        return self._schedule(now)

    # -- time ------------------------------------------------------------------------------

    def _restored(self, stage: int, now: float) -> list[Command]:
        pipe = self._pipe
        if pipe is None:
            return []
        commands: list[Command] = []
        if stage == 0:
            commands += pipe.sender.resend(now)
        return commands + self._repeat_closes(pipe, {stage}, now, older_than_s=0.0)

    def _repeat_closes(self, pipe: _Pipeline, stages: set[int], now: float, older_than_s: float) -> list[Command]:
        commands: list[Command] = []
        overdue = {s: c for s, c in pipe.closing.items() if now - c.asked_at >= older_than_s}
        for stage in sorted(stages):
            sequences = tuple(s for s, closing in overdue.items() if stage in closing.waiting)
            if sequences:
                commands.append(self._ask_close(pipe, stage, sequences[:MAX_ITEMS]))
        for closing in overdue.values():
            closing.asked_at = now
        return commands

    def _tick(self, now: float) -> list[Command]:
        pipe = self._pipe
        if pipe is None:
            return []
        if pipe.is_broken:
            return []
        stages = set(range(len(pipe.plan.stages)))
        is_unanswered = pipe.asked_at is not None and now - pipe.asked_at >= self._resend_after_s
        return [
            *([self._say_known(pipe, now)] if is_unanswered else []),
            *self._give_up_overdue(pipe, now),
            *pipe.sender.tick(now),
            *self._repeat_closes(pipe, stages, now, older_than_s=self._resend_after_s),
            *self._schedule(now),
        ]

    def _moved(self, now: float) -> None:
        if self._pipe is not None:
            self._pipe.moved_at = now

    def _give_up_overdue(self, pipe: _Pipeline, now: float) -> list[Command]:
        """End the sequences that wait for what does not come; whoever comes next tries the pipeline again."""
        flights = [*pipe.flights.values(), *pipe.late.values()]
        if not flights:
            return []
        patience_s = pipe.patience.allows_s((flight.phase, flight.num_rows) for flight in flights)
        overdue = self._stuck(pipe, patience_s, now)
        commands: list[Command] = []
        for number in sorted(overdue):
            commands += self._end(self._open[number], _overdue(patience_s), now)
        for microbatch, flight in list(pipe.flights.items()):
            if overdue.intersection(flight.sequences) and not any(number in self._open for number in flight.sequences):
                pipe.late[microbatch] = pipe.flights.pop(microbatch)
        return commands

    def _stuck(self, pipe: _Pipeline, patience_s: float, now: float) -> set[SequenceId]:
        """Of the open sequences. What waits in order waits for as long as anything comes on; what has been overtaken on its own
        lane, where nothing overtakes, has no such excuse."""
        found: set[SequenceId] = set()
        for flight in pipe.flights.values():
            if flight.overtaken_at is not None and now - flight.overtaken_at > patience_s:
                found.update(flight.sequences)
        if now - pipe.moved_at > patience_s:
            found.update(s.id for s in self._open.values() if now - s.waits_since > patience_s)
        return found & self._open.keys()


def _overdue(patience_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"nothing has come of a step for {patience_s:.3g} s: a worker's device or a link hangs, or is far slower than it was;"
        " the request may be tried again",
        waited_s=patience_s,
    )


def _cannot_be_sent(sequence: _Sequence) -> SequenceLost:
    return SequenceLost(
        f"a stage could not pass on position {sequence.num_tokens} of this request; its log says why",
        position=sequence.num_tokens,
    )


def _too_long(sequence: _Sequence, plan: Plan) -> Infeasible:
    want = sequence.num_prompt_tokens + sequence.max_new_tokens
    return Infeasible(
        f"a prompt of {sequence.num_prompt_tokens} tokens and max_new_tokens = {sequence.max_new_tokens} need {want} KV tokens;"
        f" a stage has {plan.num_tokens}: shorten them or raise kv_tokens",
        constraint="kv_tokens",
        wanted=want,
        allowed=plan.num_tokens,
    )


def _not_finite(sequence: _Sequence) -> DeviceError:
    return DeviceError(
        f"the model's logits at position {sequence.num_tokens} are not finite: its weights are broken, or its dtype overflows",
        position=sequence.num_tokens,
    )
