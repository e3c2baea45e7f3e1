"""What a worker holds of one sequence: pages, a generation, how far it has come. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.kv.pool import PageTable
from bloombee.wire.messages import Fork, Opening, Pick


@dataclass(slots=True)
class Held:
    """One sequence."""

    generation: int
    begun: Opening | Fork
    opening: Opening
    """What it has begun with, or its fork."""
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
    picks: tuple[Pick, ...] = ()
    """On the last stage, what its newest work gave: the scheduler may have to be told again."""
    num_prefill: int = 0
    """Works in the prefill queue: decode of the same sequence must not overtake them."""

    @property
    def begun_at(self) -> int:
        """The position of the first row that was sent of it."""
        return self.begun.length if isinstance(self.begun, Fork) else 0

    @property
    def is_decoding(self) -> bool:
        """All of its prompt is here; what comes is decode."""
        return self.have >= self.opening.num_prompt_tokens

    def begin(self, generation: int, begun: Opening | Fork, parent: Held | None) -> None:
        """From now on this, whatever was held before. The first rows of a fork are those of its parent: pages are shared until
        one of both writes to them."""
        self.let_go()
        self.generation, self.begun, self.opening = generation, begun, opening_of(begun)
        self.have = self.newest = self.placed = 0
        self.is_lost = False
        self.picks = ()
        self.tokens.clear()
        if isinstance(begun, Fork):
            assert parent is not None
            self.tables = tuple([table.fork(begun.length) for table in parent.tables])
            self.have = self.placed = begun.length
            self.newest = parent.newest
            self.tokens += parent.tokens[: 4 * begun.length]

    def go_back(self, length: int) -> None:
        """To rows [0, length). Pages beyond are free at once: works that still write to them are on the device before any that is
        to come."""
        if length < self.begun_at:
            self.begun = self.opening  # a fork no more: the rows that were its parent's are sent as its own
        self.have = length
        self.newest = self.newest if length else 0
        self.placed = min(self.placed, length)
        for table in self.tables:
            if length < table.stop:
                table.truncate(length)

    def let_go(self) -> None:
        """Of all pages."""
        for table in self.tables:
            table.truncate(0)


def opening_of(begun: Opening | Fork) -> Opening:
    """What a sequence has begun with, or its fork."""
    return begun.opening if isinstance(begun, Fork) else begun
