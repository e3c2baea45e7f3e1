"""What is measured apart, and what is predicted from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.apart import Parts, parts_at, parts_of, rows_to_measure
from bench.load import Run
from bench.predict import Setting, predict_by_cost, simulate
from bench.shapes import Shape
from bloombee.pace import Pace
from bloombee.plan.topology import Cores


def _run(gap_s: float, computes_s: tuple[float, ...], cpu_s_per_token: float) -> Run:
    return Run(
        prefill_tokens_per_s=None,
        time_to_first_token_s=None,
        decode_tokens_per_s=1 / gap_s,
        gaps_s=(gap_s,) * 3,
        window_s=1.0,
        computes_s=computes_s,
        microbatch_rows=4.0,
        codec_ratios=(1.0,),
        link_bytes_per_token=(),
        cpu_share=0.1,
        others_cpu_share=0.0,
        cpu_s_per_token=cpu_s_per_token,
        tokens=(),
    )


def test_sizes_double_up_to_the_largest() -> None:
    assert rows_to_measure(1) == [1]
    assert rows_to_measure(32) == [1, 2, 4, 8, 16, 32]
    assert rows_to_measure(33) == [1, 2, 4, 8, 16, 32, 33]


def test_what_no_device_accounts_for_is_the_hops() -> None:
    """And of several runs the least disturbed counts, for each figure."""
    runs = [_run(0.010, (0.003, 0.004), 0.004), _run(0.012, (0.0035, 0.0035), 0.003)]
    found = parts_of(runs, 4, hops=2)
    assert found.computes_s == (0.003, 0.0035)
    assert found.hop_s == pytest.approx(0.0015)
    assert found.hop_cpu_s == pytest.approx((4 * 0.003 - 0.007) / 2)


def test_sizes_between_lie_on_a_line_and_beyond_on_its_end() -> None:
    parts = [Parts(1, (1.0, 2.0), 0.1, 0.5), Parts(4, (4.0, 2.0), 0.4, 0.2), Parts(8, (4.0, 4.0), 0.4, 0.1)]
    assert parts_at(parts, 4) == parts[1]
    assert parts_at(parts, 2).computes_s == pytest.approx((2.0, 2.0))
    assert parts_at(parts, 6).computes_s == pytest.approx((4.0, 3.0))
    beyond = parts_at(parts, 16)
    assert (beyond.computes_s, beyond.hop_cpu_s) == (pytest.approx((4.0, 8.0)), 0.0)
    assert parts_at(parts[:1], 7) == parts[0]


RING = Setting(
    links=((Shape(1e9, 0.004), Shape(1e9, 0.004)),) * 3,
    paces=(Pace(0.002, 0.00005, 0.0001),) * 3,
    layers=(3, 3, 2),
    hidden=256,
    row_bytes=512,
    batch=32,
    microbatches=4,
    prompt_tokens=8,
    tokens=16,
)


def _both(setting: Setting) -> list[float]:
    """Tokens a second by the cost model and by the simulated cluster."""
    simulated = simulate(setting)
    assert simulated is not None
    return [predict_by_cost(setting).tokens_per_s, simulated.tokens_per_s]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("microbatches", [1, 4, 16])
def test_cost_model_and_simulator_agree_on_shared_cores(count: int, microbatches: int) -> None:
    cost, simulated = _both(replace(RING, microbatches=microbatches, cores=Cores(count, hop_s=0.0006, hop_cpu_s=0.0009)))
    assert cost == pytest.approx(simulated, rel=0.15)


def test_more_microbatches_than_shared_cores_can_serve_are_a_loss() -> None:
    many = replace(RING, microbatches=16, cores=Cores(2, 0.0006, 0.0009))
    few, alone = _both(replace(many, microbatches=4)), _both(replace(many, cores=None))
    for index, speed in enumerate(_both(many)):
        assert speed < 0.8 * few[index]
        assert speed < 0.8 * alone[index]


def test_paced_devices_take_no_core() -> None:
    working = replace(RING, cores=Cores(1, 0.0006, 0.0006))
    asleep = replace(RING, cores=Cores(1, 0.0006, 0.0006, is_computing=False))
    for one, other in zip(_both(asleep), _both(working), strict=True):
        assert one > 1.05 * other
