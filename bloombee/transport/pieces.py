"""A frame that comes in pieces, put together again. Pure: pieces in, whole frames out.

Theory of operation. The frame's header comes first, alone; then its payload in pieces, each with the next number of its
lane. TCP loses nothing and keeps the order, so within one connection the numbers grow by one and the sizes add up; anything
else is the peer's fault. Where a connection was replaced, numbers may be missing or begin again, and a frame may
stay unfinished: then it is forgotten, and pieces are dropped until the next frame begins (who sent it sends it again).
Numbers tell that something is missing, offsets that it is not the frame's beginning::

    IDLE --beginning--> FILLING --last piece--> IDLE
    FILLING --gap, or another beginning--> SKIPPING, or FILLING the next     once a replaced connection, else refused
    IDLE --piece of no frame--> SKIPPING                                     likewise
    SKIPPING --beginning--> FILLING

A lane starts in SKIPPING. At most one frame is being filled, and its size was checked with its header, before the
buffer is made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bloombee.links.window import MAX_PIECE_BYTES
from bloombee.wire.envelope import Envelope
from bloombee.wire.rules import refuse
from bloombee.wire.schema import Buffer


class Assembly:
    """Of one bulk lane.

    Args:
        may_break: asked when the pieces do not fit together; True: a connection was replaced, and this break is its.
    """

    def __init__(self, may_break: Callable[[], bool]) -> None:
        self.upto = 0
        """One more than the number of the last piece that came."""
        self.acknowledged = 0
        """What is to be acknowledged: likewise, of those that came over the connection that stands."""
        self._may_break = may_break
        self._envelope: Envelope | None = None
        self._buffer = memoryview(b"")
        self._filled = 0
        self._is_skipping = True
        self._has_numbers = False

    def begin(self, envelope: Envelope) -> None:
        """A header without its payload: what follows in pieces is ``envelope.tensors[0].encoded_bytes`` long.

        Raises:
            RemoteProtocolError: the frame before is not whole, or this one has several tensors.
        """
        if len(envelope.tensors) != 1:
            raise refuse("tensors", len(envelope.tensors), "1 of a frame in pieces")
        if self._envelope is not None:
            missing = len(self._buffer) - self._filled
            self._break("Piece.number", self.upto, f"sent before another frame begins: {missing} bytes are missing")
            self._has_numbers = False  # this break covers the numbers that are missing too
        self._envelope = envelope
        # Not zeroed: every byte is written before the frame is handed on, and memory is touched as it comes.
        self._buffer = np.empty(envelope.tensors[0].encoded_bytes, np.uint8).data
        self._filled = 0
        self._is_skipping = False

    def add(self, number: int, offset: int, piece: Buffer) -> tuple[Envelope, memoryview] | None:
        """Take the next piece; the frame, if that was its last: [encoded_bytes] uint8, the receiver's own.

        Raises:
            RemoteProtocolError: a piece that is empty or too long, came before, comes too soon, or belongs to no frame.
        """
        num_bytes = len(piece)
        if not 1 <= num_bytes <= MAX_PIECE_BYTES:
            raise refuse("Piece.payload", num_bytes, f"1 to {MAX_PIECE_BYTES} bytes long")
        if self._has_numbers and number != self.upto:
            is_first = self._envelope is not None and self._filled == offset == 0
            self._break("Piece.number", number, f"the next one ({self.upto})", forget=not is_first)
        self._has_numbers = True
        self.upto = self.acknowledged = number + 1
        if self._envelope is None:
            if not self._is_skipping:
                self._break("Piece.number", number, "after the header of its frame")
            return None
        if offset != self._filled:
            self._break("Piece.offset", offset, f"where the piece before it ended ({self._filled})")
            return None
        end = self._filled + num_bytes
        if end > len(self._buffer):
            missing = len(self._buffer) - self._filled
            raise refuse("Piece.payload", num_bytes, f"at most what is missing of its frame ({missing} bytes)")
        self._buffer[self._filled : end] = piece
        self._filled = end
        if end < len(self._buffer):
            return None
        whole = self._envelope, self._buffer
        self._forget()
        return whole

    def pad(self, number: int) -> None:
        """A probe came: it has a piece's number and no place in a frame.

        Raises:
            RemoteProtocolError: it came within a frame, or its number is not the next.
        """
        if self._envelope is not None:
            self._break("Probe.number", number, "between frames")
        elif self._has_numbers and number != self.upto:
            self._break("Probe.number", number, f"the next one ({self.upto})")
        self._has_numbers = True
        self.upto = self.acknowledged = number + 1

    def parted(self) -> None:
        """The connection ended: the peer waits for no acknowledgement of what came over it, and numbers may begin again."""
        self.acknowledged = 0

    def _forget(self) -> None:
        self._envelope = None
        self._buffer = memoryview(b"")
        self._filled = 0

    def _break(self, path: str, value: object, allowed: str, *, forget: bool = True) -> None:
        if not self._may_break():
            raise refuse(path, value, allowed)
        if forget:
            self._forget()
            self._is_skipping = True
