"""What has to happen every tenth of a second, whatever happens to one part of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from bloombee.pipeline.acting import each

TICK_S = 0.1


class Ticker:
    """Belongs to one event loop.

    Args:
        acts: called in turn with the time (monotonic).
        on_error: told the first thing that one of them raised, each time; the next tick comes nevertheless.
    """

    def __init__(self, acts: Sequence[Callable[[float], None]], on_error: Callable[[Exception], None]) -> None:
        self._acts = acts
        self._on_error = on_error
        self._task = asyncio.get_running_loop().create_task(self._run(), name="bloombee-tick")

    async def stop(self) -> None:
        """No tick comes after this."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._tick(time.monotonic())

    def _tick(self, now: float) -> None:
        try:
            each(lambda act: act(now), self._acts)
        except Exception as error:
            self._on_error(error)
