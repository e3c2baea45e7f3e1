"""Where the scheduler goes: with the head, or beside the first stage.

The search knows rings that close at the head. One that closes at its first stage is one whose head is that stage's worker. So
where workers are few each of them is taken for the head in turn, and the worst of the bounds holds for all. Where they are
many, or there are several pipelines, one more topology is searched, whose head costs nothing; what is found is evaluated as it
would run, in both places. No ring is quicker than one whose head costs nothing, so that search's bound holds for both kinds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bloombee.errors import Infeasible, PlanError
from bloombee.models.shape import ModelShape
from bloombee.objective import Goal, Objective
from bloombee.plan.cost import Cost, evaluate
from bloombee.plan.solve.infeasible import closure
from bloombee.plan.solve.solver import MAX_STEPS, SLACK, Solution, alone, solve
from bloombee.plan.solve.space import Space
from bloombee.plan.topology import LOCAL, Topology
from bloombee.types import HEAD, SchedulerPlace, WorkerId

WORTH = 0.03
"""By how much a plan has to be better with the scheduler beside the first stage: with the head nothing is lost with a worker."""

FEW = 8
"""Workers each of which is taken for the head."""


def solve_places(
    topology: Topology,
    model: ModelShape,
    space: Space | None = None,
    objective: Objective | None = None,
    *,
    place: SchedulerPlace | None = None,
    budget_s: float = 1.0,
    max_steps: int = MAX_STEPS,
) -> Solution:
    """As :func:`~bloombee.plan.solve.solve`, with the scheduler at ``place`` (``Candidate.scheduler``); None: where it is
    best. Where all share the cores of one machine that is with the head, which is as near as anybody.

    Raises:
        Infeasible, PlanError, ConfigError: likewise.
    """
    space, objective = space or Space(), objective or Objective()
    if place is SchedulerPlace.HEAD or (place is None and topology.cores is not None):
        return solve(topology, model, space, objective, budget_s=budget_s, max_steps=max_steps)
    firsts = space.order or tuple(sorted(topology.devices))
    if space.pipelines == 1 and len(firsts) <= FEW:
        heads = [_with_head_at(topology, first) for first in firsts if _can_ask(topology, first)]
        tries = [topology, *heads] if place is None else heads or [topology]
        return _best_of_all(topology, tries, model, space, objective, budget_s / len(tries), max_steps // len(tries))
    budget_s, max_steps = budget_s / 2, max_steps // 2
    free = solve(_without_head(topology), model, space, objective, budget_s=budget_s, max_steps=max_steps)
    found: list[Solution] = []
    failed: Infeasible | None = None
    try:
        found.append(solve(topology, model, space, objective, budget_s=budget_s, max_steps=max_steps))
    except Infeasible as error:
        failed = error
    with_head = [_Option(one.pipelines, topology, model, space) for one in found if place is None]
    beside = [
        _Option(costs, topology, model, space) for one in (*found, free) for costs in _moved(one.pipelines, topology, model)
    ]
    options = [one for one in (*with_head, *beside) if one.keeps(objective)]
    if not options:
        raise failed or PlanError("no plan whose last stage reaches its first keeps the target")
    chosen = _best(options, objective)
    bound = free.bound
    if objective.goal is Goal.BALANCE:
        alone_s = Objective(Goal.LATENCY)
        bound = solve(_without_head(topology), model, space, alone_s, budget_s=budget_s, max_steps=max_steps).bound
    return _solution(chosen, options, free, bound, objective)


def _best_of_all(
    topology: Topology,
    tries: Sequence[Topology],
    model: ModelShape,
    space: Space,
    objective: Objective,
    budget_s: float,
    max_steps: int,
) -> Solution:
    """The best of what each of ``tries`` has, each of them for so long; ``topology`` is the one as it is."""
    solutions: list[Solution] = []
    failed: list[PlanError] = []
    options: list[_Option] = []
    for one in tries:
        order = None if space.order is None else tuple(worker for worker in space.order if worker in one.devices)
        try:
            solution = solve(one, model, replace(space, order=order), objective, budget_s=budget_s, max_steps=max_steps)
        except PlanError as error:
            failed.append(error)
            continue
        solutions.append(solution)
        costs = [solution.pipelines] if one is topology else list(_moved(solution.pipelines, topology, model))
        options += [_Option(some, topology, model, space) for some in costs]
    if not options:
        raise failed[0]
    is_open = any(not isinstance(error, Infeasible) for error in failed)
    bounds = [solution.bound for solution in solutions]
    if _is_time(objective):
        bound = 0.0 if is_open else min(bounds)
    else:
        bound = math.inf if is_open else max(bounds)
    chosen = _best(options, objective)
    widest = max(solutions, key=lambda solution: solution.most_tokens_bound or 0.0)
    proven = all(solution.proven for solution in solutions)
    return _solution(chosen, options, replace(widest, proven=proven), bound, objective)


def _with_head_at(topology: Topology, first: WorkerId) -> Topology:
    """As if the head were there, and nowhere else could a ring begin: what a scheduler beside that worker's stage is. Only
    workers that such a ring could go through are left."""
    links = {ends: link for ends, link in topology.links.items() if HEAD not in ends}
    among = replace(topology, links=links), set(topology.devices)
    ring = closure([first], *among, forwards=True) & closure([first], *among, forwards=False)
    links |= {(source, HEAD): link for (source, target), link in links.items() if target == first}
    links[HEAD, first] = links[first, HEAD] = LOCAL
    sites = {worker: site for worker, site in topology.sites.items() if worker != HEAD}
    return replace(
        topology,
        devices={worker: device for worker, device in topology.devices.items() if worker in ring},
        links={ends: link for ends, link in links.items() if ring.issuperset(set(ends) - {HEAD})},
        sites=sites | ({HEAD: sites[first]} if first in sites else {}),
    )


def best_place(cost: Cost, topology: Topology, model: ModelShape) -> Cost:
    """The same plan with the scheduler beside its first stage, if its steps are quicker by enough so."""
    moved = elsewhere(cost, topology, model)
    return moved if moved is not None and moved.step_s < (1 - WORTH) * cost.step_s else cost


def elsewhere(cost: Cost, topology: Topology, model: ModelShape) -> Cost | None:
    """The same plan with its scheduler in the other place; None: a link for it is missing."""
    (other,) = (place for place in SchedulerPlace if place is not cost.candidate.scheduler)
    return _placed(cost, other, topology, model)


def _placed(cost: Cost, place: SchedulerPlace, topology: Topology, model: ModelShape) -> Cost | None:
    candidate = replace(cost.candidate, scheduler=place)
    if place is SchedulerPlace.STAGE0 and not _can_ask(topology, candidate.scheduler_worker):
        return None
    try:
        return evaluate(candidate, topology, model)
    except PlanError:
        return None


def _can_ask(topology: Topology, first: WorkerId) -> bool:
    """Whether requests get there, and tokens from there to the head."""
    return {(HEAD, first), (first, HEAD)} <= topology.links.keys()


@dataclass(frozen=True, slots=True)
class _Option:
    pipelines: tuple[Cost, ...]
    topology: Topology
    model: ModelShape
    space: Space

    @property
    def tokens_per_s(self) -> float:
        return sum(cost.tokens_per_s for cost in self.pipelines)

    def value(self, objective: Objective) -> float:
        """As :attr:`Solution.value`."""
        if objective.goal is Goal.LATENCY:
            return self.pipelines[0].time_per_token_s
        if objective.goal is not Goal.BALANCE:
            return self.tokens_per_s
        ratios = self.space.ratios
        return min(alone(cost.candidate, self.topology, self.model, ratios).time_per_token_s for cost in self.pipelines)

    def keeps(self, objective: Objective) -> bool:
        target_s = objective.target_s
        return target_s is None or all(cost.time_per_token_s <= target_s for cost in self.pipelines)


def _best(options: Sequence[_Option], objective: Objective) -> _Option:
    """The first of those that count, unless another one is better by enough."""
    least = (1 - SLACK) * max(one.tokens_per_s for one in options) if objective.goal is Goal.BALANCE else 0.0
    chosen, *others = [one for one in options if one.tokens_per_s >= least]
    for other in others:
        mine, theirs = chosen.value(objective), other.value(objective)
        if theirs < (1 - WORTH) * mine if _is_time(objective) else theirs > (1 + WORTH) * mine:
            chosen = other
    return chosen


def _is_time(objective: Objective) -> bool:
    return objective.goal in (Goal.LATENCY, Goal.BALANCE)


def _without_head(topology: Topology) -> Topology:
    """Everybody reaches it, and is reached, for nothing."""
    links = dict(topology.links)
    for worker in topology.devices:
        links[HEAD, worker] = links[worker, HEAD] = LOCAL
    return replace(topology, links=links, sites={worker: site for worker, site in topology.sites.items() if worker != HEAD})


def _moved(costs: Sequence[Cost], topology: Topology, model: ModelShape) -> Iterator[tuple[Cost, ...]]:
    """The same plans with their schedulers beside their first stages; nothing if one of those is out of reach."""
    moved = [_placed(cost, SchedulerPlace.STAGE0, topology, model) for cost in costs]
    if None not in moved:
        yield tuple(cost for cost in moved if cost is not None)


def _solution(chosen: _Option, options: Sequence[_Option], free: Solution, bound: float, objective: Objective) -> Solution:
    """What was chosen, under the bounds of rings whose head costs nothing. Their most tokens may be out of reach, and with them
    what is within the slack of those: there the bound is that of any ring alone."""
    value = chosen.value(objective)
    used = {worker for cost in chosen.pipelines for worker in cost.candidate.workers}
    return replace(
        free,
        pipelines=chosen.pipelines,
        value=value,
        bound=min(bound, value) if _is_time(objective) else max(bound, value),
        proven=math.isclose(value, bound, rel_tol=1e-8) and free.proven,
        most_tokens_per_s=None if free.most_tokens_per_s is None else max(one.tokens_per_s for one in options),
        spares=tuple(worker for worker in sorted(chosen.topology.devices) if worker not in used),
    )
