"""The Runtime inside somebody else's program: any loop, several at once, nothing global touched."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvloop

import bloombee
from bloombee.errors import ConfigError, RuntimeClosed


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_it_leaves_the_process_as_it_was(run: Callable[[Any], None]) -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=1, dtype="float32") as runtime:
            assert (await runtime.generate("x", max_new_tokens=2)).token_ids

    def state() -> tuple[Any, ...]:
        handlers = tuple(signal.getsignal(number) for number in signal.valid_signals())
        return handlers, signal.set_wakeup_fd(-1), {thread.name for thread in threading.enumerate()}

    policy = asyncio.get_event_loop_policy()
    *before, threads = state()
    run(use())
    deadline = time.monotonic() + 10
    while not state()[-1] <= threads and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    *after, left = state()
    assert after == before
    assert left <= threads  # some of an earlier test may have ended meanwhile
    assert asyncio.get_event_loop_policy() is policy


def test_two_runtimes_in_one_process_do_not_meet() -> None:
    prompt = "class Stack:\n    def __init__"

    async def use() -> None:
        async with (
            bloombee.Runtime("demo", workers=2, dtype="float32") as one,
            bloombee.Runtime("demo:draft", workers=1, dtype="float32") as two,
        ):
            both = await asyncio.gather(*(runtime.generate(prompt, max_new_tokens=16) for runtime in (one, two, one, two)))
            assert both[0].token_ids == both[2].token_ids != both[1].token_ids == both[3].token_ids
            await one.close()
            assert (await two.generate(prompt, max_new_tokens=16)).token_ids == both[1].token_ids

    asyncio.run(use())


def test_a_caller_that_blocks_its_loop_costs_the_swarm_nothing() -> None:
    """Blocked for longer than a worker may be silent; the tokens are all there afterwards."""

    async def use() -> None:
        async with bloombee.Runtime("demo", workers=2, dtype="float32", silence_s=1.5, heartbeat_s=0.5) as runtime:
            whole = (await runtime.generate("import os\n", max_new_tokens=30)).token_ids
            tokens = runtime.stream("import os\n", max_new_tokens=30)
            first = await anext(tokens)
            time.sleep(4)  # noqa: ASYNC251
            rest = [token async for token in tokens]
            assert (first.token_id, *(token.token_id for token in rest)) == whole

    asyncio.run(use())


def test_the_synchronous_face() -> None:
    with bloombee.Runtime.sync("demo", workers=2, dtype="float32") as runtime:
        whole = runtime.generate("import os\n", max_new_tokens=12)
        pieces = list(runtime.stream("import os\n", max_new_tokens=12))
        assert "".join(token.text for token in pieces) == whole.text
        for token in runtime.stream("import os\n", max_new_tokens=12):
            assert token.text == pieces[0].text
            break
        assert len(runtime.plan.stages) == 2


def test_the_synchronous_face_in_many_threads_and_beside_a_loop() -> None:
    with bloombee.Runtime.sync("demo", workers=1, dtype="float32") as runtime:
        alone = [runtime.generate("import os\n" * n, max_new_tokens=8).token_ids for n in range(1, 5)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda n: runtime.generate("import os\n" * n, max_new_tokens=8), range(1, 5)))
        assert [answer.token_ids for answer in answers] == alone

        async def beside() -> tuple[int, ...]:
            return (await asyncio.to_thread(runtime.generate, "import os\n", max_new_tokens=8)).token_ids

        assert asyncio.run(beside()) == alone[0]
        with ThreadPoolExecutor(2) as pool:
            stream = runtime.stream("import os\n", max_new_tokens=1500, ignore_eos=True)
            waiting = [pool.submit(list, stream), pool.submit(runtime.generate, "x", max_new_tokens=1500, ignore_eos=True)]
            while runtime.num_requests < 2:
                pass
            runtime.close()
            for one in waiting:
                with pytest.raises(RuntimeClosed):
                    one.result(60)


def test_a_cancelled_start_leaves_no_process() -> None:
    import psutil

    async def use() -> None:
        runtime = bloombee.Runtime("demo", workers=2)
        start = asyncio.ensure_future(runtime.__aenter__())
        while not psutil.Process().children(recursive=True):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start

    before = psutil.Process().children(recursive=True)
    asyncio.run(use())
    assert not set(psutil.Process().children(recursive=True)) - set(before)


def test_what_is_asked_of_a_runtime_too_early_or_too_late_is_answered_at_once() -> None:
    async def events(runtime: bloombee.Runtime) -> list[bloombee.SwarmEventKind]:
        return [event.kind async for event in runtime.events()]

    async def use() -> None:
        runtime = bloombee.Runtime("demo", workers=1)
        for early in (runtime.ready(), runtime.issue_token(), events(runtime)):
            with pytest.raises(RuntimeClosed):
                await early
        async with runtime:
            with pytest.raises(ConfigError, match="started before"):
                await runtime.ready()
            assert len((await runtime.generate("import os\n", max_new_tokens=4)).token_ids) == 4
        for late in (runtime.ready(), runtime.issue_token()):
            with pytest.raises(RuntimeClosed):
                await late
        assert bloombee.SwarmEventKind.UP in await asyncio.wait_for(events(runtime), 10)

    asyncio.run(asyncio.wait_for(use(), 120))
