"""The window of bulk on simulated links: a full wire, a short queue, no more on its way than said."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from window_kit import SimulatedLink

from bloombee.errors import RemoteProtocolError
from bloombee.links.window import FIRST_WINDOW_BYTES, MIN_RTT_AGE_S, STALL_S, BulkWindow

MBIT = 1e6 / 8


@pytest.mark.parametrize(
    ("mbit", "rtt_s", "seconds"), [(20, 0.1, 8), (125, 0.06, 6), (500, 0.01, 3), (20, 0.002, 3), (5, 0.2, 20), (1000, 0.0005, 1)]
)
def test_the_wire_is_full_and_the_queue_short(mbit: float, rtt_s: float, seconds: float) -> None:
    link = SimulatedLink(lambda now: mbit * MBIT, rtt_s / 2).run(seconds)
    share = link.delivered / (mbit * MBIT * seconds)
    assert share > 0.9
    piece_s = link.window.piece_bytes / (mbit * MBIT)
    assert link.waits_s(0.5, since=seconds / 4) <= 2.5 * piece_s
    assert link.waits_s(0.99, since=seconds / 4) <= 4 * piece_s
    assert link.over_bytes <= 0


def test_bandwidth_and_round_trip_are_found() -> None:
    link = SimulatedLink(lambda now: 20 * MBIT, 0.05).run(5)
    assert link.window.bandwidth_bytes_per_s == pytest.approx(20 * MBIT, rel=0.03)
    assert 0.1 <= link.window.min_rtt_s < 0.104
    assert link.window.piece_bytes == pytest.approx(20 * MBIT * 0.002, rel=0.05)


def test_the_first_second_has_no_standing_queue() -> None:
    link = SimulatedLink(lambda now: 20 * MBIT, 0.05).run(1)
    first_flight_s = FIRST_WINDOW_BYTES / (20 * MBIT)
    assert link.waits_s(1.0) <= first_flight_s
    assert link.waits_s(0.95) < first_flight_s / 2
    assert link.delivered > 0.5 * 20 * MBIT


def test_more_bandwidth_is_taken_and_less_does_not_leave_a_queue() -> None:
    more = SimulatedLink(lambda now: (20 if now < 3 else 60) * MBIT, 0.05).run(12)
    assert more.window.bandwidth_bytes_per_s > 55 * MBIT
    less = SimulatedLink(lambda now: (20 if now < 3 else 10) * MBIT, 0.05).run(12)
    assert less.window.bandwidth_bytes_per_s == pytest.approx(10 * MBIT, rel=0.05)
    assert less.waits_s(0.99, since=9) < 0.02


@pytest.mark.parametrize("jitter_s", [0.0, 0.001, 0.003])
@pytest.mark.parametrize("factor", [1.1, 1.25, 2.0, 3.0])
@pytest.mark.parametrize("mbit", [20, 125])
def test_a_link_that_becomes_longer_is_full_again_soon(mbit: float, factor: float, jitter_s: float) -> None:
    """Its longer round trips look like a queue, and a window that shrinks for it does not make them shorter."""
    link = SimulatedLink(lambda now: mbit * MBIT, 0.02, jitter_s, longer=(3.0, factor)).run(9)
    assert link.share(2.0, 3.0) > 0.95
    assert link.share(5.0, 9.0) > 0.93
    assert link.waits_s(0.9, since=6) < 0.02
    shorter = SimulatedLink(lambda now: mbit * MBIT, 0.02 * factor, jitter_s, longer=(3.0, 1 / factor)).run(9)
    assert shorter.share(5.0, 9.0) > 0.93


def test_what_waits_behind_a_wire_that_became_narrower_is_no_longer_link() -> None:
    link = SimulatedLink(lambda now: (125 if now < 3 else 12.5) * MBIT, 0.02).run(10)
    assert link.window.min_rtt_s < 0.055  # a piece takes 5 ms now, and a few may be on the wire
    assert link.waits_s(0.9, since=7) < 0.03


def test_a_pause_is_not_followed_by_a_burst() -> None:
    link = SimulatedLink(lambda now: 20 * MBIT, 0.05, has_data=lambda now: now % 0.5 < 0.3).run(10)
    assert link.waits_s(1.0, since=1) < 0.03  # a window sent at once would wait for 0.1 s
    assert link.delivered > 0.9 * 0.6 * 10 * 20 * MBIT


def test_delays_that_wander_do_not_starve_it() -> None:
    link = SimulatedLink(lambda now: 100 * MBIT, 0.035, jitter_s=0.003, noise_s=0.0005).run(10)
    assert link.delivered > 0.75 * 10 * 100 * MBIT
    assert link.waits_s(0.99, since=2) < 0.03


def test_other_traffic_keeps_its_turn() -> None:
    link = SimulatedLink(lambda now: 20 * MBIT, 0.05, noise_s=0.001, other=(4096, 0.02)).run(10)
    assert link.waits_s(0.5, since=2) < 0.012
    assert link.waits_s(0.99, since=2) < 0.025
    assert link.delivered + 10 / 0.02 * 4096 > 0.93 * 10 * 20 * MBIT


def test_the_least_round_trip_is_looked_at_again() -> None:
    window = SimulatedLink(lambda now: 20 * MBIT, 0.05).run(1).window
    before = window.min_rtt_s
    link = SimulatedLink(lambda now: 20 * MBIT, 0.08, window=BulkWindow())
    link.window = window
    window.lost()
    link.run(2 * MIN_RTT_AGE_S + 1)
    assert before < 0.11
    assert 0.16 <= window.min_rtt_s < 0.17


@settings(max_examples=30, deadline=None)
@given(
    mbit=st.floats(2, 2000),
    delay_s=st.floats(0.0002, 0.15),
    jitter_s=st.floats(0, 0.01),
    noise_s=st.floats(0, 0.01),
    seed=st.integers(0, 2**32),
)
def test_never_more_on_its_way_than_the_window(mbit: float, delay_s: float, jitter_s: float, noise_s: float, seed: int) -> None:
    seconds = 1.0 if mbit > 200 else 3.0
    link = SimulatedLink(lambda now: mbit * MBIT, delay_s, jitter_s=jitter_s, noise_s=noise_s, seed=seed).run(seconds)
    assert link.over_bytes <= 0
    assert link.delivered > 0
    assert link.window.unacked_bytes >= 0


def test_acknowledgements_are_cumulative_and_harmless_when_repeated() -> None:
    window = BulkWindow()
    for _ in range(4):
        assert window.wait_s(1.0, 1000) == 0
        window.sent(1000, 1.0)
    window.acked(3, 1.1)
    assert window.unacked_bytes == 1000
    for upto in (3, 1, 0, 3):
        window.acked(upto, 1.2)
        assert window.unacked_bytes == 1000
    window.acked(4, 1.3)
    assert window.unacked_bytes == 0


def test_an_acknowledgement_of_what_was_never_sent_is_a_lie() -> None:
    window = BulkWindow()
    window.sent(1000, 1.0)
    with pytest.raises(RemoteProtocolError) as caught:
        window.acked(2, 1.1)
    assert caught.value.fields["path"] == "PieceAck.upto"
    assert window.unacked_bytes == 1000


def test_a_full_window_waits_for_an_acknowledgement_but_not_forever() -> None:
    window = BulkWindow()
    while window.wait_s(1.0, 8192) == 0:
        window.sent(8192, 1.0)
    assert window.unacked_bytes <= FIRST_WINDOW_BYTES
    assert window.wait_s(1.0, 8192) == pytest.approx(STALL_S)
    assert window.wait_s(1.0 + STALL_S - 0.1, 8192) == pytest.approx(0.1)
    assert window.wait_s(1.0 + STALL_S, 8192) == 0
    assert window.unacked_bytes == 0
    number = window.sent(8192, 1.0 + STALL_S)
    assert number == window.next_number - 1 == FIRST_WINDOW_BYTES // 8192
    window.acked(3, 7.0)  # of those taken for lost
    assert window.unacked_bytes == 8192


def test_a_lost_connection_leaves_numbers_and_nothing_else() -> None:
    window = SimulatedLink(lambda now: 20 * MBIT, 0.05).run(1).window
    number = window.next_number
    window.lost()
    assert (window.next_number, window.unacked_bytes, window.window_bytes) == (number, 0, FIRST_WINDOW_BYTES)
    assert (window.bandwidth_bytes_per_s, window.min_rtt_s) == (0.0, math.inf)
