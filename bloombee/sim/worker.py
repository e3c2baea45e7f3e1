"""One worker process of a simulated swarm: its stage's core, and a device that takes its works in order."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from bloombee.errors import LocalProtocolError, StalePlan
from bloombee.pace import Pace
from bloombee.pipeline.commands import Command, Send
from bloombee.pipeline.events import FromHead, FromStage, HeadRestored, Moved, PlanWired, Port, StageRestored, Tick
from bloombee.pipeline.profiles import paced, to_message
from bloombee.pipeline.scheduler import SchedulerService, ring_of
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Work
from bloombee.plan.profile import Hardware
from bloombee.sim.carrier import SimCarrier, stage_name
from bloombee.sim.clock import VirtualClock
from bloombee.sim.cpu import CorePool, Crowd
from bloombee.sim.device import Device
from bloombee.sim.head import SimHead
from bloombee.sim.span import SimSpan
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
    Retire,
    Retired,
    Schedule,
    Tally,
    Wire,
)


class SimDevices:
    """The time that works take on every stage's device.

    Args:
        paces: of the stages. scatter, context_s, pool: as :class:`~bloombee.sim.cluster.SimCluster`; pool: None where computing
            takes no core.
    """

    def __init__(
        self,
        clock: VirtualClock,
        paces: Sequence[Pace],
        *,
        scatter: float,
        context_s: float,
        seed: int,
        pool: CorePool | None,
    ) -> None:
        self.paces = list(paces)
        self.uses = [StageUse()] * len(self.paces)
        self.busy_s = [0.0] * len(self.paces)
        self._clock = clock
        self._scatter = scatter
        self.context_s = context_s
        self._rng = random.Random(f"works {seed}")
        self._pool = pool
        self.crowd = Crowd(random.Random(f"crowd {seed}"))
        """Of who wakes up when a work is done."""

    def make_room(self, count: int) -> None:
        """For so many devices in all; others are as quick as the last."""
        more = count - len(self.paces)
        self.paces += self.paces[-1:] * more
        self.uses += [StageUse()] * more
        self.busy_s += [0.0] * more

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
        scattered = seconds * max(0.0, self._rng.gauss(1.0, self._scatter)) if self._scatter else seconds
        return scattered + self.crowd.late_s()

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
    moves: bool
    layer_load_s: float

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


def site_of(around: Surroundings, worker: WorkerId, stage: int) -> int:
    """What the ends of links and the device of a worker at that stage are known by."""
    return worker - 1 if around.moves else stage


class SimScheduling:
    """The scheduler beside a worker's stage, as ``roles/scheduler_host.py`` has it."""

    def __init__(self, worker: SimWorker, around: Surroundings) -> None:
        self.service: SchedulerService | None = None
        self._worker = worker
        self._around = around

    def wire(self, wire: Wire, schedule: Schedule) -> None:
        if self.service is None:
            self.service = self._around.make_service(wire, schedule)
        with contextlib.suppress(LocalProtocolError):  # the order came again
            self._serve(self.service.handle(PlanWired(ring_of(wire, schedule), self._worker.now)))

    def ask(self, message: AnyMessage) -> None:
        """Of the head, to the scheduler here."""
        self._heard(lambda service: service.handle(FromHead(message, self._worker.now)))

    def hear_stage(self, stage: int, message: AnyMessage) -> None:
        """Of a stage, to the scheduler here."""
        self._heard(lambda service: service.handle(FromStage(stage, message, self._worker.now)))

    def _heard(self, handle: Callable[[SchedulerService], list[Command]]) -> None:
        if self.service is None or not self._worker.is_alive:
            return
        try:
            commands = handle(self.service)
        except StalePlan:
            self._worker.stale()
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
        self._heard(lambda service: service.handle(StageRestored(stage, self._worker.now)))

    def head_restored(self) -> None:
        """Those to the head came back."""
        self._heard(lambda service: service.handle(HeadRestored(self._worker.now)))

    def tick(self, *, has_moved: bool) -> None:
        """Time has passed; pieces of bulk may have left the worker meanwhile."""
        if has_moved:
            self._heard(lambda service: service.handle(Moved(self._worker.now)))
        self._heard(lambda service: service.handle(Tick(self._worker.now)))


Order = Load | Wire | Retire | Measure | Introduce | MeasureLink | Profile
"""What the head may say to a worker."""


class SimWorker:
    """``index``: of its stage, once it has one. ``memory_bytes``: that it offers. ``introductions``: where workers are looked at
    before the first plan."""

    def __init__(self, worker: WorkerId, around: Surroundings, memory_bytes: int) -> None:
        self.id = worker
        self.index = 0
        self.scheduling = SimScheduling(self, around)
        """Where it is beside this worker's stage."""
        self.is_alive = True
        self.introductions: SimIntroductions | None = None
        self.spans: list[SimSpan] = []
        """In the order in which they were ordered."""
        self._around = around
        self._memory_bytes = memory_bytes
        self._works: deque[tuple[SimSpan, Work]] = deque()
        """Of its device, in order; the first one runs."""
        self._num_pieces = 0
        """Of bulk that have left it so far."""

    @property
    def core(self) -> StageCore | None:
        """Of what it was told last to load."""
        return self.spans[-1].core if self.spans else None

    def core_of(self, load: int) -> StageCore | None:
        """Of the span of that order."""
        return next((span.core for span in self.spans if span.load.number == load), None)

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
            case Retire():
                self._retire(order)
            case Measure():
                self._measure(order)
            case Profile():
                self._profile(order)
            case Introduce() | MeasureLink():
                if self.introductions is not None:  # else links are there
                    self.introductions.order(order)

    def _load(self, load: Load) -> None:
        """As ``roles/stages.py`` does."""
        known = self.core_of(load.number) is not None
        if not known and self.spans and load.number < self.spans[-1].load.number:
            return
        if not known:
            if self.spans and not self.spans[-1].core.seats:
                self.spans.pop()
            self.index = self._around.stage_of(load)
            core, device = self._around.make_core(load), self._around.make_device(self.index, load)
            self.spans.append(SimSpan(load, core, device, self))
        told = Loaded(number=load.number, pipeline=load.pipeline, weight_bytes=(0,), kv_bytes=(0,))
        load_s = 0.0 if known else self._around.layer_load_s * (load.stop - load.start)
        if load_s:
            self.call_later(load_s, partial(self.to_head, told))
        else:
            self.to_head(told)

    def _wire(self, wire: Wire) -> None:
        span = next((span for span in self.spans if span.load.number == wire.load), None)
        if span is None or not span.wire(wire):
            return
        self.index = self.index if wire.shadow and wire.successor is not None else wire.stage
        for other in self.spans:
            if other is not span:
                for epoch in other.core.seats.older(wire.oldest):
                    other.receive(Retire(wire.pipeline, epoch), None)
        at = self.spans.index(span)
        self.spans = [one for one in self.spans[:at] if one.core.seats] + self.spans[at:]
        if wire.schedule is not None:
            self.scheduling.wire(wire, wire.schedule)
        span.greeted(wire.epoch)

    def _retire(self, retire: Retire) -> None:
        if not self.spans:
            self.to_head(Retired(retire.pipeline, retire.epoch))
            return
        span = next((span for span in self.spans if retire.epoch in span.core.seats), self.spans[-1])
        span.receive(retire, None)
        if any(span.core.seats for span in self.spans):
            self.spans = [span for span in self.spans if span.core.seats]

    def _measure(self, asked: Measure) -> None:
        """As ``roles/stage_host.py`` does."""
        if self.core is None:
            return
        use = self._around.devices.uses[self._site]
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
        self.to_head(answer)

    def _profile(self, asked: Profile) -> None:
        """As ``roles/measuring.py`` does for an emulated device."""
        pace = self._around.devices.pace_of(self.id)
        found = paced(pace, asked.config_digest.hex(), asked.dtype, Hardware(self._memory_bytes))
        stage = replace(found.fit.stage, context_s=self._around.devices.context_s)
        self.to_head(to_message(replace(found, fit=replace(found.fit, stage=stage))))

    def receive(self, message: AnyMessage, payload: object | None) -> None:
        """Of the ring."""
        if not self.spans or not self.is_alive:
            return
        epoch = message.epoch  # type: ignore[union-attr]
        span = next((span for span in self.spans if epoch in span.core.seats), self.spans[-1])
        span.receive(message, payload)

    def link_restored(self, port: Port) -> None:
        """A connection of its stage came back."""
        if self.is_alive:
            for span in self.spans:
                span.restored(port)

    def end(self) -> None:
        """It does nothing any more."""
        self.is_alive = False

    def tick(self) -> bool:
        """Whether pieces of bulk have left it since the last time, as ``roles/stage_host.py`` sees."""
        if not self.spans or not self.is_alive:
            return False
        count = self._around.carrier.num_pieces(stage_name(self._site), stage_name(self._site_after))
        has_moved = count > self._num_pieces
        self._num_pieces = max(count, self._num_pieces)
        for span in self.spans:
            span.tick(has_moved=has_moved)
        self.scheduling.tick(has_moved=has_moved)
        return has_moved

    # -- what its spans ask for ------------------------------------------------------------

    @property
    def _site(self) -> int:
        return site_of(self._around, self.id, self.index)

    @property
    def _site_after(self) -> int:
        """Of the next stage's worker."""
        wire = self.spans[-1].newest if self.spans else None
        following = wire.successor if wire is not None else None
        return self.index + 1 if following is None else site_of(self._around, following.worker, self.index + 1)

    @property
    def now(self) -> float:
        return self._around.clock.now

    def call_later(self, seconds: float, then: Callable[[], None]) -> None:
        """Unless it is dead by then."""
        self._around.clock.call_later(seconds, lambda: then() if self.is_alive else None)

    def stale(self) -> None:
        """A message came that is of no epoch here."""
        self._around.num_stale += 1

    def to_head(self, message: AnyMessage) -> None:
        self._around.say(self, message)

    def compute(self, span: SimSpan, work: Work) -> None:
        """On its device, after everything that was asked before."""
        self._works.append((span, work))
        if len(self._works) == 1:
            self._begin_work()

    def _begin_work(self) -> None:
        span, work = self._works[0]
        self._around.devices.run(self._site, span.num_layers, work, self._computed)

    def _computed(self) -> None:
        if not self.is_alive:
            return
        span, work = self._works[0]
        span.computed(work)
        self._works.popleft()
        if self._works:
            self._begin_work()

    def to_peer(self, wire: Wire, port: Port, send: Send) -> None:
        """What a span says in the epoch of ``wire``."""
        message, payload = send.message, send.payload
        around, index = self._around, wire.stage
        peer = {Port.SCHEDULER: None, Port.UPSTREAM: wire.predecessor, Port.DOWNSTREAM: wire.successor}[port]
        if peer is None and wire.schedule is not None:
            around.clock.call_later(0.0, partial(self.scheduling.hear_stage, index, message))
            return
        if peer is None:
            there = None if wire.scheduler is None else around.workers[wire.scheduler.worker]
            tell = around.tell_scheduler if there is None else there.scheduling.hear_stage
            target, deliver = around.head.scheduler_name, partial(tell, index, message)
        else:
            target = stage_name(site_of(around, peer.worker, index + (1 if port is Port.DOWNSTREAM else -1)))
            deliver = partial(around.workers[peer.worker].receive, message, payload)
        around.carrier.hop(stage_name(site_of(around, self.id, index)), target, message, send.lane, deliver)


def _tally(use: DeviceUse) -> Tally:
    return Tally(
        works=use.num_works,
        rows=use.num_rows,
        ns=round(use.busy_s * 1e9),
        rows_squared=use.rows_squared,
        row_ns=round(use.row_s * 1e9),
        attended=use.num_attended,
    )
