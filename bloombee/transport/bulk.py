"""What a bulk lane has besides its queue: the window of its pieces, the frame being sent, the frame being received.

A frame that was being sent in pieces when its connection broke is dropped, as is all that ZeroMQ had taken: whoever
sent it sends it again once the link is back, as it does with every frame that was not acknowledged.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bloombee.errors import RemoteProtocolError
from bloombee.links.estimator import LinkEstimator, wire_bytes
from bloombee.links.prober import Prober
from bloombee.links.window import BulkWindow
from bloombee.transport.link_events import Counters
from bloombee.transport.pieces import Assembly
from bloombee.wire.envelope import Envelope
from bloombee.wire.messages import Message, Piece, PieceAck, Probe
from bloombee.wire.rules import refuse
from bloombee.wire.schema import Buffer

if TYPE_CHECKING:
    from bloombee.transport.gauging import Gauging

WHOLE_BYTES = 1 << 14
"""Larger payloads go in pieces."""
LINK_MESSAGES = (Piece, PieceAck, Probe)
"""What endpoints say to each other; their owners see none of it."""


class Bulk:
    """
    Args:
        whole_bytes: payloads up to this are not cut.
        look_for_breaks: hear what the socket's monitor still has to say of connections that ended.
        control: counters of the link's other lane, which shares its wire.
    """

    __slots__ = (
        "_breaks",
        "_control",
        "_look_for_breaks",
        "_whole_bytes",
        "assembly",
        "estimator",
        "gauging",
        "is_begun",
        "offset",
        "prober",
        "read_us",
        "timer",
        "wait_s",
        "window",
    )

    def __init__(self, whole_bytes: int, look_for_breaks: Callable[[], None], control: Counters) -> None:
        self.window = BulkWindow()
        self.estimator = LinkEstimator()
        """What this link carries, of both lanes; whole frames are shown to it by their owners."""
        self.prober = Prober()
        self.gauging: Gauging | None = None
        """What is being measured on purpose."""
        self.assembly = Assembly(self._may_break)
        self.read_us = 0
        """When the last piece or probe was read."""
        self.is_begun = False
        """Whether the header of the frame at the queue's front is out."""
        self.offset = 0
        """Bytes of its payload that are out."""
        self.wait_s = 0.0
        """> 0: the front may not go on yet; try again after so long, or at the next acknowledgement."""
        self.timer: TimerHandle | None = None
        self._breaks = 0
        self._whole_bytes = whole_bytes
        self._control = control
        self._look_for_breaks = look_for_breaks

    def sent(self, num_bytes: int, num_parts: int, now: float, *, overhead_bytes: int = 0) -> None:
        """A piece is out: ``num_bytes`` of a frame and ``overhead_bytes`` of its own, in ``num_parts`` parts."""
        number = self.window.sent(num_bytes, now)
        others = wire_bytes(self._control.bytes_out, self._control.messages_out)
        self.estimator.piece_sent(number, wire_bytes(num_bytes + overhead_bytes, num_parts), others, now)

    def acked(self, upto: int, now: float) -> None:
        """Raises RemoteProtocolError if no piece of such a number was sent."""
        self.window.acked(upto, now)
        self.estimator.pieces_acked(upto, now)
        if upto == self.window.next_number:
            base_rtt_s = self.estimator.facts().base_rtt_s or 0.0
            self.prober.answered(now, base_rtt_s=base_rtt_s, least_train_s=self.estimator.least_train_s)

    def probe_sent(self, num_bytes: int, now: float) -> None:
        """A probe of so many bytes is out."""
        others = wire_bytes(self._control.bytes_out, self._control.messages_out)
        self.estimator.piece_sent(self.window.skip(), wire_bytes(num_bytes, 1), others, now)

    def cuts(self, payloads: Sequence[Buffer]) -> bool:
        """Whether a frame with these payloads goes in pieces."""
        return len(payloads) == 1 and len(payloads[0]) > self._whole_bytes

    def take(self, envelope: Envelope, payloads: list[memoryview]) -> tuple[Envelope, list[memoryview]] | None:
        """A beginning or a piece came; the frame, if that made it whole.

        Raises:
            RemoteProtocolError: not one payload frame to a piece, or as :class:`Assembly` says.
        """
        if isinstance(envelope.message, Probe):
            if payloads or envelope.tensors:
                raise refuse("Probe.payload", len(payloads), "none")
            self.assembly.pad(envelope.message.number)
            return None
        if not isinstance(envelope.message, Piece):
            self.assembly.begin(envelope)
            return None
        if len(payloads) != 1 or envelope.tensors:
            raise refuse("Piece.payload", len(payloads), "one payload frame that no tensor header describes")
        whole = self.assembly.add(envelope.message.number, envelope.message.offset, payloads[0])
        return None if whole is None else (whole[0], [whole[1]])

    def connection_lost(self) -> None:
        """The lane's connection ended, or another took its place."""
        self._breaks += 1
        self.window.lost()
        self.assembly.parted()
        self.estimator.pieces_lost()
        self.prober.lost()
        self.wait_s = 0.0
        self.end_gauging()

    def end_gauging(self) -> None:
        """What is being measured is over."""
        if self.gauging is not None:
            self.gauging.end()

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _may_break(self) -> bool:
        if not self._breaks:
            self._look_for_breaks()
        if self._breaks:
            self._breaks -= 1
            return True
        return False


def wrong_lane(message: Message) -> RemoteProtocolError:
    name = type(message).__name__
    return RemoteProtocolError(f"{name} on a lane that does not carry it", path=name)
