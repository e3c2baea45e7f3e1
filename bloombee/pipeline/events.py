"""What goes into the cores. Time is in the events (seconds on any monotonic clock); cores have none."""

from __future__ import annotations

import enum

from msgspec import Struct

from bloombee.control.chunks import Chunks
from bloombee.control.events import Run
from bloombee.errors import BloomBeeError
from bloombee.kv.kept import StoredPrefix
from bloombee.pipeline.work import Outcome
from bloombee.plan.plan import Plan, Ring
from bloombee.spec.controller import Load
from bloombee.spec.tree import Draft
from bloombee.types import Epoch, FinishReason, Lane, SequenceId, WorkerId
from bloombee.wire.messages import AnyMessage, Grammar, LinkReport, Pick, Sampling


class Port(enum.StrEnum):
    """A stage's neighbours, as its core knows them."""

    HEAD = "head"
    SCHEDULER = "scheduler"
    """About sequences; where it is with the head, that is the head's link."""
    UPSTREAM = "upstream"
    """Whoever feeds it: the scheduler for stage 0."""
    DOWNSTREAM = "downstream"
    """Whoever it feeds: the scheduler for the last stage."""


class Tick(Struct, frozen=True, gc=False):
    """Comes every few tenths of a second; time-outs are looked at.

    Args:
        is_busy: what runs fills more than half of the link to the next stage: there is no room for copies.
    """

    now: float
    is_busy: bool = False


class Moved(Struct, frozen=True, gc=False):
    """Something came on over a link, though no frame may have been acknowledged: pieces of a large one arrived."""

    now: float


# -- stage -------------------------------------------------------------------------------------


class StageReceived(Struct, frozen=True, gc=False):
    """A message of the ring or of the head for this stage's pipeline."""

    message: AnyMessage
    now: float
    payload: object | None = None


class Computed(Struct, frozen=True, gc=False):
    outcome: Outcome
    now: float


class Gathered(Struct, frozen=True, gc=False):
    number: int
    payload: object
    now: float


class GatherFailed(Struct, frozen=True, gc=False):
    """The log's file does not give back what was written to it."""

    number: int
    now: float


class Spilled(Struct, frozen=True, gc=False):
    """Payloads have been written to the log's file; ``stored`` are what stands for each from now on. None: it took no more."""

    number: int
    stored: tuple[object, ...] | None


class HostRoom(Struct, frozen=True, gc=False):
    """Of a stage that is loaded: so many pages of each group of layers have room in the host's memory; ``has_disk``: and on disk,
    where ``stored`` are from before, what was of use last at the end. ``run``: like no other's, for the names of files."""

    num_pages: tuple[int, ...]
    has_disk: bool = False
    stored: tuple[StoredPrefix, ...] = ()
    run: bytes = b""


class PagesCopied(Struct, frozen=True, gc=False):
    """A copy of pages has ended; ``failed``: they are not there. ``gone``: names of files that had to make way."""

    number: int
    failed: bool
    gone: tuple[bytes, ...] = ()


class Greeted(Struct, frozen=True, gc=False):
    """Both neighbours of the seat of ``epoch`` are there."""

    epoch: int
    now: float


class ComputeFailed(Struct, frozen=True, gc=False):
    error: BloomBeeError
    now: float


class Recoded(Struct, frozen=True, gc=False):
    """The kept frame ``frame`` of ``lane`` in ``epoch`` has been encoded otherwise: send it again so."""

    epoch: int
    lane: Lane
    frame: int
    payload: object
    now: float


class Unsendable(Struct, frozen=True, gc=False):
    """The frame ``frame`` of ``lane`` in ``epoch`` breaks a rule of the wire and cannot be sent as it is."""

    epoch: int
    lane: Lane
    frame: int
    now: float


class LinkRestored(Struct, frozen=True, gc=False):
    """A connection of the seat of ``epoch`` came back: whatever was under way on it may be lost."""

    epoch: int
    port: Port
    now: float


# -- scheduler ---------------------------------------------------------------------------------


class PlanWired(Struct, frozen=True, gc=False):
    """Every stage of the plan has loaded and is told its neighbours: what is open goes on in its epoch."""

    ring: Ring
    now: float


class PlanBroken(Struct, frozen=True, gc=False):
    """The epoch that runs has lost a stage; another one will follow."""

    now: float


class PlanBeside(Struct, frozen=True, gc=False):
    """The stages of another plan, with as much KV memory, are told their neighbours while the epoch that runs goes on: what is
    open moves over when they have all that the stages of that one hold.

    Args:
        feeds: its first stage begins with nothing, and gets all rows from here.
    """

    ring: Ring
    feeds: bool
    now: float


class ShadowBegan(Struct, frozen=True, gc=False):
    """A worker follows a stage, in an epoch of its own: it is told what becomes of sequences, and of the first stage all rows.

    Args:
        ring: with the worker at ``stage``.
    """

    ring: Ring
    stage: int
    now: float


class PlanDropped(Struct, frozen=True, gc=False):
    """An epoch beside the one that runs, before it or after it, or of a shadow, is over as it stands."""

    epoch: Epoch
    now: float


class Open(Struct, frozen=True, gc=False):
    """A new sequence. ``prompt``: [n] little-endian uint32, n >= 1."""

    sequence: SequenceId
    prompt: bytes
    sampling: Sampling
    max_new_tokens: int
    end_tokens: frozenset[int]
    now: float
    client: str = ""
    """Whose request it is; turns are shared out fairly between clients."""
    priority: int = 0
    """Higher goes first."""
    max_time_s: float | None = None
    """After which it gets no more tokens; None: whenever."""
    output: bytes = b""
    """As ``prompt``: what another scheduler had come to, fewer than ``max_new_tokens``."""
    biases: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None


class Cancel(Struct, frozen=True, gc=False):
    """Nobody wants more of a sequence: it was given up, or its text has ended by a stop string (``is_finished``)."""

    sequence: SequenceId
    now: float
    is_finished: bool = False


class Tune(Struct, frozen=True, gc=False):
    """From now on at most ``num_microbatches`` that decode under way, prompts cut as ``chunks`` say (in rising order of position,
    the first at 0), and no sequence admitted while ``max_sequences`` (None: any number) are open. Pauses nothing."""

    num_microbatches: int
    chunks: tuple[Chunks, ...]
    max_sequences: int | None
    now: float
    sizes_apart: bool = False
    """Decode microbatches by turns larger and smaller, so that it shows what a row costs."""


class Priced(Struct, frozen=True, gc=False):
    """A round costs what ``load`` says, as far as the figures go; who is in a microbatch the scheduler knows."""

    load: Load
    now: float


class DrafterSeen(Struct, frozen=True, gc=False):
    """A drafter in another process can be asked from now on, and knows no sequence; or it is gone."""

    is_there: bool
    now: float


class Drafted(Struct, frozen=True, gc=False):
    """It expects ``draft`` behind the first ``length`` tokens of a sequence. Has been checked."""

    sequence: SequenceId
    length: int
    draft: Draft
    now: float


def tune_event(run: Run, now: float) -> Tune:
    """What tells the scheduler to run as the control core says."""
    return Tune(run.num_microbatches, run.chunks, run.max_sequences, now, run.sizes_apart)


class FromStage(Struct, frozen=True, gc=False):
    """A message of the ring, or an answer to an order of the scheduler's, from the worker at ``stage``."""

    stage: int
    message: AnyMessage
    now: float


class FromHead(Struct, frozen=True, gc=False):
    """A message of the head's to a scheduler that is elsewhere."""

    message: AnyMessage
    now: float


class HeadRestored(Struct, frozen=True, gc=False):
    """The connection to the head came back."""

    now: float


class StageRestored(Struct, frozen=True, gc=False):
    """The connection to the worker at ``stage`` of an epoch (0: of the one that runs) came back."""

    stage: int
    now: float
    epoch: Epoch = 0


class PipelineLost(Struct, frozen=True, gc=False):
    """The pipeline cannot go on; every open sequence ends with ``error``."""

    error: BloomBeeError
    now: float


# -- what the scheduler tells the head ---------------------------------------------------------


class Emitted(Struct, frozen=True, gc=False):
    """One more token of a sequence; ``finish`` is set on the last."""

    pick: Pick
    finish: FinishReason | None
    drafted: int = 0
    """Tokens that were drafted beside the row that this one is picked after."""
    was_drafted: bool = False
    """It had been drafted, so what follows on it may be known already."""
    num_cached: int = 0
    """Of the first: tokens of the prompt that others had computed."""


class Ended(Struct, frozen=True, gc=False):
    """A sequence ended without a last token: cancelled (no error) or failed."""

    sequence: SequenceId
    error: BloomBeeError | None


class EpochBegan(Struct, frozen=True, gc=False):
    """All that is sent from now on goes over this epoch, which had been beside the one that ran."""

    epoch: Epoch
    now: float


class EpochOver(Struct, frozen=True, gc=False):
    """Nothing of an earlier epoch counts any more: it can be retired."""

    epoch: Epoch
    now: float


# -- head --------------------------------------------------------------------------------------


class WorkerJoined(Struct, frozen=True, gc=False):
    """A worker was let in; ``name`` is what it calls itself."""

    worker: WorkerId
    name: str
    endpoint: str
    key: bytes
    memory_bytes: int
    now: float


class WorkerSaid(Struct, frozen=True, gc=False):
    worker: WorkerId
    message: AnyMessage
    now: float


class MeasuredHere(Struct, frozen=True, gc=False):
    """What the head has measured of its own link to a worker: the answer to MeasureHere."""

    report: LinkReport
    now: float


class WorkerAway(Struct, frozen=True, gc=False):
    """Its connection broke and may come back."""

    worker: WorkerId
    now: float


class WorkerRestored(Struct, frozen=True, gc=False):
    """Its connection is back: what it was told last may be lost."""

    worker: WorkerId
    now: float


class WorkerGone(Struct, frozen=True, gc=False):
    """Its process ended or its connection broke for good; or it cannot load what it was to, which is ``cause``."""

    worker: WorkerId
    reason: str
    now: float
    cause: BloomBeeError | None = None


class WorkerDrains(Struct, frozen=True, gc=False):
    """A worker leaves its stage to ``heir``, a spare that fits, while it is there itself."""

    worker: WorkerId
    heir: WorkerId
    reason: str
    now: float


class WorkersEnded(Struct, frozen=True, gc=False):
    """All of them, and no other can come."""

    error: BloomBeeError
    now: float


class HandOver(Struct, frozen=True, gc=False):
    """Run ``plan`` instead, made for workers that are in, with as much KV memory as the one that runs; its epoch and orders are
    given here."""

    plan: Plan
    reason: str
    now: float


class PlanFound(Struct, frozen=True, gc=False):
    """``plan`` None: there is none."""

    number: int
    plan: Plan | None
    now: float


class SwarmLost(Struct, frozen=True, gc=False):
    """No pipeline will run any more."""

    error: BloomBeeError


class Submit(Struct, frozen=True, gc=False):
    """A request of the application, already in token ids ([n] little-endian uint32)."""

    request: int
    prompt: bytes
    sampling: Sampling
    max_new_tokens: int
    end_tokens: frozenset[int]
    now: float
    client: str = ""
    priority: int = 0
    max_time_s: float | None = None
    output: bytes | None = None
    """As ``prompt``: what it was given by a head before this one, fewer than ``max_new_tokens``; None: it begins."""
    biases: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None


class CancelRequest(Struct, frozen=True, gc=False):
    """As Cancel."""

    request: int
    now: float
    is_finished: bool = False


class SchedulerSaid(Struct, frozen=True, gc=False):
    message: Emitted | Ended
    now: float


class SchedulerBegan(Struct, frozen=True, gc=False):
    """Another scheduler has taken over, and knows of no sequence."""

    now: float
