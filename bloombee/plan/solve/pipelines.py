"""Workers shared out to several pipelines.

Each pipeline is a search of its own among the workers that it may have. Few workers are shared out in every way there is. Many
are shared out for each number of pipelines, so that neighbours come together and all pipelines are about as fast; then workers
change sides while that makes more tokens. A bound says how much more there could be: no worker passes more layers a second than
at its best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bloombee._native import PlanSolver
from bloombee.plan.solve.instance import Instance

Found = dict[str, Any]
Members = int
"""Workers by number, as bits."""

WIDTH = 1 << 14
"""Of the widest search."""
NARROW = 1
"""Of the widest while workers change sides."""
FEW = 6
"""Workers that are shared out in every way."""


@dataclass(frozen=True, slots=True)
class Share:
    """Pipelines that were found, none if there are none.

    Args:
        tokens_per_s: of all. at_most: no others make more.
        proven: no others are better.
        loop_s, at_least_s: where the loop at B = 1 was asked for: the shortest of them, and no other has a shorter one.
    """

    found: tuple[Found, ...] = ()
    tokens_per_s: float = 0.0
    at_most: float = 0.0
    proven: bool = True
    loop_s: float = math.inf
    at_least_s: float = math.inf

    def beside(self, other: Share) -> Share:
        """Both at once, as two shares of the workers."""
        return Share(
            self.found + other.found,
            self.tokens_per_s + other.tokens_per_s,
            self.at_most + other.at_most,
            self.proven and other.proven,
        )


def better(shares: Iterable[Share]) -> Share:
    """The one with the most tokens, with a bound for all of them."""
    some = list(shares)
    best = max(some, key=lambda share: share.tokens_per_s)
    at_most = max(share.at_most for share in some)
    return replace(best, at_most=at_most, proven=at_most <= best.tokens_per_s * (1 + 1e-9))


class Pipelines:
    """Shares of an instance's workers for at most ``most`` pipelines, with no step longer than ``step_limit``."""

    def __init__(self, solver: PlanSolver, instance: Instance, step_limit: float, most: int) -> None:
        self._solver, self._instance, self._step_limit = solver, instance, step_limit
        self._num_workers = len(instance.workers)
        self._all: Members = (1 << self._num_workers) - 1
        self._most = min(most, self._num_workers)
        self._one_of: dict[tuple[Members, int], Share] = {}
        self._most_of: dict[tuple[int, Members], Share] = {}

    def most_tokens(self, share: float) -> Share:
        """The most tokens per second, for ``share`` of the search's budget."""
        if self._most == 1:
            return self._one(self._all, share)
        if self._num_workers <= FEW:
            return self._every_way(self._most, self._all)
        return self._grown(share)

    def least_alone(self, most: Share, part: float) -> Share:
        """The shortest loop at B = 1 of one pipeline, where all together make ``part`` of the tokens of ``most``."""
        need = part * most.tokens_per_s
        if self._most == 1:
            return self._alone(self._all, need, Share())
        if self._num_workers <= FEW:
            shares = [self._alone(some, need, self._rest(some)) for some in range(1, self._all + 1)]
        else:
            shares = [self._alone_beside(most, index, need) for index in range(len(most.found))]
        best = min(shares, key=lambda share: share.loop_s)
        at_least_s = min(share.at_least_s for share in shares)
        if self._num_workers > FEW:
            at_least_s = self._alone(self._all, 0.0, Share()).at_least_s
        return replace(best, at_least_s=at_least_s, proven=at_least_s >= best.loop_s * (1 - 1e-9))

    def _rest(self, some: Members) -> Share:
        others = self._all & ~some
        return self._every_way(self._most - 1, others) if others else Share()

    def _allowed(self, members: Members) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.array([members >> number & 1 for number in range(self._num_workers)], dtype=np.uint8)

    def _one(self, members: Members, share: float = 1.0, width: int = WIDTH) -> Share:
        """One pipeline of some of ``members``."""
        if (members, width) not in self._one_of:
            found = self._solver.most_tokens(self._step_limit, self._allowed(members), width, share)
            some = (found,) if found["found"] else ()
            share_found = Share(some, _rate(found["value"]), _rate(found["bound"]), found["proven"])
            self._one_of[members, width] = share_found
        return self._one_of[members, width]

    def _alone(self, members: Members, need: float, rest: Share) -> Share:
        """One pipeline of some of ``members``, beside ``rest``."""
        own = need - rest.tokens_per_s
        found = self._solver.least_alone(1 / own if own > 0 else math.inf, self._allowed(members), WIDTH)
        if not found["found"]:
            return Share(proven=found["proven"], at_least_s=found["bound"])
        both = Share((found,), 0.0, 0.0, found["proven"]).beside(rest)
        return replace(both, loop_s=found["value"], at_least_s=found["bound"])

    def _every_way(self, pipelines: int, members: Members) -> Share:
        key = (pipelines, members)
        if key not in self._most_of:
            whole = self._one(members)
            ways = [] if pipelines == 1 else [
                self._one(some).beside(self._every_way(pipelines - 1, members & ~some)) for some in _with_first(members)
            ]  # fmt: skip
            self._most_of[key] = better([whole, *ways])
        return self._most_of[key]

    def _grown(self, share: float) -> Share:
        """One share for each number of pipelines, the best of them improved as far as the budget goes."""
        rates = np.array(self._solver.layer_rates())
        one = self._one(self._all, share / 2)
        ways = [self._groups(count, rates) for count in range(2, self._most + 1)]
        shares = [one, *(self._together(groups) for groups in ways)]
        best = max(shares, key=lambda some: some.tokens_per_s)
        if best is not one:
            best = self._change_sides(ways[shares.index(best) - 1], best, until=1 - share)
        at_most = min(float(rates.sum()) / self._instance.fields["layers"], one.at_most * self._most)
        return replace(best, at_most=at_most, proven=at_most <= best.tokens_per_s * (1 + 1e-9))

    def _together(self, groups: Iterable[Members]) -> Share:
        all_groups = Share()
        for members in groups:
            all_groups = all_groups.beside(self._one(members, 0.1, NARROW))
        return all_groups

    def _change_sides(self, groups: list[Members], best: Share, *, until: float) -> Share:
        """Moves and swaps of single workers, each kept if it makes more tokens, until that part of the budget is left."""
        is_better = True
        while is_better:
            is_better = False
            for other in _moves(groups):
                if self._solver.left <= until:
                    return best
                share = self._together(other)
                if share.tokens_per_s > best.tokens_per_s * (1 + 1e-9):
                    groups, best, is_better = other, share, True
                    break
        return best

    def _groups(self, count: int, rates: np.ndarray[Any, np.dtype[np.float64]]) -> list[Members]:
        """Neighbours together; the slowest group takes next."""
        away = self._instance.fields["latency"][:-1, :-1]
        free = set(range(self._num_workers))
        groups: list[list[int]] = []
        for _ in range(count):
            seeds = [group[0] for group in groups]
            seed = max(free, key=lambda w: min((float(away[w, s]) for s in seeds), default=float(rates[w])))
            groups.append([seed])
            free.discard(seed)
        while free:
            group = min(groups, key=lambda some: float(rates[some].sum()))
            nearest = min(free, key=lambda w: float(away[group, w].mean()))
            group.append(nearest)
            free.discard(nearest)
        return [sum(1 << number for number in group) for group in groups]

    def _alone_beside(self, most: Share, index: int, need: float) -> Share:
        """The pipeline of that index anew, out of its own workers and those that none has."""
        others = [found for number, found in enumerate(most.found) if number != index]
        taken = sum(1 << worker for found in others for worker in found["workers"])
        tokens = sum(_rate(found["value"]) for found in others)
        return self._alone(self._all & ~taken, need, Share(tuple(others), tokens, tokens))


def _rate(seconds: float) -> float:
    """Per second; of inf, which is no plan, none."""
    return 1 / seconds if seconds > 0 else math.inf


def _with_first(members: Members) -> Iterator[Members]:
    """Every real part of ``members`` that has the first of them."""
    first = members & -members
    others = members & ~first
    some = others
    while some:
        some = (some - 1) & others
        yield some | first


def _moves(groups: list[Members]) -> Iterator[list[Members]]:
    """With one worker in another group, or two of different groups swapped."""
    for a, source in enumerate(groups):
        for b, target in enumerate(groups):
            if a == b:
                continue
            for out in (0, *_singles(target)) if a < b else (0,):
                for worker in _singles(source):
                    other = list(groups)
                    other[a], other[b] = source & ~worker | out, target & ~out | worker
                    if other[a]:
                        yield other


def _singles(members: Members) -> Iterator[Members]:
    while members:
        yield members & -members
        members &= members - 1
