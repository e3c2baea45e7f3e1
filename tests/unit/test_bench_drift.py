"""``bench/drift.py``: what it counts, and that it sees each bound that is missed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from bench.drift import Drift, Traffic, judged, told

GOOD = Drift(
    what="a -> b to a tenth", before=300.0, at_once=60.0, after=280.0, bins=(40.0,) * 8 + (280.0,) * 32, calm_switches=0,
    switches=1, switched_s=7.5, stays=45.0, fresh=290.0, changed=0,
)  # fmt: skip


def test_all_bounds_are_met_by_a_swarm_that_changes_its_plan_once() -> None:
    assert all(check.is_met for check in judged(GOOD))
    assert "a -> b to a tenth: 300 tokens/s before, 60 at once, 280 from second 10 on (another plan after 7.5 s)" in told(GOOD)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"calm_switches": 1}, "while it is calm"),
        ({"switches": 2}, "changes of plan after"),
        ({"after": 255.0}, "from second 10 on"),
        ({"bins": (20.0, *GOOD.bins[1:])}, "worst second"),
        ({"changed": 1}, "other tokens"),
    ],
)
def test_each_bound_that_is_missed_is_seen(wrong: dict[str, Any], what: str) -> None:
    (missed,) = (check for check in judged(replace(GOOD, **wrong)) if not check.is_met)
    assert what in missed.what


def test_tokens_and_changes_of_plan_are_counted_by_when_they_came() -> None:
    traffic = Traffic(cast(Any, None), times=[0.5, 1.0, 1.5, 1.9, 3.2], switches=[1.2])
    assert traffic.rate(1.0, 2.0) == 3.0
    assert traffic.bins(0.0, 4.0) == [1.0, 3.0, 0.0, 1.0]
    assert (traffic.num_switches(0.0, 1.0), traffic.num_switches(1.0, 2.0)) == (0, 1)
    traffic.answers[0] |= {(1, 2), (1, 3)}
    assert traffic.num_changed == 1
