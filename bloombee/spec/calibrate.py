"""How likely drafted tokens really are accepted, learned while it runs.

What a drafter says of a node, given its parent, is a sign and not yet a probability. Nodes that are alike in who proposes them,
who of the others proposes something else there, and their rank among their siblings share a map from what is said to what came
of it; the map never falls where more is said (isotonic regression over bins, as new evidence comes). What came of nodes of that
kind at that depth, and then in this sequence, moves the estimate away from the map as far as there is evidence.

Before there is any, a drafter is believed as far as it has been right: one that never was is not heard, and proves itself by
what it proposes all the same. Where it misses more often in a row than by its estimates it should, the text is taken for one of
those that it knows nothing of, until it is right again (a filter of two states).

Source: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", 2002; pool
adjacent violators: Ayer et al., 1955.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from bloombee.spec.tree import Draft, path_scores

EDGES = (0.01, 0.03, 0.06, 0.1, 0.17, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.92, 0.97, 0.99)
"""Between the bins of what is said."""
MIDDLES = tuple((low + high) / 2 for low, high in zip((0.0, *EDGES), (*EDGES, 1.0), strict=True))
MOST_RANK = 3
"""Ranks from here on count as one."""
DEPTHS = (2, 3, 5, 9)
"""Depths at which another bin begins."""
BELIEF, DEPTH_BELIEF, SEQUENCE_BELIEF = 2.0, 24.0, 12.0
"""In trials: how much evidence weighs as much as what was taken for true before it."""
MEMORY, SEQUENCE_MEMORY = 1024.0, 96.0
"""Trials after which the older ones count half."""

DOUBT = 0.005
"""Of a drafter that has said nothing yet, how far it is believed."""
STRANGE, CHANGES = 0.05, 0.002
"""How likely a drafter knows nothing of a text, and how likely that begins, or ends, with any token of it."""
LUCK = 0.02
"""How often a drafter is right in a text that it knows nothing of."""
SURE = 0.98
"""No estimate counts for more, or for less than LUCK, where a text is judged."""

Kind = tuple[int, int, int]
"""(who proposes it, who proposes anything there, rank)."""
Sign = tuple[Kind, int, int]
"""(kind, bin of the depth, bin of what is said)."""


@dataclass(slots=True)
class _Trials:
    tries: float = 0.0
    hits: float = 0.0

    def add(self, hit: bool, memory: float) -> None:
        self.tries += 1.0
        self.hits += hit
        if self.tries > memory:
            self.tries /= 2
            self.hits /= 2

    def towards(self, belief: float, weight: float) -> float:
        """What to expect, if ``belief`` was thought to be true before and weighs as ``weight`` trials."""
        return (self.hits + weight * belief) / (self.tries + weight)


class _Map:
    """From what is said to what came of it, for one kind."""

    def __init__(self) -> None:
        self._bins = [_Trials() for _ in MIDDLES]
        self._values: list[float] | None = None

    def add(self, number: int, hit: bool) -> None:
        self._bins[number].add(hit, MEMORY)
        self._values = None

    def value(self, number: int, trust: float) -> float:
        """``trust``: how far the drafter is believed where there is no evidence."""
        if self._values is None:
            found = [one.towards(trust * middle, BELIEF) for one, middle in zip(self._bins, MIDDLES, strict=True)]
            self._values = rising(found, [one.tries + BELIEF for one in self._bins])
        return self._values[number]


def rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence, by weighted squares, that never falls. Pool adjacent violators: O(n)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        count = 1
        while blocks and blocks[-1][0] > value:
            other, heavy, more = blocks.pop()
            value = (value * weight + other * heavy) / (weight + heavy)
            weight, count = weight + heavy, count + more
        blocks.append((value, weight, count))
    return [value for value, _, count in blocks for _ in range(count)]


@dataclass(slots=True)
class _Record:
    """Of a drafter, or of several that agree: how often it was right, and should have been by what it said."""

    hits: float = 0.0
    said: float = 0.0

    def add(self, hit: bool, said: float) -> None:
        self.hits += hit
        self.said += said
        if self.said > MEMORY:
            self.hits, self.said = self.hits / 2, self.said / 2

    @property
    def trust(self) -> float:
        return min(1.0, (self.hits + DOUBT) / (self.said + 1.0))


@dataclass(slots=True)
class _Own:
    """Of a sequence."""

    trials: dict[tuple[Kind, int], _Trials] = field(default_factory=dict)
    strange: dict[int, float] = field(default_factory=dict)
    """By drafter: how likely it knows nothing of this kind of text."""

    def came(self, source: int, expected: float, hit: bool) -> None:
        """A token that ``source`` had, or had not, among those that together were as likely as ``expected``."""
        before = self.strange.get(source, STRANGE)
        strange = before * (1 - CHANGES) + (1 - before) * CHANGES
        expected = min(SURE, max(LUCK, expected))
        known = (1 - strange) * (expected if hit else 1 - expected)
        strange *= LUCK if hit else 1 - LUCK
        self.strange[source] = strange / (strange + known)

    def knows(self, source: int) -> float:
        """How likely the drafter knows something of this text."""
        return 1 - self.strange.get(source, 0.0)


@dataclass(slots=True)
class Calibration:
    """Of all drafters; sequences share what is known of kinds and depths, and each departs from it as far as it differs."""

    _maps: dict[Kind, _Map] = field(default_factory=dict)
    _depths: dict[tuple[Kind, int, int], _Trials] = field(default_factory=dict)
    _records: dict[int, _Record] = field(default_factory=dict)
    _sequences: dict[int, _Own] = field(default_factory=dict)

    def apply(self, sequence: int, draft: Draft) -> Draft:
        """``draft`` with scores that are probabilities. Time: O(n) and the sort of siblings."""
        own = self._sequences.get(sequence, _Own())
        given = [self._expected(own, sign) for sign in signs(draft)]
        for node in draft.children(0):  # who is right once knows the text
            given[node - 1] *= own.knows(draft.sources[node - 1])
        return Draft(draft.tokens, draft.parents, path_scores(draft.parents, given), draft.sources)

    def learn(self, sequence: int, draft: Draft, tokens: Sequence[int]) -> None:
        """``tokens`` came where ``draft``, not calibrated, was proposed: each node whose parent was right is a trial."""
        if not draft:
            return
        own = self._sequences.setdefault(sequence, _Own())
        described, reached = signs(draft), 0
        for token in tokens:
            children = draft.children(reached)
            self._heard(own, draft, children, [described[child - 1] for child in children], token)
            reached = draft.child(reached, token) or 0
            if not reached:
                return

    def closed(self, sequence: int) -> None:
        self._sequences.pop(sequence, None)

    def seen(self) -> dict[tuple[int, int, int], tuple[float, float]]:
        """(drafters, rank, bin of the depth) -> trials of late, and how many of them were right."""
        found: dict[tuple[int, int, int], tuple[float, float]] = {}
        for ((source, _, rank), depth, _), trials in self._depths.items():
            tries, hits = found.get((source, rank, depth), (0.0, 0.0))
            found[source, rank, depth] = tries + trials.tries, hits + trials.hits
        return found

    def _heard(self, own: _Own, draft: Draft, children: Sequence[int], described: Sequence[Sign], token: int) -> None:
        """``token`` came where ``children`` were proposed."""
        expected: dict[int, float] = {}
        right = 0
        for child, sign in zip(children, described, strict=True):
            source, is_hit = sign[0][0], draft.tokens[child - 1] == token
            right = source if is_hit else right
            expected[source] = expected.get(source, 0.0) + self._expected(own, sign)
            self._records.setdefault(source, _Record()).add(is_hit, draft.given_parent(child))
            self._add(own, sign, is_hit)
        for source, chance in expected.items():
            own.came(source, chance, source == right)

    def _expected(self, own: _Own, sign: Sign) -> float:
        kind, depth, number = sign
        found = self._maps.get(kind)
        value = self._trust(kind[0]) * MIDDLES[number] if found is None else found.value(number, self._trust(kind[0]))
        if (trials := self._depths.get((kind, depth, number))) is not None:
            value = trials.towards(value, DEPTH_BELIEF)
        if (trials := own.trials.get((kind, number))) is not None:
            value = trials.towards(value, SEQUENCE_BELIEF)
        return value

    def _trust(self, source: int) -> float:
        """Of drafters that agree, that of the one that is believed most."""
        return max((record.trust for one, record in self._records.items() if one & source), default=DOUBT)

    def _add(self, own: _Own, sign: Sign, hit: bool) -> None:
        kind, depth, number = sign
        if kind not in self._maps:
            self._maps[kind] = _Map()
        self._maps[kind].add(number, hit)
        self._depths.setdefault((kind, depth, number), _Trials()).add(hit, MEMORY)
        own.trials.setdefault((kind, number), _Trials()).add(hit, SEQUENCE_MEMORY)


def signs(draft: Draft) -> list[Sign]:
    """[n] of each node."""
    speakers = [0] * (len(draft) + 1)
    siblings: dict[int, list[int]] = {}
    for node, (parent, source) in enumerate(zip(draft.parents, draft.sources, strict=True), start=1):
        speakers[parent] |= source
        siblings.setdefault(parent, []).append(node)
    ranks = [0] * (len(draft) + 1)
    for nodes in siblings.values():
        for rank, node in enumerate(sorted(nodes, key=lambda node: -draft.scores[node - 1])):
            ranks[node] = min(rank, MOST_RANK)
    depths = draft.depths()
    return [
        (
            (draft.sources[node - 1], speakers[draft.parents[node - 1]], ranks[node]),
            bisect_right(DEPTHS, depths[node]),
            bisect_right(EDGES, draft.given_parent(node)),
        )
        for node in range(1, len(draft) + 1)
    ]
