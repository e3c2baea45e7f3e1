"""What a span's core has done beside its forwards: written to its log's file and read from it, and KV pages copied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from bloombee.errors import BloomBeeError
from bloombee.pipeline.commands import CopyPages, Gather, Spill
from bloombee.pipeline.events import ComputeFailed, Gathered, GatherFailed, Spilled
from bloombee.pipeline.work import Piece
from bloombee.roles.coding import Payload
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.log_file import LogFile

log = logging.getLogger(__name__)


class Storing:
    """Of one span.

    Args:
        log_file: of what left it.
        handle: gives its core an event.
    """

    def __init__(self, device: SpanExecutor, log_file: LogFile, handle: Callable[[Any], None], now: Callable[[], float]) -> None:
        self._device, self._log_file, self._handle, self._now = device, log_file, handle, now

    def do(self, command: Spill | Gather | CopyPages) -> None:
        """What comes of it is told to the core."""
        match command:
            case Spill(number=number, frames=frames):
                self._log_file.write(frames, lambda stored: self._handle(Spilled(number, stored)))
            case Gather():
                self._gather(command)
            case CopyPages(copy=copy):
                assert self._device.pager is not None
                self._device.pager.copy(copy, self._handle)

    def loaded(self) -> None:
        """The span is there, and what the host's memory has room for is known."""
        if self._device.pager is not None:
            self._handle(self._device.pager.room)

    def close(self) -> None:
        self._log_file.close()

    def _gather(self, gather: Gather) -> None:
        def done(payload: Payload) -> None:
            self._handle(Gathered(gather.number, payload, self._now()))

        def failed(error: BloomBeeError) -> None:
            self._handle(ComputeFailed(error, self._now()))

        def fetched(pieces: Sequence[Piece]) -> None:
            self._device.gather(pieces, on_done=done, on_error=failed)

        def unreadable(error: BloomBeeError) -> None:
            log.warning("%s; what it held is computed again", error.message)
            self._handle(GatherFailed(gather.number, self._now()))

        self._log_file.fetch(gather.pieces, fetched, unreadable)
