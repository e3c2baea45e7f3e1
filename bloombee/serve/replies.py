"""What a model says in the choices of one conversation, told apart as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bloombee.roles.prompts import Chat
from bloombee.serve.answers import Ended, Usage
from bloombee.serve.generations import Generations
from bloombee.serve.service import Service
from bloombee.serve.speech import Listener, Part
from bloombee.serve.tools import Offer
from bloombee.types import FinishReason, Token

PROMPT_END = 8
"""Tokens at the end of a prompt that say whether the answer begins in reasoning."""


@dataclass(frozen=True, slots=True)
class Said:
    """A token of a choice, and what is certain since it came.

    Args:
        is_reasoning: of the token; a mark around reasoning is part of it. ended: with the last one.
    """

    index: int
    token: Token
    is_reasoning: bool
    parts: list[Part]
    ended: Ended | None


class Replies:
    """To one request.

    Args:
        offer: functions that may be called. is_bound: a grammar leaves no room for reasoning.
    """

    def __init__(self, service: Service, generations: Generations, offer: Offer, *, is_bound: bool) -> None:
        self._service = service
        self._generations = generations
        self._may_call = bool(offer.tools)
        self.must_call = offer.must_call
        """It is calls and nothing else."""
        self._is_bound = is_bound
        self._listeners: dict[int, Listener] = {}
        self._num_reasoning = 0

    def __len__(self) -> int:
        return len(self._generations)

    @property
    def has_logprobs(self) -> bool:
        return self._generations.params.logprobs is not None

    @property
    def usage(self) -> Usage:
        return self._generations.usage(self._num_reasoning)

    async def batches(self) -> AsyncGenerator[list[Said], None]:
        """As :meth:`Generations.batches`."""
        async for batch in self._generations.batches():
            yield [self._said(index, token) for index, token in batch]

    async def all(self) -> list[list[Said]]:
        """Of each choice, once it has ended."""
        found: list[list[Said]] = [[] for _ in range(len(self))]
        async for batch in self.batches():
            for said in batch:
                found[said.index].append(said)
        return found

    def _said(self, index: int, token: Token) -> Said:
        listener = self._listeners.get(index) or self._begin(index)
        was_reasoning = listener.is_reasoning
        parts = listener.push(token.text)
        is_reasoning = was_reasoning or listener.is_reasoning
        self._num_reasoning += is_reasoning
        if token.finish_reason is not None:
            parts += listener.finish()
        return Said(index, token, is_reasoning, parts, ended(token.finish_reason, has_calls=listener.num_calls > 0))

    def _begin(self, index: int) -> Listener:
        speech, generations = self._service.speech, self._generations
        begins = speech.thinks and not self._is_bound
        if begins:
            prompt = generations.prompt_ids[index // generations.n][-PROMPT_END:]
            begins = speech.begins_in_reasoning(b"".join(map(self._service.texts.spelled, prompt)).decode("utf-8", "replace"))
        listener = Listener(speech, may_call=self._may_call, begins_in_reasoning=begins)
        self._listeners[index] = listener
        return listener


def conversation(
    messages: Sequence[Mapping[str, Any]], offer: Offer, arguments: Mapping[str, Any], effort: str | None, *, is_bound: bool
) -> Chat:
    """As chat templates take it.

    Args:
        effort: of reasoning, if the request says. is_bound: the answer must obey a grammar, so there is no room for reasoning.
    """
    told = {**({} if effort is None else {"reasoning_effort": effort}), **({"enable_thinking": False} if is_bound else {})}
    return Chat(messages, list(offer.tools) or None, {**told, **arguments})


def ended(reason: FinishReason | None, *, has_calls: bool = False) -> Ended | None:
    """As programs are told; None: it has not."""
    if reason is None:
        return None
    if reason is not FinishReason.STOP:
        return "length"
    return "tool_calls" if has_calls else "stop"
