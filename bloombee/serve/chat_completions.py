"""``/v1/chat/completions``: a conversation goes on."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request

from bloombee.serve.answers import (
    AnsweredCall,
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    DeltaCall,
)
from bloombee.serve.bodies import ChatBody, Message, TextPart, ToolCall
from bloombee.serve.delivery import DONE, Deliver, event, events, whole
from bloombee.serve.generations import Generations, sampling
from bloombee.serve.intake import refuse_if
from bloombee.serve.replies import Replies, Said, conversation
from bloombee.serve.service import Service, client_of, new_id
from bloombee.serve.speech import Call, Kind, Part, Piece
from bloombee.serve.tools import Offer, format_grammar, one_of


class ChatCompletions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Deliver:
        """Raises Refusal."""
        body = await self._service.intake.read(request, ChatBody)
        self._service.check_model(body.model)
        answer = _ChatAnswer(self._service, self._replies(body, client_of(request, body.user or body.safety_identifier)))
        if body.stream:
            return events(answer.chunks(bool(body.stream_options and body.stream_options.include_usage)))
        return whole(answer.completion())

    def _replies(self, body: ChatBody, client: str) -> Replies:
        refuse_if(body.top_logprobs is not None and not body.logprobs, "top_logprobs", body.top_logprobs, "needs logprobs = true")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        offer = Offer.of(body.tools or [], body.tool_choice, parallel=body.parallel_tool_calls is not False)
        form = format_grammar(body.response_format)
        grammar, is_bound = one_of(offer, form, self._service.speech), offer.must_call or form is not None
        messages = [message_of(message) for message in body.messages]
        arguments = body.chat_template_kwargs or {}
        chat = conversation(messages, offer, arguments, body.reasoning_effort, is_bound=is_bound)
        params = sampling(body, max_tokens=body.max_completion_tokens or body.max_tokens, logprobs=logprobs)
        generations = Generations(self._service.runtime, [chat], params, body.n or 1, client, grammar, body.logit_bias)
        return Replies(self._service, generations, offer, is_bound=is_bound)


class _ChatAnswer:
    """To one request."""

    def __init__(self, service: Service, replies: Replies) -> None:
        self._service = service
        self._replies = replies
        self._id = new_id("chatcmpl-")
        self._created = int(time.time())

    async def completion(self) -> ChatCompletion:
        """All of it."""
        said = await self._replies.all()
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._service.model,
            choices=[self._choice(index, one) for index, one in enumerate(said)],
            usage=self._replies.usage,
        )

    def _choice(self, index: int, said: list[Said]) -> ChatChoice:
        parts = [part for one in said for part in one.parts]
        calls = [AnsweredCall(id=call.id, function=_function(call)) for call in parts if isinstance(call, Call)]
        content, reasoning = text_of(parts, Kind.CONTENT), text_of(parts, Kind.REASONING)
        return ChatChoice(
            index=index,
            message=AnswerMessage(
                content=content if content or not calls else None,
                reasoning_content=reasoning or UNSET,
                tool_calls=calls or UNSET,
            ),
            logprobs=self._logprobs(said),
            finish_reason=said[-1].ended or "length",
        )

    def _logprobs(self, said: list[Said]) -> ChatLogprobs | None:
        if not self._replies.has_logprobs:
            return None
        content, reasoning = ([one.token for one in said if one.is_reasoning is kind] for kind in (False, True))
        return self._service.texts.chat(content, reasoning)

    async def chunks(self, with_usage: bool) -> AsyncGenerator[bytes, None]:
        """As it comes."""
        num_calls: dict[int, int] = {}
        async for batch in self._replies.batches():
            data = b"".join(self._chunk([choice]) for said in batch for choice in self._choices(said, num_calls))
            if data:
                yield data
        if with_usage:
            yield self._chunk([], usage=self._replies.usage)
        yield DONE

    def _choices(self, said: Said, num_calls: dict[int, int]) -> Iterator[ChunkChoice]:
        """``num_calls``: of each choice that has begun."""
        index = said.index
        if index not in num_calls:
            num_calls[index] = 0
            yield ChunkChoice(index=index, delta=Delta(role="assistant", content=None if self._replies.must_call else ""))
        logprobs = self._logprobs([said])
        for part in said.parts:
            yield ChunkChoice(index=index, delta=_delta(part, num_calls[index]), logprobs=logprobs)
            num_calls[index] += isinstance(part, Call)
            logprobs = None
        if logprobs is not None:
            yield ChunkChoice(index=index, delta=Delta(content=""), logprobs=logprobs)
        if said.ended is not None:
            yield ChunkChoice(index=index, delta=Delta(), finish_reason=said.ended)

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


def text_of(parts: list[Part], kind: Kind) -> str:
    """All text of one kind."""
    return "".join(part.text for part in parts if isinstance(part, Piece) and part.kind is kind)


def _function(call: Call) -> CalledFunction:
    return CalledFunction(name=call.name, arguments=call.arguments)


def _delta(part: Part, num_calls: int) -> Delta:
    if isinstance(part, Call):
        return Delta(tool_calls=[DeltaCall(index=num_calls, id=part.id, function=_function(part))])
    return Delta(reasoning_content=part.text) if part.kind is Kind.REASONING else Delta(content=part.text)


def message_of(message: Message) -> dict[str, Any]:
    """Parts of its content as one text, and arguments of calls as what their JSON says: templates know nothing else."""
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)
    told = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content or message.refusal or "",
        "name": message.name,
        "reasoning_content": message.reasoning_content or message.reasoning,
        "tool_calls": [_call(call) for call in message.tool_calls] if message.tool_calls else None,
        "tool_call_id": message.tool_call_id,
    }
    return {key: value for key, value in told.items() if value is not None}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": arguments_of(call.function.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def arguments_of(text: str) -> dict[str, Any] | str:
    """Of a call, as its JSON says; what a model wrote need not be JSON."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return text
