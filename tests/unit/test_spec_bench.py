"""How bench/spec.py counts tokens."""

from __future__ import annotations

import pytest

from bench.spec import by_rounds, by_window


def test_of_one_sequence_whole_rounds_count() -> None:
    times = [0.0, 0.5, 0.501, 0.502, 1.0, 1.001]
    assert by_rounds(times, 0.1) == pytest.approx(4 / 1.0)


def test_of_several_the_time_counts_while_all_decode() -> None:
    early, late = [0.0, 1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5, 5.5]
    assert by_window([early, late]) == pytest.approx((2 + 1) / 1.5)
