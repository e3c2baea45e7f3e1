"""A thread of a device, and the one order of what it does for all that a worker serves: of the one that computes its forwards,
copies, codecs and measuring; of a disk what is written and read.

What it does is put in a queue and what came of it is posted back to the event loop, so that nothing slow ever runs on the loop
and the device never waits for it. A brief task that has nothing before it is done on the loop: to wake another thread, and to be
woken by it, takes longer than some forwards (docs/adr/0064).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from bloombee.errors import BloomBeeError, DeviceError

log = logging.getLogger(__name__)
T = TypeVar("T")


class WorkThread:
    """One thread; tasks run in the order in which they were put.

    Args:
        loop: the one that runs in the thread which makes this.
        name: of the thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "bloombee-device") -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._num_open = 0
        """Tasks that were put and are not done."""
        self._counting = threading.Lock()
        self._turn = threading.Lock()
        """Held by the thread that runs a task."""
        threading.Thread(target=self._main, name=name, daemon=True).start()

    def beside(self, name: str) -> WorkThread:
        """Another thread, which posts to the same event loop. From any thread."""
        twin = WorkThread(self._loop, name)
        twin._loop_thread = self._loop_thread
        return twin

    def put(self, task: Callable[[], None]) -> None:
        """Run ``task``, which raises nothing, after all that was put before. From any thread."""
        with self._counting:
            self._num_open += 1
        self._tasks.put(task)

    def put_brief(self, task: Callable[[], None]) -> None:
        """As :meth:`put`; but on the event loop, soon, where nothing was put before that is not done. From the loop's thread."""
        with self._counting:
            is_free = self._num_open == 0
            self._num_open += 1
        if is_free:
            self._turn.acquire()  # free: whoever had it has counted his task as done
            self._loop.call_soon(self._run_here, task)
        else:
            self._tasks.put(task)

    def ask(self, make: Callable[[], T], on_done: Callable[[T], None], on_error: Callable[[BloomBeeError], None]) -> None:
        """Run ``make`` in its turn; one of the other two gets what came of it, on the event loop: a DeviceError where it raises
        what is none of ours."""

        def task() -> None:
            try:
                self.post(on_done, make())
            except BloomBeeError as error:
                self.post(on_error, error)
            except Exception as error:  # of a library, or no memory
                log.debug("a task failed", exc_info=True)
                self.post(on_error, DeviceError(f"a task of the device or the disk failed: {type(error).__name__}: {error}"))

        self.put(task)

    def stop(self) -> None:
        """End the thread after what was put before; does not wait."""
        self._tasks.put(None)

    def post(self, action: Callable[..., None], *args: Any) -> None:
        """Call ``action`` on the event loop, soon; from any thread."""
        soon = self._loop.call_soon if threading.get_ident() == self._loop_thread else self._loop.call_soon_threadsafe
        try:
            soon(action, *args)
        except RuntimeError:
            log.debug("the event loop has ended; result dropped")

    def _main(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._turn.acquire()
            try:
                self._run_here(task)
            except Exception as error:  # a bug: a thread that ended would leave everybody waiting
                bug = {"message": f"a task of {threading.current_thread().name} raised", "exception": error}
                self.post(self._loop.call_exception_handler, bug)

    def _run_here(self, task: Callable[[], None]) -> None:
        try:
            task()
        finally:
            self._turn.release()
            with self._counting:
                self._num_open -= 1
