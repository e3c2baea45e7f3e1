"""The blocking face of a Runtime, for scripts and threads."""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from bloombee.errors import RuntimeClosed
from bloombee.loop_thread import LoopThread
from bloombee.transport.descriptors import require_descriptors
from bloombee.types import Generation, RunningRequest, SamplingParams, Token

if TYPE_CHECKING:
    from bloombee.models.card import ModelCard
    from bloombee.plan.plan import Plan
    from bloombee.roles.prompts import Prompt
    from bloombee.runtime import Runtime

T = TypeVar("T")
LOOK_EVERY_S = 0.5
"""A signal that comes just before a wait begins does not end it: Ctrl-C is seen after this long at the latest."""
_NOTHING = object()


class SyncRuntime:
    """A :class:`~bloombee.runtime.Runtime` without an event loop of the caller's: calls block.

    Any number of threads may call at once; a thread that runs an event loop may, and blocks it. The calls run on a loop and a
    thread that begin with the ``with`` block and end with it.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._thread: LoopThread | None = None

    def __enter__(self) -> SyncRuntime:
        """As :meth:`Runtime.__aenter__`. Interrupted or failed: everything that was started is ended."""
        require_descriptors()
        self._thread = self._thread or LoopThread("bloombee-sync")
        try:
            self._run(self._runtime.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the swarm; calls that other threads wait in fail with RuntimeClosed. Closing twice changes nothing."""
        if self._thread is not None:
            with contextlib.suppress(RuntimeClosed):  # by another thread, just now
                self._run(self._runtime.close())
            self._thread.end()

    @property
    def plan(self) -> Plan:
        return self._runtime.plan

    @property
    def card(self) -> ModelCard:
        return self._runtime.card

    @property
    def num_requests(self) -> int:
        """Requests that are waiting or running."""
        return self._runtime.num_requests

    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **fields: Any) -> Generation:
        """As :meth:`Runtime.generate`. Interrupted: the request ends and its KV is freed on every stage."""
        return self._run(self._runtime.generate(prompt, params, **fields))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **fields: Any) -> SyncStream:
        """As :meth:`Runtime.stream`."""
        return SyncStream(self._runtime.stream(prompt, params, **fields), self._started().run)

    @property
    def running(self) -> tuple[RunningRequest, ...]:
        """As :attr:`Runtime.running`."""
        return self._runtime.running

    def resume(self, id: int, *, from_token: int = 0) -> SyncStream:
        """As :meth:`Runtime.resume`."""
        return SyncStream(self._runtime.resume(id, from_token=from_token), self._started().run)

    def _started(self) -> LoopThread:
        if self._thread is None:
            raise RuntimeClosed("the Runtime has not been started: use 'with bloombee.Runtime.sync(...)'")
        return self._thread

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            future = self._started().run(coroutine)
        except RuntimeClosed:
            coroutine.close()
            raise
        try:
            while not concurrent.futures.wait([future], LOOK_EVERY_S).done:
                pass
            return future.result()
        except BaseException:
            future.cancel()
            raise


class SyncStream(Iterator[Token]):
    """Tokens of one request, which begins when the first is asked for and ends when this is closed, or nobody holds it.

    Several threads may share one: each token goes to one of them.
    """

    def __init__(
        self, tokens: AsyncGenerator[Token, None], run: Callable[[Coroutine[Any, Any, None]], concurrent.futures.Future[None]]
    ) -> None:
        self._tokens = tokens
        self._run = run
        self._items: queue.SimpleQueue[Token | BaseException | None] = queue.SimpleQueue()
        """None: the end."""
        self._pump: concurrent.futures.Future[None] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def __next__(self) -> Token:
        """The next token. Interrupted: the request ends.

        Raises:
            StopIteration: the text has ended, or the stream was closed, perhaps by another thread.
            BloomBeeError: as :meth:`Runtime.stream`.
        """
        if self._is_closed:
            raise StopIteration
        self._start()
        try:
            while (item := self._take()) is _NOTHING:
                pass
        except BaseException:
            self.close()
            raise
        if isinstance(item, Token):
            return item
        self._items.put(None)  # the end, for whoever asks next
        if isinstance(item, BaseException):
            raise item
        raise StopIteration

    def _take(self) -> Token | BaseException | object | None:
        try:
            return self._items.get(timeout=LOOK_EVERY_S)
        except queue.Empty:
            return _NOTHING

    def close(self) -> None:
        """End the request, if it runs, and free its KV on every stage. Does not wait; closing twice changes nothing."""
        with self._lock:
            self._is_closed = True
        if self._pump is not None:
            self._pump.cancel()

    def __del__(self) -> None:
        if getattr(self, "_pump", None) is not None:
            self.close()

    def _start(self) -> None:
        with self._lock:
            if self._pump is not None:
                return
            items = self._items  # and not self: whoever forgets this stream ends its request
            self._pump = self._run(_pump(self._tokens, items))
            self._pump.add_done_callback(lambda pump: items.put(_outcome(pump)))


async def _pump(tokens: AsyncGenerator[Token, None], items: queue.SimpleQueue[Token | BaseException | None]) -> None:
    async with contextlib.aclosing(tokens):
        async for token in tokens:
            items.put(token)


def _outcome(pump: concurrent.futures.Future[None]) -> BaseException | None:
    return None if pump.cancelled() else pump.exception()
