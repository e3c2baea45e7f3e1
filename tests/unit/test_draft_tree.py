from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloombee.errors import RemoteProtocolError
from bloombee.spec.tree import EMPTY, Draft, Growing, merge, path_scores

FORK = Draft((7, 8, 9, 5), (0, 1, 1, 0), (0.6, 0.3, 0.2, 0.3), (1, 1, 1, 1))
"""7 -> (8 | 9), or 5."""


@st.composite
def drafts(draw: st.DrawFn, *, most: int = 9) -> Draft:
    count = draw(st.integers(0, most))
    parents: list[int] = []
    tokens: list[int] = []
    for at in range(count):
        parent = draw(st.integers(0, at))
        taken = {token for token, other in zip(tokens, parents, strict=True) if other == parent}
        tokens.append(draw(st.integers(0, 30).filter(lambda token, taken=taken: token not in taken)))
        parents.append(parent)
    given = [draw(st.floats(0.01, 1.0)) for _ in range(count)]
    return Draft(tuple(tokens), tuple(parents), path_scores(parents, given), (draw(st.sampled_from((1, 2))),) * count)


def test_a_tree_is_walked_by_nodes_and_by_tokens() -> None:
    assert (FORK.path(3), FORK.tokens_to(3), FORK.depth(3)) == ((1, 3), (7, 9), 2)
    assert (FORK.path(0), FORK.depth(0), FORK.depths()) == ((), 0, [0, 1, 2, 2, 1])
    assert (FORK.children(0), FORK.children(1), FORK.children(4)) == ((1, 4), (2, 3), ())
    assert (FORK.child(1, 9), FORK.child(1, 5), FORK.follow((7, 8)), FORK.follow((7, 5)), FORK.follow(())) == (
        3,
        None,
        2,
        None,
        0,
    )
    assert FORK.given_parent(2) == pytest.approx(0.5)


def test_what_hangs_on_a_node_is_a_draft_of_its_own() -> None:
    below = FORK.below(1)
    assert (below.tokens, below.parents) == ((8, 9), (0, 0))
    assert below.scores == pytest.approx((0.5, 1 / 3))
    assert (FORK.below(4), FORK.below(0)) == (EMPTY, FORK)


@given(drafts())
def test_the_best_nodes_of_a_tree_are_a_tree_and_no_other_of_that_size_is_better(draft: Draft) -> None:
    for size in range(len(draft) + 1):
        best = draft.best(size)
        best.check(vocabulary=31, most=size)
        trees = (set(nodes) for nodes in itertools.combinations(range(1, len(draft) + 1), size))
        sums = [
            sum(draft.scores[node - 1] for node in nodes)
            for nodes in trees
            if all(draft.parents[node - 1] in nodes | {0} for node in nodes)
        ]
        assert sum(best.scores) == pytest.approx(max(sums))


@given(drafts(), drafts())
def test_a_merged_tree_has_the_paths_of_both_and_says_whose_they_are(one: Draft, other: Draft) -> None:
    merged = merge([one, other], 99)
    merged.check(vocabulary=31, most=99)
    paths = [
        {draft.tokens_to(node): draft.sources[node - 1] for node in range(1, len(draft) + 1)} for draft in (one, other, merged)
    ]
    assert paths[2] == {path: paths[0].get(path, 0) | paths[1].get(path, 0) for path in paths[0].keys() | paths[1].keys()}
    for node in range(len(merged) + 1):
        assert sum(merged.given_parent(child) for child in merged.children(node)) <= 1 + 1e-9


def test_merging_keeps_the_likeliest() -> None:
    one, other = Draft((7,), (0,), (0.9,), (1,)), Draft((7, 8, 5), (0, 1, 0), (0.4, 0.3, 0.05), (2, 2, 2))
    assert merge([one, other, EMPTY], 2) == Draft((7, 8), (0, 1), (0.9, pytest.approx(0.675)), (3, 2))
    assert merge([EMPTY, one], 5) is one
    assert merge([], 5) == EMPTY


def test_a_tree_grows_best_first() -> None:
    chances = (0.6, 0.3)
    growing = Growing(6)
    for rank, chance in enumerate(chances):
        growing.offer(0, rank, chance, 1)
    for node, _, _, score in growing:
        for rank, chance in enumerate(chances):
            growing.offer(node, rank, score * chance, 1)
    draft = growing.draft()
    draft.check(vocabulary=2, most=6)
    paths = [
        math.prod(chances[rank] for rank in path) for depth in range(1, 7) for path in itertools.product(range(2), repeat=depth)
    ]
    assert sorted(draft.scores, reverse=True) == pytest.approx(sorted(paths, reverse=True)[:6])


@pytest.mark.parametrize(
    ("draft", "path"),
    [
        (Draft((1,) * 9, (0,) * 9, (0.1,) * 9, (1,) * 9), "draft.tokens"),
        (Draft((1, 2), (0,), (0.5, 0.5), (1, 1)), "draft"),
        (Draft((1, 2), (0, 2), (0.5, 0.2), (1, 1)), "draft.parents[1]"),
        (Draft((1, 2), (2, 0), (0.5, 0.2), (1, 1)), "draft.parents[0]"),
        (Draft((1, 2), (0, -1), (0.5, 0.2), (1, 1)), "draft.parents[1]"),
        (Draft((1, 32), (0, 0), (0.5, 0.2), (1, 1)), "draft.tokens[1]"),
        (Draft((-1,), (0,), (0.5,), (1,)), "draft.tokens[0]"),
        (Draft((1, 1), (0, 0), (0.5, 0.2), (1, 1)), "draft.tokens[1]"),
        (Draft((1, 2), (0, 1), (0.5, 0.6), (1, 1)), "draft.scores[1]"),
        (Draft((1,), (0,), (float("nan"),), (1,)), "draft.scores[0]"),
        (Draft((1,), (0,), (1.5,), (1,)), "draft.scores[0]"),
    ],
)
def test_what_is_no_tree_is_refused_and_said_where(draft: Draft, path: str) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        draft.check(vocabulary=32, most=8)
    assert refused.value.fields["path"] == path
