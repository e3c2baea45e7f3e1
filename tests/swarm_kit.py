"""A started Runtime for tests: its application's event loop runs in a thread, tests hand it coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import bloombee


class Swarm:
    """A started Runtime and the loop of the application that embeds it."""

    def __init__(self, **arguments: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        # A machine at its limits is slow, not gone; a process that has ended is known at once.
        self.runtime = bloombee.Runtime(**{"silence_s": 20.0, **arguments})
        self.run(self.runtime.__aenter__())

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float = 120) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def generate(self, prompt: Any, **fields: Any) -> bloombee.Generation:
        return self.run(self.runtime.generate(prompt, **fields))

    def await_idle(self) -> None:
        """Returns once no request runs and every page is free; the test's time-out is the limit."""
        self.run(self._idle())

    async def _idle(self) -> None:
        all_free = tuple(stage.num_pages for stage in self.runtime.plan.stages)
        while self.runtime.num_requests or await self.runtime.pages_free() != all_free:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self.run(self.runtime.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
