"""How much text a token can stand for, held against what tokenizers make of text that falls together as far as it can."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

import bloombee
from bloombee.engine.token_bytes import _COMPOSED, token_bytes

DEMO = str(Path(bloombee.__file__).parent / "demo_model" / "target" / "tokenizer.json")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def with_fallback(*normalizer: normalizers.Normalizer, pieces: tuple[str, ...] = ("▁", "▁▁▁▁", "ab")) -> Tokenizer:
    """As of Llama 2 and Gemma: text with bytes for what the vocabulary lacks."""
    tokens = ["<unk>", *BYTES, *dict.fromkeys("".join(pieces)), *(piece for piece in pieces if len(piece) > 1)]
    model = models.Unigram([(token, -1.0 - (token in BYTES)) for token in tokens], unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(list(normalizer))
    return tokenizer


def with_bytes(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """As of GPT-2, Llama 3 and Qwen: bytes, split by a pattern."""
    merges = [("a", "b"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ")]
    vocabulary = {token: i for i, token in enumerate([*ALPHABET, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(r" ?\w+| +|[^ \w]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer


METASPACE = (normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"))
KNOWN: dict[str, Callable[[], Tokenizer]] = {
    "demo": lambda: Tokenizer.from_file(DEMO),
    "bytes": with_bytes,
    "bytes, NFC": lambda: with_bytes(normalizers.NFC()),
    "bytes, NFKD and lower case": lambda: with_bytes(normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])),
    "fallback": lambda: with_fallback(*METASPACE),
    "fallback, NFKC": lambda: with_fallback(normalizers.NFKC(), *METASPACE),
    "fallback, words made shorter": lambda: with_fallback(normalizers.Replace("hello", "ab"), *METASPACE),
}


@functools.cache
def known(name: str) -> Tokenizer:
    return KNOWN[name]()


@functools.cache
def bound(name: str) -> int:
    return token_bytes(known(name))


@pytest.mark.parametrize("name", KNOWN)
@settings(deadline=None, max_examples=150)
@given(
    text=st.lists(
        st.sampled_from(["    ", "ab", "hello", "K", "ﷺ", "u\u0308\u0304", "각", "𝐀𝐀", "😀", "é", "\n"]) | st.text(max_size=9)
    )
)
def test_no_token_covers_more(name: str, text: list[str]) -> None:
    tokenizer, whole = known(name), "".join(text)
    assert len(whole.encode()) <= bound(name) * len(tokenizer.encode(whole))


def test_an_added_token_may_be_the_longest() -> None:
    tokenizer = with_bytes()
    before = token_bytes(tokenizer)
    tokenizer.add_special_tokens([AddedToken("<|begin_of_text|>")])
    assert (before, token_bytes(tokenizer)) == (4, 17)


def _with(change: Callable[[Tokenizer], object]) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = with_bytes()
        change(tokenizer)
        return tokenizer

    return make


@pytest.mark.parametrize(
    "make",
    [
        _with(lambda t: setattr(t, "normalizer", normalizers.StripAccents())),
        _with(lambda t: setattr(t, "normalizer", normalizers.Strip())),
        _with(lambda t: setattr(t, "normalizer", normalizers.BertNormalizer())),
        _with(lambda t: setattr(t, "normalizer", normalizers.Replace(Regex(" +"), " "))),
        _with(lambda t: setattr(t, "normalizer", normalizers.Replace(" ", ""))),
        _with(lambda t: setattr(t, "normalizer", normalizers.Sequence([normalizers.NFC(), normalizers.Nmt()]))),
        _with(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace())),
        _with(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Split(" ", "removed"))),
        _with(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit("x")]))),
        _with(lambda t: t.add_tokens([AddedToken("<end>", rstrip=True)])),
        _with(lambda t: t.add_tokens([AddedToken("<mask>", lstrip=True)])),
        lambda: Tokenizer(models.BPE(vocab={"a": 0, "<unk>": 1}, merges=[], unk_token="<unk>", fuse_unk=True)),
        lambda: Tokenizer(models.BPE(vocab={"a": 0}, merges=[])),
        lambda: Tokenizer(models.WordPiece(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
        lambda: Tokenizer(models.WordLevel(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
        lambda: Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)),
    ],
)
def test_where_text_may_vanish_or_fall_together_there_is_no_bound(make: Callable[[], Tokenizer]) -> None:
    assert token_bytes(make()) == 0


def test_composition_makes_no_more_than_one_byte_of_six() -> None:
    characters = (chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    worst = max(4 * len(unicodedata.normalize("NFD", one)) / len(one.encode()) for one in characters)
    assert worst == _COMPOSED
