"""What a head's parts know of the swarm, put together for whoever asks (``roles/status.py``)."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping

from bloombee.pipeline.swarm.member import Member
from bloombee.plan.plan import Plan, StagePlan
from bloombee.roles.head import HeadRole
from bloombee.roles.status import VERSION, Figures, LinkStatus, PlanStatus, RequestStatus, SwarmStatus, WorkerStatus
from bloombee.types import HEAD, WorkerId

HEAD_NAME = "head"


def status_of(head: HeadRole) -> SwarmStatus:
    """Now. To be called on the head's loop, after it has looked at the model."""
    core, plan = head.core, head.plan
    if core.error is not None:
        state = "down"
    elif plan is None:
        state = "waiting" if core.num_missing else "loading"
    else:
        state = "up" if core.is_up else "loading" if plan.epoch == 1 else "recovering"
    return SwarmStatus(
        version=VERSION,
        process=os.getpid(),
        model=head.config.model,
        state=state,
        reason="" if core.error is None else core.error.message,
        missing=core.num_missing,
        plan=None if plan is None else _plan(head, plan),
        workers=tuple(_workers(head, plan)),
        links=() if plan is None else tuple(_links(head, plan)),
        requests=tuple(_requests(head)),
    )


def _plan(head: HeadRole, plan: Plan) -> PlanStatus:
    expected, run, num_open = plan.prediction, head.helm.core.running, head.dispatch.scheduler.num_open
    count = plan.num_microbatches if run is None else run.num_microbatches
    return PlanStatus(
        epoch=plan.epoch,
        objective=head.config.objective,
        scheduler=_names(head.core.members).get(plan.scheduler_worker, HEAD_NAME),
        predicted=None
        if expected is None
        else Figures(expected.num_microbatches, expected.microbatch_sequences, expected.tokens_per_s),
        measured=Figures(count, -(-num_open // count), head.helm.speed.tokens_per_s(time.monotonic())),
    )


# -- workers -----------------------------------------------------------------------------------


def _workers(head: HeadRole, plan: Plan | None) -> Iterator[WorkerStatus]:
    """Those with a stage in ring order, then the others as they joined."""
    members = head.core.members
    stages = {} if plan is None else {stage.worker: stage for stage in plan.stages}
    for worker in (*(one for one in stages if one in members), *(one for one in members if one not in stages)):
        yield _worker(head, plan, members[worker], stages.get(worker))


def _worker(head: HeadRole, plan: Plan | None, member: Member, stage: StagePlan | None) -> WorkerStatus:
    profile = head.observatory.profiles.get(member.id)
    layer = None if profile is None else profile.fit.layer
    return WorkerStatus(
        id=member.id,
        name=member.name,
        address=member.endpoint,
        state=_state(plan, member, stage),
        stage=None if stage is None else stage.index,
        layers=None if stage is None else (stage.span.start, stage.span.stop),
        memory_bytes=member.memory_bytes,
        used_bytes=0 if stage is None else stage.weight_bytes + stage.kv_bytes + stage.scratch_bytes,
        layer_s=None if layer is None else layer.fixed_s + layer.decode_row_s,
        silent_s=head.members.silent_s(member.id),
        reason="" if stage is not None else _why_spare(plan, member),
    )


def _state(plan: Plan | None, member: Member, stage: StagePlan | None) -> str:
    if member.is_away:
        return "away"
    if plan is None:
        return "joined"
    if member.is_draining:
        return "draining"
    if stage is None:
        return "spare"
    if not member.is_loaded:
        return "loading"
    return "serving" if member.wired >= plan.epoch else "wiring"  # more: of a plan that is taken over, or was to be


def _why_spare(plan: Plan | None, member: Member) -> str:
    if plan is None:
        return ""
    expected = dict(plan.prediction.spares) if plan.prediction is not None else {}
    return expected.get(member.name, "takes the place of a worker that is lost")


def _names(members: Mapping[WorkerId, Member]) -> dict[WorkerId, str]:
    return {HEAD: HEAD_NAME, **{worker: member.name for worker, member in members.items()}}


# -- links and requests ------------------------------------------------------------------------


def _links(head: HeadRole, plan: Plan) -> Iterator[LinkStatus]:
    names, facts = _names(head.core.members), head.observatory.links
    uses = {stage.worker: head.helm.uses.get(stage.index) for stage in plan.stages}
    ring = [plan.scheduler_worker, *(stage.worker for stage in plan.stages), plan.scheduler_worker]
    for source, target in (ends for ends in itertools.pairwise(ring) if ends in plan.hops):
        seen, use = facts.get((source, target)), uses.get(source)
        yield LinkStatus(
            source=names.get(source, str(source)),
            target=names.get(target, str(target)),
            rtt_s=None if seen is None else seen.rtt_s or seen.base_rtt_s,
            bandwidth_bytes_per_s=None if seen is None else seen.bandwidth_bytes_per_s,
            codec=head.observatory.codec_choices.get((source, target), ""),
            ratio=use.sent_bytes / use.raw_bytes if use is not None and use.raw_bytes else None,
        )


def _requests(head: HeadRole) -> Iterator[RequestStatus]:
    now, scheduler = time.monotonic(), head.dispatch.scheduler
    for number, request in head.desk.running:
        num_tokens, begun = len(request.output) // 4, scheduler.is_admitted(request.sequence)
        since = request.first_at
        yield RequestStatus(
            id=number,
            client=request.asked.client,
            phase="decode" if num_tokens else "prefill" if begun else "waiting",
            prompt_tokens=len(request.asked.prompt) // 4,
            tokens=num_tokens,
            max_new_tokens=request.asked.max_new_tokens,
            tokens_per_s=None if since is None or num_tokens < 2 else (num_tokens - 1) / (now - since),
            age_s=now - request.asked.now,
        )
