"""Stop strings: after which token a text ends, the same one as with transformers' ``generate(stop_strings=...)``.

A stop string is looked for in what each token stands for by itself in the middle of a text, as bytes, and not in the decoded
text: half a character counts, special tokens count with their names, and a stop string may begin in the prompt. It ends the
text with the token that completes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from tokenizers import Tokenizer

from bloombee.errors import ConfigError
from bloombee.roles import byte_level
from bloombee.roles.detokenizer import BYTE_TOKEN, decoders_of

_BEFORE = "abcdef"
"""What each token is put behind, to see it in the middle of a text."""
_BETWEEN = b"\xff"
"""Tokens in a row of them; no stop string has that byte."""


class Spelling:
    """Token id -> the bytes that it stands for in the middle of a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        types = {one["type"] for one in decoders_of(tokenizer)}
        self._is_fallback = "ByteFallback" in types
        self._is_byte_level = "ByteLevel" in types and not self._is_fallback
        self._known: dict[int, bytes | None] = {}

    def of(self, token_id: int) -> bytes | None:
        """None: no such token."""
        if token_id not in self._known:
            token = self._tokenizer.id_to_token(token_id)
            self._known[token_id] = None if token is None else self._spell(token)
        return self._known[token_id]

    def check(self, stops: Sequence[str]) -> None:
        """Raises ConfigError where transformers refuses: none of ``stops`` ends in any token of the vocabulary.

        Time: some microseconds; the first time that no token is the last character of one of them, a look at all tokens.
        """
        if not self._before:
            raise ConfigError(
                f"stop: with this tokenizer, which cannot write {_BEFORE!r}, there are no stop strings", field="stop"
            )
        if not any(self._is_end(stop) for stop in stops) and not any(self._can_end(stop.encode()) for stop in stops):
            raise ConfigError(f"stop = {tuple(stops)!r}: the tokenizer can write the end of none of them", field="stop")

    def _is_end(self, stop: str) -> bool:
        """Whether the last character, or byte, is a token."""
        last = stop.encode()[-1]
        token = byte_level.LETTERS[last] if self._is_byte_level else f"<0x{last:02X}>" if self._is_fallback else stop[-1]
        return self._tokenizer.token_to_id(token) is not None and stop.encode().endswith(self._spell(token))

    def _can_end(self, stop: bytes) -> bool:
        """Whether a token has all of it within, or begins with an end of it."""
        lengths = range(1, min(len(stop), self._longest + 1))
        return stop in self._all or any(_BETWEEN + stop[-length:] in self._all for length in lengths)

    @cached_property
    def _all(self) -> bytes:
        """Every token, one after the other."""
        return _BETWEEN.join([b"", *map(self._spell, self._tokenizer.get_vocab())])

    @cached_property
    def _longest(self) -> int:
        """Bytes of a token, at most."""
        return max(map(len, self._all.split(_BETWEEN)))

    @cached_property
    def _before(self) -> list[str]:
        """Tokens of a text to put others behind; empty if the tokenizer cannot write it."""
        tokens = list(self._tokenizer.encode(_BEFORE, add_special_tokens=False).tokens)
        return tokens if _BEFORE in self._text(tokens) else []

    def _spell(self, token: str) -> bytes:
        if self._is_byte_level and (plain := byte_level.from_letters(token)) is not None:
            return plain
        if self._is_fallback and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        _, _, text = self._text([*self._before, token]).partition(_BEFORE)
        return text.encode()

    def _text(self, tokens: list[str]) -> str:
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))


class StopStrings:
    """Watches the tokens of one answer.

    Args:
        prompt: a stop string may begin in it.
    """

    def __init__(self, spelling: Spelling, stops: Sequence[str], prompt: Sequence[int]) -> None:
        self.spelling = spelling
        self._patterns = [_Pattern(stop.encode()) for stop in stops]
        for token in self._end_of(prompt, max(len(stop.encode()) for stop in stops)):
            self.push(spelling.of(token))

    def push(self, spelled: bytes | None) -> tuple[int, bool]:
        """Take a token as :attr:`spelling` has it.

        Returns:
            Bytes at the end of all tokens so far that are, or may be the beginning of, a stop string; whether they are.
        """
        if spelled is None:
            for pattern in self._patterns:
                pattern.restart()
            return 0, False
        found = [pattern.push(spelled) for pattern in self._patterns]
        if matched := max(found):
            return matched, True
        return max(pattern.num_matched for pattern in self._patterns), False

    def _end_of(self, prompt: Sequence[int], num_bytes: int) -> list[int]:
        """Its last tokens that make up so many bytes."""
        first = len(prompt)
        while first > 0 and num_bytes > 0:
            first -= 1
            num_bytes -= len(self.spelling.of(prompt[first]) or b"")
        return list(prompt[first:])


class _Pattern:
    """One stop string in a stream of bytes: Knuth, Morris and Pratt's automaton, built as far as it is needed.

    Time: amortised constant a byte, and a search for its first byte where nothing is matched.
    """

    def __init__(self, wanted: bytes) -> None:
        self._wanted = wanted
        self._borders = [0, 0]
        """[n]: length of the longest proper end of the first n bytes that is a beginning as well."""
        self.num_matched = 0
        """Bytes at the end of the stream that are the beginning of the stop string."""

    def restart(self) -> None:
        self.num_matched = 0

    def push(self, piece: bytes) -> int:
        """Bytes from where the stop string first begins to the end of ``piece``, if it ends in there; else 0."""
        wanted = self._wanted
        if not self.num_matched and wanted[0] not in piece:
            return 0
        found = 0
        for at, byte in enumerate(piece, 1):
            if self._step(byte) == len(wanted):
                found = found or len(piece) - at + len(wanted)
                self.num_matched = self._border(len(wanted))
        return found

    def _step(self, byte: int) -> int:
        matched = self.num_matched
        while matched and self._wanted[matched] != byte:
            matched = self._border(matched)
        self.num_matched = matched + (self._wanted[matched] == byte)
        return self.num_matched

    def _border(self, length: int) -> int:
        borders, wanted = self._borders, self._wanted
        while len(borders) <= length:
            byte, border = wanted[len(borders) - 1], borders[-1]
            while border and wanted[border] != byte:
                border = borders[border]
            borders.append(border + (wanted[border] == byte))
        return borders[length]
