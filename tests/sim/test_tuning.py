"""Microbatches chosen while the pipeline runs, by the real cores under a virtual clock."""

from __future__ import annotations

import itertools

import pytest

from bench.window import find_window
from bloombee.pace import Pace
from bloombee.plan.topology import Cores
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import LinkShape

PER_ROW = Pace(0.0, 0.008, 0.0005)
FIXED = Pace(0.013, 0.00005, 0.0005)
MIXED = Pace(0.004, 0.001, 0.0005)
NAMES = ("stage0", "stage1", "stage2", "scheduler")
TOKENS, SETTLE_TOKENS = 10, 4


def _cluster(
    pace: Pace,
    latency_s: float,
    batch: int,
    *,
    microbatches: int | None = None,
    scatter: float = 0.0,
    cores: Cores | None = None,
    tokens: int = 300,
) -> SimCluster:
    """Three stages, a gigabit between them; like a runtime that has served a short request before."""
    far = LinkShape(latency_s, 125e6)
    shapes = {ends: far for a, b in itertools.pairwise(NAMES) for ends in ((a, b), (b, a))}
    cluster = SimCluster(
        seed=0,
        num_stages=3,
        num_microbatches=microbatches or 128,
        num_pages=tokens * batch // 16 + batch,
        page_size=16,
        max_rows=512,
        pace=pace,
        shape=LinkShape(0.0),
        shapes=shapes,
        row_bytes=13312,
        resend_after_s=60.0,
        tuned=microbatches is None,
        scatter=scatter,
        cores=cores,
    )
    cluster.submit([1] * 32, max_new_tokens=8)
    assert cluster.run()
    return cluster


def _speed(cluster: SimCluster, batch: int) -> float:
    """Decoded tokens a second once it has settled: after the fourth token of the last sequence."""
    start = cluster.clock.now
    numbers = [cluster.submit([n] * 4, max_new_tokens=200, seed=n, at=start) for n in range(batch)]
    while True:
        assert cluster.run_for(0.5)
        times = [cluster.requests[number].token_times for number in numbers]
        if all(len(one) > SETTLE_TOKENS for one in times):
            window = find_window(times, TOKENS, max(one[SETTLE_TOKENS] for one in times))
            if window is not None:
                return window.tokens_per_s


def test_half_a_second_of_round_trip_costs_nothing_where_there_are_sequences_enough() -> None:
    near, far = (_speed(_cluster(PER_ROW, latency_s, 128), 128) for latency_s in (0.001, 0.256))
    assert near >= 0.99 * 125  # what a device of 8 ms a row allows
    assert far >= 0.99 * near


@pytest.mark.parametrize("pace", [PER_ROW, FIXED, MIXED])
@pytest.mark.parametrize("latency_s", [0.001, 0.060])
def test_the_choice_is_as_good_as_the_best_of_a_sweep(pace: Pace, latency_s: float) -> None:
    mine = _speed(_cluster(pace, latency_s, 32), 32)
    sweep = {m: _speed(_cluster(pace, latency_s, 32, microbatches=m), 32) for m in (1, 2, 3, 4, 6, 11, 16, 32)}
    assert mine >= 0.95 * max(sweep.values()), sweep


@pytest.mark.parametrize("pace", [PER_ROW, FIXED])
def test_times_that_scatter_do_not_make_it_change_its_mind(pace: Pace) -> None:
    cluster = _cluster(pace, 0.030, 32, scatter=0.05)
    assert _speed(cluster, 32) >= 0.93 * _speed(_cluster(pace, 0.030, 32), 32)
    before = len(cluster.head.tunings)
    cluster.run_for(10.0)
    assert len(cluster.head.tunings) <= before + 1


def test_a_device_that_changes_its_nature_is_found_out_while_it_runs() -> None:
    """From mostly fixed, where few large microbatches do, to mostly per row, where these would leave it idle."""
    cluster = _cluster(FIXED, 0.256, 128)
    _speed(cluster, 128)
    cluster.devices.paces = [PER_ROW] * 3
    cluster.run_for(12.0)
    done = sum(len(request.tokens) for request in cluster.requests.values())
    assert cluster.run_for(8.0)
    assert sum(len(request.tokens) for request in cluster.requests.values()) - done >= 0.95 * 125 * 8


def _decoded_by(cluster: SimCluster, batch: int, *, settle_s: float, window_s: float) -> float:
    for n in range(batch):
        cluster.submit([n] * 4, max_new_tokens=700, seed=n, at=cluster.clock.now)
    cluster.run_for(settle_s)
    before = sum(len(request.tokens) for request in cluster.requests.values())
    assert cluster.run_for(window_s)
    return (sum(len(request.tokens) for request in cluster.requests.values()) - before) / window_s


TINY = Pace(0.005, 0.0003, 0.0001)
TWO_CORES = Cores(2, hop_s=0.003, hop_cpu_s=0.004)


@pytest.mark.parametrize(("latency_s", "scatter"), [(0.0005, 0.1), (0.020, 0.1), (0.020, 0.0)])
def test_workers_that_fight_for_cores_end_where_they_fight_least(latency_s: float, scatter: float) -> None:
    """The cost model takes every worker for a machine and would have 11 under way; only the tokens tell."""

    def speed(microbatches: int | None, settle_s: float) -> float:
        cluster = _cluster(TINY, latency_s, 32, microbatches=microbatches, scatter=scatter, cores=TWO_CORES, tokens=800)
        return _decoded_by(cluster, 32, settle_s=settle_s, window_s=3.0)

    best = max(speed(microbatches, 0.5) for microbatches in (1, 2, 3, 4, 6, 8))
    assert speed(None, 15.0) >= 0.95 * best


def test_on_machines_of_their_own_the_check_finds_nothing_to_mend() -> None:
    cluster = _cluster(FIXED, 0.050, 32, scatter=0.05, tokens=1600)
    _decoded_by(cluster, 32, settle_s=10.0, window_s=30.0)
    assert {count for moment, count in cluster.head.tunings if moment > 10.0} <= {cluster.head.tunings[-1][1]}
