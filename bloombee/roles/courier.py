"""What a stage says, put on the link that it belongs on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from bloombee.errors import BloomBeeError, LinkDown, QueueFull, to_wire
from bloombee.pipeline.events import Port
from bloombee.roles.seat_host import HERE, Seatings
from bloombee.roles.tracing import StageTrace
from bloombee.transport.endpoint import Endpoint
from bloombee.types import Lane
from bloombee.wire.messages import AnyMessage, Forward, Refused, Verdict


class Courier:
    """Of one span."""

    def __init__(self, endpoint: Endpoint, head_link: bytes, seatings: Seatings) -> None:
        self.trace: StageTrace | None = None
        """Where the stamps of frames go that leave."""
        self.say_here: Callable[[AnyMessage], None] | None = None
        """To the scheduler in this process, if it is here."""
        self._endpoint = endpoint
        self._head_link = head_link
        self._seatings = seatings

    def send(self, port: Port, lane: Lane, message: Any, payload: Any = None) -> None:
        """Over the link that the port has in the message's epoch; what is of no epoch that is left goes nowhere.

        Raises:
            LocalProtocolError, QueueFull, LinkDown: as :meth:`Endpoint.send <bloombee.transport.endpoint.Endpoint.send>`.
        """
        seating = self._seatings.get(message.epoch)
        if port is Port.HEAD or seating is None:
            if port is Port.HEAD:
                self._endpoint.send(self._head_link, lane, message)
            return
        link = seating.links[port]
        if link == HERE:
            if self.say_here is not None:
                self.say_here(message)
            return
        if not isinstance(message, Forward | Verdict):
            self._endpoint.send(link, lane, message)
            return
        now = self._seatings.now()
        sending = self.trace.now() if self.trace is not None else 0
        header, buffer = ((payload[0],), (payload[1],)) if payload is not None else ((), ())
        num_bytes = self._endpoint.send(link, lane, message, header, buffer)
        seating.meter.sent(lane, message.frame, num_bytes, 1 + len(buffer), now)
        if self.trace is not None:
            self.trace.sent(message.microbatch, sending)

    def to_head(self, message: Any) -> None:
        """Over the control lane, whatever it is of."""
        self._endpoint.send(self._head_link, Lane.CONTROL, message)

    def refuse(self, link: bytes, error: BloomBeeError) -> None:
        """Answer what came over a link with an error, if it is still there."""
        with contextlib.suppress(LinkDown, QueueFull):
            self._endpoint.send(link, Lane.CONTROL, Refused(*to_wire(error)))
