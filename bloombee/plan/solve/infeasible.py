"""Why there is no plan: which constraint, on which worker, short by how much."""

from __future__ import annotations

from collections.abc import Sequence

from bloombee._native import PlanSolver
from bloombee.errors import Infeasible
from bloombee.models.shape import ModelShape
from bloombee.plan.solve.instance import Instance
from bloombee.plan.topology import Topology
from bloombee.types import HEAD, WorkerId


def why_not(solver: PlanSolver, instance: Instance, topology: Topology, model: ModelShape) -> Infeasible:
    """Of an instance that has no plan, whatever its steps may take."""
    point = min(range(len(instance.points)), key=lambda number: instance.points[number][0] * instance.points[number][1])
    room = solver.room(point)
    missing = model.num_layers - sum(room)
    if missing > 0:
        return _memory(solver, instance, topology, model, point, room, missing)
    usable = [worker for worker, layers in zip(instance.workers, room, strict=True) if layers > 0]
    return _unreachable(topology, usable)


def _memory(
    solver: PlanSolver, instance: Instance, topology: Topology, model: ModelShape, point: int, room: Sequence[int], missing: int
) -> Infeasible:
    """Names the worker that would need the least more to hold what fits nowhere."""

    def short(number: int) -> float:
        return solver.short_bytes(point, number, 0, min(model.num_layers, room[number] + missing))

    number = min(range(len(room)), key=short)
    name, short_bytes = topology.device(instance.workers[number]).name, int(short(number))
    return Infeasible(
        f"{model.num_layers} layers and room for {sum(room)} on {len(room)} workers: {missing} fit nowhere. Worker {name!r}"
        f" could hold them with {short_bytes / 1e9:.2f} GB more than it has",
        constraint="memory",
        worker=name,
        short_bytes=short_bytes,
        short_layers=missing,
    )


def _unreachable(topology: Topology, usable: Sequence[WorkerId]) -> Infeasible:
    """Names a worker that the ring would need and cannot get to, or away from."""
    known = set(usable)
    out = closure([target for source, target in topology.links if source == HEAD], topology, known, forwards=True)
    back = closure([source for source, target in topology.links if target == HEAD], topology, known, forwards=False)
    for reached, what in ((out, "reached from the head"), (back, "left for the head")):
        for worker in usable:
            if worker not in reached:
                return _link(topology, worker, f"it cannot be {what}")
    return _link(topology, usable[0], "no ring goes through as many workers as the layers need")


def _link(topology: Topology, worker: WorkerId, why: str) -> Infeasible:
    name = topology.device(worker).name
    return Infeasible(f"the workers' links allow no ring; worker {name!r}: {why}", constraint="link", worker=name)


def closure(start: Sequence[WorkerId], topology: Topology, known: set[WorkerId], *, forwards: bool) -> set[WorkerId]:
    """Those of ``known`` that can be got to from ``start``, or from which one of it can."""
    pairs = [pair if forwards else (pair[1], pair[0]) for pair in topology.links]
    reached: set[WorkerId] = set()
    waiting = [worker for worker in start if worker in known]
    while waiting:
        worker = waiting.pop()
        if worker not in reached:
            reached.add(worker)
            waiting += [target for source, target in pairs if source == worker and target in known]
    return reached


def too_slow(target_s: float, least_s: float) -> Infeasible:
    """The target that no plan keeps."""
    return Infeasible(
        f"no plan takes {target_s:g} s or less between the tokens of a sequence: the least is {least_s:.4g} s,"
        f" {least_s - target_s:.4g} s more",
        constraint="target",
        short_s=least_s - target_s,
    )
