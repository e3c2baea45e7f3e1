"""The device's one order of work, whichever thread does it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from bloombee.errors import BloomBeeError, DeviceError
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.roles.executor import BRIEF_NS, SpanExecutor
from bloombee.roles.loading import Loader
from bloombee.roles.work_thread import WorkThread
from bloombee.types import Phase


def run_on(queue_user: Any) -> Any:
    async def run() -> Any:
        queue = WorkThread(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(queue_user(queue), 30)
        finally:
            queue.stop()

    return asyncio.run(run())


def test_a_brief_task_with_nothing_before_it_is_done_on_the_loop() -> None:
    async def use(queue: WorkThread) -> tuple[int, bool]:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        queue.put_brief(lambda: queue.post(done.set_result, threading.get_ident()))
        is_later = not done.done()
        return await done, is_later

    thread, is_later = run_on(use)
    assert thread == threading.get_ident()
    assert is_later, "who asks has gone on before it runs"


def test_tasks_keep_their_order_over_both_threads() -> None:
    """Brief ones behind a long one, long ones behind a brief one: each begins when the one before has ended."""
    seen: list[str] = []
    threads: set[int] = set()

    async def use(queue: WorkThread) -> None:
        gate, last = threading.Event(), asyncio.get_running_loop().create_future()

        def task(name: str) -> Any:
            def run() -> None:
                threads.add(threading.get_ident())
                seen.append(f"{name} begins")
                gate.wait(30)
                seen.append(f"{name} ends")

            return run

        queue.put_brief(task("0"))  # on the loop; the gate is open before it runs
        queue.put(task("1"))
        queue.put_brief(task("2"))
        queue.put_brief(task("3"))
        queue.put(lambda: queue.post(last.set_result, None))
        gate.set()
        await last

    run_on(use)
    assert seen == [f"{number} {what}" for number in range(4) for what in ("begins", "ends")]
    assert len(threads) == 2


def test_the_loop_goes_on_beside_a_task_that_is_not_brief() -> None:
    async def use(queue: WorkThread) -> bool:
        gate, done = threading.Event(), asyncio.get_running_loop().create_future()

        def long() -> None:
            queue.post(done.set_result, gate.wait(30))

        queue.put(long)
        queue.put_brief(lambda: None)
        asyncio.get_running_loop().call_soon(gate.set)
        return bool(await done)

    assert run_on(use)


def test_whatever_a_question_raises_is_told_and_the_thread_goes_on() -> None:
    async def use(queue: WorkThread) -> BloomBeeError:
        told: asyncio.Future[BloomBeeError] = asyncio.get_running_loop().create_future()
        queue.ask(lambda: [][0], told.set_result, told.set_result)
        return await told

    error = run_on(use)
    assert isinstance(error, DeviceError)
    assert "IndexError" in error.message


def test_a_task_that_raises_what_it_must_not_is_the_loops_to_tell_and_the_thread_goes_on() -> None:
    async def use(queue: WorkThread) -> list[Any]:
        loop, said = asyncio.get_running_loop(), list[Any]()
        loop.set_exception_handler(lambda _, context: said.append(context["exception"]))
        last = loop.create_future()

        def wrong() -> None:
            raise ZeroDivisionError

        queue.put(wrong)
        queue.put(lambda: queue.post(last.set_result, None))
        await last
        return said

    assert list(map(type, run_on(use))) == [ZeroDivisionError]


def test_only_short_decode_on_a_processor_that_mostly_idles_is_brief() -> None:
    def work(rows: int, phase: Phase = Phase.DECODE) -> Work:
        segments = tuple(Segment(number, 0, 4, bytes(4), 0, (Pages((0,)),)) for number in range(rows))
        return Work(1, 1, 7, 7, phase, segments)

    async def use(queue: WorkThread) -> SpanExecutor:
        return SpanExecutor(queue, Loader())

    span, long_ago = run_on(use), time.monotonic_ns() - 3_600_000_000_000
    assert not span._is_brief(work(1)), "nothing is known"
    span._last_decode = (2, BRIEF_NS - 1, long_ago)
    assert span._is_brief(work(1))
    assert span._is_brief(work(2))
    assert not span._is_brief(work(3)), "more rows than have been seen"
    assert not span._is_brief(work(1, Phase.PREFILL))
    span._last_decode = (2, BRIEF_NS, long_ago)
    assert not span._is_brief(work(1)), "the loop would stand still for too long"
    span._last_decode = (2, BRIEF_NS - 1, time.monotonic_ns())
    assert not span._is_brief(work(1)), "the device is busy: the next work comes right after the last"
