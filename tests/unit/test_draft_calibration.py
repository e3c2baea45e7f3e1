from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloombee.spec.calibrate import Calibration, rising, signs
from bloombee.spec.tree import Draft

FORK = Draft((1, 2), (0, 0), (0.5, 0.3), (1, 1))
CHAIN = Draft((1, 1, 1), (0, 1, 2), (0.5, 0.25, 0.125), (2, 2, 2))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.5, 9)), min_size=1, max_size=12))
def test_values_made_to_rise_keep_their_mean_and_are_left_alone_if_they_do(pairs: list[tuple[float, float]]) -> None:
    values, weights = [value for value, _ in pairs], [weight for _, weight in pairs]
    found = rising(values, weights)
    assert found == sorted(found)
    assert sum(a * b for a, b in zip(found, weights, strict=True)) == pytest.approx(
        sum(a * b for a, b in zip(values, weights, strict=True))
    )
    assert rising(sorted(values), weights) == sorted(values)


def test_a_drafter_that_was_never_right_is_not_heard_and_one_that_was_is_believed_beyond_what_was_seen() -> None:
    calibration = Calibration()
    assert max(calibration.apply(1, FORK).scores) < 0.005
    for _ in range(20):
        calibration.learn(1, FORK, (1,))
        calibration.learn(1, FORK, (7,))
    unseen = Draft((5,), (0,), (0.9,), (1,))
    assert calibration.apply(2, unseen).scores[0] > 0.4
    for _ in range(400):
        calibration.learn(1, FORK, (7,))
    assert calibration.apply(2, unseen).scores[0] < 0.2


def test_a_text_it_knows_nothing_of_is_told_by_a_few_misses_and_forgiven_as_fast() -> None:
    calibration = Calibration()
    for _ in range(300):
        calibration.learn(1, FORK, (1,))
    assert calibration.apply(2, FORK).scores[0] > 0.85
    for _ in range(6):
        calibration.learn(2, FORK, (7,))
    assert calibration.apply(2, FORK).scores[0] < 0.01
    calibration.learn(2, FORK, (1,))
    assert calibration.apply(2, FORK).scores[0] > 0.02
    calibration.learn(2, FORK, (1,))
    assert calibration.apply(2, FORK).scores[0] > 0.4


def test_each_rank_is_as_likely_as_it_has_been() -> None:
    random.seed(1)
    calibration = Calibration()
    for _ in range(3000):
        calibration.learn(1, FORK, random.choices(((1,), (2,), (7,)), (0.75, 0.05, 0.2))[0])
    assert calibration.apply(2, FORK).scores == pytest.approx((0.75, 0.05), abs=0.05)


def test_acceptance_that_changes_with_depth_is_told_apart() -> None:
    random.seed(2)
    calibration = Calibration()
    for _ in range(2000):
        length = 0
        while length < 3 and random.random() < (0.9, 0.5, 0.5)[length]:
            length += 1
        calibration.learn(1, CHAIN, [1] * length + [9])
    applied = calibration.apply(2, CHAIN)
    assert [applied.given_parent(node) for node in (1, 2, 3)] == pytest.approx((0.9, 0.5, 0.5), abs=0.08)


def test_a_sequence_that_differs_is_known_as_such_and_tells_others_less() -> None:
    random.seed(4)
    calibration = Calibration()
    for _ in range(2000):
        calibration.learn(1, FORK, (1,) if random.random() < 0.3 else (7,))
    for _ in range(60):
        calibration.learn(2, FORK, (1,))
    own, others = calibration.apply(2, FORK).scores[0], calibration.apply(3, FORK).scores[0]
    assert own > 0.85
    assert others < 0.45
    calibration.closed(2)
    assert calibration.apply(2, FORK).scores[0] == others


def test_who_agrees_and_who_is_contradicted_are_different_kinds() -> None:
    agreed = Draft((1,), (0,), (0.5,), (3,))
    disputed = Draft((1, 2), (0, 0), (0.5, 0.3), (1, 2))
    kinds = {kind for draft in (agreed, disputed, FORK) for kind, _, _ in signs(draft)}
    assert kinds == {(3, 3, 0), (1, 3, 0), (2, 3, 1), (1, 1, 0), (1, 1, 1)}


def test_what_was_said_is_ordered_even_where_evidence_is_thin() -> None:
    random.seed(5)
    calibration = Calibration()
    for _ in range(300):
        said = random.random()
        calibration.learn(1, Draft((1,), (0,), (said,), (1,)), (1,) if random.random() < said**2 else (9,))
    found = [calibration.apply(9, Draft((1,), (0,), (said / 50,), (1,))).scores[0] for said in range(1, 51)]
    assert found[10] < found[30] < found[49]
    assert found[25] == pytest.approx(0.25, abs=0.15)
