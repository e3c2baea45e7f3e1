"""How a worker leaves when it is told to: what it serves is taken over first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from bloombee.errors import Fact
from bloombee.wire.messages import Drain

log = logging.getLogger(__name__)
REPEAT_S = 1.0


class Leaving:
    """Of one worker. Nothing is said before :meth:`ask`.

    Args:
        say: brings a message to the head.
    """

    def __init__(self, say: Callable[[Drain], object]) -> None:
        self._say = say
        self._drain: Drain | None = None
        """Until it is answered."""
        self._said_at = 0.0
        self.is_asked = False

    def ask(self, reason: str) -> bool:
        """Ask the head to be drained; False: that was done before."""
        if self.is_asked:
            return False
        self.is_asked = True
        self._drain = Drain(number=1, reason=reason)
        return True

    def tick(self, now: float) -> None:
        """Say it, again and again until there is an answer."""
        if self._drain is not None and now - self._said_at >= REPEAT_S:
            if not self._said_at:  # and not before: a worker that ends with its head gets the signal too
                log.warning("asks the head to hand over what it serves; another SIGTERM ends it at once")
            self._said_at = now
            self._say(self._drain)

    def refused(self, fields: Mapping[str, Fact]) -> None:
        """It cannot be, and this worker is needed."""
        if self._drain is not None:
            self._drain = None
            log.warning("cannot leave, and serves on: %s; another SIGTERM ends it at once", fields.get("message", ""))
