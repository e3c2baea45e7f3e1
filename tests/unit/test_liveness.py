from __future__ import annotations

import pytest

from bloombee.types import Lane
from bloombee.wire.liveness import RECONNECT_S, Liveness, grace_s


@pytest.mark.parametrize("rtt_s", [0.0, 0.02, 0.15, 0.3, 1.0])
def test_a_link_may_be_away_for_as_long_as_coming_back_takes_and_five_round_trips_and_half_a_second(rtt_s: float) -> None:
    comes_back_after = RECONNECT_S + 5 * rtt_s
    link = Liveness()
    link.timed(rtt_s)
    link.broke(Lane.CONTROL, 10.0)
    assert not link.is_lost(10.0 + comes_back_after + 5 * rtt_s + 0.499)
    assert link.is_lost(10.0 + comes_back_after + 5 * rtt_s + 0.501)


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
    for _ in range(8):
        link.timed(0.3)
    assert link.rtt_s == 0.3
