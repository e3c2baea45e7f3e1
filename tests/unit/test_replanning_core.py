"""When another plan is worth the change to it, in virtual time, against who knows the future."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from bloombee.control.replanning import Regret

STEP_S = 0.25
LOOK_S = 0.5
THIRTY_MINUTES = 1800.0
Values = Callable[[float], tuple[float, float]]
"""What the two plans are worth at a time."""


def _losses(values: Values, lasts_s: float) -> list[tuple[float, float]]:
    """Of each plan, against the better of the two, in each step."""
    worth = [values(step * STEP_S) for step in range(round(lasts_s / STEP_S))]
    return [(STEP_S * (1 - one / max(one, other)), STEP_S * (1 - other / max(one, other))) for one, other in worth]


def _best_offline(losses: Sequence[tuple[float, float]], cost_s: float) -> float:
    """The least of any schedule that begins with the first plan: what is lost and what its changes cost."""
    one, other = 0.0, cost_s
    for first, second in losses:
        one, other = min(one, other + cost_s) + first, min(other, one + cost_s) + second
    return min(one, other)


def _driven(values: Values, cost_s: float, lasts_s: float) -> tuple[float, list[float]]:
    """What was lost and paid by looking now and then, and when it changed."""
    regret, runs, total, changes = Regret(), 0, 0.0, list[float]()
    every = round(LOOK_S / STEP_S)
    for step, losses in enumerate(_losses(values, lasts_s)):
        worth = values(step * STEP_S)
        if step % every == 0 and regret.look(step * STEP_S, worth[runs], worth[1 - runs], cost_s):
            runs, total = 1 - runs, total + cost_s
            changes.append(step * STEP_S)
        total += losses[runs]
    return total, changes


def _square(period_s: float, high: tuple[float, float], low: tuple[float, float], *, phase_s: float) -> Values:
    return lambda now: high if (now + phase_s) % period_s < period_s / 2 else low


@pytest.mark.parametrize("period_s", [2, 10, 60, 300])
@pytest.mark.parametrize("cost_s", [1.0, 3.0, 10.0, 40.0])
@pytest.mark.parametrize(("high", "low"), [((10, 5), (1, 5)), ((10, 1), (1, 10)), ((10, 2), (1, 2)), ((10, 8), (1, 8))], ids=str)
def test_under_square_waves_no_more_than_twice_what_who_knows_the_future_pays(
    period_s: float, cost_s: float, high: tuple[float, float], low: tuple[float, float]
) -> None:
    for share in (0.0, 0.13, 0.37):
        values = _square(period_s, high, low, phase_s=share * period_s)
        total, _ = _driven(values, cost_s, THIRTY_MINUTES)
        assert total <= 2 * _best_offline(_losses(values, THIRTY_MINUTES), cost_s), share


@pytest.mark.parametrize("scatter", [0.02, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_figures_that_scatter_change_nothing(scatter: float, seed: int) -> None:
    rng = random.Random(seed)
    regret = Regret()
    looks = [
        regret.look(now * LOOK_S, rng.lognormvariate(0, scatter), rng.lognormvariate(0, scatter), 1.0)
        for now in range(int(THIRTY_MINUTES / LOOK_S))
    ]
    assert not any(looks)


@pytest.mark.parametrize("cost_s", [1.0, 10.0])
def test_a_drop_that_lasts_is_left_once_and_when_it_has_cost_as_much(cost_s: float) -> None:
    total, changes = _driven(lambda now: (10.0, 5.0) if now < 100 else (1.0, 5.0), cost_s, THIRTY_MINUTES)
    assert len(changes) == 1
    assert 100 <= changes[0] <= 100 + cost_s / 0.8 + LOOK_S
    assert total <= 2 * cost_s


def test_a_change_that_earned_nothing_is_not_repeated_as_easily_for_a_while() -> None:
    regret = Regret()
    assert not regret.look(0.0, 1.0, 10.0, 2.0)
    assert regret.look(2.0, 1.0, 10.0, 2.0)
    assert regret.look(4.0, 1.0, 10.0, 1.0)  # it is worse at once
    assert regret.factor == 2.0
    for now in range(6, 3600, 2):
        regret.look(float(now), 10.0, 1.0, 2.0)
    assert regret.factor < 1.1


def test_time_in_which_nothing_runs_loses_nothing() -> None:
    regret = Regret()
    regret.look(0.0, 1.0, 10.0, 100.0)
    regret.look(3600.0, 1.0, 10.0, 100.0)
    assert regret.regret_s == 0.0
    regret.look(3602.0, 1.0, 10.0, 100.0)
    assert regret.regret_s == pytest.approx(1.8)
    regret.begin()
    assert regret.regret_s == 0.0
