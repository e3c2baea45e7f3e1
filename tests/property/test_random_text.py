"""Pieces of text, put together, are what the library decodes; stop strings end where transformers ends."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from text_kit import KINDS
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria

from bloombee.errors import ConfigError
from bloombee.roles.detokenizer import UNDECODABLE
from bloombee.roles.text import TextCodec

TOKENS = 340_000
"""Random token ids of each of the three kinds: a million in all."""
OTHERS: dict[str, Callable[[], decoders.Decoder | None]] = {
    "none": lambda: None,
    "end of word": lambda: decoders.BPEDecoder("s"),
    "ctc": lambda: decoders.CTC("[UNK]", "!"),
    "metaspace": decoders.Metaspace,
    "fused and replaced": lambda: decoders.Sequence([decoders.WordPiece("##"), decoders.Fuse(), decoders.Replace(" n't", "n't")]),
    "byte level among others": lambda: decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
}


def _pieces(codec: TextCodec, prompt: list[int], answer: list[int], stop: tuple[str, ...] = ()) -> tuple[str, int | None]:
    """The text of an answer, and the token at which a stop string ended it."""
    stream = codec.stream(stop, prompt)
    given = []
    for at, token in enumerate(answer):
        given.append(stream.push(token))
        if stream.stopped:
            return "".join(given), at
    return "".join([*given, stream.finish()]), None


def _common(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _check(codec: TextCodec, prompt: list[int], answer: list[int]) -> None:
    """What the answer leaves of the prompt's text and the answer's text are the whole text."""
    given, _ = _pieces(codec, prompt, answer)
    before, whole = codec.decode(prompt), codec.decode(prompt + answer)
    kept = _common(before, whole)
    if kept < len(before) and whole[kept : kept + 1] == UNDECODABLE:  # the prompt's bytes in it are shown as U+FFFD as well, now
        assert whole.endswith(given), (prompt, answer)
        assert kept + len(given) <= len(whole), (prompt, answer)
    else:
        assert whole[:kept] + given == whole, (prompt, answer)


def _requests(tokenizer: Tokenizer, seed: int, num_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers of random ids, some the model has and the tokenizer does not; of few or of all."""
    dice = random.Random(seed)
    size = tokenizer.get_vocab_size() + 3
    made: list[tuple[list[int], list[int]]] = []
    while num_tokens > 0:
        pool = dice.sample(range(size), dice.choice([2, 5, size]))
        length = dice.choice([1, 2, 3, 5, 20, 200, 2000])
        made.append((dice.choices(pool, k=dice.choice([0, 1, 2, 3, 5, 20])), dice.choices(pool, k=length)))
        num_tokens -= length
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_million_random_tokens_are_the_text_that_the_library_decodes(kind: str) -> None:
    tokenizer = KINDS[kind]()
    codec = TextCodec(tokenizer.to_str())
    for prompt, answer in _requests(tokenizer, 5, TOKENS):
        _check(codec, prompt, answer)


@pytest.mark.parametrize("kind", KINDS)
def test_also_where_spaces_are_cleaned_up(kind: str) -> None:
    tokenizer = KINDS[kind]()
    codec = TextCodec(tokenizer.to_str(), cleans_up=True)
    for prompt, answer in _requests(tokenizer, 6, 20_000):
        _check(codec, prompt, answer)


@pytest.mark.parametrize("decoder", OTHERS)
def test_also_with_decoders_of_any_other_sort(decoder: str) -> None:
    tokenizer = KINDS["word pieces"]()
    tokenizer.decoder = OTHERS[decoder]()
    codec = TextCodec(tokenizer.to_str())
    for prompt, answer in _requests(tokenizer, 7, 20_000):
        _check(codec, prompt, answer)


def _stop_strings(dice: random.Random, shown: str) -> list[str]:
    """Some from a text that the tokens may make, some made up."""
    stops = []
    for _ in range(dice.choice([1, 1, 2, 5])):
        if shown and dice.random() < 0.6:
            begin = dice.randrange(len(shown))
            stops.append(shown[begin : begin + dice.choice([1, 2, 4, 30])])
        else:
            stops.append("".join(dice.choices("abHelo w!'\n.é你\ufffd😀<>", k=dice.choice([1, 2, 3]))))
    return stops


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_end_after_the_token_after_which_transformers_ends(kind: str) -> None:
    tokenizer = KINDS[kind]()
    reference, codec = PreTrainedTokenizerFast(tokenizer_object=tokenizer), TextCodec(tokenizer.to_str())
    dice, num_stopped = random.Random(11), 0
    for _ in range(250):
        pool = dice.choices(range(tokenizer.get_vocab_size() + 2), k=dice.choice([3, 6, 20]))
        prompt, answer = dice.choices(pool, k=dice.choice([1, 3, 6])), dice.choices(pool, k=20)
        stops = _stop_strings(dice, reference.decode(dice.choices(pool, k=4)))
        try:
            criteria = StopStringCriteria(reference, stops)
        except ValueError:
            with pytest.raises(ConfigError, match="stop"):
                codec.stream(tuple(stops), prompt)
            continue
        ends = (at for at in range(20) if criteria(torch.tensor([prompt + answer[: at + 1]]), None)[0])
        wanted = next(ends, None)
        given, ended = _pieces(codec, prompt, answer, tuple(stops))
        assert ended == wanted, (stops, prompt, answer)
        unstopped, _ = _pieces(codec, prompt, answer if ended is None else answer[: ended + 1])
        assert unstopped.startswith(given)
        assert ended is not None or given == unstopped
        num_stopped += ended is not None
    assert num_stopped > 25
