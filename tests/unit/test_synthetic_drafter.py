from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.rounds import best_rate, play
from bench.synthetic_drafter import Synthetic, Truth
from bloombee.models.standin import standin_token
from bloombee.spec.controller import Line, Load

ASK = {"sequence": 1, "first": 0, "budget": 40, "least": 0.0}


def test_it_is_right_as_often_as_it_is_told_by_rank() -> None:
    acceptance = (0.6, 0.2, 0.05)
    synthetic = Synthetic(Truth("standin"), acceptance, 0.0)
    ranks: Counter[int] = Counter()
    for seed in range(600):
        draft = synthetic.draft({**ASK, "sequence": seed, "tokens": [5] * 3, "seed": seed, "budget": 12})
        first = sorted(draft.children(0), key=lambda child: -draft.scores[child - 1])
        draft.check(vocabulary=1 << 31, most=12)
        found = [draft.tokens[child - 1] for child in first]
        true = standin_token(seed, 3)
        ranks[found.index(true) if true in found else 3] += 1
    assert [ranks[rank] / 600 for rank in range(3)] == pytest.approx(acceptance, abs=0.06)


def test_chance_is_the_same_wherever_a_tree_begins() -> None:
    synthetic = Synthetic(Truth("standin"), (0.9,), 0.0)
    tokens = [standin_token(3, position) for position in range(60)]
    whole = synthetic.draft({**ASK, "tokens": tokens[:20], "seed": 3})
    depth = whole.depth(whole.follow([token for token in tokens[20:] if token in whole.tokens][:1]) or 0)
    later = synthetic.draft({**ASK, "first": 20, "tokens": tokens[20 : 20 + depth], "seed": 3})
    assert whole.below(whole.follow(tokens[20 : 20 + depth]) or 0).tokens[:5] == later.tokens[:5]


def test_recorded_texts_are_a_truth_as_well(tmp_path: Path) -> None:
    file = tmp_path / "texts.json"
    file.write_text('{"vocabulary": null, "tokens": 50, "texts": [[1, 2, 3, 4, 5, 6]]}')
    draft = Synthetic(Truth(str(file)), (1.0,), 0.0).draft({**ASK, "tokens": [1, 2, 3], "seed": 0, "budget": 3})
    assert draft.follow((4, 5, 6)) == 3


@pytest.mark.parametrize(("acceptance", "row_s"), [((0.8, 0.08, 0.04), 0.0023), ((0.6, 0.13), 0.02)])
def test_what_the_controller_decides_comes_near_what_is_possible(acceptance: tuple[float, ...], row_s: float) -> None:
    load = Load(Line(0.516, row_s))
    played = play(load, acceptance, 0.001, 150)
    assert played.tokens_per_s > 0.85 * best_rate(load, acceptance, 0.001)[1]


def test_a_drafter_that_is_never_right_costs_nothing() -> None:
    load = Load(Line(0.516, 0.0023))
    played = play(load, (0.0, 0.0), 0.001, 300)
    assert played.nodes <= 3
    assert played.tokens_per_s > 0.99 / load.round_s(0)
