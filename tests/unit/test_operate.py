from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloombee.control.operate import best_chunk, step_s, tune
from bloombee.models.shape import ModelShape
from bloombee.pace import Pace
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import evaluate, prefill_s
from bloombee.plan.topology import Device, Link, Topology

LLAMA_30B = ModelShape(hidden=6656, num_layers=60)


def _ring(pace: tuple[float, float, float], link: Link, stages: int = 3) -> Topology:
    devices = [Device.paced(f"w{i}", Pace(*pace)) for i in range(stages)]
    return Topology.ring(devices, [link] * stages)


def _base(stages: int = 3, layers: int = 60) -> Candidate:
    return Candidate(tuple(range(1, stages + 1)), (layers // stages,) * stages)


def test_one_sequence_needs_one_microbatch() -> None:
    got = tune(_base(), _ring((0.01, 0, 0), Link(1e8, 0.05)), LLAMA_30B, sequences=1, most_microbatches=64, most_rows=512)
    assert (got.num_microbatches, got.microbatch_sequences, got.max_sequences) == (1, 1, None)


def test_a_fixed_cost_a_pass_and_no_latency_wants_few_microbatches() -> None:
    local = tune(_base(), _ring((0.05, 0, 0), Link(1e12, 0)), LLAMA_30B, sequences=32, most_microbatches=64, most_rows=512)
    far = tune(_base(), _ring((0.001, 0.001, 0), Link(1e12, 0.2)), LLAMA_30B, sequences=32, most_microbatches=64, most_rows=512)
    assert local.num_microbatches <= 3 < far.num_microbatches


def test_a_slow_wide_model_over_20_mbit_gains_what_the_arithmetic_says() -> None:
    ring = _ring((0.013, 0.00005, 0.0005), Link(2.5e6, 0.05))
    plain = evaluate(replace(_base(), num_microbatches=1, microbatch_sequences=32), ring, LLAMA_30B)
    got = tune(_base(), ring, LLAMA_30B, sequences=32, most_microbatches=64, most_rows=512)
    assert got.cost.tokens_per_s > 2.2 * plain.tokens_per_s


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 80),
    st.floats(0, 0.05),
    st.floats(0, 0.01),
    st.floats(1e5, 1e9),
    st.floats(0, 0.3),
    st.integers(1, 40),
)
def test_no_spread_is_more_than_a_percent_better(
    sequences: int, fixed_s: float, row_s: float, bandwidth: float, latency_s: float, most: int
) -> None:
    ring = _ring((fixed_s + 1e-6, row_s, row_s), Link(bandwidth, latency_s))
    got = tune(_base(), ring, LLAMA_30B, sequences=sequences, most_microbatches=most, most_rows=512)
    assert got.num_microbatches <= most
    at_once = got.num_microbatches * got.microbatch_sequences
    assert got.step_s == step_s(got.cost, ring, LLAMA_30B, sequences)
    mine = got.step_s * max(1, sequences / at_once)
    for count in range(1, min(most, sequences) + 1):
        size = -(-sequences // count)
        other = evaluate(replace(_base(), num_microbatches=-(-sequences // size), microbatch_sequences=size), ring, LLAMA_30B)
        assert mine <= step_s(other, ring, LLAMA_30B, sequences) * 1.011


def test_more_are_under_way_than_would_just_fill_the_ring() -> None:
    """Three equal microbatches keep three stages busy only while nothing is uneven."""
    got = tune(
        _base(), _ring((0.0, 0.008, 0.0005), Link(1e9, 0.0)), LLAMA_30B, sequences=128, most_microbatches=64, most_rows=512
    )
    assert got.num_microbatches == 4
    assert got.step_s == pytest.approx(1.024)


def test_a_target_limits_how_many_run_at_once() -> None:
    ring = _ring((0.0, 0.01, 0.01), Link(1e9, 0.001))
    free = tune(_base(), ring, LLAMA_30B, sequences=64, most_microbatches=64, most_rows=512)
    kept = tune(_base(), ring, LLAMA_30B, sequences=64, most_microbatches=64, most_rows=512, target_s=0.2)
    assert free.cost.time_per_token_s > 0.2
    assert kept.cost.time_per_token_s <= 0.2
    assert kept.max_sequences is not None
    more = tune(_base(), ring, LLAMA_30B, sequences=kept.max_sequences + 1, most_microbatches=64, most_rows=512)
    assert more.cost.time_per_token_s > 0.2


@pytest.mark.parametrize("latency_s", [0.0, 0.1])
def test_the_chunk_is_neither_the_whole_prompt_nor_a_row(latency_s: float) -> None:
    ring = _ring((0.005, 0.0, 0.0005), Link(2.5e6, latency_s))
    chunk = best_chunk(_base(), ring, LLAMA_30B, prompt_tokens=4096, most_rows=4096)
    took = prefill_s(_base(), ring, LLAMA_30B, tokens=4096, chunk=chunk)
    assert 16 <= chunk < 4096
    assert took < 0.6 * prefill_s(_base(), ring, LLAMA_30B, tokens=4096, chunk=4096)
    for other in (16, 32, 64, 128, 256, 512, 1024):
        assert took <= 1.02 * prefill_s(_base(), ring, LLAMA_30B, tokens=4096, chunk=other)


def test_a_prompt_over_slow_links_takes_little_longer_than_its_bytes() -> None:
    """Three links of 100 Mbit/s and 30 ms, and one home; half powers of two are fine enough steps."""
    ring = _ring((0.013, 0.00005, 0.0005), Link(12.5e6, 0.03), stages=4)
    chunk = best_chunk(_base(4), ring, LLAMA_30B, prompt_tokens=512, most_rows=512)
    assert prefill_s(_base(4), ring, LLAMA_30B, tokens=2048, chunk=chunk) < 1.135 * 2048 * LLAMA_30B.row_bytes / 12.5e6
