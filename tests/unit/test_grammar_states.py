"""States of grammars: masks against the grammar itself, wherever a state is told to go."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from msgspec.structs import replace
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bloombee.engine.checkpoint import resolve
from bloombee.engine.grammar import Grammars, GrammarState, Mask, vocabulary
from bloombee.engine.tokenizer import tokenizer_json
from bloombee.errors import GrammarFailed
from bloombee.grammar import Grammar, source
from bloombee.pipeline.work import Branches, Segment
from bloombee.wire.messages import Sampling

V, END = 4096, 0
SAMPLING = Sampling(1.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "many": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "many"],
    "additionalProperties": False,
}
GRAMMARS = {
    "schema": Grammar.json_schema(SCHEMA),
    "regex": Grammar.regex("(ab|abc|[0-9]{2,4})(, é)?"),
    "lark": Grammar.lark('start: "x" list?\nlist: "(" NUMBER ("," NUMBER)* ")"\nNUMBER: /[0-9]{1,3}/'),
}


@pytest.fixture(scope="module")
def words() -> LLTokenizer:
    text = tokenizer_json(resolve("demo"))
    assert text is not None
    return vocabulary(text, V, [END])


def state_of(grammar: Grammar, words: LLTokenizer) -> GrammarState:
    return GrammarState(LLMatcher(words, source(grammar.to_wire())), V)


def allowed(mask: Mask) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def packed(tokens: list[int]) -> bytes:
    return np.array(tokens, "<u4").tobytes()


def walks(grammar: Grammar, words: LLTokenizer, seed: int) -> list[int]:
    """Some answer, without its end."""
    chooses, state, tokens = random.Random(seed), state_of(grammar, words), list[int]()
    while (token := chooses.choice(allowed(state.mask(packed(tokens))))) != END:
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
def test_a_mask_allows_tokens_with_which_the_text_can_go_on(grammar: Grammar, words: LLTokenizer) -> None:
    tokens = walks(grammar, words, 1)
    for count in range(0, len(tokens) + 1, 2):
        got = allowed(state_of(grammar, words).mask(packed(tokens[:count])))
        fresh = LLMatcher(words, source(grammar.to_wire()))
        assert fresh.consume_tokens(tokens[:count])
        possible = [token for token in range(V) if (fresh.is_accepting() if token == END else fresh.validate_tokens([token]))]
        # What can only be written in one way is written by the tokens that the tokenizer would choose.
        assert got == possible or (len(got) == 1 and got[0] in possible)


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
def test_a_state_goes_wherever_it_is_told(grammar: Grammar, words: LLTokenizer) -> None:
    answers = [walks(grammar, words, seed) for seed in range(6)]
    state, chooses = state_of(grammar, words), random.Random(7)
    for _ in range(60):
        tokens = chooses.choice(answers)
        output = packed(tokens[: chooses.randint(0, len(tokens))])
        assert allowed(state.mask(output)) == allowed(state_of(grammar, words).mask(output))


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
def test_a_look_along_a_path_leaves_the_state_where_it_is(grammar: Grammar, words: LLTokenizer) -> None:
    tokens = walks(grammar, words, 3)
    state = state_of(grammar, words)
    for count in range(len(tokens)):
        here = allowed(state.mask(packed(tokens[:count])))
        for length in range(len(tokens) - count + 1):
            there = allowed(state.mask_after(tokens[count : count + length]))
            assert there == allowed(state_of(grammar, words).mask(packed(tokens[: count + length])))
        after = allowed(state.mask_after(tokens[count:]))
        wrong = next(token for token in range(V) if token not in here and token not in after)
        assert allowed(state.mask_after([wrong])) == []
        assert allowed(state.mask_after([*tokens[count:], wrong])) == []
        assert allowed(state.mask(packed(tokens[:count]))) == here


def test_tokens_that_the_grammar_does_not_allow_are_an_error(words: LLTokenizer) -> None:
    with pytest.raises(GrammarFailed, match="satisfy"):
        state_of(GRAMMARS["regex"], words).mask(packed([5, 6, 7]))


# -- the states of a stage ---------------------------------------------------------------------


def a_stage() -> Grammars:
    return Grammars(lambda: tokenizer_json(resolve("demo")), V)


def a_segment(tokens: list[int], grammar: Grammar, sequence: int = 1, **fields: Any) -> Segment:
    """A prompt of two tokens, and the answer so far."""
    fields = {"max_new_tokens": 100, "end_tokens": (END,), **fields}
    history = packed([9, 9, *tokens])
    return Segment(sequence, 0, len(tokens) + 1, history[-4:], 1, (), SAMPLING, 2, history, grammar=grammar.to_wire(), **fields)


def test_picks_lead_the_states_on(words: LLTokenizer) -> None:
    stage, grammar = a_stage(), GRAMMARS["schema"]
    answers = {sequence: walks(grammar, words, sequence) for sequence in (1, 2)}
    for count in range(max(map(len, answers.values())) + 1):
        picks = []
        for sequence, tokens in answers.items():
            if count <= len(tokens):
                segment = a_segment(tokens[:count], grammar, sequence)
                stage.begin([segment])
                mask = stage.mask(segment, 2 + count)
                assert allowed(mask) == allowed(state_of(grammar, words).mask(packed(tokens[:count])))
                picks.append((segment, 2 + count, [*tokens, END][count]))
        stage.picked(picks)
    assert not stage._entries


def test_what_was_picked_and_did_not_count_is_gone_back_on(words: LLTokenizer) -> None:
    """As after a recovery, where other tokens follow, or a number that stands for another request."""
    stage, grammar = a_stage(), GRAMMARS["regex"]
    tokens = walks(grammar, words, 2)
    stage.mask(a_segment([], grammar), 2)
    stage.picked([(a_segment([], grammar), 2, tokens[0])])
    assert allowed(stage.mask(a_segment([], grammar), 2)) == allowed(state_of(grammar, words).mask(b""))
    other = GRAMMARS["lark"]
    assert allowed(stage.mask(a_segment([], other), 2)) == allowed(state_of(other, words).mask(b""))


def test_the_last_token_that_there_may_be_leaves_nothing() -> None:
    stage, grammar = a_stage(), GRAMMARS["regex"]
    segment = a_segment([], grammar, max_new_tokens=1)
    token = allowed(stage.mask(segment, 2))[0]
    stage.picked([(segment, 2, token)])
    assert not stage._entries


def test_a_grammar_that_fails_fails_alone(words: LLTokenizer) -> None:
    stage = a_stage()
    bad, good = a_segment([], Grammar.regex("a(b"), 1), a_segment([], GRAMMARS["regex"], 2)
    stage.begin([bad, good])
    with pytest.raises(GrammarFailed, match="compiled"):
        stage.mask(bad, 2)
    assert allowed(stage.mask(good, 2)) == allowed(state_of(GRAMMARS["regex"], words).mask(b""))


def test_a_prompt_that_comes_in_chunks_fails_with_its_grammar_and_no_sooner() -> None:
    """By the time that the last chunk comes it is known that the grammar cannot be compiled."""
    stage, segment = Grammars(lambda: None, V), a_segment([], GRAMMARS["regex"])
    stage.begin([replace(segment, num_picks=0)])
    stage._compiling.submit(int).result()  # what was asked of that thread is done
    stage.begin([segment])
    with pytest.raises(GrammarFailed, match="no tokenizer"):
        stage.mask(segment, 2)


class _Slow:
    """A thread that does what it was given when it is told to; says when somebody waits for it."""

    def __init__(self) -> None:
        self.is_awaited = threading.Event()
        self._tasks: list[Callable[[], None]] = []

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        is_awaited = self.is_awaited

        class Awaited(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                is_awaited.set()
                return super().result(timeout)

        future = Awaited()
        self._tasks.append(lambda: future.set_result(call(*args)))
        return future

    def work(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task()


def test_a_draft_that_comes_in_parts_has_the_masks_of_each_while_the_next_begins(words: LLTokenizer) -> None:
    """Where picks are made on another thread than forwards are begun on, as of a GPU."""
    stage, grammar = a_stage(), GRAMMARS["schema"]
    tokens = walks(grammar, words, 1)
    rows = tokens[:4]
    first, second = (
        Segment(
            1, 0, 2 + start, packed(rows[start:stop]), stop - start, (), SAMPLING, 2, packed([9, 9]), 100, (END,),
            grammar=grammar.to_wire(),
            tree=Branches(2, start + 1, tuple(range(stop)), packed(rows[:stop]), tuple(range(stop - start))),
        )
        for start, stop in ((0, 2), (2, 4))
    )  # fmt: skip
    stage.begin([replace(first, num_picks=0)])
    stage._compiling.submit(int).result()
    stage._following = slow = _Slow()  # type: ignore[assignment]
    stage.begin([first])
    with ThreadPoolExecutor(1) as picking:
        mask = picking.submit(stage.mask, first, 4, 2)
        assert slow.is_awaited.wait(30)
        stage.begin([second])
        slow.work()
        assert allowed(mask.result(30)) == allowed(state_of(grammar, words).mask(packed(rows[:2])))
        mask = picking.submit(stage.mask, second, 6, 4)
        slow.work()
        assert allowed(mask.result(30)) == allowed(state_of(grammar, words).mask(packed(rows)))


def test_without_a_tokenizer_no_grammar_is_obeyed() -> None:
    with pytest.raises(GrammarFailed, match="no tokenizer"):
        Grammars(lambda: None, V).mask(a_segment([], GRAMMARS["regex"]), 2)


# -- tokenizers --------------------------------------------------------------------------------


def byte_fallback() -> str:
    """As Llama 2 has: words begin with a sign for the space, and there is a token for each byte."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", '"', "é"]
    tokenizer = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate(pieces)}, [("▁", "a")], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    text: str = tokenizer.to_str()
    return text


def test_tokens_that_stand_for_bytes_and_for_spaces_are_known_as_such() -> None:
    text = byte_fallback()
    ids = json.loads(text)["model"]["vocab"]
    words = vocabulary(text, 300, [1])
    state = GrammarState(LLMatcher(words, source(Grammar.regex(" ?(aé|€)").to_wire())), 300)
    assert set(allowed(state.mask(b""))) == {ids[one] for one in ("▁", "▁a", "a", "<0x20>", "<0x61>", "<0xE2>")}
    assert allowed(state.mask(packed([ids["▁a"]]))) == [ids["é"]]
    half = [ids["▁"], ids["<0xE2>"], ids["<0x82>"]]
    assert set(allowed(state.mask(packed(half)))) == {ids["<0xAC>"]}
    assert set(allowed(state.mask(packed([*half, ids["<0xAC>"]])))) == {1}


def test_rows_of_a_draft_have_masks_along_their_paths(words: LLTokenizer) -> None:
    stage, grammar = a_stage(), GRAMMARS["schema"]
    tokens = walks(grammar, words, 1)
    wrong = next(token for token in range(V) if token not in allowed(state_of(grammar, words).mask(packed(tokens[:2]))))
    for count in (1, 3):
        # The row of the last token, two that follow, one that cannot follow the first of these, and what would follow that.
        rows = [*tokens[count - 1 : count + 2], wrong, tokens[count + 2]]
        tree = Branches(count + 1, 1, (0, 1, 2, 2, 4), packed(rows), (0, 1, 2, 3, 4))
        segment = Segment(
            1, 0, count + 1, packed(rows), 5, (), SAMPLING, 2, packed([9, 9, *tokens[: count - 1]]), 100, (END,),
            grammar=grammar.to_wire(), tree=tree,
        )  # fmt: skip
        stage.begin([segment])
        masks = [allowed(stage.mask(segment, position, node)) for node, position in enumerate((3, 4, 5, 5, 6), 1)]
        expected = [allowed(state_of(grammar, words).mask(packed(tokens[: count + more]))) for more in (0, 1, 2)]
        assert masks == [*expected, [], []]
