"""The beat of a process: what must be looked at often, and how late the event loop comes to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bloombee.wire.liveness import LoopClock

PULSE_S = 0.025
"""So much later than it could be known a silence may be found."""


class Pulse:
    """Calls ``look`` with the time every PULSE_S, on the loop that it was started on, until it is stopped.

    What ``look`` raises goes to the loop's exception handler; the pulse goes on.
    """

    def __init__(self, look: Callable[[float], None]) -> None:
        self.clock = LoopClock(PULSE_S)
        self._look = look
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PULSE_S, self._beat)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self.start()
        now = time.monotonic()
        self.clock.tick(now)
        self._look(now)
