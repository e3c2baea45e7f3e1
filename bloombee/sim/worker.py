"""One worker process of a simulated swarm: its stage's core, and a device that takes its works in order."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from bloombee.errors import LocalProtocolError, RemoteProtocolError, StalePlan
from bloombee.pace import Pace
from bloombee.pipeline.commands import Command, Compute, Gather, Send, Spill
from bloombee.pipeline.events import (
    Computed,
    FromHead,
    FromStage,
    Gathered,
    Greeted,
    HeadRestored,
    LinkRestored,
    Moved,
    PlanWired,
    Port,
    Spilled,
    StageReceived,
    StageRestored,
    Tick,
)
from bloombee.pipeline.profiles import paced, to_message
from bloombee.pipeline.scheduler import SchedulerService, ring_of
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Piece, Work
from bloombee.plan.profile import Hardware
from bloombee.sim.carrier import SimCarrier, stage_name
from bloombee.sim.clock import VirtualClock
from bloombee.sim.cpu import CorePool
from bloombee.sim.device import Device
from bloombee.sim.head import SimHead
from bloombee.sim.surveying import SimIntroductions
from bloombee.types import DeviceUse, Phase, StageUse, WorkerId
from bloombee.wire.messages import (
    AnyMessage,
    Introduce,
    Load,
    Loaded,
    Measure,
    Measured,
    MeasureLink,
    Profile,
    Schedule,
    StageFailed,
    Tally,
    Wire,
    Wired,
)

DISK_S = 0.0005
"""What frames need to get to a log's file."""


class SimDevices:
    """The time that works take on every stage's device.

    Args:
        paces: of the stages. scatter, context_s, pool: as :class:`~bloombee.sim.cluster.SimCluster`; pool: None where computing
            takes no core.
    """

    def __init__(
        self, clock: VirtualClock, paces: Sequence[Pace], *, scatter: float, context_s: float, seed: int, pool: CorePool | None
    ) -> None:
        self.paces = list(paces)
        self.uses = [StageUse()] * len(self.paces)
        self.busy_s = [0.0] * len(self.paces)
        self._clock = clock
        self._scatter = scatter
        self.context_s = context_s
        self._rng = random.Random(f"works {seed}")
        self._pool = pool

    def pace_of(self, worker: WorkerId) -> Pace:
        """Of a worker before it has a stage: that of the stage that it gets if nothing is chosen."""
        return self.paces[min(worker, len(self.paces)) - 1]

    def run(self, stage: int, num_layers: int, work: Work, then: Callable[[], None]) -> None:
        """``then`` is called when the device is done."""
        begun_at = self._clock.now

        def end() -> None:
            self._count(stage, work, self._clock.now - begun_at)
            then()

        seconds = self._seconds(stage, num_layers, work)
        if self._pool is not None:
            self._pool.take(seconds, end)
        else:
            self._clock.call_later(seconds, end)

    def _seconds(self, stage: int, num_layers: int, work: Work) -> float:
        if not work.num_rows:
            return 0.0  # all of it was closed meanwhile
        seconds = self.paces[stage].seconds(work.computes, work.num_rows, num_layers) + self.context_s * work.num_attended
        return seconds * max(0.0, self._rng.gauss(1.0, self._scatter)) if self._scatter else seconds

    def _count(self, stage: int, work: Work, seconds: float) -> None:
        """``seconds`` as a device's own clock sees them, the wait for a core among them."""
        if not work.num_rows:
            return
        rows, so_far = work.num_rows, self.uses[stage]
        use = DeviceUse(1, rows, seconds, rows * rows, rows * seconds, work.num_attended)
        if work.computes is Phase.PREFILL:
            self.uses[stage] = replace(so_far, prefill=so_far.prefill + use)
        else:
            self.uses[stage] = replace(so_far, decode=so_far.decode + use)
        self.busy_s[stage] += seconds


class Surroundings(Protocol):
    """What a worker finds around it."""

    clock: VirtualClock
    carrier: SimCarrier
    head: SimHead
    devices: SimDevices
    workers: dict[WorkerId, SimWorker]
    num_stale: int

    def make_core(self, load: Load) -> StageCore: ...
    def make_device(self, stage: int, load: Load) -> Device: ...
    def stage_of(self, load: Load) -> int: ...
    def say(self, worker: SimWorker, message: AnyMessage) -> None:
        """To the head."""

    def make_service(self, wire: Wire, schedule: Schedule) -> SchedulerService: ...
    def tell_head(self, message: AnyMessage) -> None:
        """Of the scheduler beside stage 0."""

    def tell_scheduler(self, stage: int, message: AnyMessage) -> None:
        """With the head: what a stage said has arrived."""

    def to_stage(self, stage: int, send: Send) -> None:
        """Of the scheduler, wherever it is."""


Order = Load | Wire | Measure | Introduce | MeasureLink | Profile
"""What the head may say to a worker."""


class SimWorker:
    """``index``: of its stage, once it has one. ``memory_bytes``: that it offers. ``introductions``: where workers are looked at
    before the first plan."""

    def __init__(self, worker: WorkerId, around: Surroundings, memory_bytes: int) -> None:
        self.id = worker
        self.index = 0
        self.core: StageCore | None = None
        self.service: SchedulerService | None = None
        """The scheduler, where it is beside this worker's stage."""
        self.is_alive = True
        self.introductions: SimIntroductions | None = None
        self._around = around
        self._memory_bytes = memory_bytes
        self._device: Device | None = None
        self._wires: dict[int, Wire] = {}
        """By epoch."""
        self._works: deque[Work] = deque()
        """Of its device, in order; the first one runs."""
        self._num_layers = 1
        self._num_pieces = 0
        """Of bulk that have left it so far."""

    # -- what it is told -------------------------------------------------------------------

    def order(self, order: Order) -> None:
        """Of the head."""
        if not self.is_alive:
            return
        match order:
            case Load():
                self._load(order)
            case Wire():
                self._wire(order)
            case Measure():
                self._measure(order)
            case Profile():
                self._profile(order)
            case Introduce() | MeasureLink():
                assert self.introductions is not None
                self.introductions.order(order)

    def _load(self, load: Load) -> None:
        if self.core is None:
            self.index = self._around.stage_of(load)
            self.core = self._around.make_core(load)
            self._num_layers = load.stop - load.start
            self._device = self._around.make_device(self.index, load)
        self._around.say(self, Loaded(number=load.number, pipeline=load.pipeline, weight_bytes=(0,), kv_bytes=(0,)))

    def _wire(self, wire: Wire) -> None:
        core = self.core
        if core is None:
            return
        self._wires[wire.epoch] = wire
        try:
            commands = core.handle(StageReceived(wire, self._now))
        except StalePlan:
            return  # an order that was overtaken
        self._do(commands)
        if wire.schedule is not None:
            self._schedule(wire, wire.schedule)
        self._do(core.handle(Greeted(wire.epoch, self._now)))

    def _schedule(self, wire: Wire, schedule: Schedule) -> None:
        """As ``roles/scheduler_host.py`` does."""
        if self.service is None:
            self.service = self._around.make_service(wire, schedule)
        with contextlib.suppress(LocalProtocolError):  # the order came again
            self._serve(self.service.handle(PlanWired(ring_of(wire, schedule), self._now)))

    def ask(self, message: AnyMessage) -> None:
        """Of the head, to the scheduler here."""
        self._heard(lambda service: service.handle(FromHead(message, self._now)))

    def hear_stage(self, stage: int, message: AnyMessage) -> None:
        """Of a stage, to the scheduler here."""
        self._heard(lambda service: service.handle(FromStage(stage, message, self._now)))

    def _heard(self, handle: Callable[[SchedulerService], list[Command]]) -> None:
        if self.service is None or not self.is_alive:
            return
        try:
            commands = handle(self.service)
        except StalePlan:
            self._around.num_stale += 1
            return
        self._serve(commands)

    def _serve(self, commands: list[Command]) -> None:
        """What the scheduler here asks for."""
        for command in commands:
            match command:
                case Send(to=Port.HEAD, message=message):
                    self._around.tell_head(message)
                case Send(to=int(stage)):
                    self._around.to_stage(stage, command)
                case _:
                    raise AssertionError(f"the scheduler asks for {command!r}")

    def stage_restored(self, stage: int) -> None:
        """The connections between the scheduler here and a stage came back."""
        self._heard(lambda service: service.handle(StageRestored(stage, self._now)))

    def head_restored(self) -> None:
        """Those to the head came back."""
        self._heard(lambda service: service.handle(HeadRestored(self._now)))

    def _measure(self, asked: Measure) -> None:
        """As ``roles/stage_host.py`` does."""
        if self.core is None:
            return
        use = self._around.devices.uses[self.index]
        answer = Measured(
            pipeline=asked.pipeline,
            epoch=asked.epoch,
            number=asked.number,
            decode=_tally(use.decode),
            prefill=_tally(use.prefill),
            pages_free=self.core.pages_free,
            encoded_frames=use.encoded_frames,
            raw_bytes=use.raw_bytes,
            sent_bytes=use.sent_bytes,
        )
        self._around.say(self, answer)

    def _profile(self, asked: Profile) -> None:
        """As ``roles/measuring.py`` does for an emulated device."""
        pace = self._around.devices.pace_of(self.id)
        found = paced(pace, asked.config_digest.hex(), asked.dtype, Hardware(self._memory_bytes))
        stage = replace(found.fit.stage, context_s=self._around.devices.context_s)
        self._around.say(self, to_message(replace(found, fit=replace(found.fit, stage=stage))))

    def receive(self, message: AnyMessage, payload: object | None) -> None:
        """Of the ring."""
        if self.core is None or not self.is_alive:
            return
        try:
            commands = self.core.handle(StageReceived(message, self._now, payload))
        except StalePlan:
            self._around.num_stale += 1
            return
        except RemoteProtocolError as error:
            raise AssertionError(f"stage {self.index} refused {message!r}: {error}") from error
        self._do(commands)

    def link_restored(self, port: Port) -> None:
        """A connection of its stage came back."""
        if self.core is not None and self.is_alive:
            for epoch in list(self.core.seats):
                self._do(self.core.handle(LinkRestored(epoch, port, self._now)))

    def end(self) -> None:
        """It does nothing any more."""
        self.is_alive = False

    def tick(self) -> bool:
        """Whether pieces of bulk have left it since the last time, as ``roles/stage_host.py`` sees."""
        if self.core is None or not self.is_alive:
            return False
        count = self._around.carrier.num_pieces(stage_name(self.index), stage_name(self.index + 1))
        has_moved = count > self._num_pieces
        if has_moved:
            self._num_pieces = count
            self._do(self.core.handle(Moved(self._now)))
            self._heard(lambda service: service.handle(Moved(self._now)))
        self._do(self.core.handle(Tick(self._now)))
        self._heard(lambda service: service.handle(Tick(self._now)))
        return has_moved

    # -- what its core asks for ------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._around.clock.now

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Compute(work=work):
                    self._works.append(work)
                    if len(self._works) == 1:
                        self._begin_work()
                case Gather(number=number, pieces=pieces):
                    self._around.clock.call_later(0.0, partial(self._gather, number, pieces))
                case Spill(number=number, frames=frames):
                    stored = tuple(payload for _, payload in frames)
                    self._around.clock.call_later(DISK_S, partial(self._spilled, Spilled(number, stored)))
                case Send(to=Port.HEAD, message=Wired() | StageFailed() as message):
                    self._around.say(self, message)
                case Send(to=Port() as port):
                    self._send(port, command)
                case _:
                    raise AssertionError(f"stage {self.index} asks for {command!r}")

    def _begin_work(self) -> None:
        work = self._works[0]
        self._around.devices.run(self.index, self._num_layers, work, partial(self._computed, work))

    def _computed(self, work: Work) -> None:
        if not self.is_alive:
            return
        assert self.core is not None
        assert self._device is not None
        outcome = self._device.run(work)
        self._do(self.core.handle(Computed(outcome, self._now)))
        self._works.popleft()
        if self._works:
            self._begin_work()

    def _gather(self, number: int, pieces: Sequence[Piece]) -> None:
        if self.is_alive:
            assert self.core is not None
            assert self._device is not None
            self._do(self.core.handle(Gathered(number, self._device.gather(pieces), self._now)))

    def _spilled(self, event: Spilled) -> None:
        if self.is_alive:
            assert self.core is not None
            self._do(self.core.handle(event))

    def _send(self, port: Port, send: Send) -> None:
        message, payload = send.message, send.payload
        wire = self._wires[message.epoch]  # type: ignore[union-attr]
        peer = {Port.SCHEDULER: None, Port.UPSTREAM: wire.predecessor, Port.DOWNSTREAM: wire.successor}[port]
        if peer is None and wire.schedule is not None:
            self._around.clock.call_later(0.0, partial(self.hear_stage, self.index, message))
            return
        if peer is None:
            there = None if wire.scheduler is None else self._around.workers[wire.scheduler.worker]
            tell = self._around.tell_scheduler if there is None else there.hear_stage
            target, deliver = self._around.head.scheduler_name, partial(tell, self.index, message)
        else:
            target = stage_name(self.index + (1 if port is Port.DOWNSTREAM else -1))
            deliver = partial(self._around.workers[peer.worker].receive, message, payload)
        self._around.carrier.hop(stage_name(self.index), target, message, send.lane, deliver)


def _tally(use: DeviceUse) -> Tally:
    return Tally(
        works=use.num_works,
        rows=use.num_rows,
        ns=round(use.busy_s * 1e9),
        rows_squared=use.rows_squared,
        row_ns=round(use.row_s * 1e9),
        attended=use.num_attended,
    )
