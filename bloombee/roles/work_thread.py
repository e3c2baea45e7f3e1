"""A thread of a device, and the one order of what it does for all that a worker serves: of the one that computes its forwards,
copies, codecs and measuring; of a disk what is written and read.

What it does is put in a queue and what came of it is posted back to the event loop, so that nothing slow ever runs on the loop
and the device never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from bloombee.errors import BloomBeeError

log = logging.getLogger(__name__)
T = TypeVar("T")


class WorkThread:
    """One thread; tasks run in the order in which they were put.

    Args:
        name: of the thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "bloombee-device") -> None:
        self._loop = loop
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._main, name=name, daemon=True).start()

    def beside(self, name: str) -> WorkThread:
        """Another thread, which posts to the same event loop."""
        return WorkThread(self._loop, name)

    def put(self, task: Callable[[], None]) -> None:
        """Run ``task``, which raises nothing, after all that was put before. From any thread."""
        self._tasks.put(task)

    def ask(self, make: Callable[[], T], on_done: Callable[[T], None], on_error: Callable[[BloomBeeError], None]) -> None:
        """Run ``make`` in its turn; one of the other two gets what came of it, on the event loop."""

        def task() -> None:
            try:
                self.post(on_done, make())
            except BloomBeeError as error:
                self.post(on_error, error)

        self._tasks.put(task)

    def stop(self) -> None:
        """End the thread after what was put before; does not wait."""
        self._tasks.put(None)

    def post(self, action: Callable[..., None], *args: Any) -> None:
        """Call ``action`` on the event loop; from any thread."""
        try:
            self._loop.call_soon_threadsafe(action, *args)
        except RuntimeError:
            log.debug("the event loop has ended; result dropped")

    def _main(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
