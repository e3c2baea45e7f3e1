"""The nouns that every layer shares.

Shapes use one alphabet everywhere: b sequences, t new tokens (rows), d hidden size, h attention
heads, k KV heads, e head dim, v vocabulary.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bloombee.quote import quoted
from bloombee.utf8 import surrogate_at

VERSION = "0.1.0"

WorkerId = int
"""Number a head gives a worker when it joins; 0 is the head itself."""
PipelineId = int
Epoch = int
SequenceId = int
"""Grows by one with each sequence a scheduler opens; never used again."""

HEAD: WorkerId = 0


class Dtype(enum.StrEnum):
    """Element type of weights and activations."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @property
    def num_bytes(self) -> int:
        return 4 if self is Dtype.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class PageGroup:
    """Layers that see equally far share page tables and a pool.

    Args:
        window: how many positions they see, themselves included; 0 for all.
        num_pages: of the pool.
    """

    window: int
    num_pages: int


class Phase(enum.IntEnum):
    """What a microbatch is made of; decode overtakes prefill."""

    DECODE = 0
    PREFILL = 1


class Kind(enum.IntEnum):
    """What the rows of one sequence in a microbatch are."""

    PROMPT = 0
    DECODE = 1
    DRAFT = 2
    """Tokens that are only expected to follow; a Commit says what became of them."""
    REPLAY = 3
    """Rows that were sent before, to whoever lacks them."""
    SHADOW = 4
    """Copies, to a worker that may have to take over."""


class Priority(enum.IntEnum):
    """What goes first where several microbatches wait, the lowest."""

    NOW = 0
    """Decode, and the short prompt of a newcomer."""
    DRAFT = 1
    PROMPT = 2
    REPLAY = 3
    SHADOW = 4


class Lane(enum.IntEnum):
    """The two connections of a link. Nothing overtakes inside one TCP stream, so there are two."""

    CONTROL = 0
    BULK = 1


class SchedulerPlace(enum.StrEnum):
    """Where the scheduler of a pipeline is: in the head's process, or in that of the worker with the first stage."""

    HEAD = "head"
    STAGE0 = "stage0"


class FinishReason(enum.StrEnum):
    STOP = "stop"
    """An end token or a stop string; the stop string itself is not part of the text."""
    LENGTH = "length"
    """``max_new_tokens`` reached."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Contiguous layers [start, stop)."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"span [{self.start}, {self.stop}) is empty or negative")

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, int) and self.start <= layer < self.stop

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request turns logits into tokens. Order: penalties, temperature, top-k, top-p, min-p, pick.

    None is what the checkpoint's generation_config.json says, and where that says nothing, what is named here. Its rules for
    logits hold besides (docs/checkpoints.md).

    Args:
        max_new_tokens: 1 to 2**31 - 1; by default the checkpoint's, else 128 or as many as the model has positions for.
        temperature: >= 0; 0 is greedy (no noise, lowest id wins a tie).
        top_k: keep the k best; 0 keeps all; by default the checkpoint's, else 0.
        top_p: keep the smallest set whose probabilities reach p, in (0, 1]; by default the checkpoint's, else 1, which keeps all.
        min_p: keep what has at least this share of the best probability, in [0, 1]; by default the checkpoint's, else 0: all.
        repetition_penalty: 0.01 to 100; divides positive, multiplies negative logits of every token seen
            in prompt or output; by default the checkpoint's, else 1, which is off. Source: arXiv 1909.05858.
        presence_penalty: subtracted once from logits of tokens in the output; 0 is off.
        frequency_penalty: subtracted per occurrence in the output; 0 is off.
        seed: of the noise, an unsigned 64-bit integer; None draws one when the request is made.
        stop: strings that end the text, without lone surrogates; not part of it. They may begin in the prompt. By default the
            checkpoint's, else none.
        logprobs: None, or how many most likely tokens to report per position besides the picked one
            (0: the picked one only), <= 20. Of the model's own distribution: before penalties and filters.
        ignore_eos: go on past end tokens.

    Raises:
        ValueError: a value outside its range; the message names the field and what is allowed.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        elif isinstance(self.stop, (list, set, frozenset)):
            object.__setattr__(self, "stop", tuple(self.stop))
        for ok, field, allowed in (
            (
                self.max_new_tokens is None or (_whole(self.max_new_tokens) and 1 <= self.max_new_tokens < 2**31),
                "max_new_tokens",
                "a whole number from 1 to 2**31 - 1",
            ),
            (_finite(self.temperature) and 0 <= self.temperature <= 1e4, "temperature", "a number from 0 to 10000"),
            (
                self.top_k is None or (_whole(self.top_k) and 0 <= self.top_k < 2**31),
                "top_k",
                "a whole number >= 0 (0: all)",
            ),
            (self.top_p is None or (_finite(self.top_p) and 0 < self.top_p <= 1), "top_p", "a number in (0, 1] (1: all)"),
            (self.min_p is None or (_finite(self.min_p) and 0 <= self.min_p <= 1), "min_p", "a number in [0, 1] (0: all)"),
            (
                self.repetition_penalty is None or (_finite(self.repetition_penalty) and 0.01 <= self.repetition_penalty <= 100),
                "repetition_penalty",
                "a number from 0.01 to 100 (1: off)",
            ),
            (
                _finite(self.presence_penalty) and abs(self.presence_penalty) <= 1e4,
                "presence_penalty",
                "a number from -10000 to 10000 (0: off)",
            ),
            (
                _finite(self.frequency_penalty) and abs(self.frequency_penalty) <= 1e4,
                "frequency_penalty",
                "a number from -10000 to 10000 (0: off)",
            ),
            (self.seed is None or (_whole(self.seed) and 0 <= self.seed < 2**64), "seed", "a whole number from 0 to 2**64 - 1"),
            (
                self.stop is None or (isinstance(self.stop, tuple) and len(self.stop) <= 16 and all(map(_is_text, self.stop))),
                "stop",
                "at most 16 non-empty strings, without lone surrogates",
            ),
            (
                self.logprobs is None or (_whole(self.logprobs) and 0 <= self.logprobs <= 20),
                "logprobs",
                "a whole number from 0 to 20, or None",
            ),
            (isinstance(self.ignore_eos, bool), "ignore_eos", "true or false"),
        ):
            if not ok:
                raise ValueError(f"{field} = {quoted(getattr(self, field))}: must be {allowed}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and surrogate_at(value) is None


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


@dataclass(frozen=True, slots=True)
class Token:
    """One step of a stream.

    Args:
        text: what this token adds to the text; may be empty (an incomplete character, the start of a stop string).
        logprob: of this token under the model's own distribution, if asked for.
        top_logprobs: (token id, logprob) of the most likely tokens, if asked for.
        finish_reason: set on the last step only.
        drafted: how many tokens were drafted beside the row that this one was picked after.
        was_drafted: whether it was itself among those that had been drafted.
        num_cached_tokens: on the first step, tokens of the prompt that other requests had computed; else 0.
    """

    text: str
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    drafted: int = 0
    was_drafted: bool = False
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished request.

    Args:
        token_ids: of the output, an end token included.
        logprobs: one a token, None if not asked for.
        top_logprobs: (token id, logprob) of the most likely tokens at each position, None if not asked for.
        time_to_first_token_s: from the call to the first token.
        tokens_per_s: of the tokens after the first; of all if there is only one.
        drafted, accepted: tokens that were drafted ahead, and those of the output that had been.
        rounds: how often its tokens went round the ring, each time for one token that had not been drafted.
        num_cached_tokens: of the prompt, computed by other requests before.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None
    time_to_first_token_s: float
    tokens_per_s: float
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Forwards of one phase since a stage was loaded; ``busy_s`` is their time, the pace of an emulated device included."""

    num_works: int = 0
    num_rows: int = 0
    busy_s: float = 0.0
    rows_squared: int = 0
    """Sum of the squares of the forwards' rows, and of rows times seconds: what a line needs besides."""
    row_s: float = 0.0
    num_attended: int = 0
    """Pairs of a row and a token before it (``Work.num_attended``)."""

    def __add__(self, other: DeviceUse) -> DeviceUse:
        return self._with(other, 1)

    def __sub__(self, other: DeviceUse) -> DeviceUse:
        return self._with(other, -1)

    def _with(self, other: DeviceUse, sign: int) -> DeviceUse:
        return DeviceUse(
            self.num_works + sign * other.num_works,
            self.num_rows + sign * other.num_rows,
            self.busy_s + sign * other.busy_s,
            self.rows_squared + sign * other.rows_squared,
            self.row_s + sign * other.row_s,
            self.num_attended + sign * other.num_attended,
        )

    @property
    def mean_s(self) -> float:
        """Of one forward; 0 if there was none."""
        return self.busy_s / self.num_works if self.num_works else 0.0


@dataclass(frozen=True, slots=True)
class StageUse:
    """What a stage has done since it was loaded: its device by phase, and its codec.

    Args:
        encoded_frames: calls of the codec's encoder.
        raw_bytes, sent_bytes: of all activations that left the stage, before and after the codec.
    """

    decode: DeviceUse = DeviceUse()
    prefill: DeviceUse = DeviceUse()
    encoded_frames: int = 0
    raw_bytes: int = 0
    sent_bytes: int = 0

    @property
    def busy_s(self) -> float:
        """Of all forwards."""
        return self.decode.busy_s + self.prefill.busy_s

    def __sub__(self, other: StageUse) -> StageUse:
        return StageUse(
            self.decode - other.decode,
            self.prefill - other.prefill,
            self.encoded_frames - other.encoded_frames,
            self.raw_bytes - other.raw_bytes,
            self.sent_bytes - other.sent_bytes,
        )


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a worker is on its way to its span.

    Args:
        phase: "joined"; "measuring", "measured": how fast it and its links are, where a planner is to decide; "loading", "ready";
            "left": it went before all were there.
        num_missing: workers that are awaited, where the phase is "joined" or "left".
        num_known_links, num_links: of those that leave it and the head's to it, where they are measured: known so far, and all.
    """

    worker: WorkerId
    name: str
    stage: int
    loaded_bytes: int
    total_bytes: int
    phase: str
    num_missing: int = 0
    num_known_links: int = 0
    num_links: int = 0


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """A request of a head that has ended, with which this one goes on.

    Args:
        id: for ``Runtime.resume``.
        client: whose it is, as was said when it was made.
        num_tokens: that it has so far.
        has_ended: nothing more comes; its tokens are there until they have been read.
    """

    id: int
    prompt_token_ids: tuple[int, ...]
    client: str
    num_tokens: int
    has_ended: bool


class SwarmEventKind(enum.StrEnum):
    """What may happen in a swarm."""

    JOINED = "joined"
    """A worker was let in."""
    MEASURING = "measuring"
    """It is asked how fast a worker and its links are, before there is a plan."""
    MEASURED = "measured"
    """It is known."""
    PLANNED = "planned"
    """It was decided who runs what in an epoch; those that have not loaded begin to."""
    LOADED = "loaded"
    """A worker has its stage's weights."""
    WIRING = "wiring"
    """Each is told its neighbours: when all have loaded, and where one takes another's place while it loads."""
    UP = "up"
    """The epoch runs: after the start, after each recovery, and when requests have moved over to another plan."""
    REPLANNING = "replanning"
    """Another plan is made ready beside the one that runs: its epoch, and why."""
    REPLANNED = "replanned"
    """Nothing is left of the plan before; or, with a reason, the other one could not be taken over."""
    SHADOW = "shadow"
    """A spare begins to follow a stage, follows it, or does so no more: the reason says which."""
    LOST = "lost"
    """A worker is gone."""
    LEFT = "left"
    """A worker was drained: another has what it served, and it ends."""
    RESTARTED = "restarted"
    """The process of a worker of this machine has died and is started again; it joins as a spare."""
    ABANDONED = "abandoned"
    """It has died too often for another try."""
    DOWN = "down"
    """Nothing runs any more."""
    DECIDED = "decided"
    """It was chosen how the epoch is run from now on."""
    STATE = "state"
    """What the head must know to go on after its end is kept no longer, or again; or what was kept was not whole."""


@dataclass(frozen=True, slots=True)
class SwarmEvent:
    """Something that happened in the swarm.

    Args:
        at_s: when, by ``time.monotonic``.
        epoch: of the plan that it is about; 0: of none.
        worker, name: whom it is about, if one.
        stage: that a worker has loaded or follows, or that a lost one had; None: it was a spare, or there was no plan yet.
        reason: of a loss, of an end, of a choice; of what is measured, how much is known; of a plan that was chosen: what is
            expected of it, and why others are spares.
        decision: of a choice, the line of the decision log: JSON with what was chosen, why and from which figures.
    """

    kind: SwarmEventKind
    at_s: float
    epoch: int = 0
    worker: WorkerId | None = None
    name: str = ""
    reason: str = ""
    decision: str = ""
    stage: int | None = None
