"""What a request becomes: the caller's word first, then the checkpoint's, then ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bloombee.config import DEFAULT_NEW_TOKENS
from bloombee.errors import ConfigError
from bloombee.models.card import ModelCard
from bloombee.models.rules import Defaults
from bloombee.roles.asked import Asked, ask
from bloombee.sim.cluster import sim_card
from bloombee.types import SamplingParams


def card(*, max_positions: int = 1000, restart_at: int = 0, **defaults: Any) -> ModelCard:
    return dataclasses.replace(
        sim_card((0,)), max_positions=max_positions, restart_at=restart_at, eos_token_ids=(2, 7), defaults=Defaults(**defaults)
    )


def asked(of: ModelCard, num_prompt_tokens: int = 10, **given: Any) -> Asked:
    return ask(SamplingParams(**given), of, num_prompt_tokens)


FILE: dict[str, Any] = {"top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.5}


def test_what_the_caller_leaves_open_is_the_checkpoints() -> None:
    found = asked(card(**FILE, stop=("end",), max_time_s=4.0), temperature=0.5).sampling
    assert {name: getattr(found, name) for name in FILE} == FILE
    assert asked(card(stop=("end",))).stop == ("end",)
    assert asked(card(max_time_s=4.0)).max_time_s == 4.0


def test_what_the_caller_gives_overrides_the_checkpoint_even_if_it_is_off() -> None:
    given: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    found = asked(card(**FILE, stop=("end",)), **given, stop=()).sampling
    assert {name: getattr(found, name) for name in given} == given
    assert asked(card(stop=("end",)), stop=()).stop == ()


def test_whether_to_sample_is_the_callers_word() -> None:
    assert asked(card(**FILE)).sampling.temperature == 0
    assert asked(card(**FILE), temperature=0.7).sampling.temperature == 0.7


@pytest.mark.parametrize(
    ("of", "given", "expected"),
    [
        (card(), {}, DEFAULT_NEW_TOKENS),
        (card(max_positions=50), {}, 40),
        (card(max_positions=0), {}, DEFAULT_NEW_TOKENS),
        (card(restart_at=30), {}, 21),
        (card(restart_at=9), {}, DEFAULT_NEW_TOKENS),
        (card(max_length=25), {}, 15),
        (card(max_length=25, max_new_tokens=3), {}, 3),
        (card(max_length=25, max_new_tokens=3), {"max_new_tokens": 300}, 300),
        (card(max_length=5), {"max_new_tokens": 4}, 4),
    ],
)
def test_how_many_tokens(of: ModelCard, given: dict[str, Any], expected: int) -> None:
    assert asked(of, **given).max_new_tokens == expected


def test_a_prompt_as_long_as_the_checkpoint_allows_a_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_length = 10") as caught:
        asked(card(max_length=10))
    assert caught.value.fields["field"] == "max_new_tokens"


def test_who_goes_past_end_tokens_has_none() -> None:
    assert asked(card()).end_tokens == {2, 7}
    assert asked(card(), ignore_eos=True).end_tokens == frozenset()


def test_a_default_is_the_callers_and_goes_as_far_as_there_are_positions() -> None:
    of = card(max_positions=1000)
    assert ask(SamplingParams(), of, 10, 700).max_new_tokens == 700
    assert ask(SamplingParams(), of, 995, 700).max_new_tokens == 5
    assert ask(SamplingParams(max_new_tokens=3), of, 10, 700).max_new_tokens == 3
