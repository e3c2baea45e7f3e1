"""Prompts of every kind become ids, or are refused for what they are; none of it needs a swarm."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

import bloombee
from bloombee.errors import ConfigError, RuntimeClosed
from bloombee.models.card import ModelCard
from bloombee.models.standin import standin_card
from bloombee.roles.prompts import SHORT_TOKENS, PromptIds, Prompts
from bloombee.roles.text import SHORT_CHARACTERS, SLICE_TOKENS, TextCodec

T = TypeVar("T")
TOKENIZER = (Path(bloombee.__file__).parent / "demo_model" / "target" / "tokenizer.json").read_text()
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
LONG = "def add(a, b):\n    return a + b  # ünïcødé 中文 😀\n" * 400


class TooLong(Exception):
    """What a head's room raises."""


class Room:
    """Refuses more than ``most`` tokens and keeps what it was asked."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.most = most
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, num_tokens: int, at_least: bool) -> None:
        self.asked.append((num_tokens, at_least))
        if num_tokens > self.most:
            raise TooLong


def card(**fields: Any) -> ModelCard:
    known = {"tokenizer_json": TOKENIZER, "vocab_size": 4096, "token_bytes": 45, "chat_templates": {"default": TEMPLATE}}
    return dataclasses.replace(standin_card("standin:64x2"), **{**known, **fields})


def make(**fields: Any) -> Prompts:
    facts = card(**fields)
    return Prompts(facts, TextCodec(facts.tokenizer_json))


@pytest.fixture(scope="module")
def prompts() -> Iterator[Prompts]:
    made = make()
    yield made
    made.close()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def read(prompts: Prompts, prompt: Any, room: Room | None = None) -> PromptIds:
    return run(prompts.read(prompt, room or Room()))


@pytest.mark.parametrize("text", ["x", "import os\n", LONG[:SHORT_CHARACTERS], LONG[: SHORT_CHARACTERS + 1], LONG])
def test_text_of_every_length_is_encoded_as_the_library_does(text: str, prompts: Prompts) -> None:
    ids = Tokenizer.from_str(TOKENIZER).encode(text).ids
    assert read(prompts, text) == PromptIds(tuple(ids), np.array(ids, "<u4").tobytes())


def test_ids_of_more_than_one_slice_come_in_order() -> None:
    vocabulary = {chr(0x4E00 + i): i for i in range(1000)}
    codec = TextCodec(Tokenizer(models.BPE(vocab=vocabulary, merges=[])).to_str())
    ids = np.random.default_rng(0).integers(0, 1000, 3 * SLICE_TOKENS + 7).tolist()
    assert codec.encode("".join(chr(0x4E00 + i) for i in ids)) == ids


def test_the_number_of_tokens_is_checked_before_they_are_converted(prompts: Prompts) -> None:
    room, count = Room(most=100), len(Tokenizer.from_str(TOKENIZER).encode("a b " * 1000))
    with pytest.raises(TooLong):
        read(make(token_bytes=0), "a b " * 1000, room)
    assert room.asked == [(count, False)]


@pytest.mark.parametrize("text", ["x" * 100_000, "中" * 100_000])
def test_text_that_is_too_long_whatever_its_tokens_is_never_encoded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, room = make(), Room(most=2048)
    monkeypatch.setattr(TextCodec, "encode", lambda *_, **__: pytest.fail("it was encoded"))
    with pytest.raises(TooLong):
        read(prompts, text, room)
    assert all(at_least for _, at_least in room.asked)


def test_a_list_that_is_too_long_is_not_looked_at(prompts: Prompts) -> None:
    room = Room(most=3)
    with pytest.raises(TooLong):
        read(prompts, ["no", "ids", "at", "all"], room)
    assert room.asked == [(4, False)]


@pytest.mark.parametrize("count", [1, 5, SHORT_TOKENS + 1, 2 * SLICE_TOKENS + 3])
@pytest.mark.parametrize("kind", [list, tuple])
def test_ids_are_taken_as_they_are(count: int, kind: type, prompts: Prompts) -> None:
    ids = np.random.default_rng(1).integers(0, 4096, count)
    assert read(prompts, kind(ids.tolist())) == PromptIds(tuple(ids.tolist()), ids.astype("<u4").tobytes())


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_ids_that_numpy_made_are_ids(dtype: type, prompts: Prompts) -> None:
    found = read(prompts, [3, *np.array([1, 2], dtype)])
    assert found.ids == (3, 1, 2)
    assert {type(one) for one in found.ids} == {int}


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([1, True], "item 1 of the prompt is of type bool"),
        ([np.bool_(True)], "item 0 of the prompt is of type bool"),
        ([1, 2.0], "item 1 of the prompt is of type float"),
        ([np.float32(1)], "item 0 of the prompt is of type float32"),
        ([1, "a"], "item 1 of the prompt is of type str"),
        (["a", "b"], "must be text, a list of token ids, a list of chat messages or a Chat"),
        ([1, {"role": "user", "content": "x"}], "item 1 of the prompt is of type dict"),
        ([None], "item 0 of the prompt is of type NoneType"),
        ([0] * SLICE_TOKENS + [None], f"item {SLICE_TOKENS} of the prompt is of type NoneType"),
        ([-1], "token id -1 in the prompt: the model has 0 to 4095"),
        ([4096], "token id 4096 in the prompt"),
        ([0] * SLICE_TOKENS + [5000], "token id 5000 in the prompt"),
        ([10**30], "a token id of more than 64 bits"),
        ([10**5000], "a token id of more than 64 bits"),
        ([{"role": "user", "content": "x"}, 1], r"messages\[1\] is of type int"),
        ([{"role": "user", "content": "x\ud83d"}], r"messages\[0\]\.content has a lone surrogate"),
        ("x\ud83d", "lone surrogate at character 1: not text"),
        (LONG + "\udc00", f"lone surrogate at character {len(LONG)}"),
        (b"bytes", "a prompt of type bytes"),
        (None, "a prompt of type NoneType"),
        ({"role": "user", "content": "x"}, "a prompt of type dict"),
        (iter([1]), "a prompt of type list_iterator"),
    ],
)
def test_what_is_no_prompt_is_refused_for_what_it_is(prompt: Any, says: str, prompts: Prompts) -> None:
    with pytest.raises(ConfigError, match=says):
        read(prompts, prompt)


@pytest.mark.parametrize("prompt", ["x" * 10, "x" * 100_000, [{"role": "user", "content": "x"}]])
def test_without_a_tokenizer_only_ids_will_do(prompt: Any) -> None:
    prompts = make(tokenizer_json=None, token_bytes=0)
    with pytest.raises(ConfigError, match="no tokenizer"):
        read(prompts, prompt)
    assert read(prompts, [7]).ids == (7,)


@pytest.mark.parametrize("text", ["xyz", "xyz" * 10_000])
def test_a_character_that_the_tokenizer_cannot_encode_is_a_config_error(text: str) -> None:
    tokenizer = Tokenizer(models.Unigram([("x", 0.0)])).to_str()
    with pytest.raises(ConfigError, match="the tokenizer cannot encode this text"):
        read(make(tokenizer_json=tokenizer, token_bytes=0), text)


@pytest.mark.parametrize("text", ["a" * 40 + "b", ("a" * 40 + "b") * 1000])
def test_a_tokenizer_that_panics_over_a_text_refuses_that_text_alone(text: str) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    prompts = make(tokenizer_json=tokenizer.to_str())
    with pytest.raises(ConfigError, match=r"the tokenizer cannot encode this text: .*retry-limit"):
        read(prompts, text)
    assert read(prompts, "xyz").ids


class _NoNumber:
    def __index__(self) -> int:
        raise RuntimeError("no number")


def test_an_item_that_raises_is_named_by_its_place(prompts: Prompts) -> None:
    with pytest.raises(ConfigError, match="item 1 of the prompt is of type _NoNumber"):
        read(prompts, [1, _NoNumber()])


def test_a_conversation_is_its_template_encoded(prompts: Prompts) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": LONG}]
    expected = Tokenizer.from_str(TOKENIZER).encode(f"<user>hello<assistant>{LONG}<answer>", add_special_tokens=False).ids
    assert read(prompts, messages).ids == read(prompts, tuple(messages)).ids == tuple(expected)


def test_while_a_long_prompt_is_read_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, begun, go_on = make(), threading.Event(), threading.Event()

    def encode(*_: Any, **__: Any) -> list[int]:
        begun.set()
        assert go_on.wait(60)
        return [1]

    async def use() -> None:
        monkeypatch.setattr(TextCodec, "encode", encode)
        long = asyncio.ensure_future(prompts.read(LONG, Room()))
        await asyncio.to_thread(begun.wait, 60)
        monkeypatch.undo()
        assert (await prompts.read([5], Room())).ids == (5,)
        assert (await prompts.read("import os", Room())).ids
        assert (await prompts.read([{"role": "user", "content": "hi"}], Room())).ids
        assert not long.done()
        go_on.set()
        assert (await long).ids == (1,)

    run(use())


def test_closing_ends_those_who_wait_with_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, go_on = make(), threading.Event()

    def encode(*_: Any, **__: Any) -> list[int]:
        assert go_on.wait(60)
        return [1]

    async def use() -> None:
        waiting = [asyncio.ensure_future(prompts.read(LONG, Room())) for _ in range(64)]
        await asyncio.sleep(0)  # all are queued
        prompts.close()
        go_on.set()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(end) for end in ends} <= {RuntimeClosed, PromptIds}
        assert type(ends[-1]) is RuntimeClosed
        with pytest.raises(RuntimeClosed):
            await prompts.read(LONG, Room())

    monkeypatch.setattr(TextCodec, "encode", encode)
    run(use())
