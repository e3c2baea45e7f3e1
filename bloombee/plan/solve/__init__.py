"""The best plan for a topology, with a bound on what any plan could reach. Pure; the search itself is native (``csrc/plan``)."""

from bloombee.plan.solve.places import best_place, elsewhere, solve_places
from bloombee.plan.solve.solver import Solution, alone, coded, solve
from bloombee.plan.solve.space import Space

__all__ = ["Solution", "Space", "alone", "best_place", "coded", "elsewhere", "solve", "solve_places"]
