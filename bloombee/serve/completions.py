"""``/v1/completions``: texts go on, as they are."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request

from bloombee.serve.answers import Ended, TextChoice, TextCompletion, TextLogprobs, Usage
from bloombee.serve.bodies import CompletionBody
from bloombee.serve.delivery import DONE, Deliver, event, events, whole
from bloombee.serve.generations import Batch, Generations, sampling
from bloombee.serve.intake import refuse_if
from bloombee.serve.refusals import Refusal
from bloombee.serve.replies import ended
from bloombee.serve.service import Service, client_of, new_id
from bloombee.types import Token

DEFAULT_TOKENS = 16
"""OpenAI's."""
TextPrompt = str | list[int]


class Completions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Deliver:
        """Raises Refusal."""
        body = await self._service.intake.read(request, CompletionBody)
        self._service.check_model(body.model)
        n = body.n or 1
        refuse_if(body.best_of not in (None, n), "best_of", body.best_of, "must be n, where it is given")
        refuse_if(bool(body.suffix), "suffix", body.suffix, "is not to be had here")
        refuse_if(
            bool(body.echo and body.logprobs is not None), "logprobs", body.logprobs, "are not to be had of a prompt (echo)"
        )
        params = sampling(body, max_tokens=body.max_tokens or DEFAULT_TOKENS, logprobs=body.logprobs)
        prompts = read_prompts(body.prompt)
        client = client_of(request, body.user)
        generations = Generations(self._service.runtime, prompts, params, n, client, biases=body.logit_bias)
        answer = _TextAnswer(self._service, generations, [self._text(prompt) if body.echo else "" for prompt in prompts])
        if body.stream:
            return events(answer.chunks(bool(body.stream_options and body.stream_options.include_usage)))
        return whole(answer.completion())

    def _text(self, prompt: TextPrompt) -> str:
        if isinstance(prompt, str):
            return prompt
        return b"".join(map(self._service.texts.spelled, prompt)).decode("utf-8", "replace")


def read_prompts(prompt: str | list[Any]) -> list[TextPrompt]:
    """One or several, of text or of token ids. Raises Refusal."""
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(one, str) for one in prompt):
        return prompt
    if all(type(one) is int for one in prompt):
        return [prompt]
    if all(isinstance(one, list) and one and all(type(id) is int for id in one) for one in prompt):
        return prompt
    raise Refusal(400, "prompt must be text or a list of token ids, or a list of either", param="prompt")


class _TextAnswer:
    """To one request.

    Args:
        echoes: what each prompt's answers begin with.
    """

    def __init__(self, service: Service, generations: Generations, echoes: Sequence[str]) -> None:
        self._service = service
        self._generations = generations
        self._echoes = echoes
        self._has_logprobs = generations.params.logprobs is not None
        self._id = new_id("cmpl-")
        self._created = int(time.time())

    async def completion(self) -> TextCompletion:
        """All of it."""
        tokens: list[list[Token]] = [[] for _ in range(len(self._generations))]
        async for batch in self._generations.batches():
            for index, token in batch:
                tokens[index].append(token)
        choices = [self._choice(index, one, self._echo(index), 0) for index, one in enumerate(tokens)]
        return self._object(choices, self._generations.usage())

    async def chunks(self, with_usage: bool) -> AsyncGenerator[bytes, None]:
        """As it comes."""
        lengths = [-1] * len(self._generations)
        async for batch in self._generations.batches():
            data = b"".join(self._events(batch, lengths))
            if data:
                yield data
        if with_usage:
            yield event(self._object([], self._generations.usage()))
        yield DONE

    def _events(self, batch: Batch, lengths: list[int]) -> list[bytes]:
        """``lengths``: of the text of each choice so far; -1: it has not begun."""
        found = []
        for index, token in batch:
            before = self._echo(index) if lengths[index] < 0 else ""
            lengths[index] = max(0, lengths[index])
            if before or token.text or self._has_logprobs or token.finish_reason is not None:
                found.append(event(self._object([self._choice(index, [token], before, lengths[index])])))
            lengths[index] += len(before) + len(token.text)
        return found

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._generations.n]

    def _choice(self, index: int, tokens: list[Token], before: str, offset: int) -> TextChoice:
        logprobs: TextLogprobs | None = None
        if self._has_logprobs:
            logprobs = self._service.texts.completion(tokens, offset)
        finish: Ended | None = ended(tokens[-1].finish_reason)
        text = before + "".join(token.text for token in tokens)
        return TextChoice(text=text, index=index, logprobs=logprobs, finish_reason=finish)

    def _object(self, choices: list[TextChoice], usage: Usage | None = None) -> TextCompletion:
        return TextCompletion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._service.model,
            choices=choices,
            usage=usage,
        )
