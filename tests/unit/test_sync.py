"""The blocking face over a Runtime that is a fake: threads, interrupts, streams that are left, closing."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from bloombee.errors import ConfigError, RuntimeClosed
from bloombee.loop_thread import LoopThread
from bloombee.sync import SyncRuntime
from bloombee.types import Token


class FakeRuntime:
    """Answers ``n`` tokens, or goes on until it is closed or the request is cancelled."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.open: list[Any] = []
        self.num_begun = 0

    async def __aenter__(self) -> FakeRuntime:
        self._over = asyncio.Event()
        return self

    async def close(self) -> None:
        if hasattr(self, "_over"):
            self._over.set()

    async def generate(self, prompt: Any, params: Any = None) -> Any:
        return [token.token_id async for token in self.stream(prompt)]

    async def stream(self, prompt: Any, params: Any = None) -> AsyncIterator[Token]:
        self._note(lambda: self.open.append(prompt))
        try:
            if prompt == "bad":
                raise ConfigError("bad prompt")
            for i in range(prompt if isinstance(prompt, int) else 1):
                yield Token("x", i)
            if prompt == "endless":
                await self._over.wait()
                raise RuntimeClosed("the Runtime was closed")
        finally:
            self._note(lambda: self.open.remove(prompt))

    def _note(self, change: Callable[[], None]) -> None:
        with self.changed:
            change()
            self.num_begun += 1
            self.changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 60)


@pytest.fixture
def fake() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def runtime(fake: FakeRuntime) -> Iterator[SyncRuntime]:
    with SyncRuntime(fake) as runtime:  # type: ignore[arg-type]
        yield runtime


def test_many_threads_ask_at_once(runtime: SyncRuntime, fake: FakeRuntime) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(runtime.generate, range(64))) == [list(range(n)) for n in range(64)]
        streams = list(pool.map(lambda n: [token.token_id for token in runtime.stream(n)], range(64)))
    assert streams == [list(range(n)) for n in range(64)]
    assert fake.open == []


def test_it_works_in_a_thread_that_runs_a_loop_and_beside_one(runtime: SyncRuntime) -> None:
    async def use() -> None:
        assert runtime.generate(2) == [0, 1]
        assert await asyncio.to_thread(runtime.generate, 3) == [0, 1, 2]
        assert [token.token_id for token in runtime.stream(2)] == [0, 1]

    asyncio.run(use())


def test_errors_come_through(runtime: SyncRuntime) -> None:
    with pytest.raises(ConfigError, match="bad prompt"):
        runtime.generate("bad")
    stream = runtime.stream("bad")
    with pytest.raises(ConfigError, match="bad prompt"):
        next(stream)
    assert list(stream) == []


def test_ctrl_c_ends_the_request(runtime: SyncRuntime, fake: FakeRuntime) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        fake.until(lambda: bool(fake.open))
        signal.pthread_kill(main, signal.SIGINT)

    for ask in (runtime.generate, lambda prompt: list(runtime.stream(prompt))):
        other = threading.Thread(target=interrupt)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            ask("endless")
        other.join()
        fake.until(lambda: not fake.open)
    assert runtime.generate(1) == [0]


def test_a_stream_that_is_not_asked_for_tokens_begins_no_request(runtime: SyncRuntime, fake: FakeRuntime) -> None:
    stream = runtime.stream("endless")
    stream.close()
    assert list(stream) == []
    assert fake.num_begun == 0


@pytest.mark.parametrize("how", ["break", "close", "garbage", "another thread"])
def test_a_stream_that_is_left_early_ends_its_request(how: str, runtime: SyncRuntime, fake: FakeRuntime) -> None:
    if how == "break":
        for token in runtime.stream("endless"):
            assert token.token_id == 0
            break
    else:
        stream = runtime.stream("endless")
        next(stream)
        if how == "close":
            stream.close()
            stream.close()
        elif how == "another thread":
            closer = threading.Thread(target=stream.close)
            closer.start()
            closer.join()
        else:
            del stream
            gc.collect()
    fake.until(lambda: not fake.open)


def test_closing_a_stream_wakes_the_thread_that_waits_in_it(runtime: SyncRuntime, fake: FakeRuntime) -> None:
    stream = runtime.stream("endless")
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(list, stream) for _ in range(2)]
        fake.until(lambda: bool(fake.open))
        stream.close()
        assert sum(len(reader.result(60)) for reader in readers) <= 1
    fake.until(lambda: not fake.open)


def test_threads_that_share_a_stream_share_its_tokens(runtime: SyncRuntime) -> None:
    stream = runtime.stream(200)
    with ThreadPoolExecutor(4) as pool:
        parts = [reader.result(60) for reader in [pool.submit(list, stream) for _ in range(4)]]
    assert sorted(token.token_id for part in parts for token in part) == list(range(200))


def test_closing_ends_those_who_wait_with_a_typed_error(runtime: SyncRuntime, fake: FakeRuntime) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(runtime.generate, "endless") for _ in range(2)]
        waiting += [pool.submit(list, runtime.stream("endless")) for _ in range(2)]
        fake.until(lambda: len(fake.open) == 4)
        closers = [threading.Thread(target=runtime.close) for _ in range(3)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        for one in waiting:
            with pytest.raises(RuntimeClosed):
                one.result(60)


def test_before_and_after_its_block_it_is_closed(fake: FakeRuntime) -> None:
    runtime = SyncRuntime(fake)  # type: ignore[arg-type]
    for use in (lambda: runtime.generate(1), lambda: runtime.stream(1)):
        with pytest.raises(RuntimeClosed, match="not been started"):
            use()
    runtime.close()
    with runtime:
        early = runtime.stream(1)
    for use in (lambda: runtime.generate(1), lambda: list(runtime.stream(1)), lambda: list(early)):
        with pytest.raises(RuntimeClosed, match="was closed"):
            use()
    runtime.close()
    assert fake.open == []


def test_a_loop_that_ends_fails_whatever_was_handed_to_it() -> None:
    for _ in range(20):
        thread = LoopThread("test")
        futures = [thread.run(asyncio.sleep(3600)) for _ in range(20)]
        thread.end()
        with pytest.raises(RuntimeClosed):
            thread.run(asyncio.sleep(0))
        for future in futures:
            with pytest.raises(RuntimeClosed):
                future.result(60)


def test_cancelling_what_runs_on_a_loop_is_no_closing() -> None:
    thread = LoopThread("test")
    future = thread.run(asyncio.sleep(3600))
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(60)
    assert thread.run(asyncio.sleep(0, 5)).result(60) == 5
    thread.end()
