"""Which nodes of a draft are worth their rows.

A round that verifies n drafted nodes takes c(n) and gives 1 + the sum of their scores in tokens, of which the best n nodes give
most. So the best size is found by looking at all of them, for any c. What it comes to is the rule of docs/adr/0071: a node stays
iff P > theta * m, where m is what its row adds to the round and theta the tokens per second at the optimum.

Where others travel too, what a row costs is what it costs all: theta counts their tokens as well. As long as a round is bound by
the loop those are the others of the microbatch; once it is bound by the slowest stage or link, those of all microbatches. So
drafting fades as load grows, and ends by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bloombee.spec.tree import Draft

MOST_PARTS = 16
"""In which a draft goes round, one after the other."""
IDLE = 0.5
"""Of a loop, that the busiest stage or wire may have to do, for frames to go that are not needed."""
WORTH = 0.99
"""Of what fewer parts would take, that more must."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds by rows."""

    fixed_s: float
    row_s: float

    def at(self, rows: float) -> float:
        return self.fixed_s + rows * self.row_s


@dataclass(frozen=True, slots=True)
class Load:
    """What a round costs now.

    Args:
        loop: of one microbatch, alone, once round.
        busy: what each stage and each wire is busy with it.
        num_microbatches: under way at once.
        rows, tokens: of the other sequences in the microbatch that this one goes with: rows, and tokens that they are expected to
            give.
    """

    loop: Line
    busy: tuple[Line, ...] = ()
    num_microbatches: int = 1
    rows: float = 0.0
    tokens: float = 0.0

    @property
    def sequences(self) -> float:
        """That are under way, as far as rows tell."""
        return self.num_microbatches * (1 + self.rows)

    @property
    def is_idle(self) -> bool:
        """Whether the ring could do more than goes round, as long as one sequence alone, or few, wait for it."""
        rows = self.rows + 1
        return 0.0 < self.num_microbatches * self._longest_s(rows) <= IDLE * self.loop.at(rows)

    def round_s(self, drafted: int) -> float:
        """Until the microbatch is back, with ``drafted`` nodes of this sequence besides its confirmed row, in parts where that
        is quicker."""
        rows = self.rows + 1 + drafted
        alone_s = self.parts(rows)[1] if self.is_idle else self.loop.at(rows)
        return max(alone_s, self.num_microbatches * self._longest_s(rows))

    def parts(self, rows: float) -> tuple[float, float]:
        """(rows of each part, seconds) of that many parts that bring ``rows`` home soonest: the last goes round when all before
        it have left the slowest hop."""
        best, least = rows, self.loop.at(rows)
        for count in range(2, min(int(rows), MOST_PARTS) + 1):
            size = rows / count
            seconds = self.loop.at(size) + (count - 1) * self._longest_s(size)
            if seconds < WORTH * least:
                best, least = size, seconds
        return best, least

    def _longest_s(self, rows: float) -> float:
        return max([line.fixed_s + rows * line.row_s for line in self.busy], default=0.0)


def best_size(scores: Iterable[float], load: Load, *, wait_s: float = 0.0) -> tuple[int, float]:
    """How many of the likeliest nodes to send, and the tokens per second of all that come of it.

    Args:
        scores: of the nodes, likeliest first.
        wait_s: for the draft, which is paid for before the round if any node is sent.

    Time: O(n).
    """
    tokens = load.tokens + 1.0
    best, rate = 0, tokens / load.round_s(0)
    for size, score in enumerate(scores, start=1):
        tokens += score
        now = tokens / (load.round_s(size) + wait_s)
        if now > rate:
            best, rate = size, now
    return best, rate


def worth_sending(draft: Draft, load: Load) -> Draft:
    """The nodes of ``draft`` that pay; none where plain decoding is best."""
    order = draft.by_score()
    size, _ = best_size((draft.scores[node - 1] for node in order), load)
    return draft.only(sorted(order[:size]))


@dataclass(frozen=True, slots=True)
class Shape:
    """A tree of always the same shape, for comparison: the likeliest path, ``depth`` nodes long, each with the ``width - 1``
    likeliest of its siblings."""

    depth: int
    width: int = 1

    def cut(self, draft: Draft) -> Draft:
        """What ``draft`` has of it."""
        spine, kept = 0, list[int]()
        for _ in range(self.depth):
            children = sorted(draft.children(spine), key=lambda child: -draft.scores[child - 1])[: self.width]
            if not children:
                break
            kept += children
            spine = children[0]
        return draft.only(sorted(kept))
