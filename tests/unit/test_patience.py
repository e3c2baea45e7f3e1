from __future__ import annotations

import pytest

from bloombee.pipeline.patience import FACTOR, SLACK_S, Patience
from bloombee.types import Phase


def test_what_has_shown_nothing_has_all_the_time() -> None:
    patience = Patience(600.0)
    patience.came_home(Phase.DECODE, 4, 0.1)
    assert patience.allows_s([(Phase.DECODE, 4), (Phase.PREFILL, 8)]) == 600.0


def test_a_deadline_is_many_times_what_the_slowest_has_taken_and_grows_with_the_rows() -> None:
    patience = Patience(600.0)
    patience.came_home(Phase.PREFILL, 64, 3.0)
    patience.came_home(Phase.PREFILL, 64, 2.0)
    assert patience.allows_s([(Phase.PREFILL, 32)]) == pytest.approx(FACTOR * 3.0 + SLACK_S, rel=0.01)
    assert patience.allows_s([(Phase.PREFILL, 512), (Phase.PREFILL, 32)]) == pytest.approx(FACTOR * 24.0 + SLACK_S, rel=0.01)


def test_one_slow_step_is_forgotten_in_time() -> None:
    patience = Patience(600.0)
    patience.came_home(Phase.DECODE, 1, 100.0)
    for _ in range(5000):
        patience.came_home(Phase.DECODE, 1, 1.0)
    assert patience.allows_s([(Phase.DECODE, 1)]) < 2 * FACTOR + SLACK_S
