"""What a swarm is like now, for all who look at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import time

from bloombee.errors import BloomBeeError
from bloombee.roles.status import SwarmStatus
from bloombee.runtime import Runtime

FRESH_S = 0.2
"""What was seen so lately is not looked at again."""
PATIENCE_S = 0.5
"""Stages may take so long to say what they have done; else what they said last counts, and what comes later the next time."""


class Watch:
    """Of one swarm; belongs to the loop of whoever serves it. However many look, stages are asked five times a second at most."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._looking = asyncio.Lock()
        self._stale_at = 0.0
        self._seen: SwarmStatus

    async def look(self) -> SwarmStatus:
        """As it is, or was a moment ago.

        Cancelled: nothing is left behind. Raises RuntimeClosed: the Runtime is closed, or still looks at its model.
        """
        async with self._looking:
            if time.monotonic() >= self._stale_at:
                await self._ask_stages()
                self._seen = await self._runtime.status()
                self._stale_at = time.monotonic() + FRESH_S
            return self._seen

    async def _ask_stages(self) -> None:
        """The status tells what they said last; a pipeline that is broken or not up has nothing to say."""
        with contextlib.suppress(BloomBeeError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._runtime.stage_use()
