"""What each epoch wires of a span: on which link every neighbour is, and how the next one is doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bloombee.errors import StalePlan
from bloombee.links.frames import LinkMeter
from bloombee.pipeline.events import Port
from bloombee.roles.neighbours import Neighbour, Neighbours
from bloombee.types import Epoch
from bloombee.wire.messages import Peer, Resume, Wire


@dataclass(slots=True)
class Seating:
    """Of one epoch."""

    wire: Wire
    links: dict[Port, bytes]
    meter: LinkMeter
    is_greeted: bool = False


class Seatings:
    """Those of a span that are not retired, oldest first.

    Args:
        head_link: stands in for a neighbour that a stage does not have.
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

    def __iter__(self) -> Iterator[Seating]:
        return iter(list(self._by_epoch.values()))

    def __bool__(self) -> bool:
        return bool(self._by_epoch)

    def get(self, epoch: Epoch) -> Seating | None:
        return self._by_epoch.get(epoch)

    @property
    def newest(self) -> Seating | None:
        return next(reversed(self._by_epoch.values()), None)

    @property
    def epoch(self) -> Epoch:
        """The newest; 0 before there is one."""
        newest = self.newest
        return newest.wire.epoch if newest is not None else 0

    @property
    def links(self) -> set[bytes]:
        """To the neighbours that some epoch has."""
        return {link for seating in self._by_epoch.values() for link in seating.links.values()} - {self._head_link}

    def seat(self, wire: Wire) -> Seating:
        """A new epoch's.

        Raises:
            LinkDown: a neighbour told an address that is none.
        """
        for peer in (wire.predecessor, wire.successor):
            if peer is not None:
                self._neighbours.meet(peer)
        links = {
            Port.HEAD: self._head_link,
            Port.UPSTREAM: self._link_to(wire.predecessor),
            Port.DOWNSTREAM: self._link_to(wire.successor),
        }
        seating = self._by_epoch[wire.epoch] = Seating(wire, links, self._open_meter(links[Port.DOWNSTREAM]))
        return seating

    def _link_to(self, peer: Peer | None) -> bytes:
        return self._head_link if peer is None else peer.link

    def retire_before(self, oldest: Epoch) -> None:
        """Forget older epochs, and neighbours that only they had."""
        for epoch in [epoch for epoch in self._by_epoch if epoch < oldest]:
            del self._by_epoch[epoch]
        self._neighbours.leave()

    def retire(self, epoch: Epoch) -> None:
        """Forget an epoch, and neighbours that only it had; one that is not here changes nothing."""
        self._by_epoch.pop(epoch, None)
        self._neighbours.leave()

    def following(self, seating: Seating | None) -> Neighbour | None:
        """The next worker; None: the head is."""
        return None if seating is None else self._neighbours.get(seating.links[Port.DOWNSTREAM])

    def all_open(self, seating: Seating) -> bool:
        """Whether every neighbour of an epoch has been greeted."""
        found = (self._neighbours.get(link) for link in seating.links.values() if link != self._head_link)
        return all(one is not None and one.is_open for one in found)

    def of(self, message: Any) -> Seating:
        """The one that a message speaks of; a neighbour may have been told of the next epoch before this worker is.

        Raises:
            StalePlan: its epoch is not served here.
        """
        seating = self._by_epoch.get(message.epoch)
        newest = self.newest
        if seating is None and newest is not None and isinstance(message, Resume) and message.epoch > newest.wire.epoch:
            return newest
        if seating is None:
            raise StalePlan(
                f"pipeline {message.pipeline} epoch {message.epoch} is not served here",
                pipeline=message.pipeline,
                epoch=message.epoch,
            )
        return seating
