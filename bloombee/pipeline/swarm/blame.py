"""Whose fault it is that a stage cannot go on. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from bloombee.errors import BloomBeeError, LinkDown, RemoteProtocolError
from bloombee.pipeline.swarm.member import Member
from bloombee.plan.plan import Plan
from bloombee.types import SchedulerPlace, WorkerId


def blamed(workers: Mapping[WorkerId, Member], plan: Plan | None, worker: Member, cause: BloomBeeError) -> Member:
    """``worker`` itself, or who it says: of whom it has links with a stage may say so; of others it can know nothing."""
    peer = _peer(workers, cause)
    of = {} if plan is None else {stage.worker: stage.index for stage in plan.stages}
    mine, theirs = of.get(worker.id), None if peer is None else of.get(peer.id)
    if peer is None or plan is None or mine is None or theirs is None or mine == theirs:
        return worker
    has_scheduler = plan.scheduler is SchedulerPlace.STAGE0 and 0 in (mine, theirs)
    return peer if has_scheduler or abs(mine - theirs) == 1 else worker


def told(workers: Mapping[WorkerId, Member], worker: Member, cause: BloomBeeError) -> BloomBeeError:
    """As the worker said, with the names of all whom it is about."""
    peer, about = _peer(workers, cause), ""
    if peer is not None:
        about = f" {'cannot reach' if isinstance(cause, LinkDown) else 'was told nonsense by'} worker {peer.name!r}"
    return type(cause)(f"worker {worker.name!r}{about}: {cause.message}", **{**cause.fields, "worker": worker.name})


def _peer(workers: Mapping[WorkerId, Member], cause: BloomBeeError) -> Member | None:
    """The worker that an error on a link is about."""
    peer = cause.fields.get("peer") if isinstance(cause, LinkDown | RemoteProtocolError) else None
    return workers.get(peer) if isinstance(peer, int) else None
