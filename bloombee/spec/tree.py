"""A draft: a tree of tokens that may follow a sequence's last confirmed one, with how likely each is to be accepted.

Nodes are numbered as on the wire: 0 is the root, the row of the last confirmed token, and node i is the token ``tokens[i - 1]``.
Parents come before their children. A node's score is the probability of its whole path, so none is above its parent's, and the
best n nodes of a tree are a tree.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bloombee.errors import RemoteProtocolError


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of proposals. Taken as it is; :meth:`check` is for what somebody else has made.

    Args:
        tokens: [n] in topological order.
        parents: [n] nodes; ``parents[i] <= i``.
        scores: [n] how likely the whole path to the node is accepted, in [0, 1].
        sources: [n] bits of the drafters that propose it (``drafter.py``).
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    sources: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def path(self, node: int) -> tuple[int, ...]:
        """Nodes from below the root down to ``node``."""
        found = []
        while node:
            found.append(node)
            node = self.parents[node - 1]
        return tuple(reversed(found))

    def tokens_to(self, node: int) -> tuple[int, ...]:
        """Tokens of the nodes of :meth:`path`."""
        return tuple(self.tokens[one - 1] for one in self.path(node))

    def depth(self, node: int) -> int:
        """0 for the root."""
        return len(self.path(node))

    def depths(self) -> list[int]:
        """[n + 1] by node."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return depths

    def children(self, node: int) -> tuple[int, ...]:
        return tuple(child for child, parent in enumerate(self.parents, start=1) if parent == node)

    def child(self, node: int, token: int) -> int | None:
        """The child of ``node`` with that token, if there is one."""
        for child, parent in enumerate(self.parents, start=1):
            if parent == node and self.tokens[child - 1] == token:
                return child
        return None

    def follow(self, tokens: Sequence[int], node: int = 0) -> int | None:
        """The node that is reached from ``node`` by ``tokens``; None if the tree does not go there."""
        for token in tokens:
            below = self.child(node, token)
            if below is None:
                return None
            node = below
        return node

    def given_parent(self, node: int) -> float:
        """How likely ``node`` is accepted once its parent is."""
        parent = self.parents[node - 1]
        above = self.scores[parent - 1] if parent else 1.0
        return self.scores[node - 1] / above if above > 0 else 0.0

    def by_score(self) -> list[int]:
        """All nodes, likeliest first, parents before their children."""
        return sorted(range(1, len(self) + 1), key=lambda node: (-self.scores[node - 1], node))

    def best(self, budget: int) -> Draft:
        """The tree of the ``budget`` likeliest nodes. Time: n log n."""
        return self if budget >= len(self) else self.only(sorted(self.by_score()[: max(0, budget)]))

    def only(self, nodes: Sequence[int]) -> Draft:
        """The tree of ``nodes``, ascending, with each also its parent."""
        number = {0: 0} | {node: new for new, node in enumerate(nodes, start=1)}
        return Draft(
            tuple(self.tokens[node - 1] for node in nodes),
            tuple(number[self.parents[node - 1]] for node in nodes),
            tuple(self.scores[node - 1] for node in nodes),
            tuple(self.sources[node - 1] for node in nodes),
        )

    def below(self, node: int) -> Draft:
        """What hangs on ``node``, as a draft for when that is the last confirmed one; scores are given it."""
        above = self.scores[node - 1] if node else 1.0
        number = {node: 0}
        for child, parent in enumerate(self.parents, start=1):
            if parent in number and child > node:
                number[child] = len(number)
        nodes = [child for child in number if child != node]
        return Draft(
            tuple(self.tokens[child - 1] for child in nodes),
            tuple(number[self.parents[child - 1]] for child in nodes),
            tuple(min(1.0, self.scores[child - 1] / above) if above > 0 else 0.0 for child in nodes),
            tuple(self.sources[child - 1] for child in nodes),
        )

    def check(self, *, vocabulary: int, most: int) -> None:
        """For a draft that was made outside this program's cores.

        Raises:
            RemoteProtocolError: it has more than ``most`` nodes, its lists differ in length, it is no tree in topological order,
                a token is outside ``vocabulary``, siblings have one token, or a score is not a probability or above its parent's;
                ``path`` says where.
        """
        count = len(self.tokens)
        if count > most:
            raise RemoteProtocolError(f"a draft of {count} nodes, of at most {most}", path="draft.tokens")
        if not count == len(self.parents) == len(self.scores) == len(self.sources):
            raise RemoteProtocolError("the lists of a draft differ in length", path="draft")
        seen: set[tuple[int, int]] = set()
        for at, (token, parent, score) in enumerate(zip(self.tokens, self.parents, self.scores, strict=True)):
            if not 0 <= parent <= at:
                raise RemoteProtocolError(f"node {at + 1} hangs on {parent}, which is not before it", path=f"draft.parents[{at}]")
            if not 0 <= token < vocabulary:
                raise RemoteProtocolError(f"token {token} is not below {vocabulary}", path=f"draft.tokens[{at}]")
            if not 0.0 <= score <= (self.scores[parent - 1] if parent else 1.0):
                raise RemoteProtocolError(f"score {score} is no part of its parent's", path=f"draft.scores[{at}]")
            if (parent, token) in seen:
                raise RemoteProtocolError(f"node {parent} has token {token} twice", path=f"draft.tokens[{at}]")
            seen.add((parent, token))


class Growing:
    """A draft that grows best first: nodes are taken in the order of their scores, so whenever it ends it is the best of its
    size."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._waiting: list[tuple[float, int, int, int, int]] = []
        """A heap of (-score, order, parent, token, source)."""
        self._order = 0
        self._taken: list[tuple[int, int, float, int]] = []

    def offer(self, parent: int, token: int, score: float, source: int) -> None:
        """A child of a node that was taken, or of the root; of each parent each token once."""
        if score > 0.0:
            heapq.heappush(self._waiting, (-score, self._order, parent, token, source))
            self._order += 1

    def __iter__(self) -> Iterator[tuple[int, int, int, float]]:
        """(node, parent, token, score) of each that is taken, until the budget is used or nothing waits; children may be offered
        meanwhile."""
        while self._waiting and len(self._taken) < self._budget:
            score, _, parent, token, source = heapq.heappop(self._waiting)
            self._taken.append((token, parent, -score, source))
            yield len(self._taken), parent, token, -score

    def draft(self) -> Draft:
        if not self._taken:
            return EMPTY
        tokens, parents, scores, sources = zip(*self._taken, strict=True)
        return Draft(tokens, parents, scores, sources)


EMPTY = Draft()


def merge(drafts: Sequence[Draft], budget: int) -> Draft:
    """The best ``budget`` nodes of all ``drafts``. A path in several of them is one, with the sources of all; given its parent, a
    node is as likely as the surest of them says, and siblings that would have more than one together share it out.

    Time: n log n of all nodes.
    """
    found = [draft for draft in drafts if draft]
    if len(found) <= 1:
        return found[0].best(budget) if found else EMPTY
    numbers: dict[tuple[int, int], int] = {}
    given: list[float] = []
    sources: list[int] = []
    for draft in found:
        at = [0]
        for node, token in enumerate(draft.tokens, start=1):
            key = (at[draft.parents[node - 1]], token)
            if key not in numbers:
                numbers[key] = len(numbers) + 1
                given.append(0.0)
                sources.append(0)
            at.append(numbers[key])
            given[at[-1] - 1] = max(given[at[-1] - 1], draft.given_parent(node))
            sources[at[-1] - 1] |= draft.sources[node - 1]
    parents = tuple(parent for parent, _ in numbers)
    return Draft(tuple(token for _, token in numbers), parents, path_scores(parents, given), tuple(sources)).best(budget)


def path_scores(parents: Sequence[int], given: Sequence[float]) -> tuple[float, ...]:
    """[n] scores of a tree's nodes.

    Args:
        given: [n] how likely each is accepted once its parent is; siblings with more than one together share it out.
    """
    together = [0.0] * (len(parents) + 1)
    for parent, one in zip(parents, given, strict=True):
        together[parent] += one
    scores = [1.0]
    for parent, one in zip(parents, given, strict=True):
        scores.append(scores[parent] * one / max(1.0, together[parent]))
    return tuple(scores[1:])
