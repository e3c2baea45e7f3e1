"""What plans, messages and measured links are to the control core."""

from __future__ import annotations

import math

from bloombee.control.events import LinkSeen, PlanRuns, StageMeasured
from bloombee.plan.plan import Plan
from bloombee.plan.topology import Link
from bloombee.types import DeviceUse, StageUse, WorkerId
from bloombee.wire.messages import Measured, Tally


def plan_runs(
    plan: Plan, *, hidden: int, most_rows: int, microbatches: int | None, target_s: float | None, codec: str, now: float
) -> PlanRuns:
    """``plan`` is wired; the rest as in :class:`PlanRuns`."""
    return PlanRuns(
        epoch=plan.epoch,
        workers=tuple(stage.worker for stage in plan.stages),
        names=tuple(stage.name for stage in plan.stages),
        layers=tuple(len(stage.span) for stage in plan.stages),
        hidden=hidden,
        activation_bytes=plan.dtype.num_bytes,
        most_microbatches=plan.num_microbatches,
        most_rows=most_rows,
        microbatches=microbatches,
        target_s=target_s,
        codec=codec,
        now=now,
        prediction=plan.prediction,
        scheduler=plan.scheduler_worker,
    )


def stage_measured(stage: int, said: Measured, now: float) -> StageMeasured:
    """A stage's answer as it came."""
    use = StageUse(_use(said.decode), _use(said.prefill), said.encoded_frames, said.raw_bytes, said.sent_bytes)
    return StageMeasured(stage, said.number, use, said.pages_free, now)


def link_seen(source: WorkerId, target: WorkerId, link: Link, now: float) -> LinkSeen:
    """A link as it is expected to be."""
    return LinkSeen(source, target, link.latency_s, finite(link.bandwidth_bytes_per_s), now)


def finite(bytes_per_s: float) -> float | None:
    """As a log has it: None where there is no limit."""
    return bytes_per_s if math.isfinite(bytes_per_s) else None


def _use(tally: Tally) -> DeviceUse:
    return DeviceUse(tally.works, tally.rows, tally.ns / 1e9, tally.rows_squared, tally.row_ns / 1e9, tally.attended)
