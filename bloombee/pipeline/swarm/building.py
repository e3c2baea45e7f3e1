"""How long it takes until a worker has what a stage of another plan needs: weights, and the rows of what is open. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bloombee.models.shape import ModelShape
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.planning import FirstPlan, PlanRequest
from bloombee.plan.choose import with_guesses
from bloombee.plan.plan import Plan, StagePlan
from bloombee.plan.topology import Topology
from bloombee.types import HEAD

LOAD_BYTES_PER_S = 1e9
"""Weights come from a disk that is near."""


def build_s(running: Plan, plan: Plan, topology: Topology, model: ModelShape, rows: int) -> float:
    """Until stages that have other layers than now have their weights, and then ``rows`` rows; all of them side by side."""
    load_s = rows_s = 0.0
    ring = [HEAD, *(stage.worker for stage in plan.stages)]
    for source, stage in zip(ring, plan.stages, strict=False):
        held = running.stage_of(stage.worker)
        if held is not None and held.span == stage.span:
            continue
        load_s = max(load_s, stage.weight_bytes * _missing(stage, held) / LOAD_BYTES_PER_S)
        device, row_bytes = topology.device(stage.worker), 4 if source == HEAD else model.hidden * model.activation_bytes
        counts = enumerate(model.counts(stage.span.start, stage.span.stop))
        row_s = device.stage.prefill_row_s + sum(count * device.layer_of(kind).prefill_row_s for kind, count in counts)
        link = topology.links.get((source, stage.worker))
        rows_s = max(rows_s, rows * row_s + (0.0 if link is None else link.wire_s(rows * row_bytes)))
    return load_s + rows_s


def loss_s(
    request: PlanRequest, running: Plan, plan: Plan, members: Iterable[Member], surveyed: Topology | None, rows: int
) -> float:
    """That requests would wait until ``plan`` runs, where that is the ring that runs with another worker at one stage."""
    planner = FirstPlan(request)
    model = planner.wish().shape(request.card, running.groups[0].num_pages)
    topology, _ = with_guesses(planner.known(members, surveyed), model, streams=request.streams)
    return build_s(running, plan, topology, model, rows)


def _missing(stage: StagePlan, held: StagePlan | None) -> float:
    """The share of its layers that its worker does not hold."""
    if held is None:
        return 1.0
    shared = min(held.span.stop, stage.span.stop) - max(held.span.start, stage.span.start)
    return 1 - max(0, shared) / len(stage.span)
