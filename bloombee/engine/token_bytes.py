"""How much text one token can stand for, so that a text can be known to be too long before it is tokenized."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

_COMPOSED = 6
"""Most bytes of text for a byte of its normal form, whatever the form: a character has at most 4 bytes and gives at least one
character; composition makes one of 2 bytes out of at most 3 characters, and one of 3 bytes out of at most 4."""
_GROWING = {"Prepend", "ByteLevel"}
_NORMAL_FORMS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
_CUT = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"}
"""Pre-tokenizers that lose no character."""
_MAY_LOSE = {"Split", "Punctuation"}
"""Those that lose what they split at if their behavior is Removed."""


def token_bytes(tokenizer: Tokenizer) -> int:
    """Most bytes of a text, in UTF-8, that one of its tokens covers: a text of n bytes has at least n / token_bytes tokens.

    Returns:
        0 where there is no such bound, or none is known: where whitespace, accents or characters that the vocabulary lacks
        may vanish or fall together.

    Time: a second for the largest vocabularies.
    """
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    shrinks = _shrinks(parts["normalizer"])
    added = parts["added_tokens"]
    if not shrinks or not _keeps_all(parts["pre_tokenizer"]) or any(one["lstrip"] or one["rstrip"] for one in added):
        return 0
    longest = _longest(parts["model"], is_bytes=_has_byte_level(parts))
    contents = [one["content"] for one in added]
    if tokenizer.normalizer is not None:
        contents += [tokenizer.normalizer.normalize_str(content) for content in contents]
    return shrinks * max([longest, *(len(content.encode()) for content in contents)]) if longest else 0


def _shrinks(normalizer: dict[str, Any] | None) -> int:
    """Most bytes of text for a byte that the normalizer gives; 0: there is no such bound."""
    if normalizer is None or normalizer["type"] in _GROWING:
        return 1
    if normalizer["type"] in _NORMAL_FORMS:
        return _COMPOSED
    if normalizer["type"] == "Replace":
        literal, content = normalizer["pattern"].get("String", "").encode(), normalizer["content"].encode()
        return -(-len(literal) // len(content)) if literal and content else 0
    if normalizer["type"] == "Sequence":
        product = 1
        for one in normalizer["normalizers"]:
            product *= _shrinks(one)
        return product
    return 0


def _keeps_all(splitter: dict[str, Any] | None) -> bool:
    """Whether the pre-tokenizer hands every character on."""
    if splitter is None or splitter["type"] in _CUT:
        return True
    if splitter["type"] in _MAY_LOSE:
        return bool(splitter["behavior"] != "Removed")
    return splitter["type"] == "Sequence" and all(_keeps_all(one) for one in splitter["pretokenizers"])


def _has_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Whether the model sees bytes, each as a character of an alphabet of 256."""
    left = [part for part in (tokenizer["normalizer"], tokenizer["pre_tokenizer"]) if part is not None]
    for part in left:  # grows
        left += part.get("normalizers", []) + part.get("pretokenizers", [])
    return any(part["type"] == "ByteLevel" for part in left)


def _longest(model: dict[str, Any], *, is_bytes: bool) -> int:
    """Most bytes of normalized text that one token of the model covers; 0: there is no such bound."""
    if model["type"] == "BPE":
        tokens = list(model["vocab"])
    elif model["type"] == "Unigram":
        tokens = [token for token, _ in model["vocab"]]
    else:  # a word that is not known is one token, however long it is
        return 0
    if is_bytes:
        return max(map(len, tokens)) if set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokens) else 0
    if not (model.get("byte_fallback") and {f"<0x{byte:02X}>" for byte in range(256)} <= set(tokens)):
        return 0
    return max(len(token.encode()) for token in tokens)
