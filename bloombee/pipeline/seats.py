"""The seats of a stage that are not retired: those of rings, and those by which shadows are fed or follow. Pure."""

from __future__ import annotations

from bloombee.errors import StalePlan
from bloombee.pipeline.seat import Seat
from bloombee.types import Epoch, Lane, PipelineId
from bloombee.wire.messages import Resume, Retire, Wire

FEEDS_AT_ONCE = 2
"""Frames that may be on their way to a shadow."""
MOST_OVER = 64
"""Retired epochs that are remembered: an order to wire one may come late, but not by nearly so many."""


class Seats(dict[Epoch, Seat]):
    """By epoch, oldest first, of one pipeline.

    Attributes:
        newest: epoch of a ring that was wired here. over: the last epochs that were to be retired: these are not wired any more.
    """

    def __init__(self, pipeline: PipelineId) -> None:
        super().__init__()
        self.newest: Epoch = 0
        self.over: dict[Epoch, None] = {}
        self.early: Resume | None = None
        """The next stage was told of an epoch before this one is."""
        self._pipeline = pipeline

    def find(self, pipeline: int, epoch: int) -> Seat:
        """Raises StalePlan: it is none of these."""
        seat = self.get(epoch) if pipeline == self._pipeline else None
        if seat is None:
            serves = ", ".join(map(str, self)) or "none"
            raise StalePlan(
                f"pipeline {pipeline} epoch {epoch}: this stage serves pipeline {self._pipeline}, epoch {serves}",
                pipeline=pipeline,
                epoch=epoch,
            )
        return seat

    def is_new(self, wire: Wire) -> bool:
        """Whether it has no seat yet. Raises StalePlan if it is to get none any more."""
        if wire.pipeline == self._pipeline and wire.epoch in self:
            return False
        is_stale = wire.epoch in self.over or (not wire.shadow and wire.epoch <= self.newest)
        if wire.pipeline != self._pipeline or is_stale:
            raise StalePlan(
                f"pipeline {wire.pipeline} epoch {wire.epoch} is not newer than {self.newest}, or was retired",
                pipeline=wire.pipeline,
                epoch=wire.epoch,
            )
        return True

    def add(self, seat: Seat) -> None:
        self[seat.wire.epoch] = seat
        self.newest = self.newest if seat.wire.shadow else seat.wire.epoch

    def is_retired(self, retire: Retire) -> bool:
        """The order came again, or its epoch was never wired here: it will not be."""
        self.over.pop(retire.epoch, None)
        self.over[retire.epoch] = None
        if len(self.over) > MOST_OVER:
            del self.over[next(iter(self.over))]
        return retire.pipeline == self._pipeline and retire.epoch not in self

    def is_early(self, resume: Resume) -> bool:
        """The next stage was told of its epoch before this one is: it is looked at then."""
        is_early = resume.epoch > self.newest and resume.epoch not in self and resume.epoch not in self.over
        if is_early:
            self.early = resume
        return is_early

    def older(self, epoch: Epoch) -> list[Epoch]:
        """Those of rings before ``epoch``."""
        return [seat.wire.epoch for seat in self.of_rings() if seat.wire.epoch < epoch]

    def of_rings(self) -> list[Seat]:
        """All but shadows', oldest first."""
        return [seat for seat in self.values() if not seat.wire.shadow]

    @property
    def of_ring(self) -> Seat | None:
        """The newest that is no shadow's."""
        return next((seat for seat in reversed(self.values()) if not seat.wire.shadow), None)

    def of_feeds(self) -> list[Seat]:
        """By which shadows are fed."""
        return [seat for seat in self.values() if seat.wire.shadow and not seat.follows]

    def may_feed(self, seat: Seat) -> bool:
        """A shadow, now: nothing waits for the next stage, no prompt is on its way there, and the shadow has taken what it was
        sent before."""
        is_free = seat.is_open and seat.downstream.num_kept < FEEDS_AT_ONCE
        return is_free and not any(map(_is_busy, self.of_rings()))


def _is_busy(seat: Seat) -> bool:
    after = seat.downstream
    return bool(after.num_backlog or after.lanes[Lane.BULK].num_kept or seat.telling.is_behind)
