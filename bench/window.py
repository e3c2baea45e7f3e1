"""The stretch of a run in which every sequence decodes, found in the times of its tokens. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """From the moment the last sequence has its first token until each has ``tokens`` more, or longer."""

    start_s: float
    stop_s: float
    num_tokens: int
    gaps_s: tuple[float, ...]
    """Between consecutive tokens of a sequence, both inside."""

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / (self.stop_s - self.start_s)

    @property
    def time_per_token_s(self) -> float:
        """Between two tokens of one sequence, the median."""
        return statistics.median(self.gaps_s)


def find_window(
    times: Sequence[Sequence[float]], tokens: int, since_s: float = float("-inf"), *, least_s: float = 0.0
) -> Window | None:
    """The window of ``tokens`` in the token times of each sequence, from ``since_s`` on; None while it is not complete.

    Args:
        least_s: what it lasts at least; the times must go on for so long.
    """
    if not times or any(not one for one in times):
        return None
    start = max(since_s, *(one[0] for one in times))
    inside = [[moment for moment in one if moment > start] for one in times]
    if any(len(one) < tokens for one in inside):
        return None
    stop = max(start + least_s, *(one[tokens - 1] for one in inside))
    gaps = [b - a for one in times for a, b in itertools.pairwise(one) if a >= start and b <= stop]
    return Window(start, stop, sum(moment <= stop for one in inside for moment in one), tuple(gaps))
