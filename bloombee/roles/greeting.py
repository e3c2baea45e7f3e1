"""Drives the handshakes of ``wire/`` over an endpoint: one greeter a link, whichever side dialled."""

from __future__ import annotations

import time
from collections.abc import Callable

from bloombee.errors import BloomBeeError
from bloombee.transport.endpoint import Endpoint
from bloombee.types import Lane
from bloombee.wire.handshake import (
    Again,
    ClockEstimate,
    Command,
    Dialler,
    Failed,
    Listener,
    Opened,
    Received,
    Say,
    Started,
    State,
    Tick,
    Timed,
)
from bloombee.wire.join import Joiner
from bloombee.wire.messages import AnyMessage


class Greeter:
    """Feeds a handshake machine and does what it says.

    Args:
        on_open: called once, with the clock estimate where this side dialled.
        on_error: called once if the handshake fails.
        on_timed: called whenever a Hello of :meth:`say_again` was answered.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        link: bytes,
        machine: Dialler | Listener | Joiner,
        *,
        on_open: Callable[[ClockEstimate | None], None],
        on_error: Callable[[BloomBeeError], None],
        on_timed: Callable[[ClockEstimate], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._link = link
        self._machine = machine
        self._on_open = on_open
        self._on_error = on_error
        self._on_timed = on_timed
        self._told = False
        self.codecs: tuple[int, ...] = ()
        """What both sides have, once open."""
        if not isinstance(machine, Listener):
            self._do(machine.handle(Started(time.monotonic_ns())))

    @property
    def is_open(self) -> bool:
        return self._machine.state is State.OPEN

    def received(self, lane: Lane, message: AnyMessage) -> None:
        self._do(self._machine.handle(Received(lane, message, time.monotonic_ns())))
        if isinstance(self._machine, Joiner) and self.is_open and not self._told:
            self._told = True
            self._on_open(None)

    def tick(self) -> None:
        machine = self._machine
        now = time.monotonic_ns()
        if not isinstance(machine, Listener) and machine.next_tick_ns is not None and now >= machine.next_tick_ns:
            self._do(machine.handle(Tick(now)))

    def say_again(self, lane: Lane) -> None:
        """Hello on an open link that this side dialled; nothing on any other."""
        if isinstance(self._machine, Dialler):
            self._do(self._machine.handle(Again(lane, time.monotonic_ns())))

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Say(lane=lane, message=message):
                    self._endpoint.send(self._link, lane, message)
                case Opened(codecs=codecs, clock=clock):
                    self.codecs = codecs
                    if not self._told:
                        self._told = True
                        self._on_open(clock)
                case Timed(clock=clock):
                    if self._on_timed is not None:
                        self._on_timed(clock)
                case Failed(error=error):
                    if not self._told:
                        self._told = True
                        self._on_error(error)
