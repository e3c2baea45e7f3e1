"""Text for bench/micro.py: what a token costs on the head's event loop until its text is known, by kind of tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models

from bench.probes import Row, call_ns, row
from bloombee.roles.byte_level import BYTES
from bloombee.roles.text import TextCodec

STOPS = ("\n\n", "User:", "</answer>", "```")
WORDS = [first + second + third for first in "bdfgklmnprst" for second in "aeiou" for third in ("", "n", "r", "st")]
PROMPT_TOKENS, STREAM_TOKENS = 1000, 2000


def measure_text(rounds: int) -> list[Row]:
    """Of streams of 2000 tokens: words alone, with stop strings, with a character in bytes after each."""
    rows = []
    for kind, tokenizer in {
        "byte level": _byte_level(),
        "byte fallback": _byte_fallback(),
        "word pieces": _word_pieces(),
    }.items():
        words = [number for token, number in tokenizer.get_vocab().items() if token.lstrip("▁Ġ#") in WORDS]
        rows.append(_measured(f"token to text, {kind}", tokenizer, words))
        rows.append(_measured(f"same, {len(STOPS)} stop strings", tokenizer, words, stop=STOPS))
        if kind == "byte fallback":
            rows.append(_measured("same, two of three are bytes", tokenizer, words, after_each="é"))
    return rows


def _measured(what: str, tokenizer: Tokenizer, words: Sequence[int], *, after_each: str = "", stop: tuple[str, ...] = ()) -> Row:
    codec, dice = TextCodec(tokenizer.to_str()), random.Random(3)
    prompt = dice.choices(words, k=PROMPT_TOKENS)
    answer = dice.choices(words, k=STREAM_TOKENS)
    if after_each:
        vocabulary = tokenizer.get_vocab()
        character = [vocabulary[f"<0x{byte:02X}>"] for byte in after_each.encode()]
        answer = [token for word in answer for token in (word, *character)][:STREAM_TOKENS]

    def streams() -> Iterator[str]:
        while True:
            stream = codec.stream(stop, prompt)
            for token in answer:
                yield stream.push(token)

    tokens = streams()
    samples = [ns / 1e3 for ns in call_ns(lambda: next(tokens), calls=STREAM_TOKENS)]
    return row(what, "us", samples, f"with the stream of each, after a prompt of {PROMPT_TOKENS}")


def _byte_level() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate([*BYTES, *(f"Ġ{word}" for word in WORDS)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_fallback() -> Tokenizer:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *(f"▁{word}" for word in WORDS)]
    tokenizer = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _word_pieces() -> Tokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz`>:\n"
    pieces = ["[UNK]", *WORDS, *(f"##{word}" for word in WORDS), *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece("##")
    return tokenizer
