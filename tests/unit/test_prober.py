"""Probing by the clock of a link that is made here: found where it can be, a hundredth of the time, silent where it must be."""

from __future__ import annotations

import math

import pytest

from bloombee.links.prober import FIRST_BYTES, IDLE_S, LONGEST_S, STALE_S, Prober

LEAST_S = 0.01


def wants(prober: Prober, now: float, **known: float) -> int:
    facts = {"idle_s": 10.0, "sampled_at": -math.inf, "bandwidth": None, "least_train_s": LEAST_S} | known
    return prober.wants(now, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("mbit", [1, 5, 20, 100, 500])
@pytest.mark.parametrize("rtt_s", [0.001, 0.02, 0.3])
def test_a_train_becomes_long_enough_and_all_of_them_take_a_hundredth_of_the_time(mbit: float, rtt_s: float) -> None:
    rate = mbit * 1e6 / 8
    prober, now, busy_s, longest_s, sampled_at = Prober(), 0.0, 0.0, 0.0, -math.inf
    while now < 200:
        known = {"sampled_at": sampled_at, "bandwidth": rate} if sampled_at > 0 else {}
        size = wants(prober, now, **known)
        if size:
            prober.sent(size, now)
            assert wants(prober, now) == 0  # one at a time
            took_s = size / rate
            busy_s, longest_s = busy_s + took_s, max(longest_s, took_s)
            now += took_s + rtt_s
            prober.answered(now, base_rtt_s=rtt_s, least_train_s=LEAST_S)
            sampled_at = now if took_s >= LEAST_S else sampled_at
        now += 0.1
    assert sampled_at > 100  # and again once it is stale
    assert busy_s <= 0.01 * 200
    assert longest_s <= max(LONGEST_S, FIRST_BYTES / rate)


def test_none_where_frames_have_shown_it_or_are_on_their_way() -> None:
    assert wants(Prober(), 100.0) == FIRST_BYTES
    assert wants(Prober(), 100.0, sampled_at=100.0 - STALE_S / 2, bandwidth=1e6) == 0
    assert wants(Prober(), 100.0, idle_s=IDLE_S / 2) == 0
    assert wants(Prober(), 100.0, bandwidth=1e6, least_train_s=LONGEST_S) == 0  # it would be in the way for too long


def test_a_link_that_is_too_fast_is_left_alone_for_a_while() -> None:
    prober, now, count = Prober(), 0.0, 0
    while now < STALE_S / 2:
        if size := wants(prober, now):
            prober.sent(size, now)
            now, count = now + 0.0002, count + 1
            prober.answered(now, base_rtt_s=0.0001, least_train_s=LEAST_S)
        now += 0.1
    assert 2 <= count <= 8


def test_what_was_lost_is_not_waited_for() -> None:
    prober = Prober()
    prober.sent(FIRST_BYTES, 0.0)
    assert wants(prober, 1000.0) == 0
    prober.lost()
    prober.answered(1000.0, base_rtt_s=0.0, least_train_s=LEAST_S)
    assert wants(prober, 1000.0) == FIRST_BYTES
