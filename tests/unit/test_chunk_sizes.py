"""Chunks of prompts beside decode: what they delay, and how many rows fill a ring."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from bloombee.control.chunks import (
    BAND_GROWTH,
    LEAST_ROWS,
    MOST_INFLATION,
    SMALLEST_CHUNK,
    Chunks,
    chunks_at,
    chunks_by_position,
    decode_wait_s,
    filling_rows,
    gentle_chunk,
)
from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.topology import Device, Link, RowTime, Topology

MODEL = ModelShape(hidden=1024, num_layers=4, activation_bytes=2)
BASE = Candidate((1, 2, 3, 4), (1, 1, 1, 1))


def _ring(rate: float, latency_s: float, stage: RowTime) -> Topology:
    devices = [Device(f"w{index}", stage=stage) for index in range(4)]
    return Topology.ring(devices, [Link(rate, latency_s)] * 4)


def test_decode_waits_for_what_runs_on_each_stage() -> None:
    """Stages that a prompt keeps busy all the time: the rest of four chunks of 20 ms, uniform."""
    topology = _ring(math.inf, 0.0, RowTime(0.004, 0.0, 0.001))
    assert decode_wait_s(BASE, topology, MODEL, 16) == pytest.approx(4 * 0.010 + 2.33 * math.sqrt(4 * 0.020**2 / 12))


def test_on_a_slow_wire_decode_waits_for_a_piece_however_large_the_chunk() -> None:
    topology = _ring(2.5e6, 0.05, RowTime())
    small, large = (decode_wait_s(BASE, topology, MODEL, chunk) for chunk in (64, 512))
    assert large == pytest.approx(small, rel=0.05)
    assert large < 3 * (16384 / 2.5e6)


@pytest.mark.parametrize("rate", [2.5e6, 12.5e6, 1e9])
@pytest.mark.parametrize("row_s", [0.00005, 0.0005])
def test_a_gentle_chunk_is_the_largest_that_keeps_decode_within_a_tenth(rate: float, row_s: float) -> None:
    topology = _ring(rate, 0.05, RowTime(0.001, 0.0, row_s))
    chunk = gentle_chunk(BASE, topology, MODEL, step_s=0.22, fastest=512)
    assert SMALLEST_CHUNK <= chunk <= 512
    if chunk > SMALLEST_CHUNK:
        assert decode_wait_s(BASE, topology, MODEL, chunk) <= MOST_INFLATION * 0.22
    if chunk < 512:
        assert decode_wait_s(BASE, topology, MODEL, 2 * chunk) > MOST_INFLATION * 0.22


def test_chunks_do_not_shrink_where_that_gives_decode_nothing() -> None:
    """A stage whose fixed time alone is more than a tenth of a step: below 32 rows it would do little else."""
    topology = _ring(1e9, 0.0, RowTime(0.032, 0.0, 0.001))
    assert gentle_chunk(BASE, topology, MODEL, step_s=0.14, fastest=512) == 32


def test_rows_that_fill_a_ring_grow_with_its_latency() -> None:
    stage = RowTime(0.001, 0.0, 0.0001)
    near, far = (filling_rows(BASE, _ring(2.5e6, latency_s, stage), MODEL, 64) for latency_s in (0.001, 0.1))
    assert far - near == pytest.approx(2 * 0.396 * 2.5e6 / 2048, abs=2 * 64)
    assert near % 64 == 0


def test_where_attention_takes_no_time_chunks_are_the_same_at_every_position() -> None:
    topology = _ring(2.5e6, 0.05, RowTime(0.001, 0.0, 0.0005))
    (chunks,) = chunks_by_position(BASE, topology, MODEL, step_s=0.22, fastest=96)
    gentle = gentle_chunk(BASE, topology, MODEL, step_s=0.22, fastest=96)
    assert chunks == Chunks(0, 96, gentle, max(filling_rows(BASE, topology, MODEL, rows) for rows in (96, gentle)))


@pytest.mark.parametrize("rate", [2.5e6, 1e9])
@pytest.mark.parametrize("context_s", [1e-8, 1e-7, 1e-6])
def test_chunks_beside_decode_shrink_so_that_none_holds_it_up_more(rate: float, context_s: float) -> None:
    topology = _ring(rate, 0.05, RowTime(0.0005, 0.0, 0.0004, context_s))
    found = chunks_by_position(BASE, topology, MODEL, step_s=0.3, fastest=128)
    assert found[0].position == 0
    assert [one.position for one in found] == sorted({one.position for one in found})
    assert all(before.gentle >= after.gentle >= LEAST_ROWS for before, after in itertools.pairwise(found))
    assert found[-1].gentle < found[0].gentle
    for position in (0, 100, 1000, 3000, 10_000, 30_000):
        chunks = chunks_at(found, position)
        assert chunks.fast == 128
        if chunks.gentle > SMALLEST_CHUNK:
            here = replace(BASE, context=position)
            assert decode_wait_s(here, topology, MODEL, chunks.gentle) <= BAND_GROWTH * MOST_INFLATION * 0.3


def test_far_on_the_smallest_chunk_takes_as_long_as_at_the_start() -> None:
    """Rows cost five times as much: 16 become four."""
    topology = _ring(1e9, 0.0, RowTime(0.0, 0.0, 0.001, 1e-6))
    found = chunks_by_position(BASE, topology, MODEL, step_s=0.01, fastest=128)
    assert (chunks_at(found, 0).gentle, chunks_at(found, 4000).gentle, chunks_at(found, 10**6).gentle) == (16, 4, LEAST_ROWS)
