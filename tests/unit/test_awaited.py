from __future__ import annotations

from bloombee.pipeline.events import Open
from bloombee.pipeline.scheduler.awaited import Awaited
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.wire.messages import Sampling

SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)


def _sequence(number: int) -> SequenceState:
    return SequenceState.of(Open(number, b"\1\0\0\0", SAMPLING, 8, frozenset(), 0.0))


ONE, TWO, THREE = map(_sequence, (1, 2, 3))


def test_those_that_came_together_go_on_together_with_the_last_answer() -> None:
    awaited = Awaited()
    awaited.hold([ONE, TWO, THREE], {1: 5.0, 3: 5.0})
    assert awaited.ready(0.0) == []
    awaited.answered(3)
    assert awaited.ready(0.0) == []
    awaited.answered(1)
    assert awaited.ready(0.0) == [ONE, TWO, THREE]
    assert awaited.ready(9.0) == []


def test_nobody_waits_longer_than_it_is_worth() -> None:
    awaited = Awaited()
    awaited.hold([ONE], {1: 5.0})
    awaited.hold([TWO], {2: 7.0})
    assert awaited.ready(5.0) == [ONE]
    awaited.answered(1)
    assert awaited.ready(7.0) == [TWO]


def test_who_was_not_asked_for_goes_on_at_once() -> None:
    awaited = Awaited()
    awaited.hold([ONE, TWO], {})
    assert awaited.ready(0.0) == [ONE, TWO]


def test_who_has_ended_holds_up_nobody() -> None:
    awaited = Awaited()
    awaited.hold([ONE, TWO], {1: 5.0})
    assert awaited.remove(ONE)
    assert not awaited.remove(ONE)
    assert awaited.ready(0.0) == [TWO]
    awaited.hold([THREE], {3: 5.0})
    awaited.clear()
    assert awaited.ready(9.0) == []
