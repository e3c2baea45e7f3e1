"""Parts of one process for bench/micro.py: pages, the way to the device thread and back, the cores. A probe returns rows."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import uvloop

from bench.spread import quantile
from bloombee.kv.pool import PagePool, PageTable
from bloombee.pace import Pace
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Outcome, Work
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.loading import Loader
from bloombee.roles.work_thread import WorkThread
from bloombee.sim.cluster import SimCluster
from bloombee.types import Phase
from bloombee.wire.messages import Load

PAGE = 16
STAGES, SEQUENCES, TOKENS, MICROBATCHES = 3, 32, 64, 4


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity over many samples."""

    what: str
    unit: str
    median: float
    p10: float
    p90: float
    note: str = ""


def row(what: str, unit: str, samples: Sequence[float], note: str = "") -> Row:
    """Raises ValueError for no samples."""
    if not samples:
        raise ValueError(f"{what}: no samples")
    return Row(what, unit, quantile(samples, 0.5), quantile(samples, 0.1), quantile(samples, 0.9), note)


def call_ns(call: Callable[[], object], *, batches: int = 20, calls: int = 1000) -> list[float]:
    """Nanoseconds of one call, a mean of each batch."""
    times = []
    for _ in range(batches):
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        times.append((time.perf_counter_ns() - start) / calls)
    return times


# -- page tables -------------------------------------------------------------------------------


def measure_pages(rounds: int) -> list[Row]:
    """Growing, reading and cutting the page table of a sequence, in a pool that others use too."""
    pool = PagePool(1 << 16, PAGE)
    others = [PageTable(pool) for _ in range(64)]
    for number, other in enumerate(others):
        other.place(0, 100 + 37 * number)
    table = PageTable(pool)

    def decode() -> None:
        for position in range(1024, 1024 + PAGE):
            table.place(position, position + 1)

    def back(to: int) -> None:
        table.truncate(to)

    def there_and_back() -> None:
        decode()
        back(1024)

    table.place(0, 1024)
    step = [ns / PAGE for ns in call_ns(there_and_back, calls=200)]
    read = call_ns(lambda: table.pages, calls=200)
    table.truncate(0)

    def prompt() -> None:
        table.place(0, 1024)
        back(0)

    whole = call_ns(prompt, calls=100)
    return [
        row("place a token, 1 page in 16", "ns", step, "the page's return included"),
        row("read the pages of 1,024 tokens", "ns", read),
        row("place 1,024 tokens and free them", "ns", whole, f"{1024 // PAGE} pages"),
    ]


# -- the device thread -------------------------------------------------------------------------


def measure_device(rounds: int) -> list[Row]:
    """Event loop -> device thread -> event loop with a work that holds nothing, one at a time and two at a time."""
    rows = []
    for depth in (1, 2):
        times = uvloop.run(_hand_off(rounds, depth))
        what = "device hand-off, there and back" if depth == 1 else "the same, two works under way"
        rows.append(row(what, "us", [1e6 * seconds for seconds in times], "" if depth == 1 else "time a work"))
    return rows


async def _hand_off(rounds: int, depth: int) -> list[float]:
    """Seconds a work of each turn of ``depth`` works."""
    queue = WorkThread(asyncio.get_running_loop())
    device = SpanExecutor(queue, Loader())
    back = asyncio.Event()
    left = 0

    def done(_: Outcome) -> None:
        nonlocal left
        left -= 1
        if not left:
            back.set()

    def failed(error: Exception) -> None:
        raise error

    times = []
    try:
        for number in range(rounds + 50):
            left = depth
            back.clear()
            start = time.perf_counter()
            for _ in range(depth):
                device.run(Work(0, 0, number, number, Phase.DECODE, ()), on_done=done, on_error=failed)
            await back.wait()
            if number >= 50:
                times.append((time.perf_counter() - start) / depth)
    finally:
        queue.stop()
    return times


# -- the cores ---------------------------------------------------------------------------------


class _Recorder:
    """A core whose events are kept, to be handled again by a new one."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.events: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def handle(self, event: Any) -> Any:
        self.events.append(event)
        return self.core.handle(event)


class _Recorded(SimCluster):
    """The simulated cluster; every core's events are kept."""

    def __init__(self, **arguments: Any) -> None:
        self.loads: dict[int, Load] = {}
        super().__init__(**arguments)
        self.head.scheduler = cast(SchedulerCore, _Recorder(self.head.scheduler))

    def make_core(self, load: Load) -> StageCore:
        self.loads[self.stage_of(load)] = load
        return cast(StageCore, _Recorder(super().make_core(load)))


def measure_cores(rounds: int) -> list[Row]:
    """Events a second of processor time that each core handles, of a ring with all sequences under way at once."""
    limits: dict[str, Any] = {"max_rows": 256, "resend_after_s": 5.0, "step_deadline_s": 600.0}
    ring = _Recorded(
        seed=0, num_stages=STAGES, num_microbatches=MICROBATCHES, num_pages=1 << 12, page_size=PAGE, pace=Pace(0.002, 1e-4, 1e-4),
        **limits,
    )  # fmt: skip
    for number in range(SEQUENCES):
        ring.submit(list(range(20 + number % 7)), max_new_tokens=TOKENS, seed=number)
    if not ring.run():
        raise RuntimeError("the simulated ring did not come to its end")
    tokens = sum(len(request.tokens) for request in ring.requests.values())
    cores: dict[str, tuple[_Recorder, Callable[[], Any]]] = {
        "scheduler core": (cast(_Recorder, ring.scheduler), lambda: SchedulerCore(**limits))
    }
    for name, stage in {"first": 0, "middle": 1, "last": STAGES - 1}.items():
        new = partial(StageCore, ring.loads[stage], resend_after_s=limits["resend_after_s"])
        cores[f"{name} stage's core"] = (cast(_Recorder, ring.stages[stage]), new)
    rows = []
    for name, (recorded, make) in cores.items():
        rates = [_replay(recorded.events, make()) for _ in range(max(10, min(rounds // 20, 50)))]
        count = len(recorded.events)
        per_token = 1e6 * count / statistics.median(rates) / tokens
        rows.append(row(name, "events/s", rates, f"{count} events, {count / tokens:.2f} and {per_token:.1f} us a token"))
    return rows


def _replay(events: list[Any], core: Any) -> float:
    """Events a second of this thread's processor time. Cores are deterministic: it does all that it did in the ring."""
    handle = core.handle
    start = time.thread_time_ns()
    for event in events:
        handle(event)
    return 1e9 * len(events) / (time.thread_time_ns() - start)
