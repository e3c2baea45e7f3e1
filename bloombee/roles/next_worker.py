"""A stage's eye on the worker after it. Who dials a link judges it (docs/adr/0032): by how long it has been away, and by whether
what is asked over it is answered. Who feeds a stage is left alone: it judges that link itself, and the head judges it."""

from __future__ import annotations

from collections.abc import Callable

from bloombee.wire.liveness import Liveness

SILENCE_FACTOR = 2
"""The head says first who is silent; it does not see a hop that swallows what is sent over it."""


class NextWorker:
    """
    Args:
        liveness: of the link to it.
        heartbeat_s, silence_s: how often it is asked whether it is there, and how long a worker may say nothing.
        ask: say something that it answers.
        on_way_s: how long that and its answer may be held up by what is on its way to it.
        on_lost: why it must be taken for lost.
    """

    def __init__(
        self,
        liveness: Liveness,
        *,
        heartbeat_s: float,
        silence_s: float,
        ask: Callable[[], None],
        on_way_s: Callable[[], float],
        on_lost: Callable[[str], None],
        now: float,
    ) -> None:
        self._liveness = liveness
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s
        self._ask = ask
        self._on_way_s = on_way_s
        self._on_lost = on_lost
        self._asked_at = self._ticked_at = now
        self._heard_at: float | None = None

    def works(self, now: float) -> None:
        """There is work, so it is not loading any more: from now on its silence counts."""
        if self._heard_at is None:
            self._heard_at = now

    def heard(self, now: float) -> None:
        """It said something."""
        if self._heard_at is not None:
            self._heard_at = now

    def tick(self, now: float) -> None:
        if now - self._asked_at >= self._heartbeat_s:
            self._asked_at = now
            self._ask()
        if now - self._ticked_at > self._silence_s:
            self.heard(now)  # it was this process that stood still: what came meanwhile has yet to be read
        self._ticked_at = now
        silent_s = now - self._heard_at if self._heard_at is not None else 0.0
        if self._liveness.is_lost(now):
            self._on_lost(f"its link is broken and has not come back for {self._liveness.away_s(now):.1f} s")
        elif self._liveness.is_whole and silent_s > SILENCE_FACTOR * self._silence_s + self._on_way_s():
            self._on_lost(f"nothing has come from it for {silent_s:.1f} s")
