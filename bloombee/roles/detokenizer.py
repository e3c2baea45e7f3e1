"""Token ids to text one token at a time: together the pieces are what the library decodes from all ids at once.

What the library shows of a token depends on its neighbours. On the left: words have a space before them unless they are the
first. On the right: bytes that are no UTF-8 yet may become a character, and a run of byte tokens (``<0x00>`` to ``<0xFF>``)
shows its characters if all of it is UTF-8, else U+FFFD for each byte. So text is given out when no further token can
change it, and never taken back.

**The text of an answer** is decode(prompt + answer) without what the prompt's own tokens show in it. A character
belongs to the token that completes it: one that begins in the prompt and ends in the answer is the answer's. U+FFFD, shown for
bytes that become no character, belongs to the token in which these begin.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

from tokenizers import Tokenizer

from bloombee.roles import byte_level

UNDECODABLE = "\ufffd"
LONGEST_CHARACTER = 4
"""Bytes of UTF-8."""
WINDOW = 8
"""Tokens that are decoded again with each new one, at most; half of them stay as its left context."""
HIDDEN, PLAIN = -2, -1
"""Kinds of tokens besides the bytes 0 to 255: shown nowhere (special, or not in the vocabulary), and all others."""
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
"""Where a tokenizer cleans up, these lose their spaces, in this order. Source: transformers, ``clean_up_tokenization``."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer(Protocol):
    """The text of one answer."""

    def push(self, token_id: int) -> str:
        """Take a token; the text that is now certain."""

    def finish(self) -> str:
        """No more tokens: the rest."""


class Decoder:
    """What a tokenizer shows of its tokens; shared by all streams.

    Args:
        cleans_up: spaces before punctuation and English contractions are dropped, as transformers does where a tokenizer asks.
    """

    def __init__(self, tokenizer: Tokenizer, *, cleans_up: bool = False) -> None:
        self._tokenizer = tokenizer
        self._cleaned = CLEANED if cleans_up else ()
        self._decoders = decoders_of(tokenizer)
        self._lag = _lag(self._decoders, self._cleaned)
        self._specials = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        self._has_bytes = any(one["type"] == "ByteFallback" for one in self._decoders)
        self._kinds: dict[int, int] = {}
        self._bytes: dict[int, bytes] = {}

    def stream(self, prompt: Sequence[int]) -> Detokenizer:
        """The text of what follows ``prompt``."""
        if is_byte_level(self._decoders) and not self._cleaned:
            return _ByteText(self, prompt)
        return _WholeText(self, prompt) if self._lag is None else _WindowText(self, prompt, self._lag)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The library's text of all of them at once."""
        text = str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
        for spaced in self._cleaned:
            text = text.replace(spaced, spaced.strip())
        return text

    def kind(self, token_id: int) -> int:
        """HIDDEN, PLAIN or the byte that the token stands for in a run."""
        kind = self._kinds.get(token_id)
        if kind is None:
            kind = self._kinds[token_id] = self._find_kind(token_id)
        return kind

    def bytes_of(self, token_id: int) -> bytes:
        """Of a byte-level tokenizer's token; none of a hidden one."""
        found = self._bytes.get(token_id)
        if found is None:
            token = "" if self.kind(token_id) == HIDDEN else self._tokenizer.id_to_token(token_id) or ""
            plain = byte_level.from_letters(token)
            found = self._bytes[token_id] = token.encode() if plain is None else plain
        return found

    @cached_property
    def anchor(self) -> list[int]:
        """A token that is a word or a letter: with it on the left nothing is the first of a text."""
        plain = (token for token in range(self._tokenizer.get_vocab_size()) if self.kind(token) == PLAIN)
        return next(([token] for token in plain if self.decode([token]).isalnum()), [])

    @cached_property
    def anchor_length(self) -> int:
        """Of its text."""
        return len(self.decode(self.anchor))

    def shown(self, token_ids: Iterable[int]) -> Iterable[int]:
        return (token for token in token_ids if self.kind(token) != HIDDEN)

    def _find_kind(self, token_id: int) -> int:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token in self._specials:
            return HIDDEN
        byte = BYTE_TOKEN.fullmatch(token) if self._has_bytes else None
        return int(byte[1], 16) if byte else PLAIN


class _ByteText:
    """Of a byte-level tokenizer: the tokens' bytes are the text's, whatever stands beside them."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int]) -> None:
        self._decoder = decoder
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf8.decode(self._end_of(prompt))
        self._num_before = len(self._utf8.getstate()[0].decode("utf-8", "replace"))
        """U+FFFD that the prompt's last bytes show, and the text begins with unless they become a character."""

    def push(self, token_id: int) -> str:
        return self._own(self._utf8.decode(self._decoder.bytes_of(token_id)))

    def finish(self) -> str:
        return self._own(self._utf8.decode(b"", True))

    def _own(self, text: str) -> str:
        if self._num_before and text:
            text = text[_num_common(UNDECODABLE * self._num_before, text) :]
            self._num_before = 0
        return text

    def _end_of(self, prompt: Sequence[int]) -> bytes:
        end = b""
        for token in reversed(prompt):
            end = self._decoder.bytes_of(token) + end
            if len(end) >= LONGEST_CHARACTER:
                break
        return end


class _WindowText:
    """Decodes the last few tokens again with each new one; what is new in that text is the new token's.

    Amortised, a token costs the decoding of a window, however long the text or a run of bytes is.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int], lag: int) -> None:
        self._decoder = decoder
        self._lag = lag
        """Characters at the window's end that a further token may change, besides those of a run of bytes."""
        self._window: list[int] = []
        self._num_given = 0
        """Characters of the window's text that are given out, or the prompt's."""
        self._before = ""
        """The prompt's text in the window, while what follows may still change it."""
        self._limit = WINDOW
        self._run: list[int] = []
        """Byte tokens that are UTF-8 so far, the last character perhaps incomplete."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._is_broken = False
        """The run goes on and is no UTF-8; it has been given out."""
        self._num_before = 0
        """Tokens of the run that are the prompt's."""
        self._follow(prompt)

    def push(self, token_id: int) -> str:
        kind = self._decoder.kind(token_id)
        if kind == HIDDEN:
            return ""
        if kind != PLAIN:
            return self._push_byte(token_id, kind)
        broken = self._break() if self._num_incomplete else ""
        self._is_broken = False
        return broken + self._extend([*self._take_run(), token_id])

    def finish(self) -> str:
        if self._num_incomplete:
            return self._break()
        text = self._decoder.decode([*self._window, *self._take_run()])
        return self._give(text, len(text))

    @property
    def _num_incomplete(self) -> int:
        """Tokens at the run's end that are no character yet."""
        return len(self._utf8.getstate()[0])

    def _push_byte(self, token_id: int, byte: int) -> str:
        if self._is_broken:
            return UNDECODABLE
        self._run.append(token_id)
        try:
            self._utf8.decode(bytes((byte,)))
        except UnicodeDecodeError:
            self._is_broken = True
            return self._break()
        return ""

    def _break(self) -> str:
        """The run is no UTF-8: each byte of it shows as U+FFFD. As left context its end does as well as all of it."""
        own = len(self._run) - self._num_before
        self._begin_after(self._take_run()[-LONGEST_CHARACTER:])
        return UNDECODABLE * own

    def _take_run(self) -> list[int]:
        run, self._run, self._num_before = self._run, [], 0
        self._utf8.reset()
        return run

    def _extend(self, token_ids: list[int]) -> str:
        self._window += token_ids
        text = self._decoder.decode(self._window)
        certain = len(text) - self._lag
        piece = self._give(text, certain) if certain >= len(self._before) else ""
        if len(self._window) > self._limit and not self._before:
            self._shrink(text)
        return piece

    def _give(self, text: str, upto: int) -> str:
        """Of the window's text, what has not been given out."""
        if self._before:  # how much of it is still the prompt's is certain now
            self._num_given, self._before = _num_common(self._before, text), ""
        begin, self._num_given = self._num_given, max(self._num_given, upto)
        return text[begin : self._num_given]

    def _shrink(self, text: str) -> None:
        """Forget the window's beginning, as far as the rest shows the same without it; else let it grow before the next try."""
        num_kept = WINDOW // 2
        while num_kept < len(self._window):
            if self._keep(num_kept, text):
                self._limit = 2 * num_kept
                return
            num_kept *= 2
        self._limit = 2 * len(self._window)

    def _keep(self, num_kept: int, text: str) -> bool:
        decoder = self._decoder
        first = len(self._window) - num_kept
        while decoder.kind(self._window[first]) != PLAIN:
            first += 1  # a run of bytes is whole or not there
        shorter = [*decoder.anchor, *self._window[first:]]
        shown = decoder.decode(shorter)
        begin = decoder.anchor_length + self._lag
        num_given = len(shown) - (len(text) - self._num_given)
        if num_given < begin or not text.endswith(shown[begin:]):
            return False
        self._window, self._num_given = shorter, num_given
        return True

    def _begin_after(self, token_ids: list[int]) -> None:
        self._window = [*self._decoder.anchor, *token_ids]
        self._num_given = len(self._decoder.decode(self._window))

    def _follow(self, prompt: Sequence[int]) -> None:
        """Take the end of the prompt as left context, and of its last run of bytes what may yet become a character."""
        kind = self._decoder.kind
        end: deque[int] = deque()
        for token in self._decoder.shown(reversed(prompt)):
            end.appendleft(token)
            if not self._lag and len(end) >= WINDOW // 2 and kind(token) == PLAIN:
                self._window += self._decoder.anchor
                break
        run: deque[int] = deque()
        while end and kind(end[-1]) != PLAIN:
            run.appendleft(end.pop())
        self._window += end
        before = self._decoder.decode(self._window)
        self._before, self._num_given = (before, 0) if self._lag else ("", len(before))
        for token in run:
            self._push_byte(token, kind(token))
        self._forget_complete()
        self._num_before = len(self._run)

    def _forget_complete(self) -> None:
        """Of the characters of the run keep the last one, as left context."""
        complete = self._run[: len(self._run) - self._num_incomplete]
        if complete:
            self._run = self._run[len(complete) :]
            characters = bytes(map(self._decoder.kind, complete)).decode()
            self._begin_after(complete[-len(characters[-1].encode()) :])


class _WholeText:
    """Of a decoder for which any token may change any text before it: everything at the end."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int]) -> None:
        self._decoder = decoder
        self._prompt = prompt
        self._ids: list[int] = []

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return ""

    def finish(self) -> str:
        before, whole = self._decoder.decode(self._prompt), self._decoder.decode([*self._prompt, *self._ids])
        return whole[_num_common(before, whole) :]


def _num_common(one: str, other: str) -> int:
    """Length of the beginning that both have."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def is_byte_level(decoders: list[dict[str, Any]]) -> bool:
    """Whether the text is the tokens' bytes, one after the other."""
    types = [one["type"] for one in decoders]
    return types[:1] == ["ByteLevel"] and set(types[1:]) <= {"Fuse"}


def decoders_of(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The tokenizer's decoders in the order in which they work, as tokenizer.json describes them."""
    return _flat(json.loads(tokenizer.decoder.__getstate__())) if tokenizer.decoder is not None else []


def _flat(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [one for inner in decoder["decoders"] for one in _flat(inner)]


def _lag(decoders: list[dict[str, Any]], cleaned: Sequence[str]) -> int | None:
    """Characters at the end of a text that further tokens may change, runs of byte tokens apart; None: it cannot be told."""
    types = [one["type"] for one in decoders]
    fused = types.index("Fuse") if "Fuse" in types else len(decoders)
    replaced = [one for one in decoders[fused:] if one["type"] == "Replace"]
    is_known = all(map(_is_local, decoders[:fused])) and all(map(_is_local_in_whole, decoders[fused:]))
    if not is_known and types not in (["BPEDecoder"], ["CTC"]):
        return None
    lag = sum(len(pattern) - 1 for pattern in [*cleaned, *(one["pattern"]["String"] for one in replaced)])
    return None if "ByteFallback" in types and (lag or "WordPiece" in types) else lag


def _is_local(decoder: dict[str, Any]) -> bool:
    """Whether it shows a token the same in all texts in which it is not the first."""
    return decoder["type"] in ("Replace", "Strip", "ByteFallback", "Metaspace", "WordPiece")


def _is_local_in_whole(decoder: dict[str, Any]) -> bool:
    """The same of one that sees all text as one token."""
    if decoder["type"] == "Replace":
        pattern = decoder["pattern"].get("String", "")
        return bool(pattern) and len(decoder["content"]) <= len(pattern)
    return decoder["type"] == "Fuse" or (decoder["type"] == "Strip" and not decoder["stop"])
