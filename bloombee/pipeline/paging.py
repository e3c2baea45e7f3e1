"""Kept rows on their way between a stage's device and where else they lie, beside the device's works. Pure.

``kv/tiers.py`` says what is to be copied; here each copy waits until the works have ended that the device had when it was
decided: they may still use what it is about to write. Sequences whose rows cannot be had are told to the scheduler as those
that the stage never had, and are computed.
"""

from __future__ import annotations

import math
from collections import deque

from bloombee.kv.tiers import Copy
from bloombee.pipeline.commands import Command, CopyPages
from bloombee.pipeline.commits import drop
from bloombee.pipeline.device_queue import DeviceQueue
from bloombee.pipeline.events import HostRoom, PagesCopied
from bloombee.pipeline.intake import Intake
from bloombee.pipeline.log import BoundaryLog
from bloombee.pipeline.seat import Seat
from bloombee.pipeline.sequences import SequenceStore
from bloombee.wire.messages import Cut, Holding


class Paging:
    """Of one stage."""

    def __init__(self, store: SequenceStore, log: BoundaryLog, device: DeviceQueue, intake: Intake) -> None:
        self._store, self._log, self._device, self._intake = store, log, device, intake
        self._tiers = store.kv.prefixes.tiers
        self._waiting: deque[tuple[int, Copy]] = deque()
        """With the number of works that have to end before."""

    @property
    def is_idle(self) -> bool:
        """Nothing is being copied, nor waits for that."""
        return not (self._tiers.is_busy or self._tiers.has_arrivals)

    def opened(self, room: HostRoom) -> None:
        """The span is loaded."""
        prefixes = self._store.kv.prefixes
        prefixes.places.open(room.num_pages)
        self._tiers.run = room.run
        self._tiers.has_disk = room.has_disk and bool(prefixes.places.host)
        if self._tiers.has_disk:
            prefixes.restore(room.stored)

    def copied(self, ended: PagesCopied) -> None:
        self._tiers.done(ended.number, failed=ended.failed)
        for file in ended.gone:
            self._store.kv.prefixes.places.gone_from_disk(file)

    def pump(self, seat: Seat | None) -> tuple[list[Command], bool]:
        """Copies to be begun, and what is said of rows that cannot be had. Also whether works may go on with that.

        Args:
            seat: whose scheduler is told; None: there is none to be told.
        """
        if self._tiers.is_quiet and not self._waiting:
            return [], False
        self._waiting += [(self._device.num_started, copy) for copy in self._tiers.copies()]
        commands: list[Command] = []
        while self._waiting and self._may_begin(self._waiting[0][0]):
            commands.append(CopyPages(self._waiting.popleft()[1]))
        failed = self._tiers.take_failed()
        lacking = [
            Holding(number, held.generation, 0)
            for number, held in self._store
            if held.arriving is not None and held.arriving in failed
        ]
        if lacking:
            self._give_up(lacking)
            commands += [] if seat is None else seat.report_short(lacking, -math.inf)
        return commands, bool(lacking)

    def _may_begin(self, num_works: int) -> bool:
        return num_works <= self._device.num_ended

    def _give_up(self, lacking: list[Holding]) -> None:
        """Rows of these that wait for the device are dropped, and so are all that come before another generation."""
        self._intake.refuse(lacking)
        for one in lacking:
            held = self._store.get(one.sequence)
            assert held is not None
            drop(self._log, self._device.jobs, held, Cut(one.sequence, held.generation + 1, 0, ()))
            held.never_came(self._store.kv.prefixes)
