"""Synthetic byte-level vocabularies, as large as those of today's models, for what costs time with their size."""

from __future__ import annotations

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SYLLABLES = [first + middle + last for first in "bcdfghjklmnprstvwz" for middle in "aeiou" for last in ("", "n", "r", "s", "t")]
MARKS = ('","', '":', '":"', '": "', '"}', '"},', '{"', '":{"', "[]", "{}", '["', '"]', "],", "},", "();", "->", "==", "://")
LETTERS = "äöüéèñçабвгдежзиклмнопрстуαβγδεζηθικλμνξοπρστυ中文字的是了在人有我他这"
END = "<|end|>"


def byte_level(size: int, seed: int = 1) -> str:
    """A tokenizer of ``size`` tokens, for ``tokenizers.Tokenizer.from_str``: an end token, the first; all bytes; words with and
    without a space before them, numbers of three digits, runs of spaces, what code and JSON are full of, letters of other
    scripts, and all beginnings of these: each longer token is a merge of a shorter one and a byte."""
    draw = random.Random(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {END: 0, **{sign: number for number, sign in enumerate(alphabet, 1)}}
    merges: list[tuple[str, str]] = []
    for text in (*MARKS, *(f"{number:03d}" for number in range(1000)), " " * 64, "\n" + " " * 40, *LETTERS):
        _add(text, vocab, merges, size)
    while len(vocab) < size:
        word = "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(1, 4)))
        _add(draw.choice(("", " ", " ", "_")) + draw.choice((word, word.title())), vocab, merges, size)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.add_special_tokens([END])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())


def _add(text: str, vocab: dict[str, int], merges: list[tuple[str, str]], size: int) -> None:
    """All beginnings of ``text``."""
    signs = _signs(text)
    for length in range(2, len(signs) + 1):
        if signs[:length] not in vocab and len(vocab) < size:
            vocab[signs[:length]] = len(vocab)
            merges.append((signs[: length - 1], signs[length - 1]))


def _signs(text: str) -> str:
    """Its bytes, each as the sign that byte-level tokenizers have for it."""
    ((signs, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return signs
