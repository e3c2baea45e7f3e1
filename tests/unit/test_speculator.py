from __future__ import annotations

import random

from bloombee.spec.controller import Line, Load
from bloombee.spec.speculator import MOST_NODES, Speculator
from bloombee.spec.tree import EMPTY, Draft

SLOW = Load(Line(0.5, 0.003))
BUSY = Load(Line(0.5, 0.003), (Line(0.0, 0.02),), 64)


class Chain:
    """Always expects the next number, right or not."""

    def propose(self, sequence: int, tokens: list[int], budget: int) -> Draft:
        count = min(budget, 8)
        following = tuple(tokens[-1] + 1 + step for step in range(count))
        return Draft(following, tuple(range(count)), tuple(0.9 ** (1 + step) for step in range(count)), (1,) * count)

    def closed(self, sequence: int) -> None:
        pass


def _decode(speculator: Speculator, tokens: list[int], truth: list[int], load: Load, rounds: int) -> list[int]:
    """Tokens of each round as verification gives them; how many nodes each round sent."""
    sent = []
    for _ in range(rounds):
        draft = speculator.draft(1, tokens, load) or EMPTY
        sent.append(len(draft))
        node = 0
        while (below := draft.child(node, truth[len(tokens)])) is not None:
            tokens.append(truth[len(tokens)])
            node = below
        tokens.append(truth[len(tokens)])
    return sent


def test_a_text_that_repeats_comes_many_tokens_a_round() -> None:
    truth = list(range(40)) * 30
    tokens = truth[:60]
    sent = _decode(Speculator(), tokens, truth, SLOW, 12)
    assert all(sent[1:])
    assert len(tokens) > 60 + 12 * 12


def test_a_hopeless_drafter_is_hardly_ever_heard() -> None:
    random.seed(6)
    truth = [random.randrange(5, 1000) * 7919 % 99991 for _ in range(3000)]
    sent = _decode(Speculator([Chain()]), truth[:5], truth, SLOW, 2000)
    assert sum(map(bool, sent)) <= 10


def test_it_is_heard_again_as_soon_as_it_is_right() -> None:
    truth = [step * 7919 % 99991 for step in range(300)] + list(range(1000))
    tokens = truth[:5]
    speculator = Speculator([Chain()])
    before = _decode(speculator, tokens, truth, SLOW, 290)
    after = _decode(speculator, tokens, truth, SLOW, 60)
    assert not any(before[40:])
    assert all(after[-20:])


def test_load_ends_drafting_at_once_and_its_end_brings_it_back_at_once() -> None:
    truth = list(range(40)) * 60
    tokens = truth[:60]
    speculator = Speculator()
    assert all(_decode(speculator, tokens, truth, SLOW, 5)[1:])
    assert not any(_decode(speculator, tokens, truth, BUSY, 20))
    assert all(_decode(speculator, tokens, truth, SLOW, 3))


def _with_other() -> Speculator:
    """One that has asked a drafter elsewhere before, which was right."""
    speculator = Speculator([])
    speculator.has_other(True)
    tokens = [1]
    while len(tokens) < 6:
        speculator.ask(0, tokens, 0.0, SLOW)
        speculator.offered(0, len(tokens), Draft((9,), (0,), (0.9,), (2,)), 0.005)
        speculator.draft(0, tokens, SLOW)
        tokens.append(9)
    speculator.closed(0)
    return speculator


def test_a_drafter_elsewhere_is_told_each_token_once_and_what_it_offers_is_sent() -> None:
    speculator = _with_other()
    ask = speculator.ask(1, [5, 6, 7], 10.0, SLOW)
    assert ask is not None
    assert (ask.first, ask.tokens, ask.budget) == (0, (5, 6, 7), MOST_NODES)
    assert ask.until_s > 10.0
    assert speculator.ask(1, [5, 6, 7], 10.1, SLOW) is None
    speculator.offered(1, 3, Draft((8, 9), (0, 1), (0.9, 0.8), (2, 2)), 10.01)
    draft = speculator.draft(1, [5, 6, 7], SLOW)
    assert draft is not None
    assert draft.tokens == (8, 9)
    again = speculator.ask(1, [5, 6, 7, 8, 4], 10.6, SLOW)
    assert again is not None
    assert (again.first, again.tokens) == (3, (8, 4))


def test_what_was_offered_too_late_serves_from_where_the_sequence_is() -> None:
    speculator = _with_other()
    assert speculator.ask(1, [5], 0.0, SLOW) is not None
    assert speculator.draft(1, [5], SLOW) is None
    speculator.offered(1, 1, Draft((6, 7, 8), (0, 1, 2), (0.9, 0.8, 0.7), (2, 2, 2)), 0.3)
    draft = speculator.draft(1, [5, 6], SLOW)
    assert draft is not None
    assert draft.tokens == (7, 8)
    assert speculator.draft(1, [5, 6, 1], SLOW) is None


def test_what_nobody_asked_for_is_not_taken() -> None:
    speculator = Speculator([])
    offer = Draft((6,), (0,), (0.9,), (2,))
    speculator.offered(1, 1, offer, 0.0)
    speculator.has_other(True)
    speculator.offered(1, 1, offer, 0.0)
    assert speculator.draft(1, [5], SLOW) is None
    assert speculator.ask(1, [5], 0.0, SLOW) is not None
    speculator.offered(1, 2, offer, 0.0)
    assert speculator.draft(1, [5], SLOW) is None


def test_a_drafter_elsewhere_that_does_not_pay_is_asked_rarely_and_not_waited_for() -> None:
    speculator = Speculator([])
    speculator.has_other(True)
    tokens, asked, waited, now = [5], 0, 0, 0.0
    for step in range(640):
        ask = speculator.ask(1, tokens, now, SLOW)
        if ask is not None:
            asked += 1
            waited += ask.until_s > now
            now += 0.05
            speculator.offered(1, len(tokens), Draft((3,), (0,), (0.5,), (2,)), now)
        speculator.draft(1, tokens, SLOW)
        tokens.append(1000 + step)
    assert waited <= 40
    assert asked <= 60


def test_a_drafter_elsewhere_that_is_gone_is_not_asked() -> None:
    speculator = Speculator([])
    speculator.has_other(True)
    assert speculator.ask(1, [5], 0.0, SLOW) is not None
    speculator.has_other(False)
    assert speculator.ask(1, [5, 6], 1.0, SLOW) is None
    speculator.has_other(True)
    ask = speculator.ask(1, [5, 6], 2.0, SLOW)
    assert ask is not None
    assert ask.first == 0
