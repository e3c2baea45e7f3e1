"""A device that works on after it was asked: it is asked for the next work at once, and is told of in the order of the works."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import torch

from bloombee.engine.device_clock import HostClock
from bloombee.errors import BloomBeeError, DeviceError
from bloombee.pipeline.work import Outcome, Pages, Segment, Work
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.loading import LoadedSpan, Loader
from bloombee.roles.work_thread import WorkThread
from bloombee.types import Dtype, Phase, Span
from bloombee.wire.messages import Load


class Later:
    """A result that comes when it is told to."""

    def __init__(self) -> None:
        self.come = threading.Event()

    def result(self) -> list[Any]:
        assert self.come.wait(30)
        return []


class Model:
    """Its third forward fails when it is asked for."""

    def __init__(self) -> None:
        self.launched: list[Later] = []
        self.all_asked = threading.Event()
        self.is_closed = threading.Event()

    def launch(self, *_: Any, stay: bool) -> Later:
        assert not stay
        self.launched.append(Later())
        if len(self.launched) == 3:
            self.all_asked.set()
            raise RuntimeError("the device is gone")
        return self.launched[-1]

    def close(self) -> None:
        self.is_closed.set()


def work(number: int) -> Work:
    return Work(1, 1, number, number, Phase.DECODE, (Segment(1, 0, 4, bytes(4), 0, (Pages((0,)),)),))


def test_works_are_launched_beside_others_and_told_in_order() -> None:
    async def run() -> list[Outcome | BloomBeeError]:
        queue, model = WorkThread(asyncio.get_running_loop()), Model()
        span = SpanExecutor(queue, Loader())
        span._model, span._clock, span._results = model, HostClock(), queue.beside("results")
        told: asyncio.Queue[Outcome | BloomBeeError] = asyncio.Queue()
        for number in range(3):
            span.run(work(number), on_done=told.put_nowait, on_error=told.put_nowait)
        assert await asyncio.to_thread(model.all_asked.wait, 30), "none waits for what comes of the one before"
        assert told.empty()
        model.launched[1].come.set()
        model.launched[0].come.set()
        got = [await asyncio.wait_for(told.get(), 30) for _ in range(3)]
        span.stop()
        assert await asyncio.to_thread(model.is_closed.wait, 30)
        queue.stop()
        return got

    first, second, third = asyncio.run(run())
    assert isinstance(first, Outcome)
    assert isinstance(second, Outcome)
    assert (first.number, second.number) == (0, 1)
    assert isinstance(third, DeviceError)
    assert "the device is gone" in str(third)


class Streaming:
    """Layers that stream, on a device that is not this machine's processor."""

    stream, device, hidden_size, span = object(), torch.device("meta"), 8, Span(0, 2)

    def warm_up(self) -> list[Any]:
        return []


def test_what_comes_of_layers_that_stream_is_waited_for_and_encoded_on_one_thread() -> None:
    """A sender is one thread's: a wave tells what came of it on the device's, and rows are gathered there too."""

    async def run() -> SpanExecutor:
        queue = WorkThread(asyncio.get_running_loop())
        span = SpanExecutor(queue, Loader())
        load = Load(1, 1, 0, 2, 2, "m", bytes(16), (), "float32", (), 4, 0, None, (), ())
        span._take(LoadedSpan(Streaming(), Dtype.FLOAT32, None), load, lambda _: None)
        queue.stop()
        return span

    span = asyncio.run(run())
    assert span._wave is not None
    assert span._results is None
