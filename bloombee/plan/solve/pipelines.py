"""Workers shared out to several pipelines.

Each pipeline is a search of its own among the workers that it may have. Few workers are shared out in every way there is. Many
are shared out for each number of pipelines, so that neighbours come together and all pipelines are about as fast; then workers
change sides while that makes more tokens. A bound says how much more there could be: no worker passes more layers a second than
at its best.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bloombee._native import PlanSolver
from bloombee.plan.solve.instance import Instance, Numbers

Found = dict[str, Any]
Members = int
"""Workers by number, as bits."""

WIDTH = 1 << 14
"""Of the widest search."""
NARROW = 1
"""Of the widest while workers change sides."""
FEW = 6
"""Workers that are shared out in every way."""
MANY = 256
"""With more workers no pipeline is sought among all of them, unless groups have none."""


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
        self._away: Numbers = instance.fields["latency"][:-1, :-1]
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
        at_most = float(rates.sum()) / self._instance.fields["layers"]
        shares, ways = [], []
        if self._num_workers <= MANY:
            shares, ways = [self._one(self._all, share / 2)], [[self._all]]
            at_most = min(at_most, shares[0].at_most * self._most)
        for count in _counts(self._most):
            groups = self._groups(count, rates)
            shares.append(self._together(groups, share / 4))
            ways.append(groups)
            if self._num_workers > MANY and 0 < shares[-1].tokens_per_s < shares[0].tokens_per_s:
                break  # (the most pipelines come first, and each can make so many tokens only)
        if not any(some.found for some in shares):
            shares, ways = [self._one(self._all, share)], [[self._all]]
        best = max(shares, key=lambda some: some.tokens_per_s)
        groups = ways[shares.index(best)]
        if self._num_workers > MANY:
            best = self._give_spares(groups, until=1 - share)
        elif len(groups) > 1:
            best = self._change_sides(groups, best, until=1 - share)
        return replace(best, at_most=at_most, proven=at_most <= best.tokens_per_s * (1 + 1e-9))

    def _together(self, groups: Sequence[Members], share: float) -> Share:
        """Each group for itself, all of them for ``share`` of what is left of the budget."""
        all_groups = Share()
        for members in groups:
            all_groups = all_groups.beside(self._one(members, share / len(groups), NARROW))
        return all_groups

    def _give_spares(self, groups: Sequence[Members], *, until: float) -> Share:
        """Each group, the slowest first, tries the nearest workers that nobody has, until that part of the budget is left."""
        shares = [self._one(members, 1.0, NARROW) for members in groups]
        spares = self._all & ~sum(map(_used, shares))
        for index in sorted(range(len(shares)), key=lambda number: shares[number].tokens_per_s):
            if not spares or self._solver.left <= until:
                break
            own = _used(shares[index])
            other = self._one(own | self._nearest(own or groups[index], spares), 1 / len(groups), NARROW)
            if other.tokens_per_s > shares[index].tokens_per_s:
                shares[index], spares = other, (spares | own) & ~_used(other)
        return functools.reduce(Share.beside, shares, Share())

    def _nearest(self, group: Members, some: Members) -> Members:
        """Of some workers those that are nearest to a group, at most as many as the group has."""
        numbers, free = _numbers(group), _numbers(some)
        away = self._away[np.ix_(numbers, free)].mean(axis=0)
        return sum(1 << free[at] for at in np.argsort(away, kind="stable")[: len(numbers)])

    def _change_sides(self, groups: list[Members], best: Share, *, until: float) -> Share:
        """Moves and swaps of single workers, each kept if it makes more tokens, until that part of the budget is left."""
        is_better = True
        while is_better:
            is_better = False
            for other in _moves(groups):
                if self._solver.left <= until:
                    return best
                share = self._together(other, 0.25)
                if share.tokens_per_s > best.tokens_per_s * (1 + 1e-9):
                    groups, best, is_better = other, share, True
                    break
        return best

    def _groups(self, count: int, rates: Numbers) -> list[Members]:
        """Neighbours together; the group that has least takes next: of speed, or of room for layers."""
        point = max(range(len(self._instance.points)), key=lambda number: math.prod(self._instance.points[number]))
        room = np.array(self._solver.room(point), dtype=float)
        parts = np.stack([rates / rates.sum(), room / max(room.sum(), 1.0)])
        has = np.zeros((2, count))
        away = np.zeros((count, self._num_workers))
        free = np.ones(self._num_workers, dtype=bool)
        sizes = np.zeros(count)
        groups = [0] * count
        nearest_seed = np.full(self._num_workers, math.inf)
        for turn in range(self._num_workers):
            if turn < count:
                group, score = turn, -nearest_seed if turn else -rates
            else:
                group = int(has.min(axis=0).argmin())
                score = away[group] / sizes[group]
            worker = int(np.where(free, score, math.inf).argmin())
            if turn < count:
                nearest_seed = np.minimum(nearest_seed, self._away[:, worker])
            free[worker] = False
            sizes[group] += 1
            groups[group] |= 1 << worker
            has[:, group] += parts[:, worker]
            away[group] += self._away[worker]
        return groups

    def _alone_beside(self, most: Share, index: int, need: float) -> Share:
        """The pipeline of that index anew, out of its own workers and those that none has."""
        others = [found for number, found in enumerate(most.found) if number != index]
        taken = sum(1 << worker for found in others for worker in found["workers"])
        tokens = sum(_rate(found["value"]) for found in others)
        return self._alone(self._all & ~taken, need, Share(tuple(others), tokens, tokens))


def _rate(seconds: float) -> float:
    """Per second; of inf, which is no plan, none."""
    return 1 / seconds if seconds > 0 else math.inf


def _counts(most: int) -> Iterator[int]:
    """Numbers of pipelines to try, two or more: all of them where they are few, else fewer and fewer by a quarter."""
    while most >= 2:
        yield most
        most = most - 1 if most <= 8 else most * 3 // 4


def _used(share: Share) -> Members:
    return sum(1 << worker for found in share.found for worker in found["workers"])


def _numbers(members: Members) -> list[int]:
    return [number for number in range(members.bit_length()) if members >> number & 1]


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
