"""The first plan: who runs what, with how many KV pages. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bloombee.codec.choice import CodecMode
from bloombee.errors import BloomBeeError, ConfigError
from bloombee.kv.pool import make_groups
from bloombee.models.card import ModelCard
from bloombee.pipeline.swarm.member import Member
from bloombee.plan.plan import Plan, StagePlan, check_memory, split_layers
from bloombee.plan.scratch import scratch_bytes
from bloombee.plan.solve.objective import Objective
from bloombee.plan.topology import Topology
from bloombee.types import Dtype, PageGroup, Span

PIPELINE = 1


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
    pages_fixed: bool = True
    codec: CodecMode = CodecMode.OFF
    order: tuple[str, ...] = ()
    """Names of the workers of the first plan in the order of their stages; empty: as they join."""
    objective: Objective | None = None
    """What the planner is to be best at, once workers and links have been looked at; None: nobody is asked."""
    trace: bool = False
    takes_others: bool = True
    """Workers come from elsewhere: one that leaves before the plan may come back, or another in its place."""


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

    def chosen(self, topology: Topology, workers: Sequence[Member]) -> Plan:
        """The best by what is known. Raises as :meth:`make`."""
        return self.make(workers)

    def make(self, workers: Sequence[Member]) -> Plan:
        """One stage for each of ``workers``, in their order.

        Raises:
            Infeasible: one of them lacks the memory.
            ConfigError: one could not be reached by the stage before it, or the split does not fit the model.
        """
        request = self.request
        spans = split_layers(request.card.num_layers, request.num_workers, request.split)
        num_pages = request.num_pages
        if not request.pages_fixed:
            num_pages = max(1, min(num_pages, *(self._pages_that_fit(w, s) for w, s in zip(workers, spans, strict=True))))
        groups = self._groups(num_pages)
        stages = tuple(self._stage(index, workers[index], span, groups) for index, span in enumerate(spans))
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
        )

    def _groups(self, num_pages: int) -> tuple[PageGroup, ...]:
        request = self.request
        return make_groups(request.card.windows(), num_pages, request.page_size, rows=request.max_rows)

    def _kv_bytes(self, span: Span, groups: tuple[PageGroup, ...]) -> int:
        card, dtype = self.request.card, self.request.dtype
        slots = ((group.window, group.num_pages * self.request.page_size) for group in groups)
        return sum(count * card.kv_bytes_per_token(span, dtype, window=window) for window, count in slots)

    def _pages_that_fit(self, worker: Member, span: Span) -> int:
        """Of the wished, how many leave room for the others' and the weights."""
        room = worker.memory_bytes - self.request.card.weight_bytes(span, self.request.dtype)

        def need(count: int) -> int:
            groups = self._groups(count)
            return self._kv_bytes(span, groups) + self._scratch_bytes(span, groups)

        return bisect_right(range(1, self.request.num_pages + 1), room, key=need)

    def _scratch_bytes(self, span: Span, groups: tuple[PageGroup, ...]) -> int:
        request = self.request
        tokens = groups[0].num_pages * request.page_size
        return scratch_bytes(request.card, span, request.dtype, rows=request.max_rows, tokens=tokens)

    def _stage(self, index: int, worker: Member, span: Span, groups: tuple[PageGroup, ...]) -> StagePlan:
        card, dtype = self.request.card, self.request.dtype
        own = tuple(group for group in groups if group.window in card.windows(span))
        return StagePlan(
            index=index,
            worker=worker.id,
            name=worker.name,
            span=span,
            weight_bytes=card.weight_bytes(span, dtype),
            kv_bytes=self._kv_bytes(span, own),
            groups=own,
            scratch_bytes=self._scratch_bytes(span, own),
        )


def check_fit(stage: StagePlan, worker: Member) -> None:
    """Raises Infeasible if it lacks the memory, ConfigError if the stage before it could not reach it."""
    check_memory(stage, worker.memory_bytes)
    if stage.index > 0 and not worker.endpoint:
        raise ConfigError(
            f"worker {worker.name!r} cannot be reached by its predecessor: start it with --listen and --advertise",
            worker=worker.name,
        )


def fits(stage: StagePlan, worker: Member) -> bool:
    try:
        check_fit(stage, worker)
    except BloomBeeError:
        return False
    return True
