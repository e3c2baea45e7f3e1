"""What comes of choices is measured, and wrong ones are left: by a machine whose speed under each is given."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from bloombee.control.audit import HOLD_S, Check

LOOK_S = 0.5


class Machine:
    """Runs what the check asks for, or what its model chooses, at a speed that is given for each number of microbatches.

    Args:
        speed: tokens a second, by microbatches and time; promised: what the model expects of each, likewise. Three stages; what
            a microbatch takes besides counts once for each that is under way, and at each stage.
        choice: the model's.
    """

    def __init__(
        self,
        speed: Callable[[int, float], float],
        promised: Callable[[int], float],
        choice: int,
        *,
        sequences: int = 32,
        scatter: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.check = Check()
        self.speed, self.promised, self.choice = speed, promised, choice
        self.sequences, self.delay_s = sequences, 0.015
        self.is_steady = True
        self.count, self.now, self.tokens = choice, 0.0, 0.0
        self.ran: list[int] = [choice]
        """Every change."""
        self._scatter, self._rng = scatter, random.Random(seed)

    def run(self, seconds: float) -> float:
        """Tokens a second, over the time."""
        stop, before = self.now + seconds, self.tokens
        while self.now < stop:
            self.now += LOOK_S
            self.tokens += LOOK_S * self.speed(self.count, self.now) * max(0.1, self._rng.gauss(1.0, self._scatter))
            asked = self.check.look(
                self.count,
                self.sequences,
                self.delay_s,
                (int(self.tokens), self.now),
                self._step_s,
                is_steady=self.is_steady,
                now=self.now,
            )
            self.count = asked or self.choice
            if self.ran[-1] != self.count:
                self.ran.append(self.count)
        return (self.tokens - before) / seconds

    def _step_s(self, count: int, extra_s: float) -> float:
        return max(self.sequences / self.promised(count) + 3 * extra_s, self.sequences / self.promised(64) + count * extra_s)


def _ideal(count: int) -> float:
    return 400.0 * min(count, 8)


def _level(count: int) -> float:
    return 1600.0 * min(1.0, 0.75 * count)


def _fighting(count: int, now: float = 0.0) -> float:
    """Best at 4."""
    return {8: 1000.0, 4: 1400.0, 2: 750.0, 1: 400.0}[count]


def test_a_promise_that_is_kept_is_left_alone() -> None:
    machine = Machine(lambda count, now: 0.95 * _ideal(count), _ideal, 8)
    machine.run(600)
    assert machine.ran == [8]
    assert machine.check.is_settled


def test_what_stays_short_of_its_promise_is_tried_with_fewer_and_the_best_is_kept() -> None:
    machine = Machine(_fighting, _ideal, 8)
    machine.run(20)
    assert machine.ran == [8, 4, 8, 4]
    assert machine.check.is_settled
    assert machine.run(HOLD_S - 20) == pytest.approx(1400)


def test_it_is_tried_again_ever_less_often() -> None:
    machine = Machine(_fighting, _ideal, 8)
    assert machine.run(3600) > 0.98 * 1400
    assert machine.ran.count(8) <= 8


def test_where_fewer_are_worse_the_model_keeps_its_choice_and_is_asked_ever_less_often() -> None:
    """Something else costs 15 percent, and fewer could make up for it as far as the model knows."""
    machine = Machine(lambda count, now: 0.85 * _level(8) * (1.0 if count == 8 else 0.9), _level, 8)
    machine.run(15)
    assert machine.ran == [8, 4, 8]
    assert machine.run(3600) > 0.98 * 0.85 * 1600
    assert machine.ran.count(4) <= 8


def test_fewer_are_not_tried_where_they_cannot_make_up_for_what_they_leave_idle() -> None:
    """Long links: eight are what fills them, and half as many give half as much, whatever it is that costs 15 percent."""
    machine = Machine(lambda count, now: 0.85 * _ideal(count), _ideal, 8)
    machine.run(3600)
    assert machine.ran == [8]
    assert machine.check.is_settled


@pytest.mark.parametrize("begins_s", [2.0, 4.0, 6.0])
def test_noise_that_comes_and_goes_leaves_the_models_choice(begins_s: float) -> None:
    """For some seconds everything is slow; then fewer look better than the choice did, though they are no better."""
    machine = Machine(lambda count, now: _level(8) * (0.7 if begins_s <= now < begins_s + 2.5 else 1.0), _level, 8)
    machine.run(120)
    assert machine.count == 8


def test_a_change_that_made_it_slower_is_taken_back() -> None:
    """The model's figures moved, though nothing else did."""
    machine = Machine(lambda count, now: {4: 1500.0, 16: 1300.0}[count], lambda count: 1500.0, 4)
    machine.run(10)
    machine.choice = 16
    machine.run(15)
    assert machine.ran == [4, 16, 4]
    assert machine.run(40) == pytest.approx(1500)


def test_a_machine_that_is_slower_since_then_is_not_the_changes_fault() -> None:
    """Going back does not help, so the new choice stays."""
    machine = Machine(
        lambda count, now: (1500.0 if count == 4 else 1600.0) * (1.0 if now <= 10 else 0.7), lambda count: 1100.0, 4
    )
    machine.run(10)
    machine.choice = 16
    machine.run(20)
    assert machine.ran == [4, 16, 4, 16]
    machine.run(40)
    assert machine.ran == [4, 16, 4, 16]


@pytest.mark.parametrize("seed", range(8))
def test_scatter_alone_changes_hardly_anything(seed: int) -> None:
    machine = Machine(lambda count, now: 0.97 * _ideal(count), _ideal, 8, scatter=0.1, seed=seed)
    assert machine.run(600) > 0.96 * 0.97 * 3200
    assert len(machine.ran) <= 9


@pytest.mark.parametrize("seed", range(8))
def test_the_best_is_found_through_scatter(seed: int) -> None:
    machine = Machine(_fighting, _ideal, 8, scatter=0.05, seed=seed)
    machine.run(30)
    assert machine.count == 4


def test_nothing_is_concluded_while_prompts_are_under_way() -> None:
    machine = Machine(_fighting, _ideal, 8)
    machine.is_steady = False
    machine.run(60)
    assert machine.ran == [8]
    machine.is_steady = True
    machine.run(5)
    machine.is_steady = False  # a trial that finds no steady load ends
    machine.run(60)
    assert machine.ran == [8, 4, 8]


def test_each_load_has_its_own_and_is_remembered() -> None:
    machine = Machine(_fighting, _ideal, 8)
    machine.run(20)
    machine.sequences, machine.choice = 16, 2
    machine.run(10)
    assert machine.count == 2
    machine.sequences, machine.choice = 32, 8
    machine.run(20)
    assert machine.ran == [8, 4, 8, 4, 2, 4]
    machine.delay_s = 0.150  # other links: nothing is known of them
    machine.run(0.5)
    assert machine.count == 8


def test_what_was_found_is_forgotten_when_the_model_expects_something_else() -> None:
    machine = Machine(_fighting, _ideal, 8)
    machine.run(20)
    machine.promised = machine.speed = lambda count, now=0.0: 200.0 * count  # the others have left the machine
    machine.run(10)
    assert machine.count == 8
