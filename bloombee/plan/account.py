"""What a plan comes to, under the names of its workers: for tables, pictures and JSON. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from bloombee.models.shape import ModelShape
from bloombee.plan.cost import Cost, LinkCost, StageCost
from bloombee.plan.explain import spare_reasons
from bloombee.plan.problem import Problem
from bloombee.plan.solve import Solution, elsewhere
from bloombee.plan.solve.instance import streamed_bytes
from bloombee.plan.topology import Topology
from bloombee.types import SchedulerPlace


@dataclass(frozen=True, slots=True)
class StageAccount:
    """One stage of a pipeline.

    Args:
        layers: [start, stop).
        compute_s, stream_s: of one microbatch; streamed_bytes: weights that come from outside the device on each pass, which are
            so many ``streamed_layers``, of layers as large as the stage's are on average.
        memory_limit_bytes: None: no limit known.
        busy: share of a step.
        binds: what keeps more from here: ``time``, ``memory``, both or nothing.
    """

    worker: str
    layers: tuple[int, int]
    compute_s: float
    stream_s: float
    streamed_bytes: int
    streamed_layers: float
    memory_bytes: int
    memory_limit_bytes: int | None
    busy: float
    binds: tuple[str, ...]


class LinkAccount(msgspec.Struct, frozen=True, kw_only=True):
    """One link of a ring.

    Args:
        ratio: encoded over raw bytes of activations; None: they are not encoded.
        wire_s, latency_s, encode_s, decode_s: of one microbatch.
        bandwidth_bytes_per_s: of the link and the access lines that it goes through; None: no limit.
        busy: share of a step.
        binds: the step is as long as it is because of this link's busy time.
    """

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    ratio: float | None
    bytes_per_token: float
    bandwidth_bytes_per_s: float | None
    wire_s: float
    latency_s: float
    encode_s: float
    decode_s: float
    busy: float
    binds: bool


@dataclass(frozen=True, slots=True)
class PipelineAccount:
    """One pipeline: its operating point, its times, its ring. ``links[0]`` leads to the first stage, the last one home.

    Args:
        set_by: what a step is as long as: the loop, or M times this bottleneck.
        scheduler: its place, and ``scheduler_name`` who has it: the head, or the first stage's worker.
        step_elsewhere_s: of the same plan with the scheduler in the other place; None: a link for it is missing.
    """

    sequences: int
    microbatches: int
    tokens_per_s: float
    time_per_token_s: float
    step_s: float
    loop_s: float
    bottleneck_s: float
    bottleneck: str
    set_by: str
    scheduler: SchedulerPlace
    scheduler_name: str
    step_elsewhere_s: float | None
    stages: tuple[StageAccount, ...]
    links: tuple[LinkAccount, ...]


@dataclass(frozen=True, slots=True)
class Account:
    """Of a whole plan.

    Args:
        value, bound: seconds per token at B = 1 where the objective is ``latency`` or ``balance``, else tokens per second.
        gap: how much better another plan could be at most, as a part of this one.
        plan_s: how long the search took.
        spares: why each worker that no pipeline has is left out.
    """

    objective: str
    value: float
    bound: float
    gap: float
    proven: bool
    tokens_per_s: float
    time_per_token_s: float
    steps: int
    plan_s: float
    pipelines: tuple[PipelineAccount, ...]
    spares: Mapping[str, str]


def account(solution: Solution, problem: Problem, plan_s: float = 0.0) -> Account:
    topology = problem.topology
    reasons = spare_reasons(solution, topology, problem.model)
    return Account(
        objective=str(solution.objective),
        value=solution.value,
        bound=solution.bound,
        gap=solution.gap,
        proven=solution.proven,
        tokens_per_s=solution.tokens_per_s,
        time_per_token_s=max(cost.time_per_token_s for cost in solution.pipelines),
        steps=solution.steps,
        plan_s=plan_s,
        pipelines=tuple(_pipeline(cost, problem) for cost in solution.pipelines),
        spares={topology.name(worker): why for worker, why in reasons.items()},
    )


def is_bound_by_bottleneck(cost: Cost) -> bool:
    """Whether more microbatches would make no more tokens: else a step is as long as the loop."""
    return cost.candidate.num_microbatches * cost.bottleneck_s >= cost.loop_s + cost.core_wait_s


def _pipeline(cost: Cost, problem: Problem) -> PipelineAccount:
    candidate = cost.candidate
    other = elsewhere(cost, problem.topology, problem.model)
    return PipelineAccount(
        sequences=candidate.microbatch_sequences,
        microbatches=candidate.num_microbatches,
        tokens_per_s=cost.tokens_per_s,
        time_per_token_s=cost.time_per_token_s,
        step_s=cost.step_s,
        loop_s=cost.loop_s,
        bottleneck_s=cost.bottleneck_s,
        bottleneck=cost.bottleneck,
        set_by=f"{candidate.num_microbatches} x {cost.bottleneck}" if is_bound_by_bottleneck(cost) else "the loop",
        scheduler=candidate.scheduler,
        scheduler_name=problem.topology.name(candidate.scheduler_worker),
        step_elsewhere_s=None if other is None else other.step_s,
        stages=tuple(_stage(cost, problem, index) for index in range(len(cost.stages))),
        links=tuple(_link(cost, problem.topology, index) for index in range(len(cost.links))),
    )


def _is_bottleneck(cost: Cost, part: StageCost | LinkCost) -> bool:
    if isinstance(part, StageCost):
        return cost.bottleneck == f"worker {part.name}"
    return cost.bottleneck.startswith("link") and part.busy_s == cost.bottleneck_s


def _stage(cost: Cost, problem: Problem, index: int) -> StageAccount:
    stage, candidate = cost.stages[index], cost.candidate
    start = sum(candidate.layers[:index])
    streamed = candidate.streamed_bytes[index] if candidate.streamed_bytes else 0
    binds = ("time",) if is_bound_by_bottleneck(cost) and _is_bottleneck(cost, stage) else ()
    return StageAccount(
        worker=stage.name,
        layers=(start, start + stage.layers),
        compute_s=stage.compute_s,
        stream_s=stage.stream_s,
        streamed_bytes=streamed,
        streamed_layers=stage.layers * streamed / streamed_bytes(problem.model, start, start + stage.layers, 1.0)
        if streamed
        else 0,
        memory_bytes=stage.memory_bytes,
        memory_limit_bytes=stage.memory_limit_bytes,
        busy=_share(cost, stage.busy_s),
        binds=(*binds, "memory") if is_full(cost, index, problem.model) else binds,
    )


def is_full(cost: Cost, index: int, model: ModelShape) -> bool:
    """Whether a further layer, as large as those that the stage has, would not fit its worker."""
    stage = cost.stages[index]
    if stage.memory_limit_bytes is None:
        return False
    ends = model.embedding_bytes * (index == 0) + model.output_bytes * (index == len(cost.stages) - 1)
    return stage.memory_bytes + (stage.memory_bytes - ends) / stage.layers > stage.memory_limit_bytes


def _link(cost: Cost, topology: Topology, index: int) -> LinkAccount:
    link, ratios = cost.links[index], cost.candidate.ratios
    carries_activations = 0 < index < len(cost.links) - 1
    rates = [topology.link(link.source, link.target).bandwidth_bytes_per_s]
    rates += [rate for _, rate in topology.lines(link.source, link.target)]
    return LinkAccount(
        source=topology.name(link.source),
        target=topology.name(link.target),
        ratio=ratios[index - 1] if ratios and carries_activations else None,
        bytes_per_token=cost.bytes_per_token[index],
        bandwidth_bytes_per_s=min(rates) if min(rates) < float("inf") else None,
        wire_s=link.wire_s,
        latency_s=link.latency_s,
        encode_s=link.encode_s,
        decode_s=link.decode_s,
        busy=_share(cost, link.busy_s),
        binds=is_bound_by_bottleneck(cost) and _is_bottleneck(cost, link),
    )


def _share(cost: Cost, busy_s: float) -> float:
    return cost.candidate.num_microbatches * busy_s / cost.step_s if cost.step_s > 0 else 0.0
