"""Whole swarms of the real cores under a virtual clock, with frames lost, doubled, delayed and overtaken."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence

import pytest

from bloombee.errors import Infeasible
from bloombee.pace import Pace
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.device import oracle
from bloombee.sim.network import Faults, LinkShape
from bloombee.types import FinishReason

HARSH = Faults(lose=0.15, duplicate=0.15, delay=0.3, max_extra_delay_s=0.4)


def _load(cluster: SimCluster, seed: int, count: int) -> None:
    rng = random.Random(seed)
    for number in range(count):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 40))]
        new, seed, at = rng.randint(1, 20), rng.randrange(2**64), rng.uniform(0, 1)
        cluster.submit(prompt, max_new_tokens=new, seed=seed, at=at, client=f"client {number % 4}")
        if rng.random() < 0.2:
            cluster.cancel(number, at=rng.uniform(0, 3))


def _assert_right(cluster: SimCluster, num_stages: int, windows: Sequence[Sequence[int]] | None = None) -> int:
    cancelled = 0
    for request in cluster.requests.values():
        want = oracle(request.prompt, request.seed, num_stages, request.max_new_tokens, windows)
        assert request.error is None
        if request.finish is None:
            cancelled += 1
            assert request.tokens == want[: len(request.tokens)]
        else:
            assert request.finish is FinishReason.LENGTH
            assert request.tokens == want
    for stage in cluster.stages.values():
        assert stage.num_sequences == 0
        assert all(pool.num_free == pool.num_pages for pool in stage.store.kv.pools)
    return cancelled


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("num_microbatches", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_token_is_right_whatever_the_links_do(num_stages: int, num_microbatches: int, seed: int) -> None:
    cluster = SimCluster(seed=seed, num_stages=num_stages, num_microbatches=num_microbatches, faults=HARSH)
    _load(cluster, seed, 20)
    assert cluster.run()
    _assert_right(cluster, num_stages)


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(3))
def test_layers_with_windows_keep_what_they_see_and_no_more(faults: Faults | None, seed: int) -> None:
    """Stages of two groups, of one and of another; sequences far longer than windows; too few pages for all at once."""
    windows = ((0, 6), (6,), (0,))
    cluster = SimCluster(
        seed=seed, num_stages=3, card=sim_card((0, 6, 6, 6, 0, 0)), faults=faults, num_pages=256, max_rows=16, num_microbatches=3
    )
    rng = random.Random(seed)
    for _ in range(12):
        prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 250))]
        cluster.submit(prompt, max_new_tokens=rng.randint(1, 60), seed=rng.randrange(2**64), at=rng.uniform(0, 1))
    assert cluster.run()
    assert _assert_right(cluster, 3, windows) == 0
    assert cluster.plan is not None
    assert [[group.window for group in stage.groups] for stage in cluster.plan.stages] == [[0, 6], [6], [0]]
    full, narrow = cluster.plan.groups
    assert narrow.num_pages < full.num_pages / 2


def test_faults_really_happen() -> None:
    """The harsh cluster must have met what it is meant to survive, else the tests above prove nothing."""
    calm = SimCluster(seed=3, num_stages=3)
    harsh = SimCluster(seed=3, num_stages=3, faults=HARSH)
    for cluster in (calm, harsh):
        _load(cluster, 3, 20)
        assert cluster.run()
    assert not any("Gap(" in line for line in calm.trace)
    assert any("Gap(" in line for line in harsh.trace)
    forwards = [[line.split(" ", 1)[1] for line in c.trace if " Forward(" in line] for c in (calm, harsh)]
    assert len(set(forwards[0])) == len(forwards[0])
    assert len(set(forwards[1])) < 0.9 * len(forwards[1])
    assert _assert_right(harsh, 3) > 0


def test_same_seed_same_trace_byte_for_byte() -> None:
    digests = []
    for seed in (7, 7, 8):
        cluster = SimCluster(seed=seed, num_stages=3, faults=HARSH)
        _load(cluster, 5, 15)
        assert cluster.run()
        digests.append(hashlib.sha256("\n".join(cluster.trace).encode()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_requests_wait_for_pages_and_all_finish() -> None:
    cluster = SimCluster(seed=0, num_stages=2, num_pages=12, page_size=4)
    for number in range(30):
        cluster.submit([number] * 10, max_new_tokens=8, seed=number)
    assert cluster.run()
    _assert_right(cluster, 2)


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    cluster = SimCluster(seed=0, num_stages=2, num_pages=4, page_size=4)
    long = cluster.submit([1] * 30, max_new_tokens=8)
    short = cluster.submit([1] * 3, max_new_tokens=8)
    assert cluster.run()
    error = cluster.requests[long].error
    assert isinstance(error, Infeasible)
    assert error.fields["wanted"] == 38
    assert error.fields["allowed"] == 16
    assert len(cluster.requests[short].tokens) == 8


def test_broken_connections_resend_at_once() -> None:
    cluster = SimCluster(seed=1, num_stages=3, faults=Faults(lose=0.3), resend_after_s=30.0)
    _load(cluster, 1, 10)
    for moment in range(1, 200):
        cluster.clock.call_at(moment / 4, cluster.breaks.restore_all)
    assert cluster.run()
    _assert_right(cluster, 3)


def test_microbatches_fill_a_long_loop() -> None:
    """With enough in flight throughput hardly depends on latency; with one microbatch it does."""

    def throughput(latency_s: float, num_microbatches: int) -> float:
        cluster = SimCluster(
            seed=0, num_stages=3, num_microbatches=num_microbatches, num_pages=1024, max_rows=64, shape=LinkShape(latency_s)
        )
        for number in range(64):
            cluster.submit([number], max_new_tokens=30, seed=number)
        assert cluster.run()
        times = sorted(t for request in cluster.requests.values() for t in request.token_times)
        tokens = len(times)
        return tokens / (times[-1] - times[0])

    assert throughput(0.008, 1) < 0.5 * throughput(0.0002, 1)
    assert throughput(0.008, 32) > 0.85 * throughput(0.0002, 32)


# -- decode beside prefill ---------------------------------------------------------------------


def _gaps_s(prefill_tokens: int, *, num_microbatches: int = 16, max_rows: int = 64) -> tuple[list[float], float]:
    """Between the tokens of 8 decoding sequences while a prompt passes (or none), over 20 Mbit/s, 50 ms one way, d = 1024 in
    bfloat16; and the seconds that the prompt took to its first token."""
    cluster = SimCluster(
        seed=0,
        num_stages=3,
        num_microbatches=num_microbatches,
        num_pages=1024,
        page_size=16,
        max_rows=max_rows,
        pace=Pace(fixed_s=0.004, decode_row_s=0.0002, prefill_row_s=0.00005),
        shape=LinkShape(0.05, 20e6 / 8),
        row_bytes=2048,
        resend_after_s=60.0,
    )
    decoders = [cluster.submit([number], max_new_tokens=36, seed=number) for number in range(8)]
    start, stop = 3.0, 7.5
    prompt = cluster.submit([7] * prefill_tokens, max_new_tokens=1, seed=99, at=start) if prefill_tokens else None
    assert cluster.run()
    _assert_right(cluster, 3)
    seconds = 0.0
    if prompt is not None:
        seconds = cluster.requests[prompt].token_times[0] - start
        assert seconds < stop - start
    times = [[t for t in cluster.requests[d].token_times if start <= t <= start + (seconds or 4.0)] for d in decoders]
    return sorted(b - a for each in times for a, b in itertools.pairwise(each)), seconds


def test_a_long_prefill_inflates_decode_by_less_than_a_tenth() -> None:
    alone, _ = _gaps_s(0)
    beside, seconds = _gaps_s(4096)
    assert len(beside) > 100
    p99 = [gaps[int(0.99 * (len(gaps) - 1))] for gaps in (alone, beside)]
    assert p99[1] <= 1.1 * p99[0]
    wire_s = 4096 * 2048 * 8 / 20e6
    assert seconds <= 1.3 * wire_s


def test_a_request_of_limited_time_gets_no_more_tokens_after_it() -> None:
    cluster = SimCluster(seed=1, num_stages=2)
    for max_time_s in (0.1, 1e6, None):
        cluster.submit([1, 2, 3], max_new_tokens=200, max_time_s=max_time_s)
    assert cluster.run()
    late, *others = cluster.requests.values()
    assert late.finish is FinishReason.LENGTH
    assert 1 < len(late.tokens) < 200
    assert late.token_times[-2] <= late.submitted_at + 0.1 < late.token_times[-1]
    assert [len(request.tokens) for request in others] == [200, 200]
