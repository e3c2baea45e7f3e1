"""A whole swarm of the real cores under a virtual clock: the test cluster and the simulator.

There is no second implementation of the protocol here, nor of what is chosen while it runs: messages are made and read by the
same cores that run over ZeroMQ; this package only carries them, and runs works on :class:`~bloombee.sim.device.SimDevice`.
Same arguments and seed, same trace, byte for byte.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from bloombee.models.card import ModelCard
from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.pipeline.commands import Send
from bloombee.pipeline.events import CancelRequest, Submit, WorkerGone, WorkerJoined
from bloombee.pipeline.log import LOG_BYTES
from bloombee.pipeline.scheduler import SchedulerCore, SchedulerProxy, SchedulerService
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.swarm import PlanRequest
from bloombee.plan.network import Network
from bloombee.plan.plan import Plan
from bloombee.plan.topology import Cores, Topology
from bloombee.sim.breaks import Breaks
from bloombee.sim.carrier import HEAD, SimCarrier, check_nodes, stage_name
from bloombee.sim.clock import VirtualClock
from bloombee.sim.cpu import CorePool
from bloombee.sim.device import VOCAB, Device, SimDevice
from bloombee.sim.head import SimHead, SimRequest
from bloombee.sim.network import Faults, LinkShape
from bloombee.sim.worker import Order, SimDevices, SimWorker, site_of
from bloombee.spec.speculator import Speculator
from bloombee.types import Dtype, SchedulerPlace, WorkerId
from bloombee.wire.messages import AnyMessage, Load, Sampling, Schedule, Wire

TICK_S = 0.1
PACE = Pace(fixed_s=0.001, decode_row_s=0.0001, prefill_row_s=0.00002)


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
        faults: met by the ring's frames, their acknowledgements, Close and Closed; with ``lossy_orders`` also by what the head
            and its workers say of loading and wiring. Else that is carried reliably: TCP does that, and a worker whose
            connection breaks is out.
        detect_s: until the head knows that a worker was killed. log_bytes, log_disk_bytes: of each stage's log.
        tuned: how many microbatches are under way is chosen as a runtime does (links known as they are), up to
            ``num_microbatches``.
        scatter: standard deviation of a work's time, of the time that its pace says. memory_bytes: that each worker offers.
        cores: that all stages share, and what a hop costs on them: its ``hop_s`` are part of the way of every frame from a
            stage, the rest of its CPU time comes after it. None: each stage is a machine, and a hop costs nothing.
        scheduler: where it is; beside stage 0 it has no link of its own, and asks and answers of the head meet the faults.
        context_s: what a work takes besides for each pair of a row and a token before it.
    """

    carrier_type: type[SimCarrier] = SimCarrier
    """Of what carries everything."""
    objective: Objective | None = None
    """Of a planner that decides which workers have a stage; None: all have one."""
    topology: Topology | None = None
    """What is known of workers from the start; None: a planner has them and their links looked at before."""
    moves: bool = False
    """The ends of links are workers, whatever stage they have, and not stages, whoever has them."""
    shares_out: bool = False
    prefix_cache: bool = True
    waits_s: float = 0.0
    shadows: bool = False
    """As of PlanRequest, all four."""
    layer_load_s: float = 0.0
    """That a worker takes to load a layer."""
    make_speculator: Callable[[], Speculator | None] = staticmethod(lambda: None)
    """Of each scheduler."""

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
        scheduler: SchedulerPlace = SchedulerPlace.HEAD,
    ) -> None:
        self.clock = VirtualClock()
        self.trace: list[str] = []
        self.num_stale = 0
        """Messages to stages that came after their epoch had ended."""
        check_nodes(network, nodes, num_stages)
        self._rng, self._make_device, self._lossy_orders = random.Random(seed), make_device, lossy_orders
        self._detect_s, self.shapes = detect_s, dict(shapes or {})
        self._resend_after_s, self._step_deadline_s, self._max_rows = resend_after_s, step_deadline_s, max_rows
        self._log_bytes, self._log_disk_bytes = log_bytes, log_disk_bytes
        pool = CorePool(self.clock, None if cores is None else cores.count)
        self.devices = SimDevices(
            self.clock,
            [pace] * num_stages if isinstance(pace, Pace) else pace,
            scatter=scatter,
            context_s=context_s,
            seed=seed,
            pool=pool if cores is not None and cores.is_computing else None,
        )
        self.carrier = self.carrier_type(
            self.clock,
            self.trace,
            rng=self._rng,
            shape=shape or LinkShape(),
            shapes=self.shapes,
            faults=faults or Faults(),
            row_bytes=row_bytes,
            network=network,
            nodes=nodes,
            cores=cores,
            pool=pool,
        )
        self.head = SimHead(
            self.clock,
            self.carrier,
            _request(card, num_stages, num_pages, page_size, max_rows, num_microbatches, tuned, scheduler, self),
            self._make_scheduler,
            hidden=row_bytes // 4,
            order=self._order,
            to_stage=self._of_head,
        )
        self.workers: dict[WorkerId, SimWorker] = {}
        self.head.on_dismissed = lambda worker: self.workers[worker].end()
        self.breaks = Breaks(self.clock, self.carrier, self.head, self.workers, num_stages, self._rng)
        for worker, memory in enumerate(memory_bytes or [1 << 40] * (num_stages + num_spares), start=1):
            self.join(worker, memory)
        self.clock.call_later(TICK_S, self._tick)

    def join(self, worker: WorkerId, memory_bytes: int = 1 << 40) -> None:
        self.workers[worker] = SimWorker(worker, self, memory_bytes)
        joined = WorkerJoined(worker, f"w{worker}", f"tcp://sim:{worker}", bytes(32), memory_bytes, self.clock.now)
        self.head.do(self.head.swarm.handle(joined))

    # -- what became of it -----------------------------------------------------------------

    @property
    def requests(self) -> dict[int, SimRequest]:
        """By number."""
        return self.head.requests

    @property
    def plan(self) -> Plan | None:
        return self.head.plan

    @property
    def scheduler(self) -> SchedulerCore | SchedulerProxy:
        """As the head has it."""
        return self.head.scheduler

    @property
    def services(self) -> list[SchedulerService]:
        """Schedulers beside stages of workers that live."""
        return [
            service for worker in self.workers.values() if worker.is_alive and (service := worker.scheduling.service) is not None
        ]

    @property
    def stages(self) -> dict[int, StageCore]:
        """By their place in the plan; of workers that live."""
        plan = self.plan.stages if self.plan is not None else ()
        cores = {
            stage.index: self.workers[stage.worker].core_of(stage.load) for stage in plan if self.workers[stage.worker].is_alive
        }
        return {index: core for index, core in cores.items() if core is not None}

    # -- what happens to it ----------------------------------------------------------------

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
            self.head.do(self.head.request_core.handle(event))

        self.clock.call_at(at, act)
        return number

    def cancel(self, number: int, *, at: float) -> None:
        self.clock.call_at(at, lambda: self.head.do(self.head.request_core.handle(CancelRequest(number, self.clock.now))))

    def kill(self, worker: WorkerId, *, at: float) -> None:
        """A worker ends at once, whatever it has."""

        def act() -> None:
            self.workers[worker].is_alive = False
            gone = WorkerGone(worker, "killed", at + self._detect_s)
            self.clock.call_later(self._detect_s, lambda: self.head.do(self.head.swarm.handle(gone)))

        self.clock.call_at(at, act)

    def run(self, *, deadline_s: float = 3600.0) -> bool:
        """Until every request has ended and nothing is under way; False if virtual time ran out first."""
        return self.clock.run(self._is_quiet, deadline_s=deadline_s)

    def run_for(self, seconds: float) -> bool:
        """Let virtual time go on by ``seconds``; False if every request had ended before."""
        stop = self.clock.now + seconds
        return not self.clock.run(self._is_quiet, deadline_s=stop)

    def _is_quiet(self) -> bool:
        ended = all(request.ended for request in self.requests.values())
        schedulers = [self.scheduler, *self.services]
        return ended and all(one.is_idle for one in schedulers) and all(stage.is_idle for stage in self.stages.values())

    # -- between head and workers ----------------------------------------------------------

    def _tick(self) -> None:
        self.head.tick()
        for worker in self.workers.values():
            if worker.tick():
                self.head.moved()
        for worker_id in self.breaks.lost():
            self.head.do(self.head.swarm.handle(WorkerGone(worker_id, "its connection is broken", self.clock.now)))
        self.clock.call_later(TICK_S, self._tick)

    def _order(self, worker: WorkerId, order: Order) -> None:
        at = self.workers[worker]
        place = self.head.place(worker, at.index)
        self.carrier.carry(HEAD, place, order, partial(at.order, order), reliable=not self._lossy_orders)

    def say(self, worker: SimWorker, message: AnyMessage) -> None:
        """Of a worker, to the head."""
        tell = partial(self.head.hear, worker.id, message)
        place = self.head.place(worker.id, worker.index)
        self.carrier.carry(place, HEAD, message, tell, reliable=not self._lossy_orders)

    def tell_scheduler(self, stage: int, message: AnyMessage) -> None:
        """What a stage said has arrived."""
        self.head.hear_stage(stage, message)

    def tell_head(self, message: AnyMessage) -> None:
        """Of the scheduler beside stage 0."""
        self.carrier.carry(stage_name(0), HEAD, message, partial(self.head.hear_stage, 0, message), reliable=False)

    def _of_head(self, stage: int, send: Send) -> None:
        """Of the scheduler with the head, to a stage; of the head, to the scheduler elsewhere."""
        assert self.plan is not None
        if self.plan.scheduler is SchedulerPlace.HEAD:
            self.to_stage(stage, send)
            return
        deliver = partial(self.workers[self.plan.scheduler_worker].scheduling.ask, send.message)
        self.carrier.carry(HEAD, stage_name(0), send.message, deliver, reliable=False)

    def to_stage(self, stage: int, send: Send) -> None:
        """Of the scheduler, wherever it is."""
        plan = self.head.swarm.plan_of(send.message.epoch)  # type: ignore[union-attr]
        if plan is None:
            return  # it was given up
        worker = plan.stages[stage].worker
        deliver, there = partial(self.workers[worker].receive, send.message, None), stage_name(site_of(self, worker, stage))
        if there == self.head.scheduler_name:
            self.clock.call_later(0.0, deliver)
        else:
            self.carrier.carry(self.head.scheduler_name, there, send.message, deliver, reliable=False, lane=send.lane)

    def _make_scheduler(self, plan: Plan | None) -> SchedulerCore | SchedulerProxy:
        if plan is not None:
            return SchedulerProxy(plan.pipeline, plan.scheduler_since, resend_after_s=self._resend_after_s)
        return SchedulerCore(
            max_rows=self._max_rows,
            resend_after_s=self._resend_after_s,
            step_deadline_s=self._step_deadline_s,
            speculator=self.make_speculator(),
            prefix_cache=self.prefix_cache,
        )

    def make_service(self, wire: Wire, schedule: Schedule) -> SchedulerService:
        """Of a worker that is told to schedule."""
        return SchedulerService(
            wire.pipeline,
            schedule.since,
            max_rows=wire.max_rows,
            resend_after_s=self._resend_after_s,
            step_deadline_s=self._step_deadline_s,
            speculator=self.make_speculator(),
            prefix_cache=schedule.prefix_cache,
        )

    def stage_of(self, load: Load) -> int:
        """Where in the plan these layers are."""
        assert self.plan is not None
        return next(stage.index for stage in self.plan.stages if stage.span.start == load.start)

    def make_core(self, load: Load) -> StageCore:
        """Of a stage that is to load this."""
        return StageCore(
            load, resend_after_s=self._resend_after_s, log_bytes=self._log_bytes, log_disk_bytes=self._log_disk_bytes
        )

    def make_device(self, stage: int, load: Load) -> Device:
        """That computes what it loads."""
        return self._make_device(load) if self._make_device is not None else _digests(stage, load)


def _request(
    card: ModelCard | None,
    num_stages: int,
    num_pages: int,
    page_size: int,
    max_rows: int,
    num_microbatches: int,
    tuned: bool,
    scheduler: SchedulerPlace,
    cluster: SimCluster,
) -> PlanRequest:
    return PlanRequest(
        card=card or sim_card((0,) * num_stages),
        dtype=Dtype.FLOAT32,
        num_workers=num_stages,
        split=None,
        num_pages=num_pages,
        page_size=page_size,
        max_rows=max_rows,
        num_microbatches=num_microbatches,
        tuned=tuned,
        objective=cluster.objective,
        topology=cluster.topology,
        scheduler=scheduler,
        shares_out=cluster.shares_out,
        prefix_cache=cluster.prefix_cache,
        waits_s=cluster.waits_s,
        shadows=cluster.shadows,
    )


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
