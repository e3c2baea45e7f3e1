from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bloombee.control.observed import LiveCosts, Shown
from bloombee.control.operate import apart
from bloombee.plan.topology import LOCAL, Device, RowTime
from bloombee.types import DeviceUse, StageUse


def _use(rows: list[int], fixed: float, per_row: float, noise: random.Random | None = None) -> DeviceUse:
    times = [fixed + per_row * r + (noise.gauss(0, 0.0001) if noise else 0.0) for r in rows]
    return DeviceUse(
        len(rows), sum(rows), sum(times), sum(r * r for r in rows), sum(r * t for r, t in zip(rows, times, strict=True))
    )


def _stage(live: LiveCosts) -> tuple[float, float]:
    time = live.topology([LOCAL]).device(1).stage
    return time.fixed_s, time.decode_row_s


def test_it_finds_the_line_through_noise() -> None:
    live = LiveCosts(("w",))
    rng = random.Random(0)
    total = DeviceUse()
    for _ in range(10):
        total = total + _use([rng.randint(1, 32) for _ in range(50)], 0.010, 0.0005, rng)
        live.report([StageUse(decode=total)])
    fixed, row = _stage(live)
    assert fixed == pytest.approx(0.010, rel=0.03)
    assert row == pytest.approx(0.0005, rel=0.03)


def test_equal_batches_keep_the_slope_that_was_known() -> None:
    live = LiveCosts(("w",))
    first = _use([1, 2, 8, 16], 0.010, 0.001)
    live.report([StageUse(decode=first)])
    live.report([StageUse(decode=first + _use([8] * 100, 0.020, 0.001))])
    fixed, row = _stage(live)
    assert row == pytest.approx(0.001, rel=0.01)
    assert fixed == pytest.approx(0.020, rel=0.05)


def test_before_sizes_differ_half_of_a_time_is_taken_to_be_fixed() -> None:
    live = LiveCosts(("w",))
    assert not live.is_known
    live.report([StageUse(decode=_use([4] * 10, 0.010, 0.001))])
    assert live.is_known
    assert _stage(live) == (pytest.approx(0.007), pytest.approx(0.014 / 8))


@pytest.mark.parametrize(("fixed", "row"), [(0.013, 0.0005), (0.0, 0.001), (0.02, 0.0)])
def test_before_sizes_differ_a_chunk_tells_what_is_fixed(fixed: float, row: float) -> None:
    """One sequence decodes and its prompt goes in chunks of one size: what a chunk costs besides its rows is known at once."""
    live = LiveCosts(("w",))
    live.report([StageUse(decode=_use([1] * 10, fixed, row), prefill=_use([32] * 10, fixed, row))])
    time = live.topology([LOCAL]).device(1).stage
    assert (time.fixed_s, time.decode_row_s, time.prefill_row_s) == (pytest.approx(fixed), pytest.approx(row), pytest.approx(row))


def test_a_chunk_of_as_few_rows_as_decode_has_tells_nothing() -> None:
    live = LiveCosts(("w",))
    live.report([StageUse(decode=_use([4] * 10, 0.010, 0.001), prefill=_use([5] * 10, 0.010, 0.001))])
    assert _stage(live) == (pytest.approx(0.007), pytest.approx(0.014 / 8))


COSTS = st.one_of(st.just(0.0), st.floats(1e-4, 0.1))


@settings(max_examples=200, deadline=None)
@given(COSTS, COSTS, st.integers(2, 64), st.integers(2, 16), st.integers(0, 2**32))
def test_sizes_a_little_apart_are_enough(fixed: float, row: float, size: int, works: int, seed: int) -> None:
    """What was believed at first, here of microbatches of one row, is gone after a few reports of what the scheduler sends."""
    assume(fixed + row > 0)
    rng = random.Random(seed)
    live, total = LiveCosts(("w",)), _use([1] * 20, fixed, row)
    live.report([StageUse(decode=total)])
    for _ in range(12):
        sizes = [size + rng.choice((-1, 1)) * apart(size) for _ in range(works)]
        times = [rng.gauss(1.0, 0.01) * (fixed + row * s) for s in sizes]
        products = sum(s * t for s, t in zip(sizes, times, strict=True))
        total = total + DeviceUse(works, sum(sizes), sum(times), sum(s * s for s in sizes), products)
        live.report([StageUse(decode=total)])
    found_fixed, found_row = _stage(live)
    whole = fixed + row * size
    assert 0 <= found_fixed <= 1.05 * whole
    assert 0 <= found_row * size <= 1.05 * whole
    assert found_fixed + found_row * size == pytest.approx(whole, rel=0.05)
    assert found_fixed == pytest.approx(fixed, abs=0.25 * whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1)), min_size=1, max_size=60))
def test_no_part_of_a_time_is_ever_negative(works: list[tuple[int, float]]) -> None:
    live, total = LiveCosts(("w",)), DeviceUse()
    for rows, seconds in works:
        total = total + DeviceUse(1, rows, seconds, rows * rows, rows * seconds)
        live.report([StageUse(decode=total)])
        fixed, row = _stage(live)
        assert fixed >= 0
        assert row >= 0


def test_a_device_whose_rows_become_dear_is_believed() -> None:
    live, total = LiveCosts(("w",)), DeviceUse()
    for fixed, row in [(0.013, 0.00005)] * 6 + [(0.0, 0.008)] * 6:
        total = total + _use([14, 18, 14, 18], fixed, row)
        live.report([StageUse(decode=total)])
    fixed, row = _stage(live)
    assert row == pytest.approx(0.008, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_a_slope_that_is_known_is_doubted_when_times_scatter_and_right_when_they_do_no_more(seed: int) -> None:
    """Sizes hardly differ any more, and a process that gets its core late makes a line of any slope of them."""
    live, total, rng = LiveCosts(("w",)), DeviceUse(), random.Random(seed)
    apart_or_not = {True: [6, 10] * 4, False: [8, 8, 8, 7, 8, 9, 8, 8]}
    for late in [0.0] * 40 + [0.5] * 30 + [0.0] * 30:
        sizes = apart_or_not[live.wants_spread]
        times = [0.008 * size + (rng.expovariate(1 / 0.040) if rng.random() < late else 0.0) for size in sizes]
        products = sum(size * time for size, time in zip(sizes, times, strict=True))
        total = total + DeviceUse(len(sizes), sum(sizes), sum(times), sum(size * size for size in sizes), products)
        live.report([StageUse(decode=total)])
    assert not live.wants_spread
    assert _stage(live)[1] == pytest.approx(0.008, rel=0.05)


def test_few_forwards_wait_until_there_are_enough_to_compare() -> None:
    live, total = LiveCosts(("w",)), _use([32] * 10, 0.0, 0.008)
    live.report([StageUse(decode=total)])
    for size in [28, 36] * 8:
        total = total + _use([size], 0.0, 0.008)
        live.report([StageUse(decode=total)])
    assert _stage(live)[1] == pytest.approx(0.008, rel=0.1)


def test_a_device_that_slows_down_is_believed() -> None:
    live = LiveCosts(("w",))
    total = _use([1, 4, 9] * 50, 0.010, 0.0)
    live.report([StageUse(decode=total)])
    for _ in range(8):
        total = total + _use([1, 4, 9] * 10, 0.030, 0.0)
        live.report([StageUse(decode=total)])
    assert _stage(live)[0] == pytest.approx(0.030, rel=0.1)


def _chunks(works: list[tuple[int, int]], fixed: float, row: float, pair: float, noise: random.Random | None = None) -> DeviceUse:
    """Of chunks of (rows, position)."""
    total = DeviceUse()
    for rows, position in works:
        attended = rows * position + rows * rows // 2
        seconds = (fixed + rows * row + attended * pair) * (noise.gauss(1, 0.03) if noise else 1)
        total = total + DeviceUse(1, rows, seconds, rows * rows, rows * seconds, attended)
    return total


def _report_prompt(live: LiveCosts, decode: DeviceUse, prefill: DeviceUse, sizes: list[int], **cost: Any) -> DeviceUse:
    """A prompt in chunks of ``sizes``, ten in each report; what all have taken."""
    positions = [sum(sizes[:n]) for n in range(len(sizes))]
    works = list(zip(sizes, positions, strict=True))
    for first in range(0, len(works), 10):
        prefill = prefill + _chunks(works[first : first + 10], **cost)
        live.report([StageUse(decode, prefill)])
    return prefill


@pytest.mark.parametrize("sizes", [[64] * 120, [64] * 60 + [32] * 60 + [16] * 120])
@pytest.mark.parametrize("pair", [2e-8, 2e-7])
def test_a_long_prompt_shows_what_attention_takes(sizes: list[int], pair: float) -> None:
    live, decode = LiveCosts(("w",)), _use([1, 2, 4, 8] * 10, 0.002, 0.0001)
    _report_prompt(live, decode, DeviceUse(), sizes, fixed=0.002, row=0.0004, pair=pair, noise=random.Random(1))
    time = live.topology([LOCAL]).device(1).stage
    assert time.context_s == pytest.approx(pair, rel=0.2)
    here = sum(sizes)
    assert time.prefill_s(16, here) == pytest.approx(0.002 + 16 * (0.0004 + pair * here), rel=0.1)


def test_what_a_chunk_attends_to_does_not_count_as_the_time_of_its_rows() -> None:
    """Decode microbatches of one size are on a line with the chunks, less their attention."""
    live, decode = LiveCosts(("w",)), _use([1] * 20, 0.004, 0.0002)
    _report_prompt(live, decode, DeviceUse(), [16] * 1000, fixed=0.004, row=0.0002, pair=5e-8)
    assert _stage(live) == (pytest.approx(0.004, rel=0.05), pytest.approx(0.0002, rel=0.5))


def test_short_prompts_that_scatter_show_nothing_of_attention() -> None:
    live, decode = LiveCosts(("w",)), _use([1, 2, 4, 8] * 10, 0.002, 0.0001)
    rng, total = random.Random(2), DeviceUse()
    for _ in range(50):
        total = total + _chunks([(rng.randint(8, 64), rng.randint(0, 200)) for _ in range(5)], 0.002, 0.0004, 0.0, rng)
        live.report([StageUse(decode, total)])
        assert live.topology([LOCAL]).device(1).stage.context_s * 4000 < 0.0004 / 4


def test_attention_that_becomes_cheaper_is_believed_with_the_next_long_prompt() -> None:
    live, decode = LiveCosts(("w",)), _use([1, 2, 4, 8] * 10, 0.002, 0.0001)
    total = _report_prompt(live, decode, DeviceUse(), [64] * 240, fixed=0.002, row=0.0004, pair=2e-7)
    _report_prompt(live, decode, total, [64] * 480, fixed=0.002, row=0.0004, pair=5e-8)
    assert live.topology([LOCAL]).device(1).stage.context_s == pytest.approx(5e-8, rel=0.3)


BOASTER = Device("b", 5, stage=RowTime(1e-4), layer=RowTime(1e-4, 1e-5, 1e-6, 1e-9), output=RowTime(1e-4, 1e-5))


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 100.0])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_device_is_as_fast_as_its_stage_was_whatever_it_claims(factor: float, is_last: bool) -> None:
    true = BOASTER.scaled(factor)
    live = LiveCosts(("a", "b"))
    rows, context = [8] * 20, 100
    total = DeviceUse()
    for _ in range(3):
        seconds = true.stage.decode_s(8, context) + 3 * true.layer.decode_s(8, context) + is_last * true.output.decode_s(8)
        total = total + DeviceUse(20, sum(rows), 20 * seconds, 20 * 64, 160 * seconds, 160 * context)
        mine = StageUse(decode=total)
        other = StageUse(decode=_use([8] * 20, 0.01, 0.0))
        live.report([other, mine] if is_last else [mine, other])
    shown = live.shown([(3,), (3,)])[1 if is_last else 0]
    assert (shown.rows, shown.context, shown.is_last) == (8, pytest.approx(context), is_last)
    corrected = shown.correct(BOASTER)
    for got, want in zip(
        (corrected.stage, corrected.layer, corrected.output), (true.stage, true.layer, true.output), strict=True
    ):
        assert got.decode_s(3, 70) == pytest.approx(want.decode_s(3, 70))
        assert got.prefill_s(30, 70) == pytest.approx(want.prefill_s(30, 70))
    assert corrected.memory_bytes == 5


def test_a_device_of_several_kinds_of_layers_is_corrected_by_those_that_it_had() -> None:
    device = Device("w", kinds=(RowTime(0.001), RowTime(0.010)))
    corrected = Shown((1, 2), False, 4.0, 0.0, 0.042).correct(device)
    assert [time.fixed_s for time in corrected.kinds] == pytest.approx([0.002, 0.020])


def test_a_device_that_claims_to_take_no_time_takes_what_its_stage_took() -> None:
    assert Shown((3,), False, 4.0, 0.0, 0.02).correct(Device("w")).stage == RowTime(fixed_s=0.02)
