from __future__ import annotations

import pytest

from bloombee.pipeline.acting import InTurn


def test_what_comes_of_acting_on_a_command_waits_for_the_rest_of_them() -> None:
    done: list[str] = []

    def act(command: str) -> None:
        done.append(command)
        if command == "tell":
            in_turn(["3", "4"])
            done.append("told")

    in_turn = InTurn(act)
    in_turn(["tell", "1", "2"])
    assert done == ["tell", "told", "1", "2", "3", "4"]
    in_turn(["5"])
    assert done[-1] == "5"


def test_one_that_fails_costs_no_other_and_is_raised_to_who_began() -> None:
    done: list[int] = []

    def act(command: int) -> None:
        if command == 0:
            in_turn([2, 3])
        if command == 2:
            raise ValueError("two")
        done.append(command)

    in_turn = InTurn(act)
    with pytest.raises(ValueError, match="two"):
        in_turn([0, 1])
    assert done == [0, 1, 3]
    in_turn([4])
    assert done == [0, 1, 3, 4]
