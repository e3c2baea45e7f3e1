"""What comes out of the cores; the shell does it."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from bloombee.errors import BloomBeeError
from bloombee.kv.tiers import Copy
from bloombee.pipeline.events import (
    Cancel,
    Emitted,
    Ended,
    EpochBegan,
    EpochOver,
    Open,
    PipelineLost,
    PlanBeside,
    PlanBroken,
    PlanDropped,
    PlanWired,
    Port,
    ShadowBegan,
    StageRestored,
)
from bloombee.pipeline.work import Piece, Work
from bloombee.plan.plan import Plan
from bloombee.spec.speculator import Query
from bloombee.types import FinishReason, Lane, SequenceId, WorkerId
from bloombee.wire.messages import AnyMessage, MeasureLink, Pick


class Send(Struct, frozen=True, gc=False):
    """``to``: a Port (from a stage), a stage index (from the scheduler) or a worker id (from the head)."""

    to: Port | int
    lane: Lane
    message: AnyMessage
    payload: object | None = None


class AskDraft(Struct, frozen=True, gc=False):
    """Ask the drafter in another process; answer with Drafted. ``temperature``, ``seed``: of the sequence's sampling."""

    query: Query
    temperature: float
    seed: int


class DraftClosed(Struct, frozen=True, gc=False):
    """Tell it that a sequence has ended."""

    sequence: SequenceId


class Compute(Struct, frozen=True, gc=False):
    """Run this on the device after everything asked before; answer with Computed or ComputeFailed."""

    work: Work


class Gather(Struct, frozen=True, gc=False):
    """Put rows that left this stage together again, in order, as one frame; answer with Gathered, or GatherFailed where what was
    spilled cannot be read, or ComputeFailed."""

    number: int
    pieces: tuple[Piece, ...]
    num_rows: int


class Spill(Struct, frozen=True, gc=False):
    """Write payloads that left this stage to the log's file, each at its offset, before anything that is asked for after this is
    read or written there; answer with Spilled."""

    number: int
    frames: tuple[tuple[int, object], ...]


class CopyPages(Struct, frozen=True, gc=False):
    """Copy pages of KV memory, beside whatever the device does; answer with PagesCopied, in any order."""

    copy: Copy


class MeasureHere(Struct, frozen=True, gc=False):
    """The head itself is to measure its link to the worker that the order names as its target; answer with MeasuredHere."""

    order: MeasureLink


class TellHead(Struct, frozen=True, gc=False):
    message: Emitted | Ended


class TellSwarm(Struct, frozen=True, gc=False):
    """Of the scheduler."""

    message: EpochBegan | EpochOver


class TellScheduler(Struct, frozen=True, gc=False):
    message: Open | Cancel | PlanWired | PlanBroken | PlanBeside | PlanDropped | PipelineLost | StageRestored | ShadowBegan


class FindPlan(Struct, frozen=True, gc=False):
    """Call ``find``, on any thread: it may take long; answer with PlanFound."""

    number: int
    find: Callable[[], Plan | None]


class PlanMade(Struct, frozen=True, gc=False):
    """The head decided who runs what; ``Load`` messages follow as Sends."""

    plan: Plan


class PipelineUp(Struct, frozen=True, gc=False):
    """Every stage of the plan is loaded and wired; again after each recovery."""

    plan: Plan


class PipelineBroken(Struct, frozen=True, gc=False):
    """A stage is lost; ``name`` is who, or what, takes its place."""

    lost: WorkerId
    lost_name: str
    name: str
    reason: str


class HandoverBegan(Struct, frozen=True, gc=False):
    """Another plan is made ready beside the one that runs; ``PlanMade`` and ``PipelineUp`` follow when it runs."""

    plan: Plan
    reason: str


class HandoverEnded(Struct, frozen=True, gc=False):
    """The plan runs, and nothing of the one before is left (no error); or it will not run."""

    plan: Plan
    error: BloomBeeError | None


class ShadowChanged(Struct, frozen=True, gc=False):
    """A worker follows a stage from now on, for it may be lost, or does so no more.

    Args:
        plan: with the worker at ``stage``.
        is_fed: it has the weights, and gets the rows that the stage gets.
        over: why it does not follow any more; empty: it does, or will.
        loss_s: that the stage's loss would cost without it, as far as is known.
    """

    plan: Plan
    stage: int
    is_fed: bool
    over: str
    loss_s: float


class PipelineDown(Struct, frozen=True, gc=False):
    error: BloomBeeError


class Dismiss(Struct, frozen=True, gc=False):
    """Hang up on a worker that had ``stage``: it broke the rules, went silent or, without an error, is to leave."""

    worker: WorkerId
    stage: int | None
    error: BloomBeeError | None


class Deliver(Struct, frozen=True, gc=False):
    """A token for the application. ``num_cached``: as of Emitted."""

    request: int
    pick: Pick
    finish: FinishReason | None
    drafted: int = 0
    """As of Emitted; so is ``was_drafted``."""
    was_drafted: bool = False
    num_cached: int = 0


class Conclude(Struct, frozen=True, gc=False):
    """A request ended without a last token: with an error, or cancelled (None)."""

    request: int
    error: BloomBeeError | None


class ReportLeft(Struct, frozen=True, gc=False):
    """A worker left before there was a plan; another may come in its place."""

    worker: WorkerId
    name: str
    num_missing: int
    """Workers that are awaited now."""


class ReportProgress(Struct, frozen=True, gc=False):
    worker: WorkerId
    stage: int
    loaded_bytes: int
    total_bytes: int


class ReportMeasured(Struct, frozen=True, gc=False):
    """How much is known of a worker and of its links, before there is a plan; said when it is more than before."""

    worker: WorkerId
    has_profile: bool
    """It has said how fast it is, or that it cannot."""
    num_known: int
    num_links: int
    """Of those that leave it, and the head's to it: as many as are to be known."""

    @property
    def is_all(self) -> bool:
        return self.has_profile and self.num_known == self.num_links


class StageLoaded(Struct, frozen=True, gc=False):
    """A worker has what its stage needs, for the first time since it was told to load it."""

    worker: WorkerId
    stage: int


Command = (
    Send
    | AskDraft
    | DraftClosed
    | Compute
    | Gather
    | Spill
    | CopyPages
    | MeasureHere
    | TellHead
    | TellSwarm
    | TellScheduler
    | FindPlan
    | PlanMade
    | PipelineUp
    | PipelineBroken
    | HandoverBegan
    | HandoverEnded
    | ShadowChanged
    | PipelineDown
    | Dismiss
    | Deliver
    | Conclude
    | ReportLeft
    | ReportMeasured
    | ReportProgress
    | StageLoaded
)
