"""Epochs that a stage has left: an order to wire one that comes late is refused, and they do not pile up."""

from __future__ import annotations

import pytest

from bloombee.errors import StalePlan
from bloombee.pipeline.seats import MOST_OVER, Seats
from bloombee.wire.messages import Retire, Wire


def _shadows(epoch: int) -> Wire:
    """No ring's: whether it is newer than another says nothing."""
    return Wire(1, epoch, 1, 0, 2, 4, 64, None, None, None, (), None, False, 1, True)


def test_the_last_that_were_retired_are_remembered_however_many_there_were() -> None:
    seats = Seats(1)
    for epoch in range(1, 10 * MOST_OVER):
        assert seats.is_retired(Retire(1, epoch)), "it was never wired here"
        with pytest.raises(StalePlan):
            seats.is_new(_shadows(epoch))
    assert len(seats.over) == MOST_OVER
    with pytest.raises(StalePlan):
        seats.is_new(_shadows(9 * MOST_OVER))
    assert seats.is_new(_shadows(10 * MOST_OVER))


def test_an_order_that_comes_again_makes_nothing_else_forgotten() -> None:
    seats = Seats(1)
    for epoch in range(1, MOST_OVER + 1):
        seats.is_retired(Retire(1, epoch))
    for _ in range(MOST_OVER):
        seats.is_retired(Retire(1, MOST_OVER))
    with pytest.raises(StalePlan):
        seats.is_new(_shadows(1))
