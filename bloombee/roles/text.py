"""Token ids to text and back on the head, without torch and transformers.

The tokenizer arrives as the JSON of the ``tokenizers`` library inside the model card. Text grows by whole
characters; a piece that may turn out to be the beginning of a stop string is held back until that is known.
"""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from bloombee.errors import ConfigError


class TextCodec:
    """Encodes prompts and makes a :class:`TextStream` a request.

    Raises:
        ConfigError: the model has no tokenizer that the ``tokenizers`` library can hold.
    """

    def __init__(self, tokenizer_json: str | None) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json) if tokenizer_json is not None else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(self._need().encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: list[int]) -> str:
        return str(self._need().decode(token_ids, skip_special_tokens=True)) if self._tokenizer is not None else ""

    def stream(self, stop: tuple[str, ...] = ()) -> TextStream:
        return TextStream(self._tokenizer, stop)

    def _need(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ConfigError("this model has no tokenizer: give the prompt as token ids")
        return self._tokenizer


class TextStream:
    """The text of one request as its tokens come.

    Without a tokenizer there is no text, and stop strings never match.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True) if tokenizer is not None else None
        self._stop = stop
        self._ids: list[int] = []
        self._text = ""
        self._num_given = 0
        self.stopped = False
        """A stop string was met; :attr:`text` ends before it and nothing more is taken."""

    @property
    def text(self) -> str:
        """Everything given out so far."""
        return self._text[: self._num_given]

    def push(self, token_id: int) -> str:
        """Take a token; the text that is now certain."""
        if self._tokenizer is None or self._decoder is None or self.stopped:
            return ""
        self._ids.append(token_id)
        return self._take(self._decoder.step(self._tokenizer, token_id) or "")

    def finish(self) -> str:
        """No more tokens: the rest of the text, incomplete characters as the tokenizer shows them."""
        if self._tokenizer is None or self.stopped:
            return ""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        rest = whole[len(self._text) :] if whole.startswith(self._text) else ""
        given = self._take(rest)
        return given if self.stopped else given + self._give(len(self._text))

    def _take(self, piece: str) -> str:
        if not piece:
            return ""
        longest = max((len(s) for s in self._stop), default=0)
        begin = max(0, len(self._text) - longest)
        self._text += piece
        hits = [at for s in self._stop if (at := self._text.find(s, begin)) >= 0]
        if hits:
            self.stopped = True
            self._text = self._text[: min(hits)]
            return self._give(len(self._text))
        return self._give(len(self._text) - self._held_back())

    def _held_back(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _give(self, upto: int) -> str:
        piece = self._text[self._num_given : upto]
        self._num_given = max(self._num_given, upto)
        return piece
