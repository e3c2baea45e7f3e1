"""``/v1/responses``: a conversation goes on, as items of a few kinds and as events about them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import msgspec
from starlette.requests import Request

from bloombee.errors import BloomBeeError
from bloombee.serve.answers import TokenLogprob
from bloombee.serve.bodies import Sampled
from bloombee.serve.delivery import Deliver, event, events, whole
from bloombee.serve.generations import Generations, sampling
from bloombee.serve.intake import refuse_if
from bloombee.serve.refusals import RESPONSES, refusal_of
from bloombee.serve.replies import Replies, Said, conversation
from bloombee.serve.response_bodies import ResponseBody, TextSettings, messages_of
from bloombee.serve.response_objects import (
    CallItem,
    Incomplete,
    InputDetails,
    Item,
    MessageItem,
    OutputDetails,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    State,
    StreamEvent,
)
from bloombee.serve.service import Service, client_of, new_id
from bloombee.serve.speech import Call, Kind, Piece
from bloombee.serve.tools import Offer, format_grammar, one_of


class Responses:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Deliver:
        """Raises Refusal."""
        body = await self._service.intake.read(request, ResponseBody)
        self._service.check_model(body.model)
        replies = self._replies(body, client_of(request, body.user or body.safety_identifier))
        answer = _Answer(self._service, replies, body)
        return events(answer.events()) if body.stream else whole(answer.response())

    def _replies(self, body: ResponseBody, client: str) -> Replies:
        before = body.previous_response_id
        refuse_if(before is not None, "previous_response_id", before, "nothing is stored; give what was said before as input")
        offer = Offer.of([one.tool for one in body.tools or []], body.choice, parallel=body.parallel_tool_calls is not False)
        form = None if body.text is None else format_grammar(body.text.response_format)
        grammar, is_bound = one_of(offer, form, self._service.speech), offer.must_call or form is not None
        effort = None if body.reasoning is None else body.reasoning.effort
        chat = conversation(messages_of(body), offer, {}, effort, is_bound=is_bound)
        sampled = Sampled(temperature=body.temperature, top_p=body.top_p)
        params = sampling(sampled, max_tokens=body.max_output_tokens, logprobs=body.top_logprobs)
        generations = Generations(self._service.runtime, [chat], params, 1, client, grammar)
        return Replies(self._service, generations, offer, is_bound=is_bound)


class _Answer:
    """To one request."""

    def __init__(self, service: Service, replies: Replies, body: ResponseBody) -> None:
        self._service = service
        self._replies = replies
        self._body = body
        self._id = new_id("resp_")
        self._created = int(time.time())
        self._output = _Output(service, has_logprobs=replies.has_logprobs)
        self._num_events = 0

    async def response(self) -> ResponseObject:
        """All of it."""
        async for batch in self._replies.batches():
            for said in batch:
                for _ in self._output.add(said):
                    pass
        return self._ended()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """As it comes. An error after the first token is an event of its own, and the last."""
        has_begun = False
        try:
            async for batch in self._replies.batches():
                first = [] if has_begun else self._beginning()
                has_begun = True
                data = first + [self._numbered(one) for said in batch for one in self._output.add(said)]
                if data:
                    yield b"".join(data)
        except BloomBeeError as error:
            if not has_begun:
                raise
            fault = refusal_of(error, RESPONSES).fault
            failed = self._object("failed", error=ResponseError(code=fault.code or fault.type, message=fault.message))
            yield self._numbered(StreamEvent(type="response.failed", sequence_number=0, response=failed))
            return
        response = self._ended()
        yield self._numbered(StreamEvent(type=f"response.{response.status}", sequence_number=0, response=response))

    def _beginning(self) -> list[bytes]:
        response = self._object("in_progress")
        types = ("response.created", "response.in_progress")
        return [self._numbered(StreamEvent(type=type, sequence_number=0, response=response)) for type in types]

    def _numbered(self, told: StreamEvent) -> bytes:
        told.sequence_number = self._num_events
        self._num_events += 1
        return event(told, name=told.type.encode())

    def _ended(self) -> ResponseObject:
        usage = self._replies.usage
        is_whole = self._output.ended != "length"
        return self._object(
            "completed" if is_whole else "incomplete",
            incomplete_details=None if is_whole else Incomplete(reason="max_output_tokens"),
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details=InputDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
                output_tokens=usage.completion_tokens,
                output_tokens_details=OutputDetails(reasoning_tokens=usage.completion_tokens_details.reasoning_tokens),
                total_tokens=usage.total_tokens,
            ),
        )

    def _object(self, status: State, **fields: Any) -> ResponseObject:
        body = self._body
        return ResponseObject(
            id=self._id,
            created_at=self._created,
            status=status,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=self._service.model,
            output=list(self._output.items),
            parallel_tool_calls=body.parallel_tool_calls is not False,
            reasoning=msgspec.to_builtins(body.reasoning) or {"effort": None, "summary": None},
            temperature=1.0 if body.temperature is None else body.temperature,
            text=_plain(body.text) if body.text and body.text.format else {"format": {"type": "text"}},
            tool_choice=msgspec.to_builtins(body.tool_choice) or "auto",
            tools=msgspec.to_builtins(body.tools or []),
            top_p=1.0 if body.top_p is None else body.top_p,
            metadata=body.metadata or {},
            **fields,
        )


def _plain(text: TextSettings) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(text)
    return {key: value for key, value in told.items() if value is not None}


class _Output:
    """The items of one answer as they become, and the events that tell of it."""

    def __init__(self, service: Service, *, has_logprobs: bool) -> None:
        self._service = service
        self._has_logprobs = has_logprobs
        self._logprobs: list[TokenLogprob] = []
        """Of content's tokens whose text has yet to be told."""
        self.items: list[Item] = []
        self.ended: str | None = None
        self._is_open = False
        """The last item goes on."""

    def add(self, said: Said) -> Iterator[StreamEvent]:
        """A token. All events must be taken."""
        if self._has_logprobs and not said.is_reasoning:
            self._logprobs += self._service.texts.each([said.token])
        for part in said.parts:
            yield from self._call(part) if isinstance(part, Call) else self._text(part)
        if said.ended is not None:
            self.ended = said.ended
            yield from self._close("incomplete" if said.ended == "length" else "completed")

    def _call(self, call: Call) -> Iterator[StreamEvent]:
        self._logprobs = []  # a call has none
        yield from self._close("completed")
        item = CallItem(id=new_id("fc_"), status="in_progress", call_id=call.id, name=call.name, arguments="")
        self.items.append(item)
        yield self._of_item("response.output_item.added", item=msgspec.structs.replace(item))
        yield self._of_item("response.function_call_arguments.delta", item_id=item.id, delta=call.arguments)
        item.arguments, item.status = call.arguments, "completed"
        yield self._of_item("response.function_call_arguments.done", item_id=item.id, arguments=call.arguments, name=call.name)
        yield self._of_item("response.output_item.done", item=item)

    def _text(self, piece: Piece) -> Iterator[StreamEvent]:
        is_reasoning = piece.kind is Kind.REASONING
        item = self.items[-1] if self._is_open else None
        if not isinstance(item, ReasoningItem if is_reasoning else MessageItem):
            yield from self._close("completed")
            yield from self._open(is_reasoning)
            item = self.items[-1]
        assert not isinstance(item, CallItem)
        part = item.content[0]
        part.text += piece.text
        if isinstance(part, OutputText):
            yield self._delta(item.id, part, piece.text)
        else:
            yield self._of_item("response.reasoning_text.delta", item_id=item.id, content_index=0, delta=piece.text)

    def _delta(self, id: str, part: OutputText, text: str) -> StreamEvent:
        logprobs, self._logprobs = self._logprobs, []
        part.logprobs += logprobs
        return self._of_item("response.output_text.delta", item_id=id, content_index=0, delta=text, logprobs=logprobs)

    def _open(self, is_reasoning: bool) -> Iterator[StreamEvent]:
        item: MessageItem | ReasoningItem
        part: OutputText | ReasoningText
        if is_reasoning:
            item, part = ReasoningItem(id=new_id("rs_"), status="in_progress", content=[]), ReasoningText(text="")
            item.content.append(part)
        else:
            item, part = MessageItem(id=new_id("msg_"), status="in_progress", content=[]), OutputText(text="")
            item.content.append(part)
        self.items.append(item)
        self._is_open = True
        yield self._of_item("response.output_item.added", item=msgspec.structs.replace(item, content=[]))
        yield self._of_item("response.content_part.added", item_id=item.id, content_index=0, part=msgspec.structs.replace(part))

    def _close(self, status: State) -> Iterator[StreamEvent]:
        if not self._is_open:
            return
        self._is_open = False
        item = self.items[-1]
        assert not isinstance(item, CallItem)
        item.status, part = status, item.content[0]
        told: dict[str, Any] = {"item_id": item.id, "content_index": 0}
        if isinstance(part, OutputText):
            if self._logprobs:
                yield self._delta(item.id, part, "")  # an end token has no text
            yield self._of_item("response.output_text.done", text=part.text, logprobs=part.logprobs, **told)
        else:
            yield self._of_item("response.reasoning_text.done", text=part.text, **told)
        yield self._of_item("response.content_part.done", part=part, **told)
        yield self._of_item("response.output_item.done", item=item)

    def _of_item(self, type: str, **fields: Any) -> StreamEvent:
        return StreamEvent(type=type, sequence_number=0, output_index=len(self.items) - 1, **fields)
