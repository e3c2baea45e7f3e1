"""What the scheduler knows of one sequence, and the errors that end one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from msgspec.structs import replace

from bloombee.errors import DeadlineExceeded, DeviceError, GrammarFailed, Infeasible, SequenceLost
from bloombee.pipeline.events import Open
from bloombee.pipeline.scheduler.round import Round
from bloombee.plan.plan import Ring
from bloombee.types import SequenceId
from bloombee.wire.messages import Cut, Grammar, Holding, Opening, Prefix, Sampling

MOST_CUTS = 16
"""The newest of a sequence that are remembered: a stage that comes back may not have heard of them."""


@dataclass(slots=True, eq=False)
class SequenceState:
    """Waiting or open."""

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
    biases: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None
    num_pages: tuple[int, ...] = ()
    """Kept free for it on every stage, one a group."""
    num_covered: int = 0
    """Tokens for which that is enough: a row goes only if it is among them."""
    num_sent: int = 0
    """Rows given to stage 0."""
    most_sent: int = 0
    """The most that were ever given to it in this generation: what follows on them may be picked."""
    num_to_fill: int = 0
    """Rows that go as those of a prompt do: the prompt's, and whatever has to be sent again."""
    prefix: Prefix | None = None
    """Kept rows that it has begun on."""
    generation: int = 0
    waits_since: float = 0.0
    """When it last was admitted, sent on or given a token."""
    round: Round | None = None
    """Its rows are not among ``num_sent`` before they are accepted."""
    met_stop: bool = False
    """Its text has ended: the head has found a stop string in it."""
    cuts: dict[int, int] = field(default_factory=dict)
    """Of its newest generations: how much of the one before each goes on as it is."""

    @classmethod
    def of(cls, event: Open) -> SequenceState:
        num_prompt_tokens = len(event.prompt) // 4
        return cls(
            id=event.sequence,
            tokens=bytearray(event.prompt + event.output),
            num_prompt_tokens=num_prompt_tokens,
            sampling=event.sampling,
            max_new_tokens=event.max_new_tokens,
            end_tokens=event.end_tokens,
            client=event.client,
            priority=event.priority,
            late_at=math.inf if event.max_time_s is None else event.now + event.max_time_s,
            biases=event.biases,
            grammar=event.grammar,
            num_to_fill=num_prompt_tokens + len(event.output) // 4,
        )

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // 4

    @property
    def num_output(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def has_finished(self) -> bool:
        """By an end token, its length or a stop string."""
        last = int.from_bytes(self.tokens[-4:], "little")
        is_last = self.num_output >= self.max_new_tokens or last in self.end_tokens or self.met_stop
        return self.num_output > 0 and is_last

    @property
    def num_slots(self) -> int:
        """Of KV that it needs at most: the last token is never fed back."""
        return self.num_prompt_tokens + self.max_new_tokens - 1

    @property
    def opening(self) -> Opening:
        ends = tuple(sorted(self.end_tokens))
        return Opening(self.num_prompt_tokens, self.sampling, self.max_new_tokens, ends, self.biases, self.grammar, None)

    def opening_at(self, position: int) -> Opening | None:
        """What goes with the row at ``position``: how the sequence begins, if it begins there."""
        if not position:
            return self.opening
        return replace(self.opening, prefix=self.prefix) if position == self.num_cached else None

    @property
    def num_cached(self) -> int:
        """Rows that it has not been sent: others had computed them."""
        return self.prefix.length if self.prefix is not None else 0

    @property
    def in_prefill(self) -> bool:
        return self.num_sent < self.num_to_fill

    def begin_on(self, prefix: Prefix) -> None:
        """Of one that has not begun: its first rows are kept on every stage."""
        self.prefix, self.num_sent = prefix, prefix.length

    def begin_again(self) -> None:
        """As another generation."""
        self._next_generation(0)
        self.most_sent = 0
        self.round = None

    def end_round(self) -> Cut:
        """Its accepted rows stay; stages are to be told so."""
        assert self.round is not None
        base, path = self.round.base, tuple(self.round.path)
        self._next_generation(base)
        self.num_sent = self.most_sent = base + len(path)
        self.round = None
        return Cut(self.id, self.generation, base, path)

    def abandon_round(self) -> Cut:
        """Its rows are of no use, whatever becomes of them; stages are to be told so. Tokens that are known by them are sent as
        rows."""
        assert self.round is not None
        base, self.round = self.round.base, None
        self._next_generation(base)
        self.num_sent = self.most_sent = base
        return Cut(self.id, self.generation, base, ())

    def _next_generation(self, length: int) -> None:
        self.generation += 1
        self.cuts[self.generation] = length
        self.cuts.pop(self.generation - MOST_CUTS, None)

    def alive(self, holding: Holding) -> int:
        """How many of the rows that a stage holds, perhaps in an older generation, are those of the sequence now."""
        since = range(holding.generation + 1, self.generation + 1)
        return min([holding.have, *(self.cuts.get(generation, 0) for generation in since[-MOST_CUTS:])])

    def go_back(self, position: int) -> None:
        """Rows from ``position`` on are to be sent again, up to the newest that is known."""
        self.num_sent = position
        self.num_to_fill = self.num_tokens
        if position < self.num_cached:
            self.prefix = None


def overdue(patience_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"nothing has come of a step for {patience_s:.3g} s: a worker's device or a link hangs, or is far slower than it was;"
        " the request may be tried again",
        waited_s=patience_s,
    )


def cannot_be_sent(sequence: SequenceState) -> SequenceLost:
    return SequenceLost(
        f"a stage could not compute or pass on position {sequence.num_tokens} of this request; its log says why",
        position=sequence.num_tokens,
    )


def too_long(sequence: SequenceState, ring: Ring) -> Infeasible:
    want = sequence.num_prompt_tokens + sequence.max_new_tokens
    return Infeasible(
        f"a prompt of {sequence.num_prompt_tokens} tokens and max_new_tokens = {sequence.max_new_tokens} need {want} KV tokens;"
        f" a stage has {ring.num_tokens}: shorten them or raise kv_tokens",
        constraint="kv_tokens",
        wanted=want,
        allowed=ring.num_tokens,
    )


def not_finite(sequence: SequenceState) -> DeviceError:
    return DeviceError(
        f"the model's logits at position {sequence.num_tokens} are not finite: its weights are broken, or its dtype overflows, or"
        " a rule of its checkpoint fails there: see the log of the last stage",
        position=sequence.num_tokens,
    )


def not_obeyed(sequence: SequenceState) -> GrammarFailed:
    return GrammarFailed(
        f"the last stage could not obey this request's grammar at position {sequence.num_tokens}: there it is too much to be"
        " followed, or allows only tokens that a rule of the checkpoint forbids; the log of the last stage says which",
        position=sequence.num_tokens,
    )
