"""What a head's parts know of the swarm, put together for whoever asks (``roles/status.py``)."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence

from bloombee.errors import RuntimeClosed
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.pipeline.swarm.member import Member
from bloombee.plan.plan import Plan, StagePlan
from bloombee.roles.head import HeadRole
from bloombee.roles.stage_record import StageRecord
from bloombee.roles.status import (
    VERSION,
    Figures,
    Forwards,
    LinkStatus,
    PlanStatus,
    RequestStatus,
    StageStatus,
    SwarmStatus,
    WorkerStatus,
)
from bloombee.types import HEAD, DeviceUse, WorkerId

HEAD_NAME = "head"


def status_of(head: HeadRole) -> SwarmStatus:
    """Now. To be called on the head's loop.

    Raises:
        RuntimeClosed: it still looks at its model.
    """
    if not hasattr(head, "card"):
        raise RuntimeClosed("that head still looks at its model: ask again in a moment")
    core, plan, now = head.core, head.plan, time.monotonic()
    return SwarmStatus(
        version=VERSION,
        process=os.getpid(),
        model=head.config.model,
        state=state_of_swarm(head),
        reason="" if core.error is None else core.error.message,
        missing=core.num_missing,
        plan=None if plan is None else _plan(head, plan),
        workers=tuple(_workers(head, plan)),
        links=() if plan is None else tuple(_links(head, plan)),
        requests=tuple(_requests(head)),
        served=head.desk.served.told(now),
        recoveries=head.bulletin.recoveries,
        now_s=now,
    )


def state_of_swarm(head: HeadRole) -> str:
    """As :class:`~bloombee.roles.status.SwarmStatus` has it. Callable from any thread."""
    core, plan = head.core, head.plan
    if core.error is not None:
        return "down"
    if plan is None:
        return "waiting" if core.num_missing else "loading"
    return "up" if core.is_up else "recovering" if core.was_up else "loading"


def _plan(head: HeadRole, plan: Plan) -> PlanStatus:
    goal, expected = head.config.goal, plan.prediction
    run, num_open = head.helm.core.running, head.dispatch.scheduler.num_open
    count = plan.num_microbatches if run is None else run.num_microbatches
    return PlanStatus(
        epoch=plan.epoch,
        objective=None if goal is None else str(goal),
        scheduler=_names(head.core.members).get(plan.scheduler_worker, HEAD_NAME),
        predicted=None
        if expected is None
        else Figures(expected.num_microbatches, expected.microbatch_sequences, expected.tokens_per_s),
        measured=Figures(count, -(-num_open // count), head.helm.speed.tokens_per_s(time.monotonic())),
        reason="" if expected is None else str(expected),
    )


# -- workers -----------------------------------------------------------------------------------


def _workers(head: HeadRole, plan: Plan | None) -> Iterator[WorkerStatus]:
    """Those with a stage in ring order, then the others as they joined."""
    members = head.core.members
    stages = {} if plan is None else {stage.worker: stage for stage in plan.stages}
    for worker in (*(one for one in stages if one in members), *(one for one in members if one not in stages)):
        yield _worker(head, plan, members[worker], stages.get(worker))


def _worker(head: HeadRole, plan: Plan | None, member: Member, stage: StagePlan | None) -> WorkerStatus:
    profile, follows = head.observatory.profiles.get(member.id), tuple(_follows(head, member))
    layer = None if profile is None else profile.fit.layer
    return WorkerStatus(
        id=member.id,
        name=member.name,
        address=member.endpoint,
        state=state_of(plan, member, stage),
        stage=None if stage is None else stage.index,
        layers=None if stage is None else (stage.span.start, stage.span.stop),
        memory_bytes=member.memory_bytes,
        used_bytes=0 if stage is None else stage.weight_bytes + stage.kv_bytes + stage.scratch_bytes,
        layer_s=None if layer is None else layer.fixed_s + layer.decode_row_s,
        silent_s=head.members.silent_s(member.id),
        reason="" if stage is not None else _why_spare(plan, member, follows),
        figures=None if stage is None else _figures(stage, head.helm.stages.get(stage.index)),
        follows=follows if stage is None else (),
    )


def _follows(head: HeadRole, member: Member) -> Iterator[tuple[int, int | None]]:
    scheduler = head.dispatch.scheduler
    num_rows = scheduler.num_rows if isinstance(scheduler, SchedulerCore) else 0
    for shadow in head.core.shadows.of(member.id):
        yield shadow.index, max(0, num_rows - shadow.rows) if shadow.is_wired else None


def _figures(stage: StagePlan, record: StageRecord | None) -> StageStatus | None:
    if record is None:
        return None
    return StageStatus(
        decode=_forwards(record.use.decode),
        prefill=_forwards(record.use.prefill),
        bubble_s=record.bubble_s,
        pages_free=record.pages_free,
        pages=stage.num_pages,
    )


def _forwards(use: DeviceUse) -> Forwards:
    return Forwards(use.num_works, use.num_rows, use.busy_s)


def state_of(plan: Plan | None, member: Member, stage: StagePlan | None) -> str:
    """As :class:`~bloombee.roles.status.WorkerStatus` has it, of a worker with ``stage`` in ``plan``."""
    if member.is_away:
        return "away"
    if member.is_draining:
        return "draining"
    if plan is None:
        return "joined"
    if stage is None:
        return "spare"
    if not member.is_loaded:
        return "loading"
    return "serving" if member.wired >= plan.epoch else "wiring"  # a hand-over wires the next epoch beside it


def _why_spare(plan: Plan | None, member: Member, follows: Sequence[tuple[int, int | None]]) -> str:
    if plan is None:
        return ""
    if follows:
        behind = [f"stage {stage}, " + ("loading" if rows is None else f"{rows} rows behind") for stage, rows in follows]
        return f"follows {'; '.join(behind)}"
    expected = dict(plan.prediction.spares) if plan.prediction is not None else {}
    return expected.get(member.name, "takes the place of a worker that is lost")


def _names(members: Mapping[WorkerId, Member]) -> dict[WorkerId, str]:
    return {HEAD: HEAD_NAME, **{worker: member.name for worker, member in members.items()}}


# -- links and requests ------------------------------------------------------------------------


def _links(head: HeadRole, plan: Plan) -> Iterator[LinkStatus]:
    names, facts = _names(head.core.members), head.observatory.links
    records = {stage.worker: head.helm.stages.get(stage.index) for stage in plan.stages}
    ring = [plan.scheduler_worker, *(stage.worker for stage in plan.stages), plan.scheduler_worker]
    for source, target in (ends for ends in itertools.pairwise(ring) if ends in plan.hops):
        seen, record = facts.get((source, target)), records.get(source)
        raw_bytes, sent_bytes = (0, 0) if record is None else (record.use.raw_bytes, record.use.sent_bytes)
        yield LinkStatus(
            source=names.get(source, str(source)),
            target=names.get(target, str(target)),
            rtt_s=None if seen is None else seen.rtt_s or seen.base_rtt_s,
            bandwidth_bytes_per_s=None if seen is None else seen.bandwidth_bytes_per_s,
            codec=head.observatory.codec_choices.get((source, target), ""),
            ratio=sent_bytes / raw_bytes if raw_bytes else None,
            num_bytes=0 if seen is None else seen.num_bytes,
            raw_bytes=raw_bytes,
            sent_bytes=sent_bytes,
            source_id=source,
            target_id=target,
        )


def _requests(head: HeadRole) -> Iterator[RequestStatus]:
    now, scheduler = time.monotonic(), head.dispatch.scheduler
    for number, request in head.desk.running:
        num_tokens, begun = len(request.output) // 4, scheduler.is_admitted(request.sequence)
        yield RequestStatus(
            id=number,
            client=request.asked.client,
            phase="decode" if num_tokens else "prefill" if begun else "waiting",
            prompt_tokens=len(request.asked.prompt) // 4,
            tokens=num_tokens,
            max_new_tokens=request.asked.max_new_tokens,
            tokens_per_s=request.tokens_per_s(now),
            age_s=now - request.asked.now,
        )
