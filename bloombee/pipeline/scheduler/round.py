"""A draft under way: its tree, how much of it has been sent, and how far what was picked has followed it. Pure.

It may go in parts, one frame each: what comes later hangs on nodes of earlier frames.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from bloombee.spec.tree import Draft
from bloombee.types import Kind, SequenceId
from bloombee.wire.messages import Item, Pick, Tree


@dataclass(slots=True)
class Round:
    """Of one sequence.

    Args:
        base: the position of node 1, which is the row of the last confirmed token.
        tokens, parents: of nodes 1, 2, ..., as on the wire.
    """

    base: int
    tokens: Sequence[int]
    parents: Sequence[int]
    num_sent: int = 0
    """The first so many nodes."""
    num_told: int = 0
    """Nodes that the application knows to have been drafted."""
    path: list[int] = field(default_factory=lambda: [1])
    """Nodes that are accepted, from the root down."""
    is_over: bool = False
    """What is picked after the last of these is none of its children."""
    _picks: dict[int, Pick] = field(default_factory=dict)

    @classmethod
    def of(cls, base: int, last_token: int, draft: Draft) -> Round:
        return cls(base, (last_token, *draft.tokens), (0, *(parent + 1 for parent in draft.parents)))

    def __len__(self) -> int:
        """Nodes, sent or not."""
        return len(self.tokens)

    def newly_drafted(self) -> int:
        """Drafted nodes that have been sent since this was last asked."""
        count, self.num_told = self.num_sent - 1 - self.num_told, self.num_sent - 1
        return count

    # -- there -----------------------------------------------------------------------------

    def part(self, sequence: SequenceId, generation: int, most: int) -> Item:
        """The next nodes, up to ``most``, which count as sent from now on; each gets a token sampled."""
        start, self.num_sent = self.num_sent, min(len(self), self.num_sent + most)
        tokens = self.tokens[start : self.num_sent]
        num_rows = len(tokens)
        picks = ((1 << num_rows) - 1).to_bytes((num_rows + 7) // 8, "little")
        tree = Tree(start + 1, tuple(self.parents[start : self.num_sent]), picks)
        packed = struct.pack(f"<{num_rows}I", *tokens)
        return Item(sequence, generation, _DRAFT, self.base, packed, num_rows, None, tree)

    def stop(self) -> None:
        """Nothing more is sent, unless it has been accepted before."""
        if self.path[-1] <= self.num_sent:
            self.tokens, self.parents = self.tokens[: self.num_sent], self.parents[: self.num_sent]

    # -- and back --------------------------------------------------------------------------

    def note(self, node: int, pick: Pick) -> None:
        """What was picked after a node; of one that is none, or elsewhere, it says nothing."""
        if 1 <= node <= self.num_sent and pick.position == self.base + self._depth(node):
            self._picks.setdefault(node, pick)

    def next(self) -> Pick | None:
        """The pick after the last accepted node, if it is known."""
        return None if self.is_over else self._picks.get(self.path[-1])

    def accept(self, token: int) -> bool:
        """``token`` follows on the last accepted node. Whether a child has it."""
        node = self._child(self.path[-1], token)
        if node is None:
            self.is_over = True
            return False
        self.path.append(node)
        return True

    def _child(self, parent: int, token: int) -> int | None:
        for node in range(parent + 1, len(self) + 1):
            if self.parents[node - 1] == parent and self.tokens[node - 1] == token:
                return node
        return None

    def _depth(self, node: int) -> int:
        """1 of the root."""
        depth = 0
        while node:
            node, depth = self.parents[node - 1], depth + 1
        return depth


_DRAFT = int(Kind.DRAFT)
