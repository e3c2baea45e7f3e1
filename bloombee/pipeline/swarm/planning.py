"""The first plan: who runs what, with how many KV pages. Pure."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bloombee.codec.choice import CodecMode
from bloombee.errors import BloomBeeError, ConfigError
from bloombee.kv.pool import make_groups
from bloombee.models.card import ModelCard
from bloombee.objective import Objective
from bloombee.pipeline.journal import Planned
from bloombee.pipeline.swarm.member import Member
from bloombee.plan.choose import Wish, choose
from bloombee.plan.memory import StageMemory, chosen_to_stream, kv_slots, stage_memory
from bloombee.plan.placement import SLOTS
from bloombee.plan.plan import Plan, Prediction, StagePlan, check_memory, split_layers
from bloombee.plan.profile import Profile
from bloombee.plan.topology import Cores, Device, Link, Topology
from bloombee.types import HEAD, Dtype, SchedulerPlace, Span, WorkerId

PIPELINE = 1
Streamed = tuple[tuple[int, ...], ...]
"""Of each stage: its layers that stream."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a local swarm's workers are alike, share the cores, and have links that cost a hop and nothing else.

    Args:
        device: of each; one of which nothing is known: an ordinary computer's.
    """

    cores: Cores
    device: Device

    def topology(self, workers: Iterable[WorkerId]) -> Topology:
        """Of so many of them."""
        devices = dict.fromkeys(workers, self.device)
        hop = Link(math.inf, self.cores.hop_s)
        return Topology(devices, dict.fromkeys(itertools.permutations((HEAD, *devices), 2), hop), self.cores)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the head is asked to build."""

    card: ModelCard
    dtype: Dtype
    num_workers: int
    split: tuple[int, ...] | None
    num_pages: int
    """Of the layers that see furthest, as wished; fewer if a worker's memory holds fewer, unless ``pages_fixed``."""
    page_size: int
    max_rows: int
    """Most rows of one sequence in a microbatch."""
    num_microbatches: int
    """Under way at once: credit that stages grant, all of it used unless ``tuned``."""
    tuned: bool = False
    """How many of them are used is chosen: before the start by the planner, if there is one, then while it runs."""
    pages_fixed: bool = True
    codec: CodecMode = CodecMode.OFF
    order: tuple[str, ...] = ()
    """Names of the workers of the first plan in the order of their stages; empty: as they join."""
    objective: Objective | None = None
    """What the planner is to be best at; None: all workers have a stage, in their order, cut as ``split`` says."""
    machine: Machine | None = None
    """All workers are on one machine, of which everything is known; None: elsewhere, or behind links of their own."""
    topology: Topology | None = None
    """What is known of workers and links from the start; None: nothing, but what a ``machine`` is."""
    trace: bool = False
    takes_others: bool = True
    """Workers come from elsewhere: one that leaves before the plan may come back, or another in its place."""
    scheduler: SchedulerPlace | None = SchedulerPlace.HEAD
    """None: where the planner says, if there is one, else with the head."""
    before: Planned | None = None
    """The plan of a head before this one, which is made again where its workers come back; of workers from elsewhere."""
    shares_out: bool = False
    """Where no spare can take a lost worker's stage, all layers are split over those that are left, if they have the memory."""
    draft: str = "off"
    """What drafts tokens ahead, as the option of that name says."""
    streams: bool = False
    """Layers that do not fit the memory of the worker that has them stream from its disk, as few as can be."""
    waits_s: float = 0.0
    """Where nobody can take a lost worker's layers requests wait so long for another worker to join."""
    step_deadline_s: float = 600.0
    """As :class:`~bloombee.pipeline.scheduler.SchedulerCore` takes it."""
    prefix_cache: bool = True
    """Likewise."""
    shadows: bool = False
    """Spares follow stages in case these are lost."""

    @property
    def drafts(self) -> bool:
        return self.draft != "off"

    @property
    def wants_survey(self) -> bool:
        """A planner is to decide, and workers and links have to be looked at before."""
        return self.objective is not None and self.machine is None and self.topology is None

    @property
    def wants_profile(self) -> bool:
        """A planner is to decide about workers of this machine, and does not know how fast that is."""
        return self.objective is not None and self.machine is not None and not self.machine.device.is_known

    def measured(self, profile: Profile) -> PlanRequest:
        """The same once a worker's share of the machine has been measured, if all are there and no pace says more."""
        if self.machine is None or self.machine.device.is_known:
            return self
        shape = self.card.shape(self.dtype)
        return replace(self, machine=replace(self.machine, device=profile.as_device("local", shape=shape)))


def wishes(request: PlanRequest) -> str:
    """What a plan is made for; one that was made for the same may be made again."""
    return repr((request.num_workers, request.split, request.objective, request.scheduler))


class FirstPlan:
    """As a request wants it."""

    def __init__(self, request: PlanRequest) -> None:
        self.request = request

    def candidates(self, workers: Iterable[Member]) -> list[Member]:
        """Those of ``workers``, as they joined, that it is made of, in its order."""
        order = self.request.order
        if not order:
            return list(workers)[: self.request.num_workers]
        named = [worker for worker in workers if worker.name in order]
        return sorted(named, key=lambda worker: order.index(worker.name))

    def decide(self, workers: Sequence[Member], surveyed: Topology | None) -> Plan:
        """As before, if it can be; else chosen, where a planner is asked for, by what was looked at or is known, or cut as asked.

        Raises:
            BloomBeeError: as :meth:`make` and :meth:`chosen`.
        """
        if (before := self.as_before(workers)) is not None:
            return before
        if self.request.objective is None:
            return self.make(workers)
        return self.chosen(self._known(workers, surveyed), workers)

    def known(self, workers: Iterable[Member], surveyed: Topology | None) -> Topology:
        """What there is to plan by: ``workers``, and of their links those that were looked at or are known from the start."""
        workers = list(workers)
        return _limited(self._known(workers, surveyed), workers)

    def _known(self, workers: Iterable[Member], surveyed: Topology | None) -> Topology:
        machine, topology = self.request.machine, surveyed or self.request.topology
        if machine is not None:
            topology = replace(topology or machine.topology(worker.id for worker in workers), cores=machine.cores)
        return topology or Topology({})

    def complete(self, workers: Iterable[Member], *, awaits: bool) -> list[Member] | None:
        """Those of ``workers`` that it is made of, in its order; None: not all are there, or one of them may not come back.

        Args:
            awaits: whoever had a stage in the plan before is waited for.
        """
        present = [worker for worker in workers if not worker.is_away]
        if self.as_before(present) is not None:
            return present
        found = self.candidates(workers)
        is_complete = len(found) == self.request.num_workers and not any(worker.is_away for worker in found)
        return found if is_complete and not (awaits and self.request.before is not None) else None

    def wants_survey(self, workers: Iterable[Member]) -> bool:
        """Of these."""
        return self.request.wants_survey and self.as_before(workers) is None

    def as_before(self, workers: Iterable[Member]) -> Plan | None:
        """The plan before, if all who have a stage in it are among ``workers`` and it can still be."""
        before = self.request.before
        here = {worker.key: worker for worker in workers}
        if before is None or any(seat.key not in here for seat in before.seats):
            return None
        members = [here[seat.key] for seat in before.seats]
        try:
            plan = self._plan(members, [Span(seat.start, seat.stop) for seat in before.seats], before.prediction)
        except BloomBeeError:
            return None
        return replace(plan, scheduler=before.scheduler)

    def make(self, workers: Sequence[Member], layers: Sequence[int] | None = None) -> Plan:
        """One stage for each of ``workers``, in their order, cut as asked, or with so many ``layers`` each.

        Raises:
            Infeasible: one of them lacks the memory.
            ConfigError: one could not be reached by the stage before it, or the split does not fit the model.
        """
        return self._plan(workers, split_layers(self.request.card.num_layers, len(workers), layers or self.request.split), None)

    def chosen(self, topology: Topology, workers: Sequence[Member]) -> Plan:
        """The best plan of some of ``workers``, by what is known of them and of their links.

        Args:
            topology: of these workers, by their ids; a worker that it lacks is one that nothing is known of. How much memory each
                has is as they said when they joined.

        Raises:
            Infeasible: there is none. PlanError, ConfigError: as :func:`~bloombee.plan.choose.choose`.
        """
        request = self.request
        of = {worker.id: worker for worker in workers}
        chosen = choose(_limited(topology, workers), request.card, self.wish(), request.objective or Objective())
        members = [of[worker] for worker in chosen.candidate.workers]
        spans = split_layers(request.card.num_layers, len(members), chosen.candidate.layers)
        return replace(self._plan(members, spans, chosen.prediction), scheduler=chosen.candidate.scheduler)

    def wish(self) -> Wish:
        request = self.request
        return Wish(
            dtype=request.dtype,
            num_pages=request.num_pages,
            page_size=request.page_size,
            max_rows=request.max_rows,
            most_microbatches=request.num_microbatches,
            microbatches=None if request.tuned else request.num_microbatches,
            pages_fixed=request.pages_fixed,
            codec=request.codec,
            scheduler=request.scheduler,
            streams=request.streams,
        )

    def _plan(self, workers: Sequence[Member], spans: Sequence[Span], prediction: Prediction | None) -> Plan:
        request = self.request
        streamed = self._streamed(workers, spans)
        num_pages = request.num_pages if request.pages_fixed else self._pages_that_fit(workers, spans, streamed)
        groups = make_groups(request.card.windows(), num_pages, request.page_size, rows=request.max_rows)
        memories = self._memories(spans, num_pages, streamed)
        stages = tuple(
            StagePlan(
                index=index,
                worker=worker.id,
                name=worker.name,
                span=span,
                weight_bytes=memory.weights,
                kv_bytes=memory.kv,
                groups=tuple(group for group in groups if group.window in request.card.windows(span)),
                scratch_bytes=memory.scratch,
                streamed=streamed[index],
            )
            for index, (worker, span, memory) in enumerate(zip(workers, spans, memories, strict=True))
        )
        for stage, worker in zip(stages, workers, strict=True):
            check_fit(stage, worker)
        return Plan(
            pipeline=PIPELINE,
            epoch=1,
            model=request.card.model,
            dtype=request.dtype,
            num_layers=request.card.num_layers,
            groups=groups,
            page_size=request.page_size,
            num_microbatches=request.num_microbatches,
            stages=stages,
            prediction=prediction,
            scheduler=request.scheduler or SchedulerPlace.HEAD,
        )

    def _streamed(self, workers: Sequence[Member], spans: Sequence[Span]) -> Streamed:
        """As few layers of each of ``spans`` as leave its worker room for the least KV memory; all where none do."""
        request = self.request
        if not request.streams:
            return ((),) * len(spans)
        least = self.wish().least_pages
        model = self.wish().shape(request.card, least)
        slots = kv_slots(model, least * request.page_size, page_size=request.page_size, rows=request.max_rows)

        def of(worker: Member, span: Span) -> tuple[int, ...]:
            ways = [chosen_to_stream(model, span, count) for count in (0, *range(SLOTS + 1, len(span) + 1))]
            totals = (stage_memory(model, span.start, span.stop, slots, way).total for way in ways)
            return next((way for way, total in zip(ways, totals, strict=True) if total <= worker.memory_bytes), ways[-1])

        return tuple(of(worker, span) for worker, span in zip(workers, spans, strict=True))

    def _pages_that_fit(self, workers: Sequence[Member], spans: Sequence[Span], streamed: Streamed) -> int:
        """Of the wished, as many as leave every worker room for the rest; at least one."""

        def is_too_much(count: int) -> bool:
            memories = self._memories(spans, count, streamed)
            return any(memory.total > worker.memory_bytes for memory, worker in zip(memories, workers, strict=True))

        return max(1, bisect_left(range(1, self.request.num_pages + 1), True, key=is_too_much))

    def _memories(self, spans: Sequence[Span], num_pages: int, streamed: Streamed) -> list[StageMemory]:
        """Of stages of ``spans``."""
        request = self.request
        tokens = num_pages * request.page_size
        model = self.wish().shape(request.card, num_pages)
        slots = kv_slots(model, tokens, page_size=request.page_size, rows=request.max_rows)
        return [stage_memory(model, span.start, span.stop, slots, away) for span, away in zip(spans, streamed, strict=True)]


def _limited(topology: Topology, workers: Iterable[Member]) -> Topology:
    """To ``workers``, each with the name and the memory that it joined with."""
    devices = {
        worker.id: replace(
            topology.devices.get(worker.id, Device(worker.name)), name=worker.name, memory_bytes=worker.memory_bytes
        )
        for worker in workers
    }
    parties = {HEAD, *devices}
    return replace(
        topology,
        devices=devices,
        links={ends: link for ends, link in topology.links.items() if parties.issuperset(ends)},
        sites={party: site for party, site in topology.sites.items() if party in parties},
    )


def check_fit(stage: StagePlan, worker: Member) -> None:
    """Raises Infeasible if it lacks the memory, ConfigError if the stage before it could not reach it."""
    check_memory(stage, worker.memory_bytes)
    if stage.index > 0 and not worker.endpoint:
        raise ConfigError(
            f"worker {worker.name!r} cannot be reached by its predecessor: start it with --listen and --advertise",
            worker=worker.name,
        )


def heir(stage: StagePlan, spares: Iterable[Member]) -> Member | None:
    """Who of ``spares`` takes the place of a worker that is gone or is to go; None: nobody can.

    Of those that fit, one that is there rather than one that may come back, then who has had most of these layers before."""
    fitting = [spare for spare in spares if fits(stage, spare)]
    return min(fitting, key=lambda spare: (spare.is_away, -_shared(spare.had, stage.span)), default=None)


def _shared(one: Span | None, other: Span) -> int:
    return 0 if one is None else max(0, min(one.stop, other.stop) - max(one.start, other.start))


def fits(stage: StagePlan, worker: Member) -> bool:
    try:
        check_fit(stage, worker)
    except BloomBeeError:
        return False
    return True
