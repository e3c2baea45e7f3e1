"""Whether a worker that has lost its head comes back, with what it has loaded, and how long it tries."""

from __future__ import annotations

import enum
import logging
import time

from bloombee.errors import LinkDown
from bloombee.roles.restarts import Restarts

log = logging.getLogger(__name__)
MOST = 3
"""Times in ten minutes that it comes back to a head that gives it up again and again."""
GIVEN_UP_S = 60.0
"""A head that lives is tried so long."""


class _Loss(enum.Enum):
    UNSEEN = enum.auto()
    """Its connection has broken or gone silent: perhaps the way has, or the machine."""
    GIVEN_UP = enum.auto()
    """It lives, and has taken this worker for lost."""
    ENDED = enum.auto()
    """Its process has."""


class Returning:
    """Of one worker.

    Args:
        head_wait_s: how long a head that does not answer, or another in its place, is worth waiting for; 0: not at all.
    """

    def __init__(self, head_wait_s: float) -> None:
        self.wait_s = 0.0
        """How long it tries now."""
        self._head_wait_s = head_wait_s
        self._loss = _Loss.UNSEEN
        self._comes = Restarts(MOST)

    def given_up(self, why: object) -> LinkDown:
        """The head does not know this worker's link any more."""
        self._loss = _Loss.GIVEN_UP
        return LinkDown(f"the head has given this worker up: {why}")

    def ended(self, endpoint: str) -> LinkDown:
        """Nobody listens at the head's address."""
        self._loss = _Loss.ENDED
        return LinkDown(f"the head at {endpoint} has ended: nobody listens there any more")

    def begins(self, gone: LinkDown, *, has_state: bool) -> bool:
        """Whether it is worth trying; then :attr:`wait_s` says how long.

        Args:
            has_state: another head may go on in this one's place.
        """
        loss, self._loss = self._loss, _Loss.UNSEEN
        if loss is _Loss.GIVEN_UP and not has_state:
            self.wait_s = GIVEN_UP_S if self._comes.begin("", time.monotonic()) is not None else 0.0
        else:
            self.wait_s = self._head_wait_s if has_state or loss is _Loss.UNSEEN else 0.0
        if self.wait_s:
            log.warning("%s; keeps what is loaded, and tries for %g s to come back", gone.message, self.wait_s)
        return bool(self.wait_s)
