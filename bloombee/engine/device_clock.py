"""How long the device works on something, counted until it is done and without waiting for that.

A GPU is handed its work and does it later: a clock read after the last launch has seen launches. Two events in the
device's own order of work tell the truth, once the second has come to pass; until then nobody asks twice and nobody waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

Report = Callable[[int], None]
"""Called with nanoseconds."""


class Event(Protocol):
    """A point in a device's order of work; ``torch.cuda.Event`` is one."""

    def record(self, stream: Any) -> None: ...

    def query(self) -> bool:
        """Whether the device has come to it."""
        ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from here to ``end``; both have come to pass."""
        ...


class DeviceClock(Protocol):
    """Of one device."""

    def begin(self) -> Any:
        """A mark: what is asked of the device from now on."""
        ...

    def end(self, mark: Any, report: Report) -> None:
        """What was asked since ``mark`` is to be reported, once, when the device has done it: now, or in :meth:`settle`."""
        ...

    def settle(self) -> None:
        """Report what is done by now. Does not wait for the rest."""
        ...


class HostClock:
    """Of a device that has done its work when the call returns."""

    def begin(self) -> int:
        return time.perf_counter_ns()

    def end(self, mark: int, report: Report) -> None:
        report(time.perf_counter_ns() - mark)

    def settle(self) -> None:
        """Nothing is ever open."""


class EventClock:
    """Of a device that works on after the call has returned. One thread begins and ends, one settles.

    Args:
        new_event: makes an event that keeps time. stream: in whose order they are recorded.
    """

    def __init__(self, new_event: Callable[[], Event], stream: Any) -> None:
        self._new_event = new_event
        self._stream = stream
        self._open: list[tuple[Event, Event, Report]] = []
        self._lock = threading.Lock()

    def begin(self) -> Event:
        return self._record()

    def end(self, mark: Event, report: Report) -> None:
        stop = self._record()
        with self._lock:
            self._open.append((mark, stop, report))

    def settle(self) -> None:
        with self._lock:
            done = [one for one in self._open if one[1].query()]
            self._open = [one for one in self._open if one not in done]
        for start, stop, report in done:
            report(round(1e6 * start.elapsed_time(stop)))

    def _record(self) -> Event:
        event = self._new_event()
        event.record(self._stream)
        return event


def clock_of(device: torch.device) -> DeviceClock:
    """The clock that ``device`` needs. Of a GPU: of the stream that is current in this thread."""
    if device.type != "cuda":
        return HostClock()
    return EventClock(partial(torch.cuda.Event, enable_timing=True), torch.cuda.current_stream(device))


def seconds_of(clock: DeviceClock, run: Callable[[], Any], wait: Callable[[Any], None]) -> float:
    """Of the device, for ``run``; ``wait`` is handed its result and returns when the device is done."""
    spent: list[int] = []
    mark = clock.begin()
    result = run()
    clock.end(mark, spent.append)
    wait(result)
    clock.settle()
    return sum(spent) / 1e9
