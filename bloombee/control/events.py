"""What goes into the control core and what comes out of it. Pure data: every event is a line of JSON in a log (``log.py``).

Time is in the events: seconds on any monotonic clock.
"""

from __future__ import annotations

from msgspec import Struct

from bloombee.control.chunks import Chunks
from bloombee.plan.plan import Prediction
from bloombee.plan.topology import RowTime
from bloombee.spec.controller import Load
from bloombee.types import HEAD, Epoch, StageUse, WorkerId

# -- events ------------------------------------------------------------------------------------


class PlanRuns(Struct, frozen=True, gc=False, tag=True):
    """A plan is wired.

    Args:
        workers, names, layers: of each stage, in ring order.
        hidden: size d of the model; activation_bytes: of one element on a link.
        most_microbatches: credit that stages grant; most_rows: in one microbatch.
        microbatches: as asked for; None: to be chosen. target_s: time per token to keep; None: most tokens a second.
        codec: mode of the links, as asked for.
        prediction: of a plan that was chosen.
        scheduler: in whose process the scheduler is.
    """

    epoch: Epoch
    workers: tuple[WorkerId, ...]
    names: tuple[str, ...]
    layers: tuple[int, ...]
    hidden: int
    activation_bytes: int
    most_microbatches: int
    most_rows: int
    microbatches: int | None
    target_s: float | None
    codec: str
    now: float
    prediction: Prediction | None = None
    scheduler: WorkerId = HEAD


class PlanEnded(Struct, frozen=True, gc=False, tag=True):
    """It has lost ``worker``, or (None) the swarm ends: nobody answers any more."""

    worker: WorkerId | None
    now: float


class DeviceSeen(Struct, frozen=True, gc=False, tag=True):
    """How fast ``worker`` says that it runs the model: of a pass, of each layer of the pass, of the last stage besides."""

    worker: WorkerId
    stage: RowTime
    layer: RowTime
    output: RowTime
    now: float


class LinkSeen(Struct, frozen=True, gc=False, tag=True):
    """What the frames of a link have shown. ``bandwidth_bytes_per_s`` None: no queue ever stood there."""

    source: WorkerId
    target: WorkerId
    latency_s: float
    bandwidth_bytes_per_s: float | None
    now: float


class CodecSeen(Struct, frozen=True, gc=False, tag=True):
    """Whether the sender of a link codes one row's activations, and why; for people."""

    source: WorkerId
    target: WorkerId
    choice: str
    now: float


class Looked(Struct, frozen=True, gc=False, tag=True):
    """The scheduler at a glance; comes a few times a second.

    Args:
        num_open, num_waiting: sequences that are admitted, and that are not yet.
        quickest_loop: seconds and rows of the microbatch that came home quickest of late.
        decoded: tokens so far, and when the last of them came.
    """

    num_open: int
    num_waiting: int
    quickest_loop: tuple[float, int] | None
    decoded: tuple[int, float]
    now: float


class StageMeasured(Struct, frozen=True, gc=False, tag=True):
    """A stage's answer to the question ``number``: sums since it was loaded."""

    stage: int
    number: int
    use: StageUse
    pages_free: int
    now: float


class StageBack(Struct, frozen=True, gc=False, tag=True):
    """The connection to a stage came back: what was asked, or its answer, may be lost."""

    stage: int
    now: float


class Asked(Struct, frozen=True, gc=False, tag=True):
    """Somebody wants to know how all stages stand; ``question``: of the asker's choice."""

    question: int
    now: float


class PlansCompared(Struct, frozen=True, gc=False, tag=True):
    """What the plan that runs and the best other one are worth by the figures as they are now; comes while there is something to
    run and another plan could be taken over.

    Args:
        other: the other plan, for people.
        running_worth, other_worth: by the objective; more is better. cost_s: of the change, in seconds of work.
    """

    other: str
    running_worth: float
    other_worth: float
    cost_s: float
    now: float


class ShadowSeen(Struct, frozen=True, gc=False, tag=True):
    """A spare follows a stage in case that is lost, or no longer.

    Args:
        name: of the spare. what: has come of it, for people.
        loss_s: that the stage's loss would cost without it: of those that nobody followed, the most.
    """

    stage: int
    name: str
    what: str
    loss_s: float
    now: float


Event = (
    PlanRuns
    | PlanEnded
    | DeviceSeen
    | LinkSeen
    | CodecSeen
    | Looked
    | StageMeasured
    | StageBack
    | Asked
    | PlansCompared
    | ShadowSeen
)


# -- commands ----------------------------------------------------------------------------------


class AskStage(Struct, frozen=True, gc=False, tag=True):
    """Ask a stage how it stands; it answers with the same number."""

    stage: int
    number: int


class Answer(Struct, frozen=True, gc=False, tag=True):
    """To ``Asked``: one a stage."""

    question: int
    measured: tuple[StageMeasured, ...]


class Run(Struct, frozen=True, gc=False, tag=True):
    """How to run from now on: at most ``num_microbatches`` that decode under way, of different sizes if ``sizes_apart``, prompts
    in ``chunks`` (in rising order of position, the first at 0), no more than ``max_sequences`` (None: any number)."""

    num_microbatches: int
    chunks: tuple[Chunks, ...]
    max_sequences: int | None
    sizes_apart: bool


class Price(Struct, frozen=True, gc=False, tag=True):
    """What a round costs by its rows, from now on: by that tokens are drafted."""

    load: Load


class Replan(Struct, frozen=True, gc=False, tag=True):
    """Take over the other plan of the last comparison."""

    why: str


class Figures(Struct, frozen=True, gc=False, tag=True):
    """What a choice was made from.

    Args:
        sequences: that want to run. devices: each stage's pass. links: (latency, bandwidth) in ring order, from the head on.
        ratios: sent over raw bytes of each activation link, None where nothing is coded.
        decoded: tokens so far, and when the last of them came.
        step_s: that is expected of what is chosen; before_s: of what ran before, by the same figures.
    """

    sequences: int
    devices: tuple[RowTime, ...]
    links: tuple[tuple[float, float | None], ...]
    ratios: tuple[float | None, ...]
    decoded: tuple[int, float]
    step_s: float
    before_s: float | None


class Decision(Struct, frozen=True, gc=False, tag=True):
    """A line of the decision log.

    Args:
        what: is chosen, ``plan``, ``replan``, ``run``, ``codec`` or ``shadow``. chosen, why: for people.
        figures: None where no figure was weighed.
    """

    at_s: float
    epoch: Epoch
    what: str
    chosen: str
    why: str
    figures: Figures | None = None


Command = AskStage | Answer | Run | Price | Replan | Decision
