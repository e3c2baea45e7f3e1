from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bloombee.pipeline.runs import Runs

SMALL = st.integers(0, 30)


@given(st.lists(st.tuples(st.booleans(), SMALL), max_size=60))
def test_it_is_a_set_of_as_many_runs_as_it_has(steps: list[tuple[bool, int]]) -> None:
    runs, plain = Runs(), set[int]()
    for is_add, number in steps:
        if is_add:
            runs.add(number)
            plain.add(number)
        else:
            runs.drop_below(number)
            plain = {one for one in plain if one >= number}
        assert {number for number in range(-1, 32) if number in runs} == plain
        assert len(runs) == sum(number - 1 not in plain for number in plain)
