"""The time of a device that works on after the call has returned: that of its events, once each, when it is known."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from bloombee.engine import attention, device_clock
from bloombee.engine.device_clock import EventClock, HostClock, clock_of, seconds_of
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.loading import Loader
from bloombee.roles.work_thread import WorkThread
from bloombee.types import Phase


@dataclass
class Device:
    """A GPU whose events come to pass when the test says so, whatever was launched when."""

    now_ms: float = 0.0
    made: list[Event] = field(default_factory=list)

    def new_event(self) -> Event:
        self.made.append(Event(self))
        return self.made[-1]

    def reach(self, count: int, at_ms: float) -> None:
        """The device comes to the first ``count`` events, those not yet reached at ``at_ms``."""
        for event in self.made[:count]:
            event.at_ms = at_ms if event.at_ms is None else event.at_ms


@dataclass
class Event:
    device: Device
    at_ms: float | None = None
    streams: list[Any] = field(default_factory=list)

    def record(self, stream: Any) -> None:
        self.streams.append(stream)

    def query(self) -> bool:
        return self.at_ms is not None

    def elapsed_time(self, end: Event) -> float:
        assert self.at_ms is not None
        assert end.at_ms is not None, "asked before it is known"
        return end.at_ms - self.at_ms


def test_a_device_that_lags_is_reported_late_once_and_by_its_own_time() -> None:
    device, reported = Device(), []
    clock = EventClock(device.new_event, "stream")
    for number in range(3):
        clock.end(clock.begin(), lambda ns, number=number: reported.append((number, ns)))
    clock.settle()
    assert reported == [], "launched, not done"
    device.reach(1, 10.0)
    clock.settle()
    assert reported == [], "begun, not done"
    device.reach(2, 14.5)
    clock.settle()
    clock.settle()
    assert reported == [(0, 4_500_000)]
    device.reach(4, 15.0)
    device.reach(6, 22.0)
    clock.settle()
    clock.settle()
    assert reported == [(0, 4_500_000), (1, 0), (2, 0)]
    assert all(event.streams == ["stream"] for event in device.made)


def test_what_is_done_is_reported_though_earlier_work_is_not() -> None:
    device, reported = Device(), []
    clock = EventClock(device.new_event, None)
    for number in range(2):
        clock.end(clock.begin(), lambda ns, number=number: reported.append(number))
    device.made[2].at_ms, device.made[3].at_ms = 1.0, 2.0
    clock.settle()
    assert reported == [1]
    device.reach(2, 9.0)
    clock.settle()
    assert reported == [1, 0]


def test_a_measured_pass_takes_the_devices_time_and_not_the_hosts() -> None:
    device = Device()

    def run() -> str:
        return "rows"

    def wait(result: str) -> None:
        assert result == "rows"
        device.made[0].at_ms, device.made[1].at_ms = 100.0, 350.0

    assert seconds_of(EventClock(device.new_event, None), run, wait) == 0.25


def test_the_host_is_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(clock_of(torch.device("cpu")), HostClock)
    ticks = iter([5, 12])
    monkeypatch.setattr(device_clock, "time", SimpleNamespace(perf_counter_ns=lambda: next(ticks)))
    reported: list[int] = []
    clock = HostClock()
    clock.end(clock.begin(), reported.append)
    clock.settle()
    assert reported == [7]


def test_a_stages_busy_time_is_the_devices() -> None:
    """What the control core and the cost model go by: a forward whose launches take no time keeps the device busy for 3 s."""
    device = Device()
    work = Work(1, 1, 7, 7, Phase.DECODE, (Segment(1, 0, 4, bytes(8), 0, (Pages((0,)),)),))

    class Model:
        def run(self, *_: Any) -> list[Any]:
            return []

    async def run() -> SpanExecutor:
        queue = WorkThread(asyncio.get_running_loop())
        span = SpanExecutor(queue, Loader())
        span._model, span._clock = Model(), EventClock(device.new_event, None)
        done: asyncio.Queue[Any] = asyncio.Queue()
        for _ in range(2):
            span.run(work, on_done=done.put_nowait, on_error=done.put_nowait)
            await asyncio.wait_for(done.get(), 30)
            device.made[-2].at_ms, device.made[-1].at_ms = 1000.0, 4000.0
        queue.stop()
        return span

    tally = asyncio.run(run()).tally(Phase.DECODE)
    assert (tally.works, tally.rows, tally.ns) == (1, 2, 3_000_000_000), "the second is not known to be done"


def test_attention_on_a_gpu_is_chosen_and_never_cudnns(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with attention.kernels(torch.device("cuda:1")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        order = torch._C._get_sdp_priority_order()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before, "nothing is left changed"
    assert order[:2] == [int(kind.value) for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)]
    with attention.kernels(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
