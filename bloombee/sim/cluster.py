"""A whole swarm of the real cores under a virtual clock: the test cluster and the simulator.

There is no second implementation of the protocol here: messages are made and read by the same cores that run over
ZeroMQ; this file only carries them, and runs works on :class:`~bloombee.sim.device.SimDevice`.
Same arguments and seed, same trace, byte for byte.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from bloombee.control.steering import Steering
from bloombee.errors import BloomBeeError, ConfigError, RemoteProtocolError, StalePlan
from bloombee.models.card import ModelCard
from bloombee.models.shape import ModelShape
from bloombee.pace import Pace
from bloombee.pipeline.commands import (
    Command,
    Compute,
    Conclude,
    Deliver,
    Gather,
    PipelineBroken,
    PipelineDown,
    PipelineUp,
    PlanMade,
    Send,
    Spill,
    TellHead,
    TellScheduler,
)
from bloombee.pipeline.events import (
    CancelRequest,
    Computed,
    FromStage,
    Gathered,
    Greeted,
    LinkRestored,
    Moved,
    Port,
    SchedulerSaid,
    Spilled,
    StageReceived,
    StageRestored,
    Submit,
    SwarmLost,
    Tick,
    Tune,
    WorkerGone,
    WorkerJoined,
    WorkerSaid,
    tune_event,
)
from bloombee.pipeline.log import LOG_BYTES
from bloombee.pipeline.requests import RequestCore
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.swarm import PlanRequest, SwarmCore, SwarmLimits
from bloombee.pipeline.work import Piece, Work
from bloombee.plan.network import HEAD_NODE, Network
from bloombee.plan.plan import Plan
from bloombee.plan.topology import Cores, Link
from bloombee.sim.clock import VirtualClock
from bloombee.sim.cpu import CorePool
from bloombee.sim.device import VOCAB, Device, SimDevice
from bloombee.sim.network import Faults, LinkShape, SimLink, SimNetwork
from bloombee.types import DeviceUse, Dtype, FinishReason, Lane, Phase, StageUse, WorkerId
from bloombee.wire.liveness import RECONNECT_S, RECONNECT_TRIPS, Liveness
from bloombee.wire.messages import AnyMessage, Forward, Load, Loaded, Sampling, StageFailed, Verdict, Wire, Wired

TICK_S = 0.1
LOOK_EVERY_S = 0.5
HEADER_BYTES = 160
"""What a frame costs besides its rows: envelope, ZeroMQ, CURVE, TCP/IP."""
DISK_S = 0.0005
"""What frames need to get to a log's file."""
PACE = Pace(fixed_s=0.001, decode_row_s=0.0001, prefill_row_s=0.00002)


@dataclass(slots=True)
class SimRequest:
    """A request and what became of it."""

    prompt: list[int]
    seed: int
    max_new_tokens: int
    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    ended: bool = False
    error: BloomBeeError | None = None
    submitted_at: float = 0.0
    token_times: list[float] = field(default_factory=list)


@dataclass(slots=True)
class SimWorker:
    """One worker process; its stage, once it has one."""

    id: WorkerId
    index: int = 0
    core: StageCore | None = None
    device: Device | None = None
    wires: dict[int, Wire] = field(default_factory=dict)
    """By epoch."""
    works: deque[Work] = field(default_factory=deque)
    """Of its device, in order; the first one runs."""
    num_layers: int = 1
    num_pieces: int = 0
    """Of bulk that have left it so far."""
    is_alive: bool = True


class SimCluster:
    """Head, scheduler, ``num_stages`` workers and ``num_spares`` more.

    Args:
        card: of the model; default: one of a layer a stage, which sees all positions.
        make_device: of what a stage is told to load; default: one that computes digests.
        pace: of the works on every stage, or one a stage.
        shape: of every directed link; ``row_bytes`` is what a hidden row weighs on it.
        shapes: of single links, by their ends (``head``, ``scheduler``, ``stage0``, ...), instead of ``shape``.
        network: where all of them stand, instead of ``shape`` and ``shapes``: links, and access lines that links share.
        nodes: of each stage, by name in the network; the head and the scheduler are at its node ``head``.
        memory_bytes: that each worker offers.
        faults: met by the ring's frames, their acknowledgements, Close and Closed; with ``lossy_orders`` also by what the head
            and its workers say of loading and wiring. Else that is carried reliably: TCP does that, and a worker whose
            connection breaks is out.
        detect_s: until the head knows that a worker was killed. log_bytes, log_disk_bytes: of each stage's log.
        tuned: how many microbatches are under way is chosen as a runtime does (links known as they are), up to
            ``num_microbatches``.
        scatter: standard deviation of a work's time, of the time that its pace says.
        cores: that all stages share, and what a hop costs on them: its ``hop_s`` are part of the way of every frame from a
            stage, the rest of its CPU time comes after it. None: each stage is a machine, and a hop costs nothing.
        context_s: what a work takes besides for each pair of a row and a token before it.
    """

    def __init__(
        self,
        *,
        seed: int,
        num_stages: int,
        num_spares: int = 0,
        num_microbatches: int = 2,
        num_pages: int = 64,
        page_size: int = 4,
        max_rows: int = 16,
        card: ModelCard | None = None,
        make_device: Callable[[Load], Device] | None = None,
        pace: Pace | Sequence[Pace] = PACE,
        shape: LinkShape | None = None,
        shapes: Mapping[tuple[str, str], LinkShape] | None = None,
        network: Network | None = None,
        nodes: Sequence[str] = (),
        memory_bytes: Sequence[int] | None = None,
        faults: Faults | None = None,
        row_bytes: int = 8192,
        resend_after_s: float = 0.5,
        step_deadline_s: float = 600.0,
        tuned: bool = False,
        scatter: float = 0.0,
        cores: Cores | None = None,
        context_s: float = 0.0,
        lossy_orders: bool = False,
        detect_s: float = 0.05,
        log_bytes: int = LOG_BYTES,
        log_disk_bytes: int = 0,
    ) -> None:
        self.clock = VirtualClock()
        self.trace: list[str] = []
        self.requests: dict[int, SimRequest] = {}
        self.plan: Plan | None = None
        self.down: BloomBeeError | None = None
        self.up = False
        self.num_recoveries = 0
        self.num_stale = 0
        """Messages that came after their epoch had ended."""
        self.workers: dict[WorkerId, SimWorker] = {}
        self.busy_s = [0.0] * num_stages
        self.uses = [StageUse()] * num_stages
        self.paces = [pace] * num_stages if isinstance(pace, Pace) else list(pace)
        self.tunings: list[tuple[float, int]] = []
        """When another number of microbatches was chosen, and which."""
        self._scatter = scatter
        self._context_s = context_s
        self._work_rng = random.Random(f"works {seed}")
        self._rng = random.Random(seed)
        self._shape = shape or LinkShape()
        self._shapes = dict(shapes or {})
        self._faults = faults or Faults()
        self._network = None if network is None else SimNetwork(self.clock, network, rng=self._rng, faults=self._faults)
        self._nodes = {"head": HEAD_NODE, "scheduler": HEAD_NODE, **{f"stage{index}": node for index, node in enumerate(nodes)}}
        if network is not None and len(nodes) != num_stages:
            raise ConfigError(f"{len(nodes)} nodes for {num_stages} stages: one each", field="nodes")
        memory_bytes = memory_bytes or [1 << 40] * (num_stages + num_spares)
        self._row_bytes = row_bytes
        self._resend_after_s = resend_after_s
        self._make_device = make_device
        self._lossy_orders = lossy_orders
        self._detect_s = detect_s
        self._log_bytes, self._log_disk_bytes = log_bytes, log_disk_bytes
        self._cores = cores
        self._pool = CorePool(self.clock, None if cores is None else cores.count)
        self._links: dict[tuple[str, str], SimLink] = {}
        self._broken: dict[tuple[str, str], Liveness] = {}
        request = PlanRequest(
            card=card or sim_card((0,) * num_stages),
            dtype=Dtype.FLOAT32,
            num_workers=num_stages,
            split=None,
            num_pages=num_pages,
            page_size=page_size,
            max_rows=max_rows,
            num_microbatches=num_microbatches,
        )
        limits = SwarmLimits(heartbeat_s=1e9, silence_s=1e9, load_deadline_s=1e9)
        self.swarm = SwarmCore(request, limits, links=(number.to_bytes(16, "big") for number in itertools.count(1)))
        self.request_core = RequestCore(max_waiting=10_000)
        self.scheduler = SchedulerCore(max_rows=max_rows, resend_after_s=resend_after_s, step_deadline_s=step_deadline_s)
        for worker in range(1, num_stages + num_spares + 1):
            self.workers[worker] = SimWorker(worker)
            joined = WorkerJoined(
                worker, f"w{worker}", f"tcp://sim:{worker}", bytes(32), memory_bytes[worker - 1], self.clock.now
            )
            self._do_head(self.swarm.handle(joined))
        self.clock.call_later(TICK_S, self._tick)
        if tuned:
            self._steering = Steering(
                [f"w{worker}" for worker in range(1, num_stages + 1)],
                [1] * num_stages,
                ModelShape(hidden=row_bytes // 4, num_layers=num_stages, activation_bytes=4),
                most_microbatches=num_microbatches,
                most_rows=max_rows,
            )
            self._apply(Tune(num_stages, (self._steering.begin([], None),), None, self.clock.now, sizes_apart=True))
            self.clock.call_later(LOOK_EVERY_S, self._look)

    # -- for tests and benchmarks ----------------------------------------------------------

    def submit(
        self,
        prompt: list[int],
        *,
        max_new_tokens: int,
        seed: int = 0,
        at: float = 0.0,
        client: str = "",
        sampling: Sampling | None = None,
        end_tokens: frozenset[int] = frozenset(),
        max_time_s: float | None = None,
    ) -> int:
        """A request at virtual time ``at``; its number. ``sampling``: instead of a greedy one of ``seed``."""
        number = len(self.requests)
        self.requests[number] = SimRequest(prompt, seed, max_new_tokens, submitted_at=at)
        sampling = sampling or Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, seed, -1)
        packed = b"".join(token.to_bytes(4, "little") for token in prompt)

        def act() -> None:
            event = Submit(number, packed, sampling, max_new_tokens, end_tokens, self.clock.now, client, max_time_s=max_time_s)
            self._do_head(self.request_core.handle(event))

        self.clock.call_at(at, act)
        return number

    def cancel(self, number: int, *, at: float) -> None:
        self.clock.call_at(at, lambda: self._do_head(self.request_core.handle(CancelRequest(number, self.clock.now))))

    def kill(self, worker: WorkerId, *, at: float) -> None:
        """A worker ends at once, whatever it has."""

        def act() -> None:
            self.workers[worker].is_alive = False
            gone = WorkerGone(worker, "killed", at + self._detect_s)
            self.clock.call_later(self._detect_s, lambda: self._do_head(self.swarm.handle(gone)))

        self.clock.call_at(at, act)

    @property
    def stages(self) -> dict[int, StageCore]:
        """By their place in the plan; of workers that live."""
        plan = self.plan.stages if self.plan is not None else ()
        workers = {stage.index: self.workers[stage.worker] for stage in plan}
        return {index: worker.core for index, worker in workers.items() if worker.core is not None and worker.is_alive}

    def run(self, *, deadline_s: float = 3600.0) -> bool:
        """Until every request has ended and nothing is under way; False if virtual time ran out first."""
        return self.clock.run(self._is_quiet, deadline_s=deadline_s)

    def run_for(self, seconds: float) -> bool:
        """Let virtual time go on by ``seconds``; False if every request had ended before."""
        stop = self.clock.now + seconds
        return not self.clock.run(self._is_quiet, deadline_s=stop)

    def _is_quiet(self) -> bool:
        ended = all(request.ended for request in self.requests.values())
        return ended and self.scheduler.is_idle and all(stage.is_idle for stage in self.stages.values())

    # -- carrying --------------------------------------------------------------------------

    def _link(self, source: str, target: str) -> SimLink:
        key = (source, target)
        if self._network is not None:
            return self._network.link(self._nodes[source], self._nodes[target])
        if key not in self._links:
            self._links[key] = SimLink(self.clock, self._rng, self._shapes.get(key, self._shape), self._faults)
        return self._links[key]

    def _carry(
        self,
        source: str,
        target: str,
        message: AnyMessage,
        deliver: Callable[[], None],
        *,
        reliable: bool,
        lane: Lane = Lane.CONTROL,
    ) -> None:
        num_bytes = HEADER_BYTES
        if isinstance(message, Forward) and source != "scheduler":
            num_bytes += self._row_bytes * sum(item.num_rows for item in message.items)
        elif isinstance(message, Verdict):
            num_bytes += 16 * len(message.picks)

        def arrive() -> None:
            self.trace.append(f"{self.clock.now:.9f} {source}->{target} {message!r}")
            deliver()

        self._link(source, target).send(num_bytes, arrive, lane=lane, reliable=reliable)

    def _tick(self) -> None:
        now = self.clock.now
        self._do_head(self.swarm.handle(Tick(now)))
        self._do_scheduler(self.scheduler.handle(Tick(now)))
        for worker in self.workers.values():
            if worker.core is not None and worker.is_alive:
                self._look_for_pieces(worker)
                self._do_stage(worker, worker.core.handle(Tick(now)))
        for ends, connection in self._broken.items():
            if connection.is_lost(now) and self.plan is not None:
                worker_id = self.plan.stages[int(ends[1][5:])].worker
                self._do_head(self.swarm.handle(WorkerGone(worker_id, "its connection is broken", now)))
        self.clock.call_later(TICK_S, self._tick)

    def _look_for_pieces(self, worker: SimWorker) -> None:
        """As ``roles/stage_host.py`` does, and tells the head."""
        link = self._links.get((f"stage{worker.index}", f"stage{worker.index + 1}"))
        if link is not None and link.num_pieces > worker.num_pieces:
            worker.num_pieces = link.num_pieces
            assert worker.core is not None
            self._do_stage(worker, worker.core.handle(Moved(self.clock.now)))
            self._do_scheduler(self.scheduler.handle(Moved(self.clock.now)))

    def _look(self) -> None:
        """As ``roles/tuner.py`` does."""
        self.clock.call_later(LOOK_EVERY_S, self._look)
        if self.scheduler.num_open:
            self._steering.report(self.uses)
            best = self._steering.choose(
                self.scheduler.num_open,
                self._links_as_they_are(),
                self.scheduler.quickest_loop,
                decoded=self.scheduler.decoded,
                now=self.clock.now,
            )
            if best is not None:
                self._apply(tune_event(best, sizes_apart=self._steering.sizes_apart, now=self.clock.now))

    def _apply(self, tune: Tune) -> None:
        if not self.tunings or self.tunings[-1][1] != tune.num_microbatches:
            self.tunings.append((self.clock.now, tune.num_microbatches))
        self._do_scheduler(self.scheduler.handle(tune))

    def _links_as_they_are(self) -> list[Link]:
        names = [f"stage{index}" for index in range(len(self.uses))]
        links = [self._link(*ends) for ends in zip(names, [*names[1:], "scheduler"], strict=True)]
        return [Link(link.bandwidth_bytes_per_s or math.inf, link.shape.latency_s) for link in links]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Whoever has connections: who is dialled or dials, and a stage."""
        stages = [f"stage{index}" for index in range(len(self.uses))]
        return [*(("scheduler", stage) for stage in stages), *itertools.pairwise(stages)]

    def reset(self, ends: tuple[str, str]) -> None:
        """Both connections between ``ends`` break and are dialled again; what was on its way is lost."""
        if ends in self._broken:
            return
        directions = self._link(*ends), self._link(*reversed(ends))
        rtt_s = sum(link.shape.latency_s for link in directions)
        connection = self._broken[ends] = Liveness()
        connection.timed(rtt_s)
        for link in directions:
            link.cut()
        for lane in Lane:
            connection.broke(lane, self.clock.now)
            after_s = self._rng.uniform(0.5, 1) * RECONNECT_S + RECONNECT_TRIPS * rtt_s
            self.clock.call_later(after_s, partial(self._back, ends, lane))

    def _back(self, ends: tuple[str, str], lane: Lane) -> None:
        if not self._broken[ends].back(lane):
            return
        del self._broken[ends]
        now, (one, other) = self.clock.now, ends
        index = int(other[5:])
        stage_dialled = one == "scheduler"
        self._link(one, other).mend(keeps=not stage_dialled)
        self._link(other, one).mend(keeps=stage_dialled)
        if one == "scheduler":
            self._do_scheduler(self.scheduler.handle(StageRestored(index, now)))
            for port, end in ((Port.UPSTREAM, 0), (Port.DOWNSTREAM, len(self.uses) - 1)):
                if index == end:
                    self._link_restored(index, port)
        else:
            self._link_restored(index - 1, Port.DOWNSTREAM)
            self._link_restored(index, Port.UPSTREAM)

    def _link_restored(self, index: int, port: Port) -> None:
        """At the worker of a stage, if it lives and has loaded."""
        worker = self.workers[self.plan.stages[index].worker] if self.plan is not None else None
        if worker is None or worker.core is None or not worker.is_alive:
            return
        for epoch in list(worker.core.seats):
            self._do_stage(worker, worker.core.handle(LinkRestored(epoch, port, self.clock.now)))

    def restore_links(self) -> None:
        """Every connection broke and came back: all ends resend."""
        now = self.clock.now
        for index in list(self.stages):
            self._do_scheduler(self.scheduler.handle(StageRestored(index, now)))
            for port in (Port.UPSTREAM, Port.DOWNSTREAM):
                self._link_restored(index, port)

    def _do_head(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send(to=int(worker), message=Load() | Wire() as order):
                    self._order(self.workers[worker], order)
                case TellScheduler(message=message):
                    self._do_scheduler(self.scheduler.handle(message))
                case PlanMade(plan=plan):
                    self.plan = plan
                case PipelineBroken():
                    self.up = False
                    self.num_recoveries += 1
                case PipelineUp():
                    self.up = True
                case PipelineDown(error=error):
                    self.down = error
                    self._do_head(self.request_core.handle(SwarmLost(error)))
                case Deliver(request=number, pick=pick, finish=finish):
                    request = self.requests[number]
                    request.tokens.append(pick.token)
                    request.token_times.append(self.clock.now)
                    request.finish = finish
                    request.ended = finish is not None
                case Conclude(request=number, error=error):
                    self.requests[number].ended = True
                    self.requests[number].error = error
                case _:
                    raise AssertionError(f"the head asks for {command!r}")

    def _order(self, worker: SimWorker, order: Load | Wire) -> None:
        """Of the head, to a worker."""
        act = partial(self._load if isinstance(order, Load) else self._wire, worker, order)  # type: ignore[arg-type]
        self._carry("head", self._place(worker), order, act, reliable=not self._lossy_orders)

    def _place(self, worker: SimWorker) -> str:
        """As its links are named."""
        stage = self.swarm.stage_of(worker.id)
        return f"stage{worker.index if stage is None else stage}"

    def _load(self, worker: SimWorker, load: Load) -> None:
        if not worker.is_alive:
            return
        if worker.core is None:
            assert self.plan is not None
            stage = next(one for one in self.plan.stages if one.span.start == load.start)
            worker.index = stage.index
            worker.core = StageCore(
                load, resend_after_s=self._resend_after_s, log_bytes=self._log_bytes, log_disk_bytes=self._log_disk_bytes
            )
            worker.num_layers = load.stop - load.start
            worker.device = self._make_device(load) if self._make_device is not None else _digests(stage.index, load)
        self._say(worker, Loaded(pipeline=load.pipeline, weight_bytes=0, kv_bytes=0))

    def _wire(self, worker: SimWorker, wire: Wire) -> None:
        core = worker.core
        if not worker.is_alive or core is None:
            return
        worker.wires[wire.epoch] = wire
        try:
            commands = core.handle(StageReceived(wire, self.clock.now))
        except StalePlan:
            return  # an order that was overtaken
        self._do_stage(worker, commands)
        self._do_stage(worker, core.handle(Greeted(wire.epoch, self.clock.now)))

    def _say(self, worker: SimWorker, message: AnyMessage) -> None:
        """To the head."""

        def tell() -> None:
            with contextlib.suppress(RemoteProtocolError):  # it was given up meanwhile
                self._do_head(self.swarm.handle(WorkerSaid(worker.id, message, self.clock.now)))

        self._carry(self._place(worker), "head", message, tell, reliable=not self._lossy_orders)

    def _do_scheduler(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send(to=int(stage), lane=lane, message=message):
                    assert self.plan is not None
                    deliver = partial(self._to_stage, self.workers[self.plan.stages[stage].worker], message, None)
                    self._carry("scheduler", f"stage{stage}", message, deliver, reliable=False, lane=lane)
                case TellHead(message=message):
                    self._do_head(self.request_core.handle(SchedulerSaid(message, self.clock.now)))
                case _:
                    raise AssertionError(f"the scheduler asks for {command!r}")

    def _to_stage(self, worker: SimWorker, message: AnyMessage, payload: object | None) -> None:
        core = worker.core
        if core is None or not worker.is_alive:
            return
        try:
            commands = core.handle(StageReceived(message, self.clock.now, payload))
        except StalePlan:
            self.num_stale += 1
            return
        except RemoteProtocolError as error:
            raise AssertionError(f"stage {worker.index} refused {message!r}: {error}") from error
        self._do_stage(worker, commands)

    def _do_stage(self, worker: SimWorker, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Compute(work=work):
                    worker.works.append(work)
                    if len(worker.works) == 1:
                        self._begin_work(worker)
                case Gather(number=number, pieces=pieces):
                    self.clock.call_later(0.0, partial(self._gathered, worker, number, pieces))
                case Spill(number=number, frames=frames):
                    stored = tuple(payload for _, payload in frames)
                    self.clock.call_later(DISK_S, partial(self._spilled, worker, Spilled(number, stored)))
                case Send(to=Port.HEAD, message=Wired() | StageFailed() as message):
                    self._say(worker, message)
                case Send(to=Port() as port):
                    self._from_stage(worker, port, command)
                case _:
                    raise AssertionError(f"stage {worker.index} asks for {command!r}")

    def _gathered(self, worker: SimWorker, number: int, pieces: Sequence[Piece]) -> None:
        if worker.is_alive:
            assert worker.core is not None
            assert worker.device is not None
            event = Gathered(number, worker.device.gather(pieces), self.clock.now)
            self._do_stage(worker, worker.core.handle(event))

    def _spilled(self, worker: SimWorker, event: Spilled) -> None:
        if worker.is_alive:
            assert worker.core is not None
            self._do_stage(worker, worker.core.handle(event))

    def _begin_work(self, worker: SimWorker) -> None:
        work = worker.works[0]
        seconds = self._work_s(worker, work)
        then = partial(self._computed, worker, work, self.clock.now)
        if self._cores is not None and self._cores.is_computing:
            self._pool.take(seconds, then)
        else:
            self.clock.call_later(seconds, then)

    def _work_s(self, worker: SimWorker, work: Work) -> float:
        if not work.num_rows:
            return 0.0  # all of it was closed meanwhile
        seconds = self.paces[worker.index].seconds(work.computes, work.num_rows, worker.num_layers)
        seconds += self._context_s * work.num_attended
        return seconds * max(0.0, self._work_rng.gauss(1.0, self._scatter)) if self._scatter else seconds

    def _computed(self, worker: SimWorker, work: Work, begun_at: float) -> None:
        if not worker.is_alive:
            return
        assert worker.core is not None
        assert worker.device is not None
        self._count(worker.index, work, self.clock.now - begun_at)
        outcome = worker.device.run(work)
        self._do_stage(worker, worker.core.handle(Computed(outcome, self.clock.now)))
        worker.works.popleft()
        if worker.works:
            self._begin_work(worker)

    def _count(self, index: int, work: Work, seconds: float) -> None:
        """``seconds`` as a device's own clock sees them, the wait for a core among them."""
        if not work.num_rows:
            return
        rows = work.num_rows
        use = DeviceUse(1, rows, seconds, rows * rows, rows * seconds, work.num_attended)
        so_far = self.uses[index]
        if work.computes is Phase.PREFILL:
            self.uses[index] = replace(so_far, prefill=so_far.prefill + use)
        else:
            self.uses[index] = replace(so_far, decode=so_far.decode + use)
        self.busy_s[index] += seconds

    def _from_stage(self, worker: SimWorker, port: Port, send: Send) -> None:
        message, payload = send.message, send.payload
        wire = worker.wires[message.epoch]  # type: ignore[union-attr]
        peer = {Port.HEAD: None, Port.UPSTREAM: wire.predecessor, Port.DOWNSTREAM: wire.successor}[port]
        source = f"stage{worker.index}"
        if peer is None:

            def tell() -> None:
                try:
                    commands = self.scheduler.handle(FromStage(worker.index, message, self.clock.now))
                except StalePlan:
                    self.num_stale += 1
                    return
                self._do_scheduler(commands)

            self._hop(source, "scheduler", send, tell)
        else:
            target = self.workers[peer.worker]
            step = 1 if port is Port.DOWNSTREAM else -1

            def take() -> None:
                self._to_stage(target, message, payload)

            self._hop(source, f"stage{worker.index + step}", send, take)

    def _hop(self, source: str, target: str, send: Send, deliver: Callable[[], None]) -> None:
        """Carry what a stage sends; with shared cores a frame first takes its turn there."""
        carry = partial(self._carry, source, target, send.message, deliver, reliable=False, lane=send.lane)
        cores = self._cores
        if cores is None or not isinstance(send.message, Forward | Verdict):
            carry()
            return
        on_core_s = min(cores.hop_s, cores.hop_cpu_s)

        def go() -> None:
            self._pool.take(cores.hop_cpu_s - on_core_s, lambda: None)
            self.clock.call_later(cores.hop_s - on_core_s, carry)

        self._pool.take(on_core_s, go)


def _digests(stage: int, load: Load) -> SimDevice:
    return SimDevice(stage=stage, is_last=load.stop == load.num_layers, groups=load.groups, page_size=load.page_size)


def sim_card(windows: Sequence[int]) -> ModelCard:
    """A model of one parameter a layer, whose layers see ``windows``, for swarms that compute digests."""
    num_layers = len(windows)
    return ModelCard(
        model="sim",
        config_digest="00" * 16,
        architecture="sim",
        num_layers=num_layers,
        hidden_size=1,
        vocab_size=VOCAB,
        max_positions=0,
        dtype=Dtype.FLOAT32,
        eos_token_ids=(),
        bos_token_id=None,
        layer_parameters=(1,) * num_layers,
        embed_parameters=0,
        tail_parameters=0,
        tied_parameters=0,
        layer_kv_elements=(1,) * num_layers,
        layer_windows=tuple(windows),
        tokenizer_json=None,
    )
