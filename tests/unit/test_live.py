from __future__ import annotations

import random

import pytest

from bloombee.plan.live import LiveCosts
from bloombee.plan.topology import LOCAL
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


def test_without_spread_everything_is_fixed() -> None:
    live = LiveCosts(("w",))
    assert not live.is_known
    live.report([StageUse(decode=_use([4] * 10, 0.010, 0.001))])
    assert live.is_known
    assert _stage(live) == (pytest.approx(0.014), 0.0)


def test_a_device_that_slows_down_is_believed() -> None:
    live = LiveCosts(("w",))
    total = _use([1, 4, 9] * 50, 0.010, 0.0)
    live.report([StageUse(decode=total)])
    for _ in range(8):
        total = total + _use([1, 4, 9] * 10, 0.030, 0.0)
        live.report([StageUse(decode=total)])
    assert _stage(live)[0] == pytest.approx(0.030, rel=0.1)
