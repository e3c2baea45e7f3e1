from __future__ import annotations

import pytest

from bloombee.types import Lane
from bloombee.wire.liveness import RECONNECT_S, TICKS, TRIPS, LinkWatch, Liveness, LoopClock, grace_s

TICK_S = 0.025


@pytest.mark.parametrize("rtt_s", [0.0, 0.02, 0.15, 0.3, 1.0])
def test_a_link_may_be_away_for_five_round_trips_and_half_a_second_which_is_more_than_coming_back_takes(rtt_s: float) -> None:
    link = Liveness()
    link.timed(rtt_s)
    link.broke(Lane.CONTROL, 10.0)
    assert not link.is_lost(10.0 + RECONNECT_S + 5 * rtt_s)
    assert not link.is_lost(10.0 + 5 * rtt_s + 0.499)
    assert link.is_lost(10.0 + 5 * rtt_s + 0.501)


def test_one_lane_that_is_back_does_not_make_up_for_the_other() -> None:
    link = Liveness()
    link.timed(0.0)
    link.broke(Lane.BULK, 1.0)
    link.broke(Lane.CONTROL, 1.1)
    assert not link.back(Lane.CONTROL)
    assert link.away_s(2.0) == 1.0
    assert link.is_lost(2.0)
    assert link.back(Lane.BULK)
    assert link.is_whole
    assert not link.back(Lane.BULK)


def test_an_outage_is_counted_from_its_beginning() -> None:
    link = Liveness()
    for now in (1.0, 1.5, 2.0):
        link.broke(Lane.CONTROL, now)
    assert link.away_s(2.5) == 1.5


def test_a_machine_that_stalls_makes_no_link_long_and_a_longer_one_is_believed_soon() -> None:
    link = Liveness()
    assert link.grace_s == grace_s(0.5)
    link.timed(3.0)
    link.timed(0.02)
    assert link.rtt_s == 0.02
    for _ in range(TRIPS):
        link.timed(0.3)
    assert link.rtt_s == 0.3


class _Watched:
    """A link whose peer gives every question back ``rtt_s`` later, under a clock that ticks."""

    def __init__(self, rtt_s: float = 0.0) -> None:
        self.now = 50.0
        self.rtt_s = rtt_s
        self.clock = LoopClock(TICK_S)
        self.clock.tick(self.now)
        self.watch = LinkWatch(self.clock, heartbeat_s=0.1, silence_s=0.675, now=self.now)
        self.is_dark = False
        self.sent_bytes = 0
        self.bandwidth: float | None = None
        self._coming: list[tuple[float, int]] = []
        self.pass_s(3.0)

    def tick(self, seconds: float = TICK_S) -> str | None:
        self.now += seconds
        self.clock.tick(self.now)
        for at, count in [one for one in self._coming if one[0] <= self.now]:
            self._coming.remove((at, count))
            self.watch.answered(count, self.now)
        if self.watch.is_due(self.now):
            count = self.watch.ask(self.now, self.sent_bytes)
            if count is not None and not self.is_dark:
                self._coming.append((self.now + self.rtt_s, count))
        return self.watch.why_lost(self.now, lambda: self.bandwidth)

    def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            assert self.tick() is None

    def found_after_s(self) -> float:
        """Since now."""
        began = self.now
        while self.tick() is None:
            assert self.now < began + 60
        return self.now - began


@pytest.mark.parametrize("rtt_s", [0.0, 0.02, 0.1])
def test_a_hop_that_goes_dark_is_found_soon_enough_to_be_told_within_0_8_s_and_not_after_half_a_second(rtt_s: float) -> None:
    link = _Watched(rtt_s)
    link.is_dark = True
    link.pass_s(0.5)
    link.is_dark = False
    link.pass_s(2.0)
    link.is_dark = True
    link._coming.clear()
    assert 0.55 < link.found_after_s() <= 0.8 - rtt_s / 2 + 1e-9


def test_what_one_loses_again_and_again_on_a_long_way_is_not_lost() -> None:
    link = _Watched(0.3)
    link.is_dark = True
    link._coming.clear()
    link.pass_s(1.3)
    link.is_dark = False
    link.pass_s(1.0)


def test_a_process_that_stood_still_reads_first_and_judges_then() -> None:
    link = _Watched()
    for _ in range(5):
        assert link.tick(2.0) is None
    link.watch.broke(Lane.CONTROL, link.now)
    assert link.tick(2.0) is None
    assert link.watch.back(Lane.CONTROL, link.now)


def test_a_loop_that_is_often_late_waits_half_as_long_again_as_it_is_late() -> None:
    link = _Watched()
    for _ in range(60):
        assert link.tick(1.0 + TICK_S) is None
    link.pass_s(1.0)
    assert link.clock.lateness_s == pytest.approx(1.0)
    link.is_dark = True
    assert link.found_after_s() == pytest.approx(1.5, abs=0.15)
    for _ in range(TICKS):
        link.clock.tick(link.now)  # it is late no more
    assert link.clock.lateness_s == 0.0


def test_a_large_frame_on_a_slow_wire_excuses_the_silence_behind_it_and_what_has_arrived_does_not() -> None:
    link = _Watched()
    link.bandwidth = 100_000.0
    link.sent_bytes += 500_000
    link.is_dark = True  # the question waits behind the frame
    link.pass_s(5.0)
    link.watch.answered(10**6, link.now)
    assert link.found_after_s() < 0.8
    busy = _Watched()
    busy.bandwidth = 100_000.0
    busy.is_dark = True
    began = busy.now
    while busy.tick() is None:
        busy.sent_bytes += 2_500  # as much as the wire carries
    assert busy.now - began < 0.8


def test_a_link_that_is_whole_again_has_all_its_time_again() -> None:
    link = _Watched()
    link.watch.broke(Lane.BULK, link.now)
    link.pass_s(0.4)
    assert link.watch.back(Lane.BULK, link.now)
    link.is_dark = True
    link.pass_s(0.6)
