"""Works that go through layers that stream together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from bloombee.errors import BloomBeeError, CorruptPayload, DeviceError, WeightsUnavailable
from bloombee.pipeline.work import Outcome, Segment, Work
from bloombee.roles.wave import Run, Wave
from bloombee.types import Phase


class Device:
    """Runs what a wave puts, when it is told to; its model fails at what is numbered 13, its disk at 14, its decoder at 7."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.waves: list[list[int]] = []
        self.done: list[int] = []
        self.errors: dict[int, Exception] = {}
        self.outcomes: list[Outcome] = []
        self.wave = Wave(self, self, self.decode, lambda run, spent: None, self.finish)  # type: ignore[arg-type]

    def put(self, task: Callable[[], None]) -> None:
        self.tasks.put(task)

    def post(self, action: Callable[..., None], *args: object) -> None:
        action(*args)

    def run_together(self, works: list[tuple[Work, object]]) -> list[object]:
        self.waves.append([work.number for work, _ in works])
        errors = {13: DeviceError("no"), 14: WeightsUnavailable("no")}
        return [errors.get(work.number, work.number) for work, _ in works]

    def decode(self, work: Work) -> object:
        if work.number == 7:
            raise CorruptPayload("no")
        return "rows"

    def finish(self, run: Run, on_done: Callable[[Outcome], None], on_error: Callable[[BloomBeeError], None]) -> None:
        if run.error is not None:
            self.errors[run.work.number] = run.error
        else:
            assert run.result is None or run.result() == run.work.number
            self.done.append(run.work.number)

    def ask(self, *numbers: int, empty: bool = False) -> None:
        for number in numbers:
            segments = () if empty else (Segment(number, 0, 0, bytes(4), 0, ()),)
            work = Work(1, 1, number, number, Phase.DECODE, segments, hidden="frame")
            self.wave.ask(work, self.outcomes.append, lambda _: None)

    def run(self) -> None:
        while not self.tasks.empty():
            self.tasks.get()()


def test_all_that_wait_go_together_in_order_and_once() -> None:
    device = Device()
    device.ask(3, 4, 5)
    device.run()
    assert (device.waves, device.done) == ([[3, 4, 5]], [3, 4, 5])


def test_what_fails_alone_ends_alone_and_what_has_no_rows_runs_nothing() -> None:
    device = Device()
    device.ask(6, 7, 13, 14)
    device.ask(15, empty=True)
    device.ask(16)
    device.run()
    assert device.waves == [[6, 13, 14, 16]]
    assert device.done == [6, 15, 16]
    assert device.outcomes == [Outcome(14, failed=True)], "its rows go without weights: nothing else is wrong with the device"
    assert {number: type(error) for number, error in device.errors.items()} == {7: CorruptPayload, 13: DeviceError}


def test_a_wave_that_has_fallen_apart_comes_together_again() -> None:
    """One came alone and seven meanwhile: the next wave, of that one, waits for those seven to be back."""
    device = Device()
    device.ask(*range(20, 27))
    device.run()
    device.wave._wave_s = 1e6
    device.ask(0)
    taker = threading.Thread(target=device.run)
    taker.start()
    for number in range(1, 7):
        assert taker.is_alive()
        device.ask(number)
    taker.join()
    device.run()
    assert device.waves[1:] == [list(range(7))]


def test_what_does_not_come_is_not_waited_for_longer_than_it_saves() -> None:
    device = Device()
    device.ask(*range(20, 28))
    device.run()
    device.wave._wave_s = 0.0
    device.ask(1)
    device.run()
    assert device.waves[1:] == [[1]]
