"""How often a process that dies again and again is worth another try."""

from __future__ import annotations

from collections import deque

WINDOW_S = 600.0


class Restarts:
    """Of the workers of one head, by name.

    Args:
        most: that each may have within ten minutes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._begun: dict[str, deque[float]] = {}

    def has(self, name: str) -> bool:
        """Whether it has been started again before."""
        return name in self._begun

    def begin(self, name: str, now: float) -> bool:
        """It has died: True if it is to be started again, which counts."""
        begun = self._begun.setdefault(name, deque())
        while begun and begun[0] <= now - WINDOW_S:
            begun.popleft()
        if len(begun) >= self.most:
            return False
        begun.append(now)
        return True
