"""What those are told who find no place: by how fast requests have ended while there were any, one place for each."""

from __future__ import annotations

import pytest

from bloombee.pipeline.turnover import MOST_S, SEEN, Turnover


def one_after_another(turnover: Turnover, count: int, *, each_s: float, at: float = 0.0) -> float:
    for _ in range(count):
        turnover.began(at)
        at += each_s
        turnover.ended(at, had_tokens=True)
    return at


def test_nobody_has_ended_yet_so_it_takes_as_long_again() -> None:
    turnover = Turnover()
    turnover.began(10.0)
    assert turnover.refused(13.0) == 3.0


def test_each_who_is_refused_gets_a_place_of_its_own_and_places_come_in_time() -> None:
    turnover = Turnover()
    now = one_after_another(turnover, 8, each_s=0.5)
    turnover.began(now)
    assert [turnover.refused(now) for _ in range(3)] == [0.5, 1.0, 1.5]
    assert turnover.refused(now + 1.0) == pytest.approx(1.0, abs=0.2)  # of the four promised two have come


def test_idle_times_do_not_count() -> None:
    turnover = Turnover()
    now = one_after_another(turnover, 4, each_s=0.25)
    turnover.began(now + 3600)
    assert turnover.refused(now + 3600) == 0.25


def test_of_late_counts() -> None:
    turnover = Turnover()
    now = one_after_another(turnover, 4, each_s=50.0)
    now = one_after_another(turnover, SEEN + 1, each_s=0.125, at=now)
    turnover.began(now)
    assert turnover.refused(now) == 0.125


def test_what_was_taken_back_at_once_tells_nothing() -> None:
    turnover = Turnover()
    now = one_after_another(turnover, 2, each_s=1.0)
    turnover.began(now)
    for _ in range(9):
        turnover.began(now)
        turnover.ended(now, had_tokens=False)
    assert turnover.refused(now) == 1.0


def test_nobody_is_sent_away_for_ever() -> None:
    turnover = Turnover()
    now = one_after_another(turnover, 1, each_s=40.0)
    turnover.began(now)
    assert [turnover.refused(now) for _ in range(3)] == [40.0, MOST_S, MOST_S]
