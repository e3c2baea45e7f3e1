"""Rows of a draft as a stage holds them: nodes of a tree that hangs on the last confirmed row of a sequence. Pure.

Nodes are numbered within a generation from 1 on, as they come; 0 is the last confirmed row, at position ``base - 1``. A node at
depth d takes position ``base + d``, so siblings share one. In KV memory, though, every row has a slot of its own: node n has
that of position ``base + n - 1``, as if all nodes were one after the other. A Commit names the path that was accepted; those of
its rows that lie elsewhere than where their position has its slot are moved there, before the next work of the sequence writes
anything. The first path of a tree is in its place already: whoever drafts puts the likeliest there (docs/adr/0070).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bloombee.errors import RemoteProtocolError
from bloombee.pipeline.cuts import rows_of
from bloombee.pipeline.work import Branches
from bloombee.wire.messages import Cut, Item, Tree


@dataclass(slots=True)
class Nodes:
    """Of one sequence in its present generation.

    Attributes:
        parents: of each node. tokens: [n] little-endian uint32. placed: how many the device has been given.
    """

    parents: list[int] = field(default_factory=list)
    tokens: bytearray = field(default_factory=bytearray)
    placed: int = 0

    def __len__(self) -> int:
        return len(self.parents)

    def take(self, item: Item, tree: Tree) -> Item | None:
        """Hold the nodes of an item that leaves no gap; those of its rows that were not held before, None if it brings none."""
        skip = len(self.parents) - (tree.first - 1)
        if skip >= item.num_rows:
            return None
        taken = item if not skip else nodes_of(item, tree, skip, item.num_rows)
        self.parents += tree.parents[skip:]
        self.tokens += taken.tokens
        return taken

    def branches(self, base: int, tree: Tree, num_rows: int) -> Branches:
        """What the device is to know of ``num_rows`` rows that are nodes from ``tree.first`` on."""
        stop = tree.first - 1 + num_rows
        picks = tuple([row for row in range(num_rows) if tree.picks[row >> 3] >> (row & 7) & 1])
        return Branches(base, tree.first, tuple(self.parents[:stop]), bytes(self.tokens[: 4 * stop]), picks)

    def leading(self, path: Sequence[int]) -> Sequence[int]:
        """Of an accepted path the first nodes that are held."""
        return path[: sum([node <= len(self.parents) for node in path])]

    def on(self, path: Sequence[int]) -> bytes:
        """Token ids of nodes that are held."""
        return b"".join([self.tokens[4 * node - 4 : 4 * node] for node in path])

    def moves(self, base: int, path: Sequence[int]) -> list[tuple[int, int]]:
        """From which position's slot to which one rows of an accepted path go. Those that the device has not been given yet are
        placed where they belong."""
        pairs = [(base + node - 1, base + depth) for depth, node in enumerate(path) if node <= self.placed]
        return [(source, target) for source, target in pairs if source != target]

    def clear(self) -> None:
        self.parents.clear()
        self.tokens.clear()
        self.placed = 0


class HasRows(Protocol):
    """What a stage holds of a sequence (``held.py``): rows [0, have)."""

    @property
    def have(self) -> int: ...


def check_nodes(held: HasRows, item: Item, most_nodes: int) -> None:
    """Of an item of the generation that ``held`` has, which is of a tree or comes beside one.

    Raises:
        RemoteProtocolError: rows beside a tree, a tree that hangs on another row than the last, or one that is too large.
    """
    tree = item.tree
    if tree is None:
        if item.position + item.num_rows > held.have:
            raise _refuse(item, f"rows from {item.position} on beside the tree of a draft")
        return
    if item.position < held.have:
        raise _refuse(item, f"a tree at {item.position}, where {held.have} rows are held")
    if tree.first - 1 + item.num_rows > most_nodes:
        raise _refuse(item, f"a tree of {tree.first - 1 + item.num_rows} rows, {most_nodes} at most")


def _refuse(item: Item, what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"sequence {item.sequence}: {what}", path="$.items")


def nodes_of(item: Item, tree: Tree, start: int, stop: int) -> Item:
    """Rows [start, stop) of a tree's item, some at least, as an item of their own."""
    bits = int.from_bytes(tree.picks, "little") >> start & (1 << stop - start) - 1
    return Item(
        sequence=item.sequence,
        generation=item.generation,
        kind=item.kind,
        position=item.position,
        tokens=item.tokens[4 * start : 4 * stop],
        num_picks=bits.bit_count(),
        opening=None,
        tree=Tree(tree.first + start, tree.parents[start:stop], bits.to_bytes((stop - start + 7) // 8, "little")),
    )


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [start, stop) of an item: alive, as an item of the generation that a cut begins; or dead (None)."""

    start: int
    stop: int
    item: Item | None


def parts_after(item: Item, cut: Cut) -> list[Part]:
    """What becomes of the rows of an item, of a tree or not, which are of the generation before ``cut``."""
    num_rows, tree = item.num_rows, item.tree
    if tree is not None:
        path = cut.path if cut.length == item.position else ()
        return parts_on(item, tree, path, cut.generation, item.position)
    alive = max(0, min(num_rows, cut.length - item.position))
    parts = [Part(0, alive, rows_of(item, 0, alive, cut.generation)), Part(alive, num_rows, None)]
    return [part for part in parts if part.start < part.stop]


def some_rows(item: Item, start: int, stop: int) -> Item:
    """Rows [start, stop) of an item, some at least."""
    if item.tree is not None:
        return nodes_of(item, item.tree, start, stop)
    rows = rows_of(item, start, stop, item.generation)
    assert rows is not None
    return rows


def parts_on(item: Item, tree: Tree, path: Sequence[int], generation: int, have: int) -> list[Part]:
    """What becomes of the rows of an item once ``path`` is accepted: neighbours on the path become a chain.

    Args:
        have: the first position that is not held otherwise; rows of the path before it are as good as dead.
    """
    position_of = {node: item.position + depth for depth, node in enumerate(path)}
    parts: list[Part] = []
    start, num_rows = 0, item.num_rows
    while start < num_rows:
        at = _position(position_of, tree.first + start, have)
        stop = start + 1
        while stop < num_rows:
            following = _position(position_of, tree.first + stop, have)
            if following != (None if at is None else at + stop - start):
                break
            stop += 1
        parts.append(Part(start, stop, None if at is None else _chain(item, start, stop, at, generation)))
        start = stop
    return parts


def _position(position_of: dict[int, int], node: int, have: int) -> int | None:
    position = position_of.get(node)
    return position if position is not None and position >= have else None


def _chain(item: Item, start: int, stop: int, position: int, generation: int) -> Item:
    """Nobody needs their picks: whoever accepted them knows what follows on each."""
    return Item(item.sequence, generation, item.kind, position, item.tokens[4 * start : 4 * stop], 0, None, None)
