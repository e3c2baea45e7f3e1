"""How often a process that dies again and again is worth another try."""

from __future__ import annotations

from collections import deque

WINDOW_S = 600.0
SECOND_S, FACTOR, MOST_S = 2.0, 5.0, 60.0
"""The first try is made at once, the second after so long, each further one after so many times as long as the one before, up to
the last: what has killed a process that died at once is still there."""


class Restarts:
    """Of the workers of one head, by name.

    Args:
        most: that each may have within ten minutes. second_s: before the second of them.
    """

    def __init__(self, most: int, second_s: float = SECOND_S) -> None:
        self.most = most
        self._second_s = second_s
        self._begun: dict[str, deque[float]] = {}

    def has(self, name: str) -> bool:
        """Whether it has been started again before."""
        return name in self._begun

    def begin(self, name: str, now: float) -> float | None:
        """It has died: in how many seconds it is to be started again, which counts; None: it is not."""
        begun = self._begun.setdefault(name, deque())
        while begun and begun[0] <= now - WINDOW_S:
            begun.popleft()
        if len(begun) >= self.most:
            return None
        begun.append(now)
        if len(begun) == 1:
            return 0.0
        return min(MOST_S, self._second_s * FACTOR ** min(len(begun) - 2, 9))
