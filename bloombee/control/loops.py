"""By how much microbatches are longer on their way round than devices and links account for. Pure.

Frames also wait for processes to wake up, in queues between threads, for their turn at a core: of that no link's least round
trip tells anything, and on a machine that does other things it's a good part of a loop. All sequences over tokens a second is
what each waits for its next token (Little's law): the loop, and the wait for the bottleneck. While that is idle now and then,
hardly anybody waits for it, and what is left beyond the model's loop is on the way. While it is busy all the time, that is the
most that it can be.

Processes that fight for cores look the same, and more microbatches make that worse. So no more is believed than a share of what
the links take: where these are short, more microbatches could not make up for much anyway.

Source: J. D. C. Little, A proof for the queuing formula L = lambda W, Operations Research 9 (1961).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bloombee.plan.cost import Cost

SETTLE_TURNS, WINDOW_TURNS, WINDOW_S = 3, 3, 1.0
"""After a change nothing is measured for so many tokens of each sequence; then a window lasts as long as both."""
MOST_SURPLUS = 0.2
"""Of what the links of a loop take."""
FULL = 0.95
"""A bottleneck that is busy for that share of the time is what limits."""


@dataclass(frozen=True, slots=True)
class _Mark:
    tokens: int
    token_s: float
    """When the last of them came."""
    busy_s: tuple[float, ...]
    now: float


class Loops:
    """Of one plan.

    Attributes:
        surplus_s: of a loop.
    """

    def __init__(self) -> None:
        self.surplus_s = 0.0
        self._run = (0, 0)
        self._settled_at = 0
        """By tokens."""
        self._begun: _Mark | None = None

    def look(
        self,
        count: int,
        sequences: int,
        decoded: tuple[int, float],
        busy_s: Sequence[float],
        expected: Cost,
        *,
        is_steady: bool,
        now: float,
    ) -> float:
        """:attr:`surplus_s`, as it is now.

        Args:
            count: microbatches under way; sequences: that decode.
            decoded: tokens so far, and when the last of them came. busy_s: of each stage so far.
            expected: by the model, of such a microbatch.
            is_steady: nothing but decode since the last time.
        """
        mark = _Mark(*decoded, tuple(busy_s), now)
        if self._run != (count, sequences) or not is_steady:
            self._run, self._settled_at, self._begun = (count, sequences), mark.tokens + SETTLE_TURNS * sequences, None
        elif self._begun is None:
            self._begun = mark if mark.tokens >= self._settled_at else None
        elif mark.tokens - self._begun.tokens >= WINDOW_TURNS * sequences and now - self._begun.now >= WINDOW_S:
            self._measured(self._begun, mark, sequences, expected)
            self._begun = mark
        return self.surplus_s

    def _measured(self, begun: _Mark, mark: _Mark, sequences: int, expected: Cost) -> None:
        wait_s = sequences * (mark.token_s - begun.token_s) / (mark.tokens - begun.tokens)
        most_s = MOST_SURPLUS * sum(link.pass_s for link in expected.links)
        surplus_s = min(max(0.0, wait_s - expected.loop_s), most_s)
        busiest_s = max(after - before for before, after in zip(begun.busy_s, mark.busy_s, strict=True))
        is_full = busiest_s >= FULL * (mark.now - begun.now)
        self.surplus_s = min(self.surplus_s, surplus_s) if is_full else surplus_s
