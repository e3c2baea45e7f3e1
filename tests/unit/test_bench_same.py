"""Which differences between two runs of the same request may be, and that a series of kills goes on where it stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from bench.exact import Reference
from bench.kills import KILLED, Kill, KillLog, Series, tokens_for
from bench.profiles import load_profile
from bench.same import MARGIN, Comparison, Request, compare, first_difference
from bloombee.engine.sampler_reference import sample_row, score_row
from bloombee.wire.messages import Sampling

SAMPLING = Sampling(
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=0,
    logprobs=-1,
)
REQUEST = Request([1, 2, 3], SAMPLING)


class _Judge:
    """A reference that says one margin of every position, and was asked of which."""

    def __init__(self, margin: float) -> None:
        self._margin = margin
        self.asked: list[list[int]] = []

    def margin(self, prompt: list[int], tokens: list[int], sampling: Sampling) -> float:
        self.asked.append([*prompt, *tokens])
        return self._margin


def _compare(judge: _Judge, expected: list[int], answer: list[int]) -> Comparison:
    return compare(cast(Reference, judge), REQUEST, expected, answer)


def test_equal_answers_are_compared_whole_and_nobody_is_asked() -> None:
    judge = _Judge(0.0)
    assert _compare(judge, [4, 5, 6], [4, 5, 6]) == Comparison(3)
    assert not judge.asked


@pytest.mark.parametrize(("margin", "came"), [(2 * MARGIN, Comparison(2, num_wrong=1)), (MARGIN / 2, Comparison(2, num_flips=1))])
def test_the_first_difference_alone_is_judged_by_how_sure_one_process_is_there(margin: float, came: Comparison) -> None:
    judge = _Judge(margin)
    assert _compare(judge, [4, 5, 6], [4, 7, 8]) == came
    assert judge.asked == [[1, 2, 3, 4]]


@pytest.mark.parametrize("answer", [[4, 5], [4, 5, 6, 6], []], ids=["missing", "doubled", "none"])
def test_a_token_that_is_missing_or_doubled_is_wrong_however_near_others_were(answer: list[int]) -> None:
    assert _compare(_Judge(0.0), [4, 5, 6], answer).num_wrong == 1


def test_one_flip_in_a_hundred_thousand_tokens_is_the_most() -> None:
    assert Comparison(100_000, num_flips=1).is_same
    assert not Comparison(199_999, num_flips=2).is_same
    assert Comparison(200_000, num_flips=2).is_same
    assert not Comparison(10**9, num_wrong=1).is_same
    assert (Comparison(99_999).is_claim, Comparison(100_000).is_claim) == (False, True)


def test_where_two_answers_part() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [3, 2]) == 0
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_scores_of_a_row_are_those_that_its_token_is_picked_by() -> None:
    rng = np.random.default_rng(0)
    for seed in range(50):
        row = rng.normal(size=64).astype(np.float32)
        fields = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": seed, "position": 9}
        ids, scores = score_row(row, **fields)
        assert ids[scores.argmax()] == sample_row(row, **fields)


def test_enough_tokens_are_asked_for_that_a_series_makes_a_claim() -> None:
    assert 60 * 16 * tokens_for(60, 100_000) >= 100_000
    assert 12 * 16 * tokens_for(12, 100_000) >= 100_000


def test_kills_that_are_done_are_not_done_again_and_failed_ones_are(tmp_path: Path) -> None:
    series = Series(3, len(KILLED) + 20, 48, load_profile("500M-10ms"), "cpu")
    path, facts = tmp_path / "kills.jsonl", {"commit": "a"}
    kills = series.kills()
    assert {kill.cell for kill in kills[: len(KILLED)]} == set(KILLED)
    log = KillLog(path, series, facts)
    done = dataclasses.replace(kills[0], detect_s=0.1, same=Comparison(48))
    log.add(done)
    log.add(dataclasses.replace(kills[1], failed="no room"))
    with path.open("a") as file:
        file.write('{"mode": "kill", "as')  # interrupted
    assert KillLog(path, series, facts).done == {0: done}
    assert not KillLog(path, series, {"commit": "b"}).done
    assert not KillLog(path, dataclasses.replace(series, seed=4), facts).done
    assert [Kill(k.number, k.who, k.moment, k.way, k.at) for k in kills] == series.kills()
