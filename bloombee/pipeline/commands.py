"""What comes out of the cores; the shell does it."""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.errors import BloomBeeError
from bloombee.pipeline.events import Cancel, Emitted, Ended, Open, PipelineLost, PlanReady, Port, SchedulerFailed, StageRestored
from bloombee.pipeline.work import Work
from bloombee.plan.plan import Plan
from bloombee.types import FinishReason, Lane, WorkerId
from bloombee.wire.messages import AnyMessage, Pick


@dataclass(frozen=True, slots=True)
class Send:
    """``to``: a Port (from a stage), a stage index (from the scheduler) or a worker id (from the head)."""

    to: Port | int
    lane: Lane
    message: AnyMessage
    payload: object | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Compute:
    """Run this on the device after everything asked before; answer with Computed or ComputeFailed."""

    work: Work


@dataclass(frozen=True, slots=True)
class TellHead:
    message: Emitted | Ended | SchedulerFailed


@dataclass(frozen=True, slots=True)
class TellScheduler:
    message: Open | Cancel | PlanReady | PipelineLost | StageRestored


@dataclass(frozen=True, slots=True)
class PlanMade:
    """The head decided who runs what; links may be opened. ``Assign`` messages follow as Sends."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class PipelineUp:
    plan: Plan


@dataclass(frozen=True, slots=True)
class PipelineDown:
    error: BloomBeeError


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Hang up on a worker: it broke the rules or went silent."""

    worker: WorkerId
    error: BloomBeeError


@dataclass(frozen=True, slots=True)
class Deliver:
    """A token for the application."""

    request: int
    pick: Pick
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class Conclude:
    """A request ended without a last token: with an error, or cancelled (None)."""

    request: int
    error: BloomBeeError | None


@dataclass(frozen=True, slots=True)
class ReportProgress:
    worker: WorkerId
    stage: int
    loaded_bytes: int
    total_bytes: int


Command = (
    Send
    | Compute
    | TellHead
    | TellScheduler
    | PlanMade
    | PipelineUp
    | PipelineDown
    | Dismiss
    | Deliver
    | Conclude
    | ReportProgress
)
