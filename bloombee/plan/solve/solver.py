"""Runs the native search for an objective and puts its answer in the cost model's terms."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from bloombee._native import PlanSolver
from bloombee.errors import Infeasible, PlanError
from bloombee.models.shape import ModelShape
from bloombee.objective import Goal, Objective
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import Cost, evaluate
from bloombee.plan.solve.infeasible import too_slow, why_not
from bloombee.plan.solve.instance import make_instance
from bloombee.plan.solve.pipelines import Pipelines, Share
from bloombee.plan.solve.space import Space
from bloombee.plan.topology import Topology
from bloombee.types import WorkerId

MAX_STEPS = 1 << 62
SLACK = 0.03
"""Of the most tokens/s, what :attr:`Goal.BALANCE` gives for a shorter time per token."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The best plan that was found, and what none can exceed.

    Args:
        pipelines: the most tokens/s first.
        value: of the plan: seconds per token at B = 1 for ``latency`` and ``balance``, else tokens per second.
        bound: no plan has a better value.
        proven: there is none, to rounding; never without a bound that says so.
        most_tokens_per_s: of any plan that was found; None for ``latency``. most_tokens_bound: none makes more.
        steps: that the search took: the same ones give the same plan.
        spares: workers that no pipeline has.
    """

    objective: Objective
    pipelines: tuple[Cost, ...]
    value: float
    bound: float
    proven: bool
    most_tokens_per_s: float | None
    most_tokens_bound: float | None
    steps: int
    spares: tuple[WorkerId, ...]

    @property
    def gap(self) -> float:
        """How much better another plan could be at most, as a part of this one; for ``balance`` in time or in the most tokens."""
        if self.proven:
            return 0.0
        own = _gap(self.value, self.bound)
        if self.objective.goal is not Goal.BALANCE or self.most_tokens_per_s is None or self.most_tokens_bound is None:
            return own
        return max(own, _gap(self.most_tokens_per_s, self.most_tokens_bound))

    @property
    def tokens_per_s(self) -> float:
        return sum(cost.tokens_per_s for cost in self.pipelines)


def _gap(value: float, bound: float) -> float:
    better, worse = sorted((value, bound))
    if better == worse:
        return 0.0
    return worse / better - 1 if better > 0 else math.inf


def solve(
    topology: Topology,
    model: ModelShape,
    space: Space | None = None,
    objective: Objective | None = None,
    *,
    budget_s: float = 1.0,
    max_steps: int = MAX_STEPS,
) -> Solution:
    """The best plan for ``objective``.

    Args:
        budget_s: how long the search may take; inf, with ``max_steps``: the same plan on every machine.
        max_steps: most steps of the search.

    Raises:
        Infeasible: there is no plan; ``fields`` say which constraint, on which worker, and what is missing.
        PlanError: none was found within the budget, which may be too small.
        ConfigError: a figure that nothing could have; names the worker or the link.
    """
    space, objective = space or Space(), objective or Objective()
    if objective.goal is Goal.LATENCY:
        space = dataclasses.replace(space, sequences=(1,), microbatches=(1,), most_sequences=None, pipelines=1)
    return _Search(topology, model, space, objective, budget_s, max_steps).run()


def alone(candidate: Candidate, topology: Topology, model: ModelShape, ratios: tuple[float | None, ...]) -> Cost:
    """The same plan with one sequence by itself."""
    return coded(dataclasses.replace(candidate, num_microbatches=1, microbatch_sequences=1), topology, model, ratios)


def coded(candidate: Candidate, topology: Topology, model: ModelShape, ratios: tuple[float | None, ...]) -> Cost:
    """The same plan where each link takes that of ``ratios`` which gets a microbatch there first."""
    costs = [
        evaluate(dataclasses.replace(candidate, ratios=(ratio,) * (len(candidate.workers) - 1)), topology, model)
        for ratio in dict.fromkeys(ratios)
    ]
    best = tuple(
        min(costs, key=lambda cost: cost.links[index].pass_s).candidate.ratios[index - 1]
        for index in range(1, len(candidate.workers))
    )
    return evaluate(dataclasses.replace(candidate, ratios=best), topology, model)


class _Search:
    def __init__(
        self, topology: Topology, model: ModelShape, space: Space, objective: Objective, budget_s: float, max_steps: int
    ) -> None:
        self.topology, self.model, self.space, self.objective = topology, model, space, objective
        self.budget_s, self.max_steps = budget_s, max_steps
        self.instance = make_instance(topology, model, space)
        self.solver = PlanSolver(self.instance.fields, budget_s, max_steps)
        self.pipelines = Pipelines(self.solver, self.instance, self._step_limit(), space.pipelines)

    def _step_limit(self) -> float:
        target_s = self.objective.target_s
        return math.inf if target_s is None else target_s * self.space.tokens_per_round

    def run(self) -> Solution:
        balance = self.objective.goal is Goal.BALANCE
        most = self.pipelines.most_tokens(0.6 if balance else 1.0)
        if not most.found:
            raise self._nothing(most)
        if not balance:
            return self._solution(most)
        return self._solution(most, self.pipelines.least_alone(most, 1 - SLACK))

    def _solution(self, most: Share, least: Share | None = None) -> Solution:
        chosen = least if least is not None and least.found else most
        costs = tuple(
            sorted(
                (
                    evaluate(self.instance.candidate(one, self.model, self.space), self.topology, self.model)
                    for one in chosen.found
                ),
                key=lambda cost: -cost.tokens_per_s,
            )
        )
        used = {worker for cost in costs for worker in cost.candidate.workers}
        value, bound = self._value(costs, most, least)
        return Solution(
            objective=self.objective,
            pipelines=costs,
            value=value,
            bound=bound,
            proven=most.proven and (least is None or least.proven) and math.isclose(value, bound, rel_tol=1e-8),
            most_tokens_per_s=None if self.objective.goal is Goal.LATENCY else most.tokens_per_s,
            most_tokens_bound=None if self.objective.goal is Goal.LATENCY else most.at_most,
            steps=self.solver.steps,
            spares=tuple(worker for worker in sorted(self.topology.devices) if worker not in used),
        )

    def _value(self, costs: tuple[Cost, ...], most: Share, least: Share | None) -> tuple[float, float]:
        """(value, bound), each in the terms of the objective."""
        if self.objective.goal is Goal.LATENCY:
            return costs[0].time_per_token_s, 1 / most.at_most
        if self.objective.goal is not Goal.BALANCE:
            return sum(cost.tokens_per_s for cost in costs), most.at_most
        value = min(alone(cost.candidate, self.topology, self.model, self.space.ratios).time_per_token_s for cost in costs)
        assert least is not None
        return value, min(value, least.at_least_s / self.space.tokens_per_round)

    def _why_not_even_one(self) -> Infeasible | None:
        """Why there is no plan for one sequence, which needs the least; None: there is one, or it is not known."""
        budget_s, max_steps = self.budget_s / 4, self.max_steps // 4
        try:
            solve(self.topology, self.model, self.space, Objective(Goal.LATENCY), budget_s=budget_s, max_steps=max_steps)
        except Infeasible as error:
            return error
        except PlanError:
            pass
        return None

    def _nothing(self, most: Share) -> PlanError:
        if not most.proven:
            if self.objective.goal is not Goal.LATENCY and (why := self._why_not_even_one()) is not None:
                return why
            return PlanError(
                "no plan was found within the search's budget; a longer one (bloombee plan --time) may find one",
                steps=self.solver.steps,
            )
        if self.objective.target_s is None:
            return why_not(self.solver, self.instance, self.topology, self.model)
        sequences, count = min(self.space.points())
        smallest = dataclasses.replace(self.space, sequences=(sequences,), microbatches=(count,), pipelines=1)
        least = solve(self.topology, self.model, smallest, Objective(Goal.THROUGHPUT))
        return too_slow(self.objective.target_s, least.pipelines[0].time_per_token_s)
