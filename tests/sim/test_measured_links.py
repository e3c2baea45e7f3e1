"""What is chosen by links that only their own frames have shown, behind named profiles with jitter and asymmetry."""

from __future__ import annotations

import pytest
from measured_kit import MeasuredCluster

from bench.window import find_window
from bloombee.pace import Pace

FIXED = Pace(0.013, 0.00005, 0.0005)
MIXED = Pace(0.004, 0.001, 0.0005)
BATCH, TOKENS, SETTLE_TOKENS = 32, 10, 4


def _cluster(profile: str, pace: Pace, microbatches: int | None = None, batch: int = BATCH) -> MeasuredCluster:
    """It has served two short requests before."""
    cluster = MeasuredCluster(profile, pace, batch, microbatches=microbatches)
    for _ in range(2):
        cluster.submit([1] * 32, max_new_tokens=8, at=cluster.clock.now)
        assert cluster.run()
    return cluster


def _later(cluster: MeasuredCluster, seconds: float) -> MeasuredCluster:
    stop = cluster.clock.now + seconds
    cluster.clock.run(lambda: cluster.clock.now >= stop, deadline_s=stop)
    return cluster


def _speed(cluster: MeasuredCluster) -> float:
    """Decoded tokens a second after the fourth token of the last sequence; the sequences end with that."""
    start = cluster.clock.now
    numbers = [cluster.submit([n] * 4, max_new_tokens=200, seed=n, at=start) for n in range(BATCH)]
    window = None
    while window is None:
        assert cluster.run_for(0.5)
        times = [cluster.requests[number].token_times for number in numbers]
        if all(len(one) > SETTLE_TOKENS for one in times):
            window = find_window(times, TOKENS, max(one[SETTLE_TOKENS] for one in times))
    for number in numbers:
        cluster.cancel(number, at=cluster.clock.now)
    assert cluster.run()
    return window.tokens_per_s


@pytest.mark.parametrize(
    ("profile", "pace"),
    [("home", FIXED), ("home", MIXED), ("three-regions", FIXED), ("three-regions", MIXED), ("20M-100ms", FIXED)],
)
def test_the_choice_is_as_good_as_the_best_of_a_sweep(profile: str, pace: Pace) -> None:
    """Whenever the load begins between two looks at it."""
    sweep = {m: _speed(_cluster(profile, pace, m)) for m in (4, 8, 16)}
    speeds = [_speed(_later(_cluster(profile, pace), seconds)) for seconds in (0.1, 0.2, 0.3)]
    assert min(speeds) >= 0.95 * max(sweep.values()), (sweep, speeds)


@pytest.mark.parametrize(
    ("before", "after", "best"),
    [("home", "500M-10ms", 4), ("20M-100ms", "125M-60ms", 8)],
)
def test_links_that_have_become_others_are_found_out_while_it_runs(before: str, after: str, best: int) -> None:
    cluster = _cluster(before, FIXED)
    _speed(cluster)
    cluster.reshape(after)
    _speed(cluster)
    assert _speed(cluster) >= 0.9 * _speed(_cluster(after, FIXED, best))


PER_ROW, MANY = Pace(0.0, 0.008, 0.0005), 128
"""What a device of 8 ms a row allows is 125 tokens a second, at any distance."""


def _serve_for(cluster: MeasuredCluster, seconds: float) -> float:
    """Tokens a second of what is being served."""
    before = sum(len(request.tokens) for request in cluster.requests.values())
    assert cluster.run_for(seconds)
    return (sum(len(request.tokens) for request in cluster.requests.values()) - before) / seconds


@pytest.mark.parametrize("bandwidth", ["1G", "100M"])
@pytest.mark.parametrize("round_trips", [("2ms", "512ms", "2ms"), ("512ms", "2ms", "512ms")])
def test_links_that_become_256_times_longer_or_shorter_while_it_serves_cost_nothing(
    bandwidth: str, round_trips: tuple[str, ...]
) -> None:
    """Equal frames, one after another, that take longer than before show no narrower wire."""
    cluster = _cluster(f"{bandwidth}-{round_trips[0]}", PER_ROW, batch=MANY)
    for n in range(MANY):
        cluster.submit([n] * 16, max_new_tokens=300, seed=n, at=cluster.clock.now)
    for round_trip in round_trips:
        cluster.reshape(f"{bandwidth}-{round_trip}")
        _serve_for(cluster, 15.0)
        assert _serve_for(cluster, 10.0) >= 0.97 * 125, round_trip


@pytest.mark.parametrize(("before", "after"), [("1G-2ms", "1G-512ms"), ("1G-512ms", "1G-2ms")])
def test_links_that_became_others_while_it_was_idle_are_met_as_if_it_had_always_had_them(before: str, after: str) -> None:
    """Also where the first frames that they carry are single rows, much larger than the smallest frame there ever was."""
    cluster = _cluster(before, PER_ROW, batch=MANY)
    numbers = [cluster.submit([n] * 16, max_new_tokens=100, seed=n, at=cluster.clock.now) for n in range(MANY)]
    _serve_for(cluster, 10.0)
    for number in numbers:  # what is under way goes on without rows: the smallest frames there are
        cluster.cancel(number, at=cluster.clock.now)
    assert cluster.run()
    cluster.reshape(after)
    cluster.submit([1, 2, 3, 4], max_new_tokens=6, at=cluster.clock.now)
    assert cluster.run()
    for n in range(MANY):
        cluster.submit([n] * 16, max_new_tokens=100, seed=n, at=cluster.clock.now)
    _serve_for(cluster, 12.0)
    assert _serve_for(cluster, 10.0) >= 0.97 * 125
