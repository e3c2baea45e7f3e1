"""How fast a swarm has decoded of late."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0


class Speed:
    """Of tokens that are counted now and then; what happened longer than ten seconds ago says nothing."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque()
        """(tokens so far, when the last of them came), of those moments at which there were more than before."""

    def add(self, num_tokens: int, at: float) -> None:
        """So many tokens had come by then. Fewer than before: they are counted anew."""
        if self._seen and num_tokens < self._seen[-1][0]:
            self._seen.clear()
        if not self._seen or num_tokens > self._seen[-1][0]:
            self._seen.append((num_tokens, at))
        self._forget(at)

    def tokens_per_s(self, now: float) -> float | None:
        """None: nothing has come of late."""
        self._forget(now)
        if len(self._seen) < 2:
            return None
        (first, since), (last, until) = self._seen[0], self._seen[-1]
        return (last - first) / (until - since) if until > since else None

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[0][1] < now - WINDOW_S:
            self._seen.popleft()
