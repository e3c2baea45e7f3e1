"""Whose fault it is that a stage cannot go on. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bloombee.errors import BloomBeeError, LinkDown, RemoteProtocolError
from bloombee.pipeline.swarm.member import Member
from bloombee.types import WorkerId


def blamed(
    workers: Mapping[WorkerId, Member], stage_of: Callable[[WorkerId], int | None], worker: Member, cause: BloomBeeError
) -> Member:
    """``worker`` itself, or who it says: of neighbours a stage may say so; of others it can know nothing."""
    peer = _peer(workers, cause)
    mine, theirs = stage_of(worker.id), None if peer is None else stage_of(peer.id)
    is_neighbour = mine is not None and theirs is not None and abs(mine - theirs) == 1
    return peer if peer is not None and is_neighbour else worker


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
