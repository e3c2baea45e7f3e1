from __future__ import annotations

import heapq

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bloombee.engine import drafting
from bloombee.engine.checkpoint import resolve
from bloombee.engine.drafting import DraftModel, Question
from bloombee.engine.noise import gumbel
from bloombee.spec.tree import EMPTY, Draft

PROMPT = list(range(200, 260))
OTHER = list(range(700, 735))


@pytest.fixture(scope="module")
def model() -> DraftModel:
    return DraftModel("demo:draft")


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    directory = resolve("demo:draft").directory
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def _best_first(plain: torch.nn.Module, tokens: list[int], budget: int, least: float) -> dict[tuple[int, ...], float]:
    """Path -> probability of the best tree, every node by a forward of its own."""
    found: dict[tuple[int, ...], float] = {}
    waiting: list[tuple[float, tuple[int, ...]]] = [(-1.0, ())]
    while waiting and len(found) <= budget:
        score, path = heapq.heappop(waiting)
        if path:
            found[path] = -score
        with torch.inference_mode():
            chances = torch.softmax(plain(torch.tensor([tokens + list(path)])).logits[0, -1], -1)
        for chance, token in zip(*(part.tolist() for part in chances.topk(drafting.WIDTH)), strict=True):
            if -score * chance >= least:
                heapq.heappush(waiting, (score * chance, (*path, token)))
    return dict(list(found.items())[:budget])


def _paths(draft: Draft) -> dict[tuple[int, ...], float]:
    return {draft.tokens_to(node): draft.scores[node - 1] for node in range(1, len(draft) + 1)}


def _ask(sequence: int, first: int, tokens: list[int], budget: int = 20, least: float = 0.003) -> Question:
    return Question(sequence, first, tuple(tokens), budget, least, 0.0)


def test_it_gives_the_best_tree_of_the_size(model: DraftModel, plain: torch.nn.Module) -> None:
    (draft,) = model.answer([_ask(1, 0, PROMPT)])
    draft.check(vocabulary=model.vocab_size, most=20)
    assert _paths(draft) == pytest.approx(_best_first(plain, PROMPT, 20, 0.003), rel=1e-3)
    model.closed(1)


def test_several_sequences_are_drafted_for_at_once_each_as_if_alone(model: DraftModel) -> None:
    alone = [model.answer([_ask(number, 0, tokens)])[0] for number, tokens in enumerate((PROMPT, OTHER, PROMPT[:7]))]
    together = model.answer([_ask(10 + number, 0, tokens) for number, tokens in enumerate((PROMPT, OTHER, PROMPT[:7]))])
    for one, other in zip(alone, together, strict=True):
        assert _paths(one) == pytest.approx(_paths(other), rel=1e-3)


def test_it_goes_on_from_any_path_as_if_it_had_read_all_anew_and_reads_nothing_twice(
    model: DraftModel, plain: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = list(PROMPT)
    (draft,) = model.answer([_ask(30, 0, tokens)])
    read: list[int] = []
    forward = model._forward

    def counted(parts, *, last_only):  # type: ignore[no-untyped-def]
        read.append(sum(len(part.tokens) for part in parts) if last_only else 0)
        return forward(parts, last_only=last_only)

    monkeypatch.setattr(model, "_forward", counted)
    for step in range(6):
        node = max(range(1, len(draft) + 1), key=draft.depth) if step % 2 else draft.children(0)[-1]
        new = [*draft.tokens_to(node), 17 + step]
        (draft,) = model.answer([_ask(30, len(tokens), new)])
        tokens += new
        assert _paths(draft) == pytest.approx(_best_first(plain, tokens, 20, 0.003), rel=2e-3)
    assert sum(read) <= 6 * 3
    assert len(tokens) > len(PROMPT) + 12


def test_a_question_that_does_not_follow_what_is_known_has_no_answer(model: DraftModel) -> None:
    assert model.answer([_ask(40, 3, PROMPT)]) == [EMPTY]
    assert model.answer([_ask(41, 0, [5] * 3000)]) == [EMPTY]


def test_where_tokens_are_drawn_it_draws_with_the_targets_noise(model: DraftModel, plain: torch.nn.Module) -> None:
    (draft,) = model.answer([Question(50, 0, tuple(PROMPT), 12, 0.003, 0.0, temperature=0.8, seed=7)])
    with torch.inference_mode():
        logits = plain(torch.tensor([PROMPT])).logits[0, -1].double().numpy()
    drawn = int(np.argmax(logits / 0.8 + gumbel(7, len(PROMPT), np.arange(len(logits)))))
    best = max(draft.children(0), key=lambda child: draft.scores[child - 1])
    assert draft.tokens[best - 1] == drawn
    assert 0.5 < sum(draft.scores[child - 1] for child in draft.children(0)) <= 1.0


def test_memory_that_was_given_up_is_read_again(model: DraftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "KEPT_ROWS", 0)
    (before,) = model.answer([_ask(60, 0, PROMPT[:-1])])
    (draft,) = model.answer([_ask(60, len(PROMPT) - 1, PROMPT[-1:])])
    monkeypatch.undo()
    assert before
    assert _paths(draft) == pytest.approx(_paths(model.answer([_ask(61, 0, PROMPT)])[0]), rel=1e-3)
