"""What the protocol has room for and nobody says yet: refused by name, which costs the sender that message and nothing else.

A release that speaks one of these takes it out of here.
"""

from __future__ import annotations

from bloombee.errors import NotSpoken
from bloombee.types import Kind
from bloombee.wire.messages import (
    AnyMessage,
    Draft,
    Introduce,
    Item,
    KvHeld,
    KvPages,
    Load,
    Peer,
    Snapshot,
    SnapshotHeld,
    Wire,
)

UNSPOKEN = (KvPages, KvHeld, Draft, Snapshot, SnapshotHeld)
"""Whole messages."""
_SHADOW = int(Kind.SHADOW)
_HOST = 1
"""The tier between a device and its machine's disk."""


def check_spoken(message: AnyMessage) -> None:
    """Raises NotSpoken if the message, or something that it says, is not spoken yet. Of a Forward: :func:`check_item`."""
    if isinstance(message, UNSPOKEN):
        raise _not_spoken(type(message).__name__)
    match message:
        case Load():
            _check_load(message)
        case Wire():
            _check_wire(message)
        case Introduce(peer=peer):
            _check_peer("Introduce.peer", peer)


def check_item(item: Item) -> None:
    """Raises NotSpoken for shadows."""
    if item.kind == _SHADOW:
        raise _not_spoken("Item.kind", "shadow")


def _check_load(load: Load) -> None:
    if any(tier == _HOST for tier in load.placement):
        raise _not_spoken("Load.placement", "the host's memory")
    if load.budgets:
        raise _not_spoken("Load.budgets")


def _check_wire(wire: Wire) -> None:
    if wire.listeners:
        raise _not_spoken("Wire.listeners")
    if wire.scheduler is not None and wire.stage == 0:
        raise _not_spoken("Wire.scheduler", "another worker than the first stage's")
    peers = [("predecessor", wire.predecessor), ("successor", wire.successor), ("scheduler", wire.scheduler)]
    for index, stage in enumerate(wire.schedule.stages if wire.schedule is not None else ()):
        peers.append((f"schedule.stages[{index}]", stage))
    for name, peer in peers:
        if peer is not None:
            _check_peer(f"Wire.{name}", peer)


def _check_peer(path: str, peer: Peer) -> None:
    if peer.through is not None:
        raise _not_spoken(f"{path}.through")


def _not_spoken(path: str, value: str = "") -> NotSpoken:
    what = f"{path} = {value}" if value else path
    return NotSpoken(f"{what} is not spoken yet: this release has room for it in the protocol and no more", path=path)
