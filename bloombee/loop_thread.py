"""An event loop on a thread of its own, which any other thread may hand work to and wait for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from bloombee.errors import RuntimeClosed
from bloombee.roles.event_loop import new_event_loop

T = TypeVar("T")


class LoopThread:
    """Runs until :meth:`end`. Every future that :meth:`run` gave has an outcome once the loop has ended.

    Args:
        name: of the thread.

    Raises:
        OSError: the system has no means for a loop.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._is_ending = False
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()

        def main() -> None:
            try:
                with asyncio.Runner(loop_factory=new_event_loop) as runner:
                    runner.get_loop().call_soon(started.set_result, runner.get_loop())
                    with contextlib.suppress(asyncio.CancelledError):
                        runner.run(self._serve())
            except Exception as error:
                if started.done():
                    raise
                started.set_exception(error)
            finally:
                self._give_up()

        self._thread = threading.Thread(target=main, name=name, daemon=True)
        self._thread.start()
        self.loop = started.result()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start ``coroutine`` on the loop. Cancelling the future cancels it; it fails with RuntimeClosed if the loop ends first.

        Raises:
            RuntimeClosed: the loop has ended.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:  # what is handed over before the end is begun before the end
            if not self._is_ending:
                self._waiting.add(future)
                self.loop.call_soon_threadsafe(self._begin, coroutine, future)
                return future
        coroutine.close()
        raise RuntimeClosed("the Runtime was closed")

    def soon(self, action: Callable[..., object], *args: Any) -> bool:
        """Call ``action`` on the loop; False, and nothing happens, if that ends, and with it everything on it."""
        with self._lock, contextlib.suppress(RuntimeError):
            if not self._is_ending:  # what is handed over before the end is done before the end
                self.loop.call_soon_threadsafe(action, *args)
                return True
        return False

    def end(self) -> None:
        """Take no more and let the thread end; does not wait."""
        self.soon(lambda: self._over.set())
        with self._lock:
            self._is_ending = True

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        await self._over.wait()

    def _begin(self, coroutine: Coroutine[Any, Any, T], future: concurrent.futures.Future[T]) -> None:
        if future.cancelled():
            coroutine.close()
            self._waiting.discard(future)
            return
        task = self.loop.create_task(coroutine)
        task.add_done_callback(lambda _: self._settle(task, future))
        future.add_done_callback(lambda _: self._cancel(task, future))

    def _cancel(self, task: asyncio.Task[T], future: concurrent.futures.Future[T]) -> None:
        if future.cancelled():
            self.soon(task.cancel)

    def _settle(self, task: asyncio.Task[T], future: concurrent.futures.Future[T]) -> None:
        self._waiting.discard(future)
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # it was cancelled
            if not task.cancelled():
                error = task.exception()
                future.set_exception(error) if error is not None else future.set_result(task.result())
            elif self._is_ending:
                future.set_exception(RuntimeClosed("the Runtime was closed"))
            else:
                future.cancel()

    def _give_up(self) -> None:
        """Of what the loop has ended before it came to say so."""
        for future in self._waiting:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(RuntimeClosed("the Runtime was closed"))
