"""What a worker holds of one sequence: pages, a generation, how far it has come. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from bloombee.kv.kept import Arrival
from bloombee.kv.pool import PageTable
from bloombee.kv.prefix import PrefixStore
from bloombee.pipeline.trees import Nodes
from bloombee.wire.messages import Cut, Fork, Item, Opening, Pick, Tree


@dataclass(slots=True)
class Held:
    """One sequence."""

    generation: int
    begun: Opening | Fork
    opening: Opening
    """What it has begun with, or its fork; without a prefix."""
    tables: tuple[PageTable, ...]
    """One a group; of what the device has been given so far."""
    have: int = 0
    newest: int = 0
    """The most that was ever held of it, since it last began at 0: how far back it can go depends on that."""
    is_lost: bool = False
    """A cut went further back than layers with a window remember: it has to come again from its start."""
    placed: int = 0
    """Rows that the device has been given: a fork may share their pages."""
    tokens: bytearray = field(default_factory=bytearray)
    """All token ids that the device has been given, kept on the last stage for penalties and grammars."""
    picks: tuple[tuple[Pick, int], ...] = ()
    """On the last stage, what its newest work gave, and each since a draft began, with the node that it is picked after (0: a
    row): the scheduler may have to be told again."""
    num_prefill: int = 0
    """Works in the prefill queue: decode of the same sequence must not overtake them."""
    nodes: Nodes = field(default_factory=Nodes)
    """Rows of a draft, beyond ``have``."""
    least: int = 1 << 32
    """Rows that were left by the cut that left the fewest."""
    moves: list[tuple[int, int]] = field(default_factory=list)
    """Of accepted rows; see Segment."""
    arriving: Arrival | None = None
    """Kept rows that it has begun on and that are not all on the device yet: until then it has no pages, and runs no work."""

    @property
    def begun_at(self) -> int:
        """The position of the first row that was sent of it."""
        if isinstance(self.begun, Fork):
            return self.begun.length
        return self.begun.prefix.length if self.begun.prefix is not None else 0

    @property
    def is_decoding(self) -> bool:
        """All of its prompt is here; what comes is decode."""
        return self.have >= self.opening.num_prompt_tokens

    def begin(self, generation: int, begun: Opening | Fork, parent: Held | None, prefixes: PrefixStore) -> None:
        """From now on this, whatever was held before. The first rows of a fork are those of its parent, those of a prefix are
        kept: pages are shared until one of both writes to them."""
        self.let_go(prefixes)
        self.generation, self.begun, self.opening = generation, begun, opening_of(begun)
        self.have = self.newest = self.placed = 0
        self.is_lost = False
        self.picks = ()
        self.tokens.clear()
        self.nodes.clear()
        self.moves.clear()
        if isinstance(begun, Fork):
            assert parent is not None
            self.tables = tuple([table.fork(begun.length) for table in parent.tables])
            self.have = self.placed = begun.length
            self.newest = parent.newest
            self.tokens += parent.tokens[: 4 * begun.length]
        elif begun.prefix is not None:
            self.arriving = prefixes.begin(begun.prefix.key, begun.prefix.length)
            self.have = begun.prefix.length
            self.newest = self.arriving.kept.newest
            self.tokens += self.arriving.kept.tokens[: 4 * begun.prefix.length]
            self.arrive(prefixes)

    def arrive(self, prefixes: PrefixStore) -> bool:
        """Have the pages of kept rows, once they are all on the device. Returns whether nothing is on its way any more."""
        arrival = self.arriving
        if arrival is None:
            return True
        if not arrival.is_here:
            return False
        self.arriving, self.tables = None, prefixes.tables(arrival)
        self.placed = min(arrival.length, self.have)
        for table in self.tables:
            table.truncate(self.placed)
        return True

    def can_hang(self, item: Item, tree: Tree, path: Sequence[int]) -> bool:
        """Whether a tree's item lacks nothing before it. Of the present generation nodes come in order; of an older one those
        count that a ``path`` has made rows."""
        if item.generation == self.generation:
            return item.position <= self.have and tree.first <= len(self.nodes) + 1
        due = [item.position + depth for depth, node in enumerate(path) if tree.first <= node < tree.first + item.num_rows]
        return not due or due[0] <= self.have

    @property
    def settled(self) -> int:
        """Rows [0, settled) are in their places."""
        return min([self.placed, *(target for _, target in self.moves)])

    def cut(self, cut: Cut) -> None:
        """Go on as the cut's generation; ``cut.length`` is one that it can go back to. Rows that are not held are to come."""
        self.generation = cut.generation
        self.least = min(self.least, cut.length)
        self.picks = ()
        if len(self.nodes) or cut.length < self.have:
            self._go_back(cut)

    def _go_back(self, cut: Cut) -> None:
        """To rows [0, length) and the path. Pages beyond are free at once, but for those with rows that are to be moved: works
        that still write to them are on the device before any that is to come."""
        length = cut.length
        if length < self.begun_at:
            self.begun = self.opening  # the rows that were its parent's, or kept, are sent as its own
        path = self.nodes.leading(cut.path) if length == self.have else ()
        self.have = min(self.have, length)
        self.moves = [(source, target) for source, target in self.moves if target < length]
        if path:
            self._accept(path)
        else:
            self.placed = min(self.placed, length)
        self.nodes.clear()
        self.newest = max(self.newest, self.have) if length else 0
        needed = max([self.have, *(source + 1 for source, _ in self.moves)])
        for table in self.tables:
            if needed < table.stop:
                table.truncate(needed)

    def _accept(self, path: Sequence[int]) -> None:
        base, nodes = self.have, self.nodes
        placed = [node for node in path if node <= nodes.placed]
        if len(self.tokens) == 4 * base:
            self.tokens += nodes.on(placed)
        if placed:
            self.placed = base + len(placed)
            self.moves += nodes.moves(base, placed)
        self.have = base + len(path)

    def never_came(self, prefixes: PrefixStore) -> None:
        """What it has begun on cannot be had: it has nothing."""
        self.let_go(prefixes)
        self.begun, self.have, self.placed = self.opening, 0, 0
        self.tokens.clear()

    def let_go(self, prefixes: PrefixStore) -> None:
        """Of all pages."""
        for table in self.tables:
            table.truncate(0)
        if self.arriving is not None:
            prefixes.tiers.end(self.arriving)
            self.arriving = None


def opening_of(begun: Opening | Fork) -> Opening:
    """What a sequence has begun with, or its fork; no matter on which rows."""
    if isinstance(begun, Fork):
        return begun.opening
    return begun if begun.prefix is None else replace(begun, prefix=None)
