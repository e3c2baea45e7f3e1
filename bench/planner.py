"""How long a plan takes, how far from the best it can be, and whether small ones are the best of all there are.

Topologies are drawn by seed (bench/topologies.py): workers in regions of the internet, devices 4x apart, access lines 25x,
80 layers. Searched are workers, order, layers, b, M, codec per link and the part of weights that is streamed. The plan time is
the wall's, from the topology to the plan; goals are of its p99 and of the worst gap to the bound. A second search of ``--long``
seconds says how far behind the first plan was, whatever its bound.

``--instances N`` holds N small topologies against an enumerator that tries every plan, and measures no time.

Examples:
  python bench/planner.py --plans 50
  python bench/planner.py --sizes 64 --objectives latency --plans 10
  python bench/planner.py --instances 2000
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import enumerator
from bench.arguments import Parser, seconds, whole, wholes, writable
from bench.program import headline, machine, program
from bench.spread import quantile
from bench.topologies import Case, small, wan
from bloombee.errors import Infeasible
from bloombee.models.shape import ModelShape
from bloombee.objective import Goal, Objective
from bloombee.plan.solve import Solution, Space, solve
from bloombee.plan.topology import Topology

SPACE = Space(
    sequences=(1, 2, 4, 8, 16, 32),
    microbatches=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    ratios=(None, 0.67),
    streamed=(0.0, 0.25, 0.5, 0.75, 1.0),
    context=1000,
    most_sequences=256,
)
GOALS = {16: (0.050, 0.01), 64: (0.150, 0.01), 256: (0.600, 0.03)}
"""By workers: seconds that a plan may take, and the gap to its bound that it may have then; to the best plan for 16 workers."""
PROVEN_S, PROVEN_GAP = 2.0, 0.02
"""16 workers: by then the plan is proven, or has at most that gap."""
OVERHEAD = 0.8
"""Of the time that a plan may take, what the search gets: the rest is for making the instance and ending a step."""
SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Row:
    """Plans of one size and objective."""

    workers: int
    objective: str
    plans: int
    plan_p50_s: float
    plan_p99_s: float
    gap_p50: float
    gap_worst: float
    proven: float
    behind_worst: float | None
    """How much better a longer search's plan was, at most."""
    met: bool = False


Timed = tuple[float, Solution]


def timed(topology: Topology, model: ModelShape, objective: Objective, budget_s: float) -> Timed:
    start = time.perf_counter()
    found = solve(topology, model, SPACE, objective, budget_s=budget_s)
    return time.perf_counter() - start, found


def behind(found: Solution, better: Solution) -> float:
    """How much better another plan is, as a part of this one; for ``balance`` in time or in the most tokens."""
    low = found.objective.goal in (Goal.LATENCY, Goal.BALANCE)
    own = found.value / better.value if low else better.value / found.value
    if found.objective.goal is Goal.BALANCE and found.most_tokens_per_s and better.most_tokens_per_s:
        own = max(own, better.most_tokens_per_s / found.most_tokens_per_s)
    return max(0.0, own - 1)


def measure(workers: int, objective: Objective, options: argparse.Namespace) -> Iterator[Row]:
    """The plans in their time; of 16 workers also those of two seconds, which the first ones are held against."""
    limit_s, most_gap = GOALS[workers]
    plans, later = [], []
    later_s = options.long or (0.95 * PROVEN_S if workers == 16 else 0.0)
    for seed in range(options.seed, options.seed + options.plans):
        topology, model = wan(seed, workers, kinds=options.kinds)
        plans.append(timed(topology, model, objective, OVERHEAD * limit_s))
        if later_s:
            later.append(timed(topology, model, objective, later_s))
    row = _row(workers, objective, plans, later)
    is_near = (row.behind_worst if workers == 16 else row.gap_worst) or 0.0
    yield replace(row, met=row.plan_p99_s <= limit_s and is_near <= most_gap)
    if workers == 16:
        row = _row(workers, objective, later, [])
        yield replace(row, met=row.plan_p99_s <= max(PROVEN_S, later_s) and row.gap_worst <= PROVEN_GAP)


def _row(workers: int, objective: Objective, plans: list[Timed], later: list[Timed]) -> Row:
    times, gaps = [took for took, _ in plans], [found.gap for _, found in plans]
    behinds = [behind(found, best) for (_, found), (_, best) in zip(plans, later, strict=True)] if later else []
    return Row(
        workers=workers,
        objective=str(objective),
        plans=len(plans),
        plan_p50_s=quantile(times, 0.5),
        plan_p99_s=quantile(times, 0.99),
        gap_p50=quantile(gaps, 0.5),
        gap_worst=max(gaps),
        proven=sum(found.proven for _, found in plans) / len(plans),
        behind_worst=max(behinds, default=None),
    )


def show(row: Row) -> str:
    behind_text = "" if row.behind_worst is None else f"{row.behind_worst:>11.2%}"
    return (
        f"{row.workers:>7} {row.objective:<12}{row.plan_p50_s * 1e3:>9.0f}{row.plan_p99_s * 1e3:>9.0f}"
        f"{row.gap_p50:>10.2%}{row.gap_worst:>11.2%}{row.proven:>8.0%}{'met' if row.met else 'missed':>8}{behind_text}"
    )


def compare(case: Case) -> tuple[bool, bool]:
    """(whether there is a plan, whether the solver's is the best and its bound holds)."""
    truth = enumerator.best(case.topology, case.model, case.space, case.objective)
    try:
        found = solve(case.topology, case.model, case.space, case.objective, budget_s=60.0)
    except Infeasible:
        return truth is not None, truth is None
    if truth is None:
        return False, False
    low = case.objective.goal in (Goal.LATENCY, Goal.BALANCE)
    holds = found.bound <= truth * (1 + SAME) if low else found.bound >= truth * (1 - SAME)
    return True, holds and abs(found.value - truth) <= SAME * truth


def hold_against_all(options: argparse.Namespace) -> bool:
    """Whether every one of the small instances came out right, at least half with a plan."""
    feasible, wrong = 0, []
    for seed in range(options.seed, options.seed + options.instances):
        has_plan, is_right = compare(small(seed))
        feasible += has_plan
        wrong += [] if is_right else [seed]
    told = f"wrong: seeds {wrong}" if wrong else "all equal, no bound beyond the best"
    print(
        f"{options.instances} instances, {feasible} with a plan, {len(range(0, options.instances, 4))} of two pipelines: {told}"
    )
    return not wrong and 2 * feasible >= options.instances


def objectives(text: str) -> tuple[Objective, ...]:
    return tuple(Objective.parse(part) for part in text.split(","))


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=wholes(16, 256), default=tuple(GOALS), help="workers: 16, 64, 256")
    parser.add_argument(
        "--objectives", type=objectives, default=objectives("latency,throughput,balance"), help="latency,throughput,..."
    )
    parser.add_argument("--plans", type=whole(1, 1000), default=10, help="topologies of each size (default 10)")
    parser.add_argument("--kinds", type=whole(1, 2), default=1, help="of layers (default 1)")
    parser.add_argument("--long", type=seconds(0, 600), default=0.0, help="seconds of a second search, 0: none")
    parser.add_argument("--seed", type=whole(0, 10**9), default=0)
    parser.add_argument("--instances", type=whole(0, 10**6), default=0, help="small ones, held against an enumerator")
    parser.add_argument("--json", type=writable, help="a line a row")
    options = parser.parse_args(words)
    if unknown := set(options.sizes) - set(GOALS):
        parser.error(f"--sizes {min(unknown)}: goals there are for {', '.join(map(str, GOALS))}")
    return options


@program("planner.py")
def main(words: list[str] | None = None) -> int:
    options = parse(words)
    if options.instances:
        return 0 if hold_against_all(options) else 1
    print(headline())
    print("workers objective    p50 ms   p99 ms   gap p50  gap worst  proven    goal     behind")
    lines: list[dict[str, Any]] = []
    for workers in options.sizes:
        for objective in options.objectives:
            for row in measure(workers, objective, options):
                print(show(row), flush=True)
                lines.append({**asdict(row), **machine()})
            if options.json:
                options.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
