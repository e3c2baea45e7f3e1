"""What became of a sequence's generations, while rows of older ones may still be under way. Pure bookkeeping.

Theory of operation. A cut (generation g, length L, path) says that generation g is rows [0, L) of generation g - 1, the rows of
the nodes on its path, and whatever is sent as g. Cuts overtake rows, so rows of g - 1 may come when g is known already: those
below L are as good as rows of g, and nobody will send them again. So a row of generation h at position p is alive in generation
g > h iff p is below every L of h + 1 .. g. A stage takes the cuts of a sequence one after the other, however they come; with one
missing it cannot know how far older rows are alive, and rows of a generation that it does not know yet wait. A cut of length 0
needs none before it. A node of generation h is alive in g > h iff it is on the path of h + 1, where it takes position L + its
place there, and that is below the lengths of h + 2 .. g.

A cut is remembered as long as rows below its length, or on its path, are not held: from then on older rows bring nothing that is
alive. What lacks some cut before it cannot be taken yet, and of such cuts there is room for a few. What can be taken always has
room: the rows that cuts before it wait for may be said as rows of its own generation, by who has taken it already, and until it
is taken here none of them can be. Each accepts rows, but for the few of rounds that were given up: so there are no more of those
than the sequence lacks rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.types import SequenceId
from bloombee.wire.messages import Cut, Item

MOST_AHEAD = 256
"""Cuts of a sequence that are known and cannot be taken yet."""
MOST_SEQUENCES = 1 << 16
"""With cuts that are remembered, if they are not held."""


@dataclass(slots=True)
class Cuts:
    """Of the sequences of a store."""

    of: dict[SequenceId, dict[int, Cut]] = field(default_factory=dict)
    """By the generation that each begins."""

    def has_room(self, cut: Cut, generation: int | None) -> bool:
        """Whether it can be remembered, or is. ``generation``: that of the sequence; None: it is not held."""
        known = self.of.get(cut.sequence)
        if known is None:
            return generation is not None or len(self.of) < MOST_SEQUENCES
        is_next = generation is not None and cut.generation == generation + 1
        if is_next or not cut.length or cut.generation in known:
            return True
        return sum(generation is None or ahead > generation for ahead in known) < MOST_AHEAD

    def note(self, cut: Cut) -> None:
        """Said again it changes nothing: a generation begins once."""
        if not cut.length:
            self.begin(cut.sequence, cut.generation)
        self.of.setdefault(cut.sequence, {}).setdefault(cut.generation, cut)

    def following(self, sequence: SequenceId, generation: int) -> list[Cut]:
        """Those that follow on ``generation``, as far as all are known. One of length 0 follows on any: nothing of before is
        alive."""
        known = self.of.get(sequence, {})
        anew = max((g for g, cut in known.items() if g > generation and not cut.length), default=None)
        found = [] if anew is None else [known[anew]]
        newest = generation if anew is None else anew
        while newest + 1 in known:
            newest += 1
            found.append(known[newest])
        return found

    def alive(self, sequence: SequenceId, generation: int, now: int) -> int:
        """Rows of ``generation`` below this position are alive in generation ``now``."""
        known = self.of.get(sequence, {})
        if now - generation > len(known):
            return 0  # the rows of one between were cut off, or it is of no use any more
        return min(known[between].length if between in known else 0 for between in range(generation + 1, now + 1))

    def path(self, item: Item, now: int) -> tuple[int, ...]:
        """Nodes of the generation of a tree's item that are alive in generation ``now``: the first has the item's position."""
        cut = self.of.get(item.sequence, {}).get(item.generation + 1)
        if cut is None or cut.length != item.position:
            return ()
        limit = self.alive(item.sequence, cut.generation, now) if now > cut.generation else cut.length + len(cut.path)
        return cut.path[: max(0, limit - cut.length)]

    def has_cut(self, item: Item) -> bool:
        """Of a sequence that is not held: whether it was cut off before it came."""
        following = self.following(item.sequence, item.generation)
        if not following:
            return False
        now = following[-1].generation
        if item.tree is not None:
            return not self.path(item, now)
        return self.alive(item.sequence, item.generation, now) <= item.position

    def held(self, sequence: SequenceId, generation: int, have: int) -> None:
        """In ``generation`` rows [0, have) are held: older rows below are of no use."""
        known = self.of.get(sequence)
        if known is None:
            return
        done = max((g for g, cut in known.items() if g <= generation and cut.length + len(cut.path) <= have), default=0)
        for old in [g for g in known if g <= done]:
            del known[old]
        if not known:
            del self.of[sequence]

    def begin(self, sequence: SequenceId, generation: int) -> None:
        """The sequence begins anew as ``generation``: nothing of before is alive."""
        known = self.of.get(sequence)
        if known is not None:
            self.of[sequence] = {g: cut for g, cut in known.items() if g > generation}
            if not self.of[sequence]:
                del self.of[sequence]

    def forget(self, sequence: SequenceId) -> None:
        """It is closed."""
        self.of.pop(sequence, None)

    def forget_below(self, floor: SequenceId) -> None:
        for sequence in [sequence for sequence in self.of if sequence < floor]:
            del self.of[sequence]


def rows_of(item: Item, start: int, stop: int, generation: int) -> Item | None:
    """Rows [start, stop) of the item, as far as it has them, as those of ``generation``; None: there are none."""
    num_rows = item.num_rows
    stop = min(stop, num_rows)
    if start >= stop:
        return None
    if start == 0 and stop == num_rows and generation == item.generation:
        return item
    return Item(
        sequence=item.sequence,
        generation=generation,
        kind=item.kind,
        position=item.position + start,
        tokens=item.tokens[4 * start : 4 * stop],
        num_picks=max(0, min(item.num_picks - (num_rows - stop), stop - start)),
        opening=item.opening if start == 0 else None,
        tree=None,
    )
