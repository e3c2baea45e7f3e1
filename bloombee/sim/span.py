"""What one worker of a simulated swarm holds of the model for a pipeline: its core, and where that core's messages go."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from bloombee.errors import RemoteProtocolError, StalePlan
from bloombee.kv.tiers import Copy
from bloombee.pipeline.commands import Command, Compute, CopyPages, Gather, Send, Spill
from bloombee.pipeline.events import (
    Computed,
    Gathered,
    Greeted,
    LinkRestored,
    Moved,
    PagesCopied,
    Port,
    Spilled,
    StageReceived,
    Tick,
)
from bloombee.pipeline.stage import Event, StageCore
from bloombee.pipeline.work import Piece, Work
from bloombee.sim.device import Device
from bloombee.sim.paged import PagedDevice
from bloombee.types import Epoch
from bloombee.wire.messages import AnyMessage, Follows, Load, Retired, StageFailed, Wire, Wired

DISK_S = 0.0005
"""What frames need to get to a log's file."""


class Owner(Protocol):
    """The worker that has it."""

    @property
    def now(self) -> float: ...
    def call_later(self, seconds: float, then: partial[None]) -> None: ...
    def compute(self, span: SimSpan, work: Work) -> None:
        """After everything that was asked before."""

    def to_head(self, message: AnyMessage) -> None: ...
    def to_peer(self, wire: Wire, port: Port, send: Send) -> None: ...
    def stale(self) -> None:
        """A message came that is of no epoch here."""


class SimSpan:
    """``load``: what was ordered."""

    def __init__(self, load: Load, core: StageCore, device: Device, owner: Owner) -> None:
        self.load = load
        self.core = core
        self.device = device
        self._owner = owner
        self._wires: dict[Epoch, Wire] = {}

    @property
    def num_layers(self) -> int:
        return self.load.stop - self.load.start

    @property
    def newest(self) -> Wire | None:
        """Of the epochs that are not retired."""
        newest = max((seat.wire.epoch for seat in self.core.seats.of_rings()), default=None)
        return None if newest is None else self._wires[newest]

    def wire(self, wire: Wire) -> bool:
        """Take a seat, and greet; False: the order was overtaken."""
        self._wires[wire.epoch] = wire
        try:
            self._do(self.core.handle(StageReceived(wire, self._owner.now)))
        except StalePlan:
            return False
        return True

    def greeted(self, epoch: Epoch) -> None:
        self.handle(Greeted(epoch, self._owner.now))

    def receive(self, message: AnyMessage, payload: object | None) -> None:
        """Of the ring, or an order about an epoch."""
        try:
            commands = self.core.handle(StageReceived(message, self._owner.now, payload))
        except StalePlan:
            self._owner.stale()
            return
        except RemoteProtocolError as error:
            raise AssertionError(f"layers {self.load.start}-{self.load.stop - 1} refused {message!r}: {error}") from error
        self._do(commands)

    def restored(self, port: Port) -> None:
        for epoch in list(self.core.seats):
            self.handle(LinkRestored(epoch, port, self._owner.now))

    def handle(self, event: Event) -> None:
        self._do(self.core.handle(event))

    def tick(self, *, has_moved: bool) -> None:
        if has_moved:
            self.handle(Moved(self._owner.now))
        self.handle(Tick(self._owner.now))

    # -- what the core asks for ------------------------------------------------------------

    def _do(self, commands: Sequence[Command]) -> None:
        owner = self._owner
        for command in commands:
            match command:
                case Compute(work=work):
                    owner.compute(self, work)
                case Gather(number=number, pieces=pieces):
                    owner.call_later(0.0, partial(self._gather, number, pieces))
                case Spill(number=number, frames=frames):
                    stored = tuple(payload for _, payload in frames)
                    owner.call_later(DISK_S, partial(self.handle, Spilled(number, stored)))
                case CopyPages(copy=copy):
                    assert isinstance(self.device, PagedDevice)
                    owner.call_later(self.device.begin_copy(copy), partial(self._copied, self.device, copy))
                case Send(to=Port.HEAD, message=Wired() | StageFailed() | Retired() | Follows() as message):
                    owner.to_head(message)
                case Send(to=Port() as port, message=message):
                    owner.to_peer(self._wires[message.epoch], port, command)  # type: ignore[union-attr]
                case _:
                    raise AssertionError(f"layers {self.load.start}-{self.load.stop - 1} ask for {command!r}")

    def computed(self, work: Work) -> None:
        """The device is done."""
        self.handle(Computed(self.device.run(work), self._owner.now))

    def _copied(self, device: PagedDevice, copy: Copy) -> None:
        self.handle(PagesCopied(copy.number, failed=device.end_copy(copy)))

    def _gather(self, number: int, pieces: Sequence[Piece]) -> None:
        self.handle(Gathered(number, self.device.gather(pieces), self._owner.now))
