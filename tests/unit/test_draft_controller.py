from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import lambertw

from bloombee.spec.controller import Line, Load, Shape, best_size, worth_sending
from bloombee.spec.tree import Draft, path_scores

LOOP = Load(Line(0.5, 0.001))


@st.composite
def loads(draw: st.DrawFn) -> Load:
    lines = st.builds(Line, st.floats(0.001, 0.5), st.floats(0, 0.02))
    others = draw(st.integers(0, 8))
    return Load(
        draw(lines), tuple(draw(st.lists(lines, max_size=3))), draw(st.integers(1, 6)), others, draw(st.floats(0.9, 3)) * others
    )


@st.composite
def trees(draw: st.DrawFn) -> Draft:
    parents = [draw(st.integers(0, at)) for at in range(draw(st.integers(0, 8)))]
    given = [draw(st.floats(0.05, 1)) for _ in parents]
    return Draft(tuple(range(len(parents))), tuple(parents), path_scores(parents, given), (1,) * len(parents))


def _rate(scores: list[float], load: Load) -> float:
    """Tokens per second of all in the microbatch."""
    return (load.tokens + 1 + sum(scores)) / load.round_s(len(scores))


@given(trees(), loads())
def test_no_other_tree_of_the_same_nodes_gives_more_tokens_per_second(draft: Draft, load: Load) -> None:
    nodes = range(1, len(draft) + 1)
    rates = [
        _rate([draft.scores[node - 1] for node in chosen], load)
        for size in range(len(draft) + 1)
        for chosen in itertools.combinations(nodes, size)
        if all(draft.parents[node - 1] in {0, *chosen} for node in chosen)
    ]
    sent = worth_sending(draft, load)
    sent.check(vocabulary=9, most=8)
    assert _rate(list(sent.scores), load) == pytest.approx(max(rates))


@given(trees(), loads())
def test_what_is_sent_is_worth_more_than_its_rows_and_what_is_not_is_worth_less(draft: Draft, load: Load) -> None:
    """The rule of theta and m, where what a row costs does not depend on how many there are."""
    load = Load(load.loop, (), 1, load.rows, load.tokens)
    sent = worth_sending(draft, load)
    price = _rate(list(sent.scores), load) * load.loop.row_s
    assert all(score >= price * (1 - 1e-9) for score in sent.scores)
    left = sorted(draft.scores, reverse=True)[len(sent) :]
    assert all(score <= price * (1 + 1e-9) for score in left)


@pytest.mark.parametrize("acceptance", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("row_s", [0.0005, 0.004, 0.05])
def test_a_chain_is_as_long_as_the_formula_says(acceptance: float, row_s: float) -> None:
    """n* of docs/adr/0071: tokens (1 - a^n) / (1 - a) of n rows in A + m n seconds."""
    load = Load(Line(0.5, row_s))
    size, _ = best_size([acceptance**depth for depth in range(1, 600)], load)
    log = math.log(1 / acceptance)
    x = log * 0.5 / row_s
    best = (-lambertw(-math.exp(-(1 + x)), -1).real - 1 - x) / log
    assert abs((size + 1) - best) <= 1


def test_under_load_drafting_fades_and_ends() -> None:
    scores = [0.8**depth for depth in range(1, 30)]
    stage = Line(0.001, 0.0005)
    sizes = [
        best_size(scores, Load(Line(0.46, 0.006), (stage, Line(0.0, 0.02)), count, 0.0, 0.0))[0] for count in (1, 8, 20, 40, 100)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 5
    assert sizes[-1] == 0


def test_others_of_the_microbatch_are_not_held_up_for_less_than_they_lose() -> None:
    scores = [0.5, 0.25, 0.12]
    alone, _ = best_size(scores, Load(Line(0.1, 0.01)))
    beside, _ = best_size(scores, Load(Line(0.1, 0.01), rows=15, tokens=15))
    assert (alone, beside) == (2, 0)


def test_a_draft_that_has_to_be_waited_for_must_make_up_for_it() -> None:
    assert best_size([0.9, 0.8, 0.7], LOOP, wait_s=0.05)[0] == 3
    assert best_size([0.05], LOOP, wait_s=0.05)[0] == 0


def test_a_fixed_shape_is_the_likeliest_path_with_its_siblings() -> None:
    draft = Draft((7, 8, 9, 5, 6), (0, 0, 0, 1, 1), (0.6, 0.2, 0.1, 0.4, 0.1), (1,) * 5)
    assert Shape(2).cut(draft).tokens == (7, 5)
    assert Shape(1, 2).cut(draft).tokens == (7, 8)
    assert Shape(9, 2).cut(draft).tokens == (7, 8, 5, 6)
    assert Shape(9, 2).cut(Draft()) == Draft()


def test_in_parts_a_draft_is_on_several_hops_at_once() -> None:
    wires = Load(Line(0.5, 0.003), (Line(0.0, 0.001), Line(0.0005, 0.0)))
    rows, seconds = wires.parts(64)
    assert rows < 10
    assert 0.5 + 0.064 < seconds < 0.5 + 0.7 * 64 * 0.003
    assert wires.round_s(63) == seconds
    assert Load(Line(0.5, 0.003), (Line(0.0, 0.001),), 300).round_s(63) == pytest.approx(300 * 0.064)
    assert Load(Line(0.5, 0.003)).round_s(63) == pytest.approx(0.5 + 64 * 0.003)
