"""What each epoch wires of a span: on which link every neighbour is, and how the next one is doing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bloombee.errors import StalePlan
from bloombee.links.frames import LinkMeter
from bloombee.pipeline.events import Port
from bloombee.roles.neighbours import Neighbour, Neighbours
from bloombee.types import Epoch
from bloombee.wire.messages import Resume, Wire

BUSY_S = 1.0
BUSY_SHARE = 0.5
"""Of a link's bandwidth, over so long: copies of what it carries would not fit beside that."""
HERE = b"here"
"""Stands in for a link between a stage and a scheduler in one process; no link has such an id."""


@dataclass(slots=True)
class Seating:
    """Of one epoch."""

    wire: Wire
    links: dict[Port, bytes]
    stages: tuple[bytes, ...]
    """Links of the scheduler to each stage, where it is here."""
    meter: LinkMeter
    is_greeted: bool = False

    @property
    def all_links(self) -> set[bytes]:
        """To anybody."""
        return {*self.links.values(), *self.stages}


class Seatings:
    """Those of a span that are not retired, oldest first.

    Args:
        head_link: where the scheduler is with the head, it stands in for a neighbour that a stage does not have.
        open_meter: of what goes over a link.
    """

    def __init__(
        self, neighbours: Neighbours, head_link: bytes, open_meter: Callable[[bytes], LinkMeter], now: Callable[[], float]
    ) -> None:
        self.now = now
        self._neighbours = neighbours
        self._head_link = head_link
        self._open_meter = open_meter
        self._by_epoch: dict[Epoch, Seating] = {}
        self._looked = 0.0, 0
        """When the newest link was last looked at, and bytes that it had carried by then."""
        self._is_busy = False

    def __iter__(self) -> Iterator[Seating]:
        return iter(list(self._by_epoch.values()))

    def __bool__(self) -> bool:
        return bool(self._by_epoch)

    def get(self, epoch: Epoch) -> Seating | None:
        return self._by_epoch.get(epoch)

    @property
    def newest(self) -> Seating | None:
        """Of those of a ring."""
        return next((one for one in reversed(self._by_epoch.values()) if not one.wire.shadow), None)

    def epoch_with(self, peer: object) -> Epoch:
        """The oldest in which that worker is a neighbour: what runs, during a hand-over. 0: it is none."""
        for epoch, seating in self._by_epoch.items():
            wire = seating.wire
            stages = () if wire.schedule is None else wire.schedule.stages
            if any(one is not None and one.worker == peer for one in (wire.predecessor, wire.successor, wire.scheduler, *stages)):
                return epoch
        return 0

    @property
    def epoch(self) -> Epoch:
        """The newest of a ring; 0 before there is one."""
        newest = self.newest
        return newest.wire.epoch if newest is not None else 0

    @property
    def links(self) -> set[bytes]:
        """To the neighbours that some epoch has."""
        return self._others(self._by_epoch.values())

    def _others(self, seatings: Iterable[Seating]) -> set[bytes]:
        """Links to other workers."""
        return {link for seating in seatings for link in seating.all_links} - {self._head_link, HERE}

    def is_busy(self) -> bool:
        """What runs has filled more than half of the link to the next stage of late, as far as its bandwidth is known."""
        newest, now = self.newest, self.now()
        since, before = self._looked
        if newest is None or now - since < BUSY_S:
            return self._is_busy
        facts = newest.meter.facts()
        room = (facts.bandwidth_bytes_per_s or math.inf) * (now - since)
        self._is_busy = facts.num_bytes - before > BUSY_SHARE * room
        self._looked = now, facts.num_bytes
        return self._is_busy

    def seat(self, wire: Wire) -> Seating:
        """A new epoch's.

        Raises:
            LinkDown: a neighbour told an address that is none.
        """
        schedule, scheduler = wire.schedule, self._head_link
        for peer in (wire.predecessor, wire.successor, wire.scheduler, *(() if schedule is None else schedule.stages)):
            if peer is not None:
                self._neighbours.meet(peer)
        if schedule is not None or wire.scheduler is not None:
            scheduler = HERE if wire.scheduler is None else wire.scheduler.link
        links = {
            Port.HEAD: self._head_link,
            Port.SCHEDULER: scheduler,
            Port.UPSTREAM: scheduler if wire.predecessor is None else wire.predecessor.link,
            Port.DOWNSTREAM: scheduler if wire.successor is None else wire.successor.link,
        }
        stages = () if schedule is None else (HERE, *(peer.link for peer in schedule.stages))
        after = links[Port.DOWNSTREAM]
        seating = Seating(wire, links, stages, LinkMeter() if after == HERE else self._open_meter(after))
        self._by_epoch[wire.epoch] = seating
        return seating

    def retire_before(self, oldest: Epoch) -> None:
        """Forget older epochs of rings, and neighbours that only they had."""
        for seating in self.older(oldest):
            del self._by_epoch[seating.wire.epoch]
        self._neighbours.leave()

    def older(self, oldest: Epoch) -> list[Seating]:
        """Than that; a shadow's epoch ends by order alone."""
        return [one for one in self._by_epoch.values() if one.wire.epoch < oldest and not one.wire.shadow]

    def retire(self, epoch: Epoch) -> None:
        """Forget an epoch, and neighbours that only it had; one that is not here changes nothing."""
        self._by_epoch.pop(epoch, None)
        self._neighbours.leave()

    def following(self, seating: Seating | None) -> Neighbour | None:
        """The next worker; None: there is none, or the scheduler is next and with the head or here."""
        return None if seating is None else self._neighbours.get(seating.links[Port.DOWNSTREAM])

    def all_open(self, seating: Seating) -> bool:
        """Whether every neighbour of an epoch has been greeted."""
        found = map(self._neighbours.get, self._others([seating]))
        return all(one is not None and one.is_open for one in found)

    def of(self, message: Any, link: bytes) -> Seating:
        """The one that a message speaks of; a neighbour may have been told of the next epoch before this worker is.

        Args:
            link: over which it came.

        Raises:
            StalePlan: its epoch is not served here.
        """
        seating = self._by_epoch.get(message.epoch)
        newest = self.newest
        is_early = newest is not None and isinstance(message, Resume) and message.epoch > newest.wire.epoch
        if seating is None and newest is not None and is_early and newest.links[Port.DOWNSTREAM] == link:
            return newest
        if seating is None:
            raise StalePlan(
                f"pipeline {message.pipeline} epoch {message.epoch} is not served here",
                pipeline=message.pipeline,
                epoch=message.epoch,
            )
        return seating
