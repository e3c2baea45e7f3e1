"""A link told from its own frames: a queue and a delay made here, found again by the estimator."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meter_kit import MBIT, FakeLink, TwoLanes, circulate, feed

from bloombee.links.estimator import PART_BYTES, Ewma, LinkEstimator, LinkFacts, PageHinkley
from bloombee.links.frames import LinkMeter
from bloombee.types import Lane
from bloombee.wire.messages import Ack

GRID = [(mbit, rtt_ms) for mbit in (1, 5, 20, 100, 300, 1000) for rtt_ms in (1, 5, 20, 100, 300)]


@pytest.mark.parametrize(("mbit", "rtt_ms"), GRID)
def test_where_a_queue_stood_bandwidth_is_found_within_a_tenth_and_elsewhere_it_is_unknown(mbit: float, rtt_ms: float) -> None:
    """Bulk, decode frames, both overtaking each other; jitter from none to more than some of the round trips."""
    rate, rtt = mbit * MBIT, rtt_ms / 1e3
    seconds = 2.0 if mbit >= 300 else 6.0
    for jitter in (0.0, 0.001, 0.003):
        known = {
            "bulk": TwoLanes(rate, rtt, jitter).run(seconds, bulk=True),
            "both": TwoLanes(rate, rtt, jitter).run(seconds, control=(max(300, int(rate * 0.005)), 0.02), bulk=True),
            "a queue of decode frames": TwoLanes(rate, rtt, jitter).run(4, control=(int(rate * 0.03), 0.025)),
            "a large frame now and then": TwoLanes(rate, rtt, jitter).run(seconds, control=(int(rate * 0.1), 0.5)),
        }
        light = TwoLanes(rate, rtt, jitter).run(3, control=(max(300, int(rate * 0.003)), 0.05))
        for what, facts in known.items():
            bandwidth = facts.bandwidth_bytes_per_s
            # A queue of two milliseconds is no queue where round trips vary by three, nor while a window still grows.
            may_be_unknown = what in ("bulk", "both") and (
                mbit == 1000 or (mbit == 300 and rtt_ms == 300) or (mbit >= 100 and jitter > 0)
            )
            assert (bandwidth is None and may_be_unknown) or bandwidth == pytest.approx(rate, rel=0.1), (what, jitter)
        assert light.bandwidth_bytes_per_s is None
        assert light.base_rtt_s is not None
        assert rtt <= light.base_rtt_s <= rtt + 2 * jitter + 0.006


@given(st.floats(1e5, 1e8), st.floats(0.001, 0.4), st.integers(2_000, 200_000))
@settings(max_examples=60, deadline=None)
def test_bandwidth_and_round_trip_are_found(rate: float, rtt: float, size: int) -> None:
    link = FakeLink(rate, rtt)
    estimator = LinkEstimator()
    now = feed(estimator, link, [100] * 6, start=1.0, every_s=rtt + 1)
    # Twice as many bytes as the link carries, for as long as a hundred frames take: a queue stands.
    feed(estimator, link, [size] * 100, start=now, every_s=size / rate / 2)
    facts = estimator.facts()
    if 98 * size / rate < 0.01:
        assert facts.bandwidth_bytes_per_s is None  # too short a train to say anything
    if 95 * size / rate < 0.06:
        return
    assert facts.bandwidth_bytes_per_s == pytest.approx(rate, rel=0.05)
    assert facts.fast_bytes_per_s == pytest.approx(rate, rel=0.05)
    assert facts.bandwidth_low_bytes_per_s is not None
    assert rate / 2.2 <= facts.bandwidth_low_bytes_per_s <= rate * 1.05
    assert facts.num_frames == 106
    assert facts.num_bytes == 600 + 100 * size


def test_small_frames_on_an_idle_link_tell_its_length_and_nothing_of_its_width() -> None:
    estimator = LinkEstimator()
    feed(estimator, FakeLink(1e6, 0.08, jitter_s=0.004), [90] * 200, start=0.0, every_s=0.2)
    facts = estimator.facts()
    assert facts.rtt_s == pytest.approx(0.082, rel=0.01)
    assert 0.0005 < facts.rtt_std_s < 0.003
    assert facts.base_rtt_s == pytest.approx(0.08, rel=0.01)
    assert facts.bandwidth_bytes_per_s is facts.bandwidth_low_bytes_per_s is None
    link = facts.as_link()
    assert link is not None
    assert link.latency_s == pytest.approx(0.04, rel=0.01)
    assert link.bandwidth_bytes_per_s == math.inf


def test_a_machine_that_stalls_now_and_then_has_no_jittery_link() -> None:
    """Else no train would ever be long enough."""
    link, rng = FakeLink(2.5e6, 0.04, jitter_s=0.002), random.Random(2)
    estimator = LinkEstimator()
    for number in range(50):
        back, _ = link.carry(200, number * 1.0)
        stall_s = 0.07 if rng.random() < 0.1 else 0.0
        estimator.acknowledged(1, 200, number * 1.0, back + stall_s, 0.0)
    assert estimator.facts().rtt_std_s > 0.01
    assert estimator.least_train_s < 0.03
    feed(estimator, link, [50_000] * 6, start=50.0, every_s=0.01)
    assert estimator.facts().bandwidth_bytes_per_s == pytest.approx(2.5e6, rel=0.1)


def test_what_is_expected_of_a_link_is_its_mean_and_what_a_plan_may_count_on_is_less() -> None:
    estimator = LinkEstimator()
    link = FakeLink(2.5e6, 0.04)
    now = feed(estimator, link, [200] * 6, start=0.0, every_s=0.5)
    feed(estimator, link, [50_000] * 4, start=now, every_s=0.01)
    expected, sure = estimator.facts().as_expected(), estimator.facts().as_link()
    assert expected is not None
    assert sure is not None
    assert expected.bandwidth_bytes_per_s == pytest.approx(2.5e6, rel=0.02)
    assert 0.5 * 2.5e6 < sure.bandwidth_bytes_per_s < 0.9 * 2.5e6
    assert expected.latency_s == sure.latency_s


def test_one_large_frame_now_and_then_is_enough() -> None:
    estimator = LinkEstimator()
    link = FakeLink(2.5e6, 0.06, jitter_s=0.002)
    feed(estimator, link, [100, 100, 100, 500_000] * 10, start=0.0, every_s=1.0)
    facts = estimator.facts()
    assert facts.bandwidth_bytes_per_s == pytest.approx(2.5e6, rel=0.05)
    assert facts.rtt_s == pytest.approx(0.061, rel=0.02)


def test_a_large_frame_that_is_quicker_than_the_small_ones_says_nothing_and_breaks_nothing() -> None:
    """Small frames were slow (a machine at its limits), a large one alone is there before they would have been: it left the wire
    no sooner than it was handed over. What follows steadily behind a short queue is taken as ever."""
    link = LinkEstimator()
    now = 0.0
    for _ in range(30):
        link.acknowledged(1, 200, now, now + 0.050, 0.0)
        now += 0.5
    for _ in range(4):
        link.acknowledged(1, 200_000, now, now + 0.010, 0.0)
        now += 0.5
        link.acknowledged(1, 200, now, now + 0.050, 0.0)
        now += 0.5
    link.acknowledged(1, 200, now, now + 0.050, 0.0)
    for step in range(200):
        link.acknowledged(1, 200, now + 0.005 * step, now + 0.060 + 0.005 * step, 0.0)
    bandwidth = link.facts().bandwidth_bytes_per_s
    assert bandwidth is None or bandwidth > 0


def test_what_lies_at_the_receiver_is_not_the_links() -> None:
    estimator = LinkEstimator()
    feed(estimator, FakeLink(1e9, 0.02, wait_s=0.5), [100] * 50, start=0.0, every_s=1.0)
    assert estimator.facts().rtt_s == pytest.approx(0.02, rel=0.01)


def test_a_link_that_drops_to_a_tenth_is_flagged_and_believed_at_once() -> None:
    estimator = LinkEstimator()
    link = FakeLink(1.25e7, 0.04, jitter_s=0.002)
    now = feed(estimator, link, [100] * 3, start=0.0, every_s=0.5)
    now = feed(estimator, link, [400_000] * 60, start=now, every_s=0.03)
    before = estimator.facts()
    assert before.num_changes == 0
    assert before.bandwidth_bytes_per_s == pytest.approx(1.25e7, rel=0.05)
    link.rate /= 10
    feed(estimator, link, [400_000] * 10, start=max(now, link.free_at), every_s=0.3)
    after = estimator.facts()
    assert after.num_changes == 1
    assert after.bandwidth_bytes_per_s == pytest.approx(1.25e6, rel=0.05)


# -- longer, shorter, wider, narrower ----------------------------------------------------------

DECODE_BYTES = 53_000
"""Of a frame of four rows of a 30 B model."""


def _known(link: FakeLink) -> tuple[LinkEstimator, float]:
    """An estimator that has met a few small frames and a burst of large ones, and when."""
    estimator = LinkEstimator()
    now = feed(estimator, link, [13_500] * 8, start=0.0, every_s=0.15)
    now = feed(estimator, link, [DECODE_BYTES] * 60, start=now, every_s=0.0001)
    return estimator, max(now, link.free_at) + 1.0


def _assert_is(estimator: LinkEstimator, link: FakeLink, rel: float = 0.15) -> None:
    facts = estimator.facts()
    assert facts.base_rtt_s == pytest.approx(link.rtt_s, abs=2e-3 + 2 * link.jitter_s)
    assert facts.bandwidth_bytes_per_s is None or facts.bandwidth_bytes_per_s == pytest.approx(link.rate, rel=rel)


@pytest.mark.parametrize("jitter_s", [0.0, 0.001, 0.003])
@pytest.mark.parametrize("longer_s", [0.06, 0.08, 0.11])
@pytest.mark.parametrize("mbit", [125, 300])
def test_a_link_that_becomes_longer_while_decode_goes_round_is_believed_in_seconds(
    mbit: float, longer_s: float, jitter_s: float
) -> None:
    """And is not taken for a narrower one, though all frames have one size and come at one pace; back again as well."""
    link = FakeLink(mbit * MBIT, 0.04, jitter_s)
    estimator, now = _known(link)
    now = circulate(estimator, link, 8, DECODE_BYTES, others_s=0.1, start=now, seconds=5.0)
    _assert_is(estimator, link)
    link.rtt_s = longer_s
    now = circulate(estimator, link, 8, DECODE_BYTES, others_s=0.1, start=now, seconds=3.0)
    _assert_is(estimator, link)
    assert estimator.facts().num_changes == 1
    link.rtt_s = 0.04
    circulate(estimator, link, 8, DECODE_BYTES, others_s=0.1, start=now, seconds=3.0)
    _assert_is(estimator, link)


@pytest.mark.parametrize("mbit", [100, 1000])
@pytest.mark.parametrize("rtt_s", [0.060, 0.512])
def test_a_link_that_becomes_longer_while_frames_come_one_by_one_is_no_narrower_one(mbit: float, rtt_s: float) -> None:
    """Each finds it idle; all are of one size, larger by far than the smallest that there ever was."""
    link = FakeLink(mbit * MBIT, 0.002)
    estimator = LinkEstimator()
    now = feed(estimator, link, [90] * 8, start=0.0, every_s=0.1)
    now = feed(estimator, link, [13_500, 400_000] * 4, start=now, every_s=0.3)
    link.rtt_s = rtt_s
    now = feed(estimator, link, [13_500] * 6, start=now, every_s=0.8)
    _assert_is(estimator, link)
    feed(estimator, link, [200_000] * 6, start=now, every_s=0.8)
    _assert_is(estimator, link)


@pytest.mark.parametrize("rtt_s", [0.02, 0.1])
def test_frames_of_two_sizes_that_come_one_by_one_tell_length_and_width(rtt_s: float) -> None:
    """A few times larger is enough: what the larger takes longer is the time of its surplus."""
    link, estimator = FakeLink(20 * MBIT, rtt_s), LinkEstimator()
    now = feed(estimator, link, [13_500] * 8, start=0.0, every_s=0.3)
    feed(estimator, link, [54_000] * 4, start=now, every_s=0.3)
    _assert_is(estimator, link)
    assert estimator.facts().bandwidth_bytes_per_s is not None


@pytest.mark.parametrize("jitter_s", [0.0, 0.001, 0.003])
def test_the_way_of_verdicts_whose_width_nobody_knows_is_believed_to_be_longer_too(jitter_s: float) -> None:
    link = FakeLink(20 * MBIT, 0.04, jitter_s)
    estimator = LinkEstimator()
    now = feed(estimator, link, [200] * 200, start=0.0, every_s=0.02)
    link.rtt_s = 0.08
    feed(estimator, link, [200] * 150, start=now, every_s=0.02)
    _assert_is(estimator, link)
    assert estimator.facts().bandwidth_bytes_per_s is None


@pytest.mark.parametrize("jitter_s", [0.0, 0.001, 0.003])
@pytest.mark.parametrize("count", [4, 8, 16])
def test_a_standing_queue_is_no_longer_link(count: int, jitter_s: float) -> None:
    """Decode that fills the wire, each frame behind the one before: for a minute nothing finds it idle."""
    link = FakeLink(20 * MBIT, 0.04, jitter_s)
    estimator, now = _known(link)
    circulate(estimator, link, count, DECODE_BYTES, others_s=0.02, start=now, seconds=60.0)
    _assert_is(estimator, link, rel=0.05)
    assert estimator.facts().num_changes == 0


@pytest.mark.parametrize("jitter_s", [0.0, 0.001, 0.003])
@pytest.mark.parametrize("factor", [0.3, 0.1])
def test_a_link_that_becomes_narrower_is_no_longer_one(factor: float, jitter_s: float) -> None:
    """And when it is wide again it is not taken for a shorter one."""
    link = FakeLink(125 * MBIT, 0.04, jitter_s)
    estimator, now = _known(link)
    now = circulate(estimator, link, 8, DECODE_BYTES, others_s=0.03, start=now, seconds=5.0)
    link.rate *= factor
    now = circulate(estimator, link, 8, DECODE_BYTES, others_s=0.03, start=now, seconds=3.0)
    _assert_is(estimator, link)
    assert estimator.facts().bandwidth_bytes_per_s is not None
    link.rate /= factor
    circulate(estimator, link, 8, DECODE_BYTES, others_s=0.03, start=now, seconds=3.0)
    _assert_is(estimator, link)


@pytest.mark.parametrize("jitter_s", [0.0, 0.001])
@pytest.mark.parametrize("mbit", [20, 125])
def test_bulk_on_a_link_that_becomes_longer_still_tells_its_width(mbit: float, jitter_s: float) -> None:
    for control in (None, (max(300, int(mbit * MBIT * 0.005)), 0.02)):
        facts = TwoLanes(mbit * MBIT, 0.04, jitter_s).run(6.0, bulk=True, control=control, longer=(3.0, 0.08))
        assert facts.bandwidth_bytes_per_s == pytest.approx(mbit * MBIT, rel=0.05)


def test_a_machine_that_stalls_for_a_second_makes_no_link_longer() -> None:
    link = FakeLink(125 * MBIT, 0.04, 0.001)
    estimator, now = _known(link)
    for _ in range(5):
        now = circulate(estimator, link, 8, DECODE_BYTES, others_s=0.1, start=now, seconds=2.0)
        link.rtt_s = 0.1
        now = circulate(estimator, link, 8, DECODE_BYTES, others_s=0.1, start=now, seconds=1.0)
        link.rtt_s = 0.04
    _assert_is(estimator, link)
    assert estimator.facts().num_changes == 0


def test_the_bound_is_lower_the_more_a_link_varies_and_the_less_is_known() -> None:
    def low(spread: float, count: int) -> float:
        rng = random.Random(3)
        ewma = Ewma(60.0)
        for index in range(count):
            ewma.add(100 + spread * rng.uniform(-1, 1), 1.0, index * 0.1)
        assert ewma.low is not None
        return ewma.low

    assert 98 < low(10, 200) < 101
    assert low(60, 200) < low(10, 200)
    assert low(60, 5) < low(60, 200)
    assert 60 < low(0, 1) < low(0, 2) < low(0, 10) < 95  # few that agree by chance
    wild = Ewma(60.0)
    for value in (1.0, 1.0, 1.0, 1.0, 10.0):
        wild.add(value, 1.0, 0.0)
    assert wild.low == pytest.approx(2.8 / 2)
    assert Ewma(1.0).low is None
    assert Ewma(1.0).mean is None


def test_averages_forget_at_their_pace() -> None:
    fast, slow = Ewma(5.0), Ewma(60.0)
    for second in range(60):
        for ewma in (fast, slow):
            ewma.add(100.0 if second < 50 else 10.0, 1.0, float(second))
    assert fast.mean is not None
    assert slow.mean is not None
    assert fast.mean < 25
    assert slow.mean > 70


@given(st.integers(0, 2**32), st.floats(0.05, 0.2))
@settings(max_examples=30)
def test_a_mean_that_stands_is_no_change(seed: int, spread: float) -> None:
    rng = random.Random(seed)
    steps = PageHinkley(slack=0.25, threshold=3.0)
    assert not any(steps.add(rng.gauss(10.0, spread)) for _ in range(500))


@pytest.mark.parametrize("move", [-2.3, -0.9, 0.9, 2.3])
def test_a_step_is_found_soon_and_once(move: float) -> None:
    rng = random.Random(5)
    steps = PageHinkley(slack=0.25, threshold=3.0)
    found = [index for index in range(400) if steps.add(rng.gauss(10.0 + move * (index >= 200), 0.1))]
    assert len(found) == 1
    assert 200 < found[0] < 210


# -- frames and acknowledgements ---------------------------------------------------------------


def ack(upto: int, extra: tuple[int, ...] = (), waited_us: int = 0, lane: Lane = Lane.CONTROL) -> Ack:
    return Ack(1, 1, lane, upto, extra, upto, 99, waited_us)


def test_each_frame_counts_once_however_it_is_acknowledged() -> None:
    meter = LinkMeter()
    for frame in range(4):
        meter.sent(Lane.CONTROL, frame, 100 - PART_BYTES, 1, 1.0 + frame)
    meter.acked(ack(1, (2,)), 4.05)
    meter.acked(ack(1, (2,)), 4.5)
    assert (meter.facts().num_frames, meter.facts().num_bytes) == (2, 200)
    meter.acked(ack(4, waited_us=50_000), 5.0)
    meter.acked(ack(4), 6.0)
    assert (meter.facts().num_frames, meter.facts().num_bytes) == (4, 400)


def test_frames_of_the_lanes_are_numbered_apart() -> None:
    meter = LinkMeter()
    for lane in Lane:
        meter.sent(lane, 0, 100 - PART_BYTES, 1, 1.0)
    meter.acked(ack(1), 1.02)
    assert (meter.facts().num_frames, meter.num_unacknowledged) == (1, 1)
    meter.acked(ack(1, lane=Lane.BULK), 9.0)
    assert (meter.facts().num_frames, meter.num_unacknowledged) == (2, 0)
    assert meter.facts().rtt_s == pytest.approx(0.02)


def test_what_was_sent_twice_is_not_timed() -> None:
    meter = LinkMeter()
    meter.sent(Lane.CONTROL, 0, 100, 1, 1.0)
    meter.sent(Lane.CONTROL, 0, 100, 1, 30.0)
    meter.acked(ack(1), 30.01)
    meter.sent(Lane.CONTROL, 1, 100, 1, 31.0)
    meter.restart()
    meter.acked(ack(2), 31.5)
    meter.sent(Lane.CONTROL, 1, 100, 1, 32.0)  # repeated after it was acknowledged
    assert meter.facts() == LinkFacts(num_frames=2, num_bytes=2 * (100 + PART_BYTES))
    assert meter.facts().as_link() is None
    meter.sent(Lane.CONTROL, 2, 100, 1, 40.0)
    meter.acked(ack(3, waited_us=30_000), 40.05)
    assert meter.facts().rtt_s == pytest.approx(0.02)


def test_frames_that_are_never_acknowledged_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloombee.links.frames.MAX_UNACKNOWLEDGED", 10)
    meter = LinkMeter()
    for frame in range(100):
        meter.sent(Lane.CONTROL, frame, 100, 1, float(frame))
    meter.acked(ack(100), 100.0)
    assert meter.facts().num_frames == 10
