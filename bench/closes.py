"""What the end of a sequence costs each core while an older one goes on, for bench/micro.py."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.probes import PAGE, Row, row
from bloombee.pipeline.events import Cancel, Computed, FromStage, Greeted, Open, PlanWired, StageReceived
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Outcome
from bloombee.plan.plan import Plan, StagePlan
from bloombee.types import Dtype, Kind, Lane, PageGroup, Priority, Span
from bloombee.wire.messages import (
    Ack,
    Close,
    Closed,
    Forward,
    Group,
    Item,
    Load,
    Opening,
    Resume,
    Resumed,
    Sampling,
    Verdict,
    Wire,
)

GREEDY = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)
AFTER = (100, 12_000)


def measure_closes(rounds: int) -> list[Row]:
    """Of sequences that one after the other begin and end: around the hundredth, and around the 12,000th."""
    rows = []
    for name, make in {"scheduler": _scheduler, "stage": _stage}.items():
        end = make()
        times = [1e6 * end(number) for number in range(1, AFTER[-1] + 50)]
        rows += [row(f"close on a {name}, no. {after:,}", "us", times[after - 50 : after + 49]) for after in AFTER]
    return rows


def _scheduler() -> Callable[[int], float]:
    """Opens sequence ``number`` and cancels it; seconds of processor time from there until its stage has confirmed."""
    core = SchedulerCore(max_rows=256, resend_after_s=5.0, step_deadline_s=600.0)
    groups = (PageGroup(0, 256),)
    stage = StagePlan(0, 1, "w", Span(0, 1), 0, 0, groups)
    core.handle(PlanWired(Plan(1, 1, "m", Dtype.FLOAT32, 1, groups, PAGE, 4, (stage,)).ring, 0.0))
    core.handle(FromStage(0, Resume(1, 1, ()), 0.0))
    core.handle(Open(0, bytes(4), GREEDY, 1000, frozenset(), 0.0))

    def end(number: int) -> float:
        core.handle(Open(number, bytes(4), GREEDY, 2, frozenset(), 0.0, client=f"client {number}"))
        core.handle(FromStage(0, Ack(1, 1, Lane.CONTROL, number, (), number, number + 9, 0), 0.0))  # who has nothing open passes
        core.handle(FromStage(0, Verdict(1, 1, number - 1, number, (), None), 0.0))
        start = time.thread_time()
        core.handle(Cancel(number, 0.0))
        core.handle(FromStage(0, Closed(1, 1, (number,), 0, 0), 0.0))
        return time.thread_time() - start

    return end


def _stage() -> Callable[[int], float]:
    """Has a row of sequence ``number`` computed; seconds of processor time that its Close takes."""
    core = StageCore(
        Load(1, 1, 0, 1, 2, "m", bytes(16), (), "float32", (Group(0, 256),), PAGE, 0, None, (), ()), resend_after_s=5.0
    )
    core.handle(StageReceived(Wire(1, 1, 1, 0, 2, 8, 256, None, None, None, (), None, False, 1, False), 0.0))
    core.handle(Greeted(1, 0.0))
    core.handle(StageReceived(Resumed(1, 1), 0.0))
    core.handle(StageReceived(Resume(1, 1, ()), 0.0))

    def serve(number: int) -> None:
        item = Item(number, 0, Kind.PROMPT, 0, bytes(4), 1, Opening(1, GREEDY, 2, (), (), None, None), None)
        core.handle(StageReceived(Forward(1, 1, number, number, Lane.CONTROL, Priority.NOW, (item,)), 0.0))
        core.handle(Computed(Outcome(number, hidden=b"", num_bytes=1), 0.0))
        core.handle(StageReceived(Ack(1, 1, Lane.CONTROL, number + 1, (), number + 1, number + 9, 0), 0.0))

    def end(number: int) -> float:
        serve(number)
        close = StageReceived(Close(1, 1, (number,), 0), 0.0)
        start = time.thread_time()
        core.handle(close)
        return time.thread_time() - start

    serve(0)
    return end
