"""A started Runtime for tests: its application's event loop runs in a thread, tests hand it coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import bloombee
from bloombee.errors import LinkDown
from bloombee.types import SwarmEventKind


class Swarm:
    """A started Runtime and the loop of the application that embeds it."""

    def __init__(self, **arguments: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        # A machine at its limits is slow, not gone; a process that has ended is known at once.
        self.runtime = bloombee.Runtime(**{"silence_s": 20.0, **arguments})
        self.is_down = False
        self._losses: list[str] = []
        self.run(self.runtime.__aenter__())
        asyncio.run_coroutine_threadsafe(self._listen(), self.loop)

    async def _listen(self) -> None:
        async for event in self.runtime.events():
            self.is_down |= event.kind is SwarmEventKind.DOWN
            if event.kind in (SwarmEventKind.LOST, SwarmEventKind.RESTARTED, SwarmEventKind.DOWN):
                self._losses.append(f"{event.at_s:.3f} {event.kind} {event.name} {event.reason}")

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float = 120) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)
        except LinkDown as error:
            for loss in self._losses:  # perhaps long before this test
                error.add_note(loss)
            raise

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
