"""``/v1/chat/completions``: a conversation goes on."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request

from bloombee.roles.prompts import Chat
from bloombee.serve.answers import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Delta,
    Ended,
)
from bloombee.serve.bodies import ChatBody, Message, TextPart, ToolCall
from bloombee.serve.delivery import DONE, Deliver, event, events, whole
from bloombee.serve.generations import Generations, sampling
from bloombee.serve.intake import refuse_if
from bloombee.serve.service import Service, client_of, new_id
from bloombee.types import FinishReason, Token


class ChatCompletions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Deliver:
        """Raises Refusal."""
        body = await self._service.intake.read(request, ChatBody)
        self._service.check_model(body.model)
        refuse_if(body.top_logprobs is not None and not body.logprobs, "top_logprobs", body.top_logprobs, "needs logprobs = true")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        max_tokens = body.max_completion_tokens or body.max_tokens
        generations = Generations(
            self._service.runtime,
            [conversation(body)],
            sampling(body, max_tokens=max_tokens, logprobs=logprobs),
            body.n or 1,
            client_of(request, body.user or body.safety_identifier),
        )
        answer = _ChatAnswer(self._service, generations)
        if body.stream:
            return events(answer.chunks(bool(body.stream_options and body.stream_options.include_usage)))
        return whole(answer.completion())


class _ChatAnswer:
    """To one request."""

    def __init__(self, service: Service, generations: Generations) -> None:
        self._service = service
        self._generations = generations
        self._has_logprobs = generations.params.logprobs is not None
        self._id = new_id("chatcmpl-")
        self._created = int(time.time())

    async def completion(self) -> ChatCompletion:
        """All of it."""
        tokens: list[list[Token]] = [[] for _ in range(len(self._generations))]
        async for batch in self._generations.batches():
            for index, token in batch:
                tokens[index].append(token)
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._service.model,
            choices=[self._choice(index, one) for index, one in enumerate(tokens)],
            usage=self._generations.usage,
        )

    def _choice(self, index: int, tokens: list[Token]) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AnswerMessage(content="".join(token.text for token in tokens)),
            logprobs=self._service.texts.chat(tokens) if self._has_logprobs else None,
            finish_reason=ended(tokens[-1].finish_reason) or "length",
        )

    async def chunks(self, with_usage: bool) -> AsyncGenerator[bytes, None]:
        """As it comes."""
        begun: set[int] = set()
        async for batch in self._generations.batches():
            data = b"".join(self._events(batch, begun))
            if data:
                yield data
        if with_usage:
            yield self._chunk([], usage=self._generations.usage)
        yield DONE

    def _events(self, batch: list[tuple[int, Token]], begun: set[int]) -> list[bytes]:
        found = []
        for index, token in batch:
            if index not in begun:
                begun.add(index)
                found.append(self._chunk([ChunkChoice(index=index, delta=Delta(role="assistant", content=""))]))
            finish = ended(token.finish_reason)
            if token.text or self._has_logprobs:
                logprobs = self._service.texts.chat([token]) if self._has_logprobs else None
                found.append(self._chunk([ChunkChoice(index=index, delta=Delta(content=token.text), logprobs=logprobs)]))
            if finish is not None:
                found.append(self._chunk([ChunkChoice(index=index, delta=Delta(), finish_reason=finish)]))
        return found

    def _chunk(self, choices: list[ChunkChoice], **fields: Any) -> bytes:
        return event(
            ChatChunk(
                id=self._id,
                object="chat.completion.chunk",
                created=self._created,
                model=self._service.model,
                choices=choices,
                **fields,
            )
        )


def ended(reason: FinishReason | None) -> Ended | None:
    """As programs are told; None: it has not."""
    return None if reason is None else "stop" if reason is FinishReason.STOP else "length"


def conversation(body: ChatBody) -> Chat:
    """As chat templates take it."""
    messages = [_message(message) for message in body.messages]
    arguments = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        arguments.setdefault("reasoning_effort", body.reasoning_effort)
    return Chat(messages, None, arguments)


def _message(message: Message) -> dict[str, Any]:
    """Parts of its content as one text, and arguments of calls as what their JSON says: templates know nothing else."""
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)
    told = {
        "role": role,
        "content": content or message.refusal or "",
        "name": message.name,
        "reasoning_content": message.reasoning_content or message.reasoning,
        "tool_calls": [_call(call) for call in message.tool_calls] if message.tool_calls else None,
        "tool_call_id": message.tool_call_id,
    }
    return {key: value for key, value in told.items() if value is not None}


def _call(call: ToolCall) -> dict[str, Any]:
    arguments: dict[str, Any] | str
    try:
        arguments = msgspec.json.decode(call.function.arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        arguments = call.function.arguments  # what a model wrote need not be JSON
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
