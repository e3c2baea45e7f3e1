from __future__ import annotations

import random

from bloombee.spec.history import History
from bloombee.spec.ngram import OWN_TOKENS, SHARED_TOKENS, NgramDrafter
from bloombee.spec.tree import Draft


def _chain(draft: Draft) -> tuple[int, ...]:
    """Tokens of the likeliest path."""
    node, tokens = 0, []
    while children := draft.children(node):
        node = max(children, key=lambda child: draft.scores[child - 1])
        tokens.append(draft.tokens[node - 1])
    return tuple(tokens)


def test_what_was_said_before_is_expected_again() -> None:
    text = list(range(100, 140))
    draft = NgramDrafter().propose(1, [*text, 1, 2, *text[:5]], 12)
    draft.check(vocabulary=200, most=12)
    assert _chain(draft) == tuple(text[5:17])


def test_a_text_that_repeats_is_continued_beyond_its_end() -> None:
    assert _chain(NgramDrafter().propose(1, [1, 2, 3] * 5, 9)) == (1, 2, 3) * 3


def test_several_continuations_are_ordered_by_how_often_they_came() -> None:
    draft = NgramDrafter().propose(1, [1, 2, 7, 0, 1, 2, 8, 0, 1, 2, 7, 0, 0, 1, 2], 9)
    first = {draft.tokens[child - 1]: draft.scores[child - 1] for child in draft.children(0)}
    assert first[7] > first[8] > 0


def test_nothing_is_expected_where_nothing_came_before() -> None:
    drafter = NgramDrafter()
    assert not drafter.propose(1, list(range(50)), 8)
    assert not drafter.propose(2, [5], 8)
    assert not drafter.propose(3, [], 8)
    assert not drafter.propose(4, [1, 2, 3] * 5, 0)


def test_what_others_were_given_is_known_and_their_prompts_are_not() -> None:
    drafter = NgramDrafter()
    prompt, output = list(range(1000, 1100)), list(range(2000, 2100))
    drafter.propose(1, prompt, 4)
    drafter.propose(1, prompt + output, 4)
    drafter.closed(1)
    assert _chain(drafter.propose(2, output[:8], 6)) == tuple(output[8:14])
    assert not drafter.propose(3, prompt[:8], 6)


def test_the_same_tokens_give_the_same_draft_however_they_come() -> None:
    random.seed(3)
    text = [random.randrange(6) for _ in range(400)]
    at_once, bit_by_bit = NgramDrafter(), NgramDrafter()
    for length in range(10, 400, 7):
        bit_by_bit.propose(1, text[:length], 8)
    one, other = at_once.propose(1, text, 24), bit_by_bit.propose(1, text, 24)
    assert len(one) == 24
    assert set(one.tokens) <= set(range(6))
    assert one.tokens[0] == other.tokens[0]
    one.check(vocabulary=6, most=24)


def test_memory_is_bounded_and_old_text_is_forgotten() -> None:
    history = History(256)
    sizes = set()
    for token in range(5000):
        history.append(token)
        sizes.add(history.num_bytes)
    assert max(sizes) <= 2 * 256 * 24
    from array import array

    assert history.found(array("I", (10, 11, 12, 13))).weights == {}
    assert history.found(array("I", (4900, 4901, 4902, 4903))).weights == {4904: 1 << 4}


def test_a_long_prompt_is_known_by_its_end() -> None:
    prompt = list(range(3 * OWN_TOKENS))
    drafter = NgramDrafter()
    assert _chain(drafter.propose(1, [*prompt, *prompt[-20:-10]], 4)) == tuple(prompt[-10:-6])
    assert OWN_TOKENS < SHARED_TOKENS
