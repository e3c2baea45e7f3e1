"""Token ids to text and back on the head, without torch and transformers.

The tokenizer arrives as the JSON of the ``tokenizers`` library inside the model card. Text grows by what no further token
can change; tokens that may turn out to be the beginning of a stop string are held back until that is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from tokenizers import Encoding, Tokenizer

from bloombee.errors import ConfigError
from bloombee.roles.detokenizer import HIDDEN, Decoder
from bloombee.roles.stops import Spelling, StopStrings

SHORT_CHARACTERS = 1 << 12
"""Text up to this long is encoded in some 3 ms at most."""
SLICE_TOKENS = 1 << 16
"""Token ids that are converted at once, in a millisecond."""


class TextCodec:
    """Encodes prompts and makes a :class:`TextStream` a request, as transformers' ``AutoTokenizer`` would.

    Args:
        tokenizer_json: truncation and padding in it are what it was trained with, and are not obeyed.
        cleans_up, splits_special: as in :class:`~bloombee.models.card.ModelCard`.
    """

    def __init__(self, tokenizer_json: str | None, *, cleans_up: bool = False, splits_special: bool = False) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json) if tokenizer_json is not None else None
        if self._tokenizer is not None:
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._tokenizer.encode_special_tokens = splits_special
            self._decoder = Decoder(self._tokenizer, cleans_up=cleans_up)
            self._spelling = Spelling(self._tokenizer)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, check: Callable[[int], None] = lambda num_tokens: None
    ) -> list[int]:
        """The token ids of ``text``, which must have no lone surrogate.

        Args:
            check: called with their number before they are converted; what it raises ends the work.

        Raises:
            ConfigError: no tokenizer, or one that has no token for something in the text.

        Time: a second a MB. For text of more than SHORT_CHARACTERS the interpreter's lock is let go meanwhile, and held for
        milliseconds at a time afterwards.
        """
        tokenizer = self._need()
        try:
            if len(text) <= SHORT_CHARACTERS:
                encoding = tokenizer.encode(text, add_special_tokens=add_special_tokens)
            else:  # a batch alone is encoded without the lock
                (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library knows no other, and its panics are no Exceptions
            raise ConfigError(f"the tokenizer cannot encode this text: {error}", field="prompt") from error
        check(len(encoding))
        return _ids(encoding)

    def decode(self, token_ids: list[int]) -> str:
        return self._decoder.decode(token_ids) if self._tokenizer is not None else ""

    def spelled(self, token_id: int) -> bytes:
        """What a token stands for in the middle of a text; nothing of one that there is not."""
        return (self._spelling.of(token_id) or b"") if self._tokenizer is not None else b""

    def stream(self, stop: tuple[str, ...] = (), prompt: Sequence[int] = ()) -> TextStream:
        """The text of an answer to ``prompt``.

        Raises:
            ConfigError: no stop string can ever be met, where transformers refuses them as well.
        """
        if stop:
            self._need("stop strings need a tokenizer, which this model does not have")
            self._spelling.check(stop)
        if self._tokenizer is None:
            return TextStream(None, prompt, None)
        return TextStream(self._decoder, prompt, StopStrings(self._spelling, stop, prompt) if stop else None)

    def _need(self, why: str = "this model has no tokenizer: give the prompt as token ids") -> Tokenizer:
        if self._tokenizer is None:
            raise ConfigError(why)
        return self._tokenizer


def _ids(encoding: Encoding) -> list[int]:
    """Of ``encoding``, which is cut: a list of a million made at once would hold the interpreter's lock for 50 ms."""
    encoding.truncate(SLICE_TOKENS)
    ids: list[int] = encoding.ids
    for part in encoding.overflowing:
        ids += part.ids
    return ids


class TextStream:
    """The text of one request as its tokens come. Without a tokenizer there is none.

    Args:
        stops: what ends the text; None for nothing.
    """

    def __init__(self, decoder: Decoder | None, prompt: Sequence[int], stops: StopStrings | None) -> None:
        self._decoder = decoder
        self._text = decoder.stream(prompt) if decoder is not None else None
        self._stops = stops
        self._held: deque[tuple[int, bytes]] = deque()
        """Tokens, as stop strings see them, that may be the beginning of one."""
        self._num_held = 0
        """Bytes of them."""
        self.stopped = False
        """A stop string was met; the text ends before it and nothing more is taken."""

    def push(self, token_id: int) -> str:
        """Take a token; the text that is now certain."""
        if self._text is None or self.stopped:
            return ""
        if self._stops is None:
            return self._text.push(token_id)
        spelled = self._stops.spelling.of(token_id)
        num_open, self.stopped = self._stops.push(spelled)
        self._held.append((token_id, spelled or b""))
        self._num_held += len(spelled or b"")
        given = self._release(num_open)
        return given + self._end_before(num_open) if self.stopped else given

    def finish(self) -> str:
        """No more tokens: the rest of the text, incomplete characters as the tokenizer shows them."""
        if self._text is None or self.stopped:
            return ""
        return self._release(0) + self._text.finish()

    def _release(self, num_open: int) -> str:
        """The text of what is held before the last ``num_open`` bytes, by whole tokens."""
        assert self._text is not None
        pieces = []
        while self._held and self._num_held - len(self._held[0][1]) >= num_open:
            token_id, spelled = self._held.popleft()
            self._num_held -= len(spelled)
            pieces.append(self._text.push(token_id))
        return "".join(pieces)

    def _end_before(self, num_open: int) -> str:
        """The last text, up to the stop string that begins ``num_open`` bytes before the end, perhaps within a token."""
        assert self._text is not None
        assert self._decoder is not None
        num_before = self._num_held - num_open
        if num_before <= 0:
            return self._text.finish()
        token_id, spelled = self._held[0]
        text = self._text.push(token_id) + self._text.finish()
        if self._decoder.kind(token_id) == HIDDEN:
            return text
        return text.removesuffix(spelled[num_before:].decode("utf-8", "replace"))
