"""The part of a boundary's log that is on disk. The core says what goes where (``pipeline/log.py``); here bytes are moved.

The file has no name from the moment it is opened, so nothing is left behind however the process ends. Everything is done by one
thread, in the order in which it was asked for: what is read has not been written over yet.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

from bloombee.codec.checksum import crc32c
from bloombee.errors import BloomBeeError, ConfigError, CorruptPayload, DeviceError
from bloombee.pipeline.work import Piece
from bloombee.quote import quoted
from bloombee.roles.coding import Payload
from bloombee.roles.work_thread import WorkThread
from bloombee.wire.envelope import TensorHeader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """A payload whose bytes are in the file."""

    header: TensorHeader
    offset: int


class LogFile:
    """Of one span.

    Args:
        queue: of the disk; not the device's.
        directory: where the file is made; None: where this system has temporary files.
    """

    def __init__(self, queue: WorkThread, directory: str | None) -> None:
        self._queue = queue
        self._directory = directory
        self._file: BinaryIO | None = None
        self._has_complained = False

    def write(self, frames: Sequence[tuple[int, Any]], on_done: Callable[[tuple[Stored, ...] | None], None]) -> None:
        """Write payloads at their offsets; ``on_done``, on the event loop, gets what stands for them, or None if that failed."""
        self._queue.put(lambda: self._queue.post(on_done, self._write(frames)))

    def fetch(
        self, pieces: Sequence[Piece], on_done: Callable[[Sequence[Piece]], None], on_error: Callable[[BloomBeeError], None]
    ) -> None:
        """The same pieces with their payloads in memory; at once, if none is in the file. Both are called on the event loop;
        ``on_error`` with a DeviceError if the file cannot be read, or with CorruptPayload if it holds something else than was
        written."""
        if not any(isinstance(piece.payload, Stored) for piece in pieces):
            on_done(pieces)
            return
        self._queue.ask(partial(self._fetch, pieces), on_done, on_error)

    def close(self) -> None:
        """Give its room back, after what was asked before."""
        self._queue.put(self._close)

    # -- on the disk's thread --------------------------------------------------------------

    def _write(self, frames: Sequence[tuple[int, Payload]]) -> tuple[Stored, ...] | None:
        try:
            if self._file is None:
                self._file = _open(self._directory)
            for offset, (_, buffer) in frames:
                _write_at(self._file.fileno(), memoryview(buffer).cast("B"), offset)
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                where = self._directory or tempfile.gettempdir()
                log.warning("the log of activations stays in memory, as %s takes no more: %s", where, error.strerror or error)
            return None
        return tuple([Stored(header, offset) for offset, (header, _) in frames])

    def _fetch(self, pieces: Sequence[Piece]) -> list[Piece]:
        latest: object = None
        payload: object = None
        found = []
        for piece in pieces:
            if piece.payload is not latest:
                latest = piece.payload
                payload = self._read(latest) if isinstance(latest, Stored) else latest
            found.append(Piece(payload, piece.start, piece.stop))
        return found

    def _read(self, stored: Stored) -> Payload:
        buffer = bytearray(stored.header.encoded_bytes)
        try:
            if self._file is None or os.preadv(self._file.fileno(), [buffer], stored.offset) != len(buffer):
                raise DeviceError("the log of activations on disk is shorter than what was written to it")
        except OSError as error:
            raise DeviceError(f"the log of activations on disk cannot be read: {error.strerror or error}") from error
        if crc32c(buffer) != stored.header.checksum:
            raise CorruptPayload("the log of activations on disk holds something else than was written to it")
        return stored.header, memoryview(buffer)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


def require_directory(directory: str) -> None:
    """See that files can be made there.

    Raises:
        ConfigError: they cannot.
    """
    try:
        _open(directory).close()
    except OSError as error:
        said = f"log_dir = {quoted(directory)}: no file can be made there: {error.strerror or error}"
        raise ConfigError(said, field="log_dir", value=quoted(directory)) from error


def _open(directory: str | None) -> BinaryIO:
    return cast(BinaryIO, tempfile.TemporaryFile(dir=directory, prefix="bloombee-log-", buffering=0))


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """All of ``data``: one call may write a part. Raises OSError."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
