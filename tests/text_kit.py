"""Small tokenizers of each kind, with special and added tokens, for tests of text."""

from __future__ import annotations

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bloombee.roles.byte_level import BYTES, LETTERS


def byte_level() -> Tokenizer:
    """As of GPT-2, Llama 3, Qwen: tokens are bytes; many here begin or end within a character."""
    pieces = [b" ", b"a", b"b", b"'t", b"\xe4", b"\xbd\xa0", b"\xf0\x9f", b"\x98\x80", b"\xc3", b"\xa9", b"\xff", b"\xed\xa0"]
    dice = random.Random(1)
    vocabulary = {letter: index for index, letter in enumerate(BYTES)}
    while len(vocabulary) < 700:
        word = b"".join(dice.choices(pieces, k=dice.randint(2, 4)))
        vocabulary.setdefault("".join(LETTERS[byte] for byte in word), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|user|>"])
    tokenizer.add_tokens(["你好 x", "plain"])
    return tokenizer


PIECES = ["▁Hello", "▁world", "▁", "▁▁", "a", "b", "c", "!", "é", "你", "▁n", "'t", "ing", "\ufffd"]


def byte_fallback() -> Tokenizer:
    """As of Llama 2, Mistral, Gemma: words with their space before them, and a token for each byte."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    vocabulary |= {piece: 257 + index for index, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(["<added>", " x y"])
    return tokenizer


def word_pieces() -> Tokenizer:
    """As of BERT: words without their spaces, ends of words marked."""
    words = ["[UNK]", "hello", "world", "##ing", "##", "##s", "##n't", "##é", "do", "n't", "don't", "ve", "re", "a .b", "\ufffd"]
    words += [*".!'nsmé你", *"abcdef", *(f"##{letter}" for letter in "abcdef")]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece("##", cleanup=True)
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.add_tokens(["<added>"])
    return tokenizer


KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "word pieces": word_pieces}
