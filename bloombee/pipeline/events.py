"""What goes into the cores. Time is in the events (seconds on any monotonic clock); cores have none."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from bloombee.errors import BloomBeeError
from bloombee.pipeline.work import Outcome
from bloombee.plan.plan import Plan
from bloombee.types import FinishReason, SequenceId, WorkerId
from bloombee.wire.messages import AnyMessage, Pick, Sampling


class Port(enum.StrEnum):
    """A stage's neighbours, as its core knows them."""

    HEAD = "head"
    UPSTREAM = "upstream"
    """Whoever feeds it: the scheduler for stage 0."""
    DOWNSTREAM = "downstream"
    """Whoever it feeds: the scheduler for the last stage."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Comes every few tenths of a second; time-outs are looked at."""

    now: float


# -- stage -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageReceived:
    """A message of the ring or of the head for this stage's pipeline."""

    message: AnyMessage
    now: float
    payload: object | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Computed:
    outcome: Outcome
    now: float


@dataclass(frozen=True, slots=True)
class ComputeFailed:
    error: BloomBeeError
    now: float


@dataclass(frozen=True, slots=True)
class LinkRestored:
    """A connection came back: whatever was under way on it may be lost."""

    port: Port
    now: float


# -- scheduler ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanReady:
    """Every stage of ``plan`` has loaded."""

    plan: Plan
    now: float


@dataclass(frozen=True, slots=True)
class Open:
    """A new sequence. ``prompt``: [n] little-endian uint32, n >= 1."""

    sequence: SequenceId
    prompt: bytes
    sampling: Sampling
    max_new_tokens: int
    end_tokens: frozenset[int]
    now: float
    client: int = 0
    """Whose request it is; turns are shared out fairly between clients."""
    priority: int = 0
    """Higher goes first."""


@dataclass(frozen=True, slots=True)
class Cancel:
    sequence: SequenceId
    now: float


@dataclass(frozen=True, slots=True)
class Tune:
    """From now on at most ``num_microbatches`` under way, and prompts in chunks of ``chunk_rows``. Pauses nothing."""

    num_microbatches: int
    chunk_rows: int
    now: float


@dataclass(frozen=True, slots=True)
class FromStage:
    """Verdict, Ack, Gap or Closed from the worker at ``stage``."""

    stage: int
    message: AnyMessage
    now: float


@dataclass(frozen=True, slots=True)
class StageRestored:
    """The connection to the worker at ``stage`` came back."""

    stage: int
    now: float


@dataclass(frozen=True, slots=True)
class PipelineLost:
    """The pipeline cannot go on; every open sequence ends with ``error``."""

    error: BloomBeeError
    now: float


# -- what the scheduler tells the head ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Emitted:
    """One more token of a sequence; ``finish`` is set on the last."""

    pick: Pick
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence ended without a last token: cancelled (no error) or failed."""

    sequence: SequenceId
    error: BloomBeeError | None


@dataclass(frozen=True, slots=True)
class SchedulerFailed:
    """The scheduler gave the pipeline up (a deadline passed)."""

    error: BloomBeeError


# -- head --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker was let in; ``name`` is what it calls itself."""

    worker: WorkerId
    name: str
    endpoint: str
    key: bytes
    memory_bytes: int
    now: float


@dataclass(frozen=True, slots=True)
class WorkerSaid:
    worker: WorkerId
    message: AnyMessage
    now: float


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """Its process ended or its connection broke for good."""

    worker: WorkerId
    reason: str
    now: float


@dataclass(frozen=True, slots=True)
class Submit:
    """A request of the application, already in token ids ([n] little-endian uint32)."""

    request: int
    prompt: bytes
    sampling: Sampling
    max_new_tokens: int
    end_tokens: frozenset[int]
    now: float
    client: int = 0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class CancelRequest:
    request: int
    now: float


@dataclass(frozen=True, slots=True)
class SchedulerSaid:
    message: Emitted | Ended | SchedulerFailed
    now: float
