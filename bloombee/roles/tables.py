"""The codec's tables between two stages: shipped, held, and frames that come again for who lacks theirs.

Tables are unpacked, and frames coded anew, where nothing waits for the event loop. What a neighbour may cause of that is bounded:
one table is unpacked at a time and one more may wait; a frame is coded anew once, since after that it needs no table.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any, Protocol

from bloombee.codec import api
from bloombee.codec.table import Table
from bloombee.errors import BloomBeeError, LinkDown, QueueFull, RemoteProtocolError
from bloombee.pipeline.events import Port, Recoded
from bloombee.pipeline.stage import StageCore
from bloombee.roles.coding import Payload
from bloombee.roles.courier import Courier
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.reporting import Reporter
from bloombee.roles.seat_host import Seating, Seatings
from bloombee.types import Epoch, Lane
from bloombee.wire.messages import AnyMessage, CodecTable, Forward, TableHeld, TableUnknown

OF_CODEC = (CodecTable, TableHeld, TableUnknown)


class Host(Protocol):
    """Whose boundaries they are."""

    core: StageCore

    courier: Courier
    reporter: Reporter
    seatings: Seatings

    def handle(self, event: Any) -> None: ...


class TableExchange:
    """Of one span's two boundaries."""

    def __init__(self, host: Host, device: SpanExecutor) -> None:
        self._host = host
        self._device = device
        self._is_unpacking = False
        self._waiting: tuple[Seating, bytes] | None = None
        self._recoding: set[tuple[Epoch, Lane, int]] = set()

    def lacks(self, message: AnyMessage, payload: Any) -> bool:
        """A frame whose table is not here is not taken: it is asked for again in another coding."""
        receiver = self._device.receiver
        key = receiver.missing(payload) if receiver is not None else None
        if key is None or not isinstance(message, Forward):
            return False
        answer = TableUnknown(pipeline=message.pipeline, epoch=message.epoch, lane=message.lane, frame=message.frame, key=key)
        self._host.courier.send(Port.UPSTREAM, Lane.CONTROL, answer)
        return True

    def said(self, seating: Seating, message: AnyMessage) -> None:
        """What a neighbour says of a table.

        Raises:
            RemoteProtocolError: the boundary has none.
        """
        sender, receiver = self._device.sender, self._device.receiver
        match message:
            case CodecTable(body=body) if receiver is not None:
                self._waiting = seating, body
                self._unpack()
            case TableHeld(key=key) if sender is not None:
                if not seating.wire.shadow:  # what is used is what the next stage holds
                    sender.held(key)
            case TableUnknown(key=key, frame=frame, lane=number) if sender is not None:
                self._recode(seating.wire.epoch, Lane(number), frame, key)
                if not seating.wire.shadow:
                    sender.unknown(key)
                elif (table := sender.table(key)) is not None:
                    self.ship(seating, table)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__}: this boundary carries no activations")

    def ship(self, seating: Seating, table: Table) -> None:
        """To the next stage; it says when it holds it."""
        body = CodecTable(pipeline=seating.wire.pipeline, epoch=seating.wire.epoch, body=table.to_bytes())
        self._host.courier.send(Port.DOWNSTREAM, Lane.BULK, body)

    def _unpack(self) -> None:
        if self._is_unpacking or self._waiting is None:
            return
        (seating, body), self._waiting, self._is_unpacking = self._waiting, None, True
        wire, link = seating.wire, seating.links[Port.UPSTREAM]

        def done(key: bytes) -> None:
            self._is_unpacking = False
            with contextlib.suppress(LinkDown, QueueFull):  # it is not used then
                self._host.courier.send(Port.UPSTREAM, Lane.CONTROL, TableHeld(wire.pipeline, wire.epoch, key))
            self._unpack()

        def failed(error: BloomBeeError) -> None:
            self._is_unpacking = False
            self._host.courier.refuse(link, error)
            self._unpack()

        self._device.unpack(body, on_done=done, on_error=failed)

    def _recode(self, epoch: Epoch, lane: Lane, frame: int, key: bytes) -> None:
        """A kept frame again, with the default table, if it is coded with the one that is not known.

        Raises:
            RemoteProtocolError: it is the default table, which everyone has.
        """
        if self._device.sender is not None and key == self._device.sender.default_key:
            raise RemoteProtocolError("the default codec table is unknown to nobody", path="TableUnknown.key")
        place = (epoch, lane, frame)
        payload: Any = self._host.core.seats[epoch].downstream.lanes[lane].payload(frame)
        if payload is None or place in self._recoding or payload[0].codec != api.CODEC_ID or api.table_key(payload[1]) != key:
            return
        self._recoding.add(place)
        self._device.recode(payload, on_done=partial(self._recoded, place), on_error=self._host.reporter.fail)

    def _recoded(self, place: tuple[Epoch, Lane, int], payload: Payload) -> None:
        self._recoding.discard(place)
        self._host.handle(Recoded(*place, payload, self._host.seatings.now()))
