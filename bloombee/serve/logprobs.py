"""Log-probabilities as programs get them: tokens by their text and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import UNSET

from bloombee.serve.answers import ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob
from bloombee.types import Token

LEAST = -9999.0
"""What stands for minus infinity, which JSON does not have; OpenAI's number."""


class TokenTexts:
    """Tokens as programs see them.

    Args:
        spelled: the bytes of a token id.
    """

    def __init__(self, spelled: Callable[[int], bytes]) -> None:
        self.spelled = spelled

    def text(self, token_id: int) -> str:
        return self.spelled(token_id).decode("utf-8", "replace")

    def chat(self, content: Iterable[Token], reasoning: Iterable[Token]) -> ChatLogprobs:
        """Of tokens whose log-probability was asked for."""
        return ChatLogprobs(content=self.each(content), reasoning_content=self.each(reasoning) or UNSET)

    def each(self, tokens: Iterable[Token]) -> list[TokenLogprob]:
        return [self._of(token) for token in tokens]

    def completion(self, tokens: Iterable[Token], offset: int) -> TextLogprobs:
        """The same for plain completions; the first token's text begins at ``offset``."""
        found = TextLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        for token in tokens:
            found.text_offset.append(offset)
            found.token_logprobs.append(_finite(token.logprob))
            found.tokens.append(self.text(token.token_id))
            tops = {self.text(id): _finite(logprob) for id, logprob in token.top_logprobs}
            found.top_logprobs.append({self.text(token.token_id): _finite(token.logprob), **tops})
            offset += len(token.text)
        return found

    def _of(self, token: Token) -> TokenLogprob:
        return TokenLogprob(
            token=self.text(token.token_id),
            logprob=_finite(token.logprob),
            bytes=list(self.spelled(token.token_id)),
            top_logprobs=[
                TopLogprob(token=self.text(id), logprob=_finite(logprob), bytes=list(self.spelled(id)))
                for id, logprob in token.top_logprobs
            ],
        )


def _finite(logprob: float | None) -> float:
    return LEAST if logprob is None else max(logprob, LEAST)
