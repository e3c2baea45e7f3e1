"""A device whose disk is emulated: what it tells while it loads, and that it can be stopped meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import bloombee
from bloombee.codec.choice import CodecMode
from bloombee.config import LocalWorker
from bloombee.engine.describe import describe
from bloombee.errors import BloomBeeError, Infeasible, LinkDown
from bloombee.models.card import ModelCard
from bloombee.models.standin import standin_card
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.loading import Loader
from bloombee.roles.work_thread import WorkThread
from bloombee.types import LoadProgress, Span
from bloombee.wire.messages import Group, Load

MODEL = "standin:64x6"
WEIGHTS = standin_card(MODEL).weight_bytes(Span(0, 3))


def order(card: ModelCard) -> Load:
    return Load(
        number=1,
        pipeline=1,
        start=0,
        stop=3,
        num_layers=card.num_layers,
        model=card.model,
        config_digest=bytes.fromhex(card.config_digest),
        dtype="bfloat16",
        groups=(Group(window=0, num_pages=10),),
        page_size=16,
        codec=CodecMode.OFF,
        weight_digests=(),
        rules=None,
        placement=(),
        budgets=(),
    )


class Told:
    """What a device tells of a load; ``over`` is set when it is done or has failed."""

    def __init__(self) -> None:
        self.progress: list[tuple[int, int]] = []
        self.done: tuple[int, int] | None = None
        self.error: BloomBeeError | None = None
        self.over = asyncio.Event()

    def load(self, device: SpanExecutor, task: Load) -> None:
        device.load(task, on_progress=self._progress, on_done=self._done, on_error=self._error, on_table=lambda _: None)

    def _progress(self, loaded: int, total: int) -> None:
        self.progress.append((loaded, total))

    def _done(self, *sizes: int) -> None:
        self.done = (sizes[0], sizes[1])
        self.over.set()

    def _error(self, error: BloomBeeError) -> None:
        self.error = error
        self.over.set()


@asynccontextmanager
async def device(**arguments: Any) -> AsyncIterator[SpanExecutor]:
    queue = WorkThread(asyncio.get_running_loop())
    span = SpanExecutor(queue, Loader(**arguments))
    try:
        yield span
    finally:
        span.stop()
        queue.stop()


def test_a_slow_load_tells_how_far_it_is_and_takes_its_bytes_time() -> None:
    async def main() -> None:
        seconds = 0.5
        loop, told = asyncio.get_running_loop(), Told()
        began = loop.time()
        async with device(load_bytes_per_s=WEIGHTS / seconds) as span:
            told.load(span, order(standin_card(MODEL)))
            await asyncio.wait_for(told.over.wait(), 60)
        assert loop.time() - began >= seconds  # no sooner, however late
        assert told.done == (WEIGHTS, 160 * 3 * 2 * 64 * 2)
        assert told.progress == sorted(told.progress)
        assert told.progress[-1] == (WEIGHTS, WEIGHTS)
        assert any(0 < loaded < WEIGHTS for loaded, _ in told.progress)

    asyncio.run(main())


@pytest.mark.parametrize("model", [MODEL, "demo"])
def test_a_slow_load_ends_when_the_device_is_stopped(model: str) -> None:
    """At this rate the rest would take some days."""

    async def main() -> None:
        told = Told()
        async with device(load_bytes_per_s=1) as span:
            told.load(span, order(describe(model)))
            (thread,) = [one for one in threading.enumerate() if one.name == "bloombee-load"]
            span.stop()
            await asyncio.to_thread(thread.join, 60)
            assert not thread.is_alive()
            assert span._loader.store.num_bytes == 0
        assert (told.done, told.error) == (None, None)

    asyncio.run(main())


def test_a_span_beyond_the_devices_memory_is_refused_there_as_well() -> None:
    async def main() -> None:
        told = Told()
        async with device(memory_bytes=WEIGHTS) as span:
            told.load(span, order(standin_card(MODEL)))
            await asyncio.wait_for(told.over.wait(), 60)
        assert isinstance(told.error, Infeasible)
        assert told.error.fields["short_bytes"] == 160 * 3 * 2 * 64 * 2

    asyncio.run(main())


def test_a_worker_that_stands_still_while_it_loads_is_found_long_before_the_deadline_of_loading() -> None:
    stopped: list[int] = []

    async def main() -> None:
        def progress(far: LoadProgress) -> None:
            if not stopped and 0 < far.loaded_bytes < far.total_bytes:
                stopped.extend(runtime.worker_pids.values())  # and no others': swarms of other tests may run
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)

        slow = LocalWorker(load_bytes_per_s=WEIGHTS / 60)
        runtime = bloombee.Runtime(
            MODEL,
            workers=2,
            local_workers=[slow, slow],
            heartbeat_s=0.2,
            silence_s=0.4,
            load_deadline_s=600,
            on_progress=progress,
        )
        await runtime.prepare()
        try:
            with pytest.raises(LinkDown, match="nothing has come from it"):
                await asyncio.wait_for(runtime.ready(), 60)
        finally:
            await runtime.close()
        assert stopped

    asyncio.run(main())
