"""Every feature by the official client, streamed and not: what a stream adds up to is what the whole answer is.

Streams are added up by the client's own helpers, as programs do it.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, ConfigDict
from serve_kit import MODEL, Served

PROMPT = "def add(a, b):"
USER: Any = [{"role": "user", "content": PROMPT}]


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    days: Literal[1, 2, 3]


SCHEMA = Trip.model_json_schema()
FORM = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}} for name in ("weather", "forecast")
]
LOOSE = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
FLAT = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}]
SAMPLED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.7, "seed": 5},
    "top_p": {"temperature": 1, "top_p": 0.4, "seed": 5},
    "n": {"n": 3, "temperature": 1, "seed": 5},
    "stop": {"stop": ["return", "\n\n\n"]},
    "max_tokens": {"max_tokens": 3},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 1.5},
    "logit_bias": {"logit_bias": {"5": 3, "6": -100}},
}
CHATTED: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": True, "top_logprobs": 2, "n": 2, "temperature": 1, "seed": 5},
    "max_completion_tokens": {"max_completion_tokens": 5, "max_tokens": openai.NOT_GIVEN},
    "json_schema": {"response_format": FORM, "temperature": 1, "seed": 5, "max_tokens": 100},
    "json_object": {"response_format": {"type": "json_object"}},
    "tools": {"tools": LOOSE},
    "tool_choice none": {"tools": LOOSE, "tool_choice": "none"},
    "tool_choice required": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100},
    "tool_choice of one": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "forecast"}},
        "max_tokens": 100,
    },
}
COMPLETED: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": 2},
    "echo": {"echo": True},
    "prompts": {"prompt": [PROMPT, "x = "]},
}
RESPONDED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top_p": {"temperature": 1, "top_p": 1e-6},
    "max_output_tokens": {"max_output_tokens": 3},
    "instructions": {"instructions": "Write Python."},
    "top_logprobs": {"top_logprobs": 2},
    "json_schema": {"text": {"format": {"type": "json_schema", "name": "trip", "schema": SCHEMA, "strict": True}}},
    "tools": {"tools": FLAT},
    "tool_choice required": {"tools": FLAT, "tool_choice": "required", "parallel_tool_calls": False},
}


def alike(answer: Any) -> Any:
    """An answer without what differs each time: its id, its time, and ids in it."""
    told = answer.model_dump() if isinstance(answer, BaseModel) else answer
    if isinstance(told, dict):
        return {name: alike(value) for name, value in told.items() if name not in NEW and value not in (None, [])}
    return [alike(one) for one in told] if isinstance(told, list) else told


# What a second request finds in the cache of prefixes is among it.
NEW = (
    "prompt_tokens_details",
    "input_tokens_details",
    "id",
    "created",
    "created_at",
    "call_id",
    "item_id",
    "parsed",
    "parsed_arguments",
    "service_tier",
    "object",
    "index",
)


@pytest.mark.parametrize("fields", [*SAMPLED.values(), *CHATTED.values()], ids=[*SAMPLED, *CHATTED])
def test_a_chat_that_is_streamed_is_the_whole_one(fields: dict[str, Any], client: OpenAI) -> None:
    given: Any = {"model": MODEL, "messages": USER, "max_tokens": 24, "temperature": 0, **fields}
    whole = client.chat.completions.create(**given)
    with client.chat.completions.stream(**given, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        streamed = stream.current_completion_snapshot
    assert alike(streamed) == alike(whole)
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0


@pytest.mark.parametrize("fields", [*SAMPLED.values(), *COMPLETED.values()], ids=[*SAMPLED, *COMPLETED])
def test_a_completion_that_is_streamed_is_the_whole_one(fields: dict[str, Any], client: OpenAI) -> None:
    given: Any = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **fields}
    whole = client.completions.create(**given)
    chunks = list(client.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.text for one in mine) == choice.text
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]
        told = [one.logprobs for one in mine if one.logprobs is not None]
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            known = getattr(choice.logprobs, name) if choice.logprobs is not None else []
            assert [value for one in told for value in getattr(one, name)] == known
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("fields", [*RESPONDED.values()], ids=[*RESPONDED])
def test_a_response_that_is_streamed_is_the_whole_one(fields: dict[str, Any], client: OpenAI) -> None:
    given: Any = {"model": MODEL, "input": PROMPT, "max_output_tokens": 100, "temperature": 0, **fields}
    whole = client.responses.create(**given)
    last = list(client.responses.create(**given, stream=True))[-1]
    assert last.type == f"response.{whole.status}"
    assert alike(last.response) == alike(whole)
    with client.responses.stream(**given) as stream:
        assert alike(list(stream)[-1].response.output) == alike(whole.output)


def test_answers_are_parsed_into_types_of_the_programs_own(client: OpenAI) -> None:
    said = client.chat.completions.parse(model=MODEL, messages=USER, temperature=1, seed=5, max_tokens=100, response_format=Trip)
    trip = said.choices[0].message.parsed
    assert isinstance(trip, Trip)
    assert trip == Trip.model_validate_json(said.choices[0].message.content or "")
    response = client.responses.parse(model=MODEL, input=PROMPT, temperature=1, max_output_tokens=100, text_format=Trip)
    assert isinstance(response.output_parsed, Trip)
    tool: Any = openai.pydantic_function_tool(Trip, name="travel")
    call = client.chat.completions.parse(
        model=MODEL, messages=USER, temperature=1, max_tokens=100, tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    (made,) = call.choices[0].message.tool_calls or []
    assert isinstance(made.function.parsed_arguments, Trip)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses"])
def test_an_error_is_one_of_the_clients(endpoint: str, stream: bool, client: OpenAI) -> None:
    """Before the first token: with its status; the same streamed and not."""
    text, common = "x " * 5000, {"model": MODEL, "stream": stream}
    ask: Any = {
        "chat": lambda: client.chat.completions.create(messages=[{"role": "user", "content": text}], **common),
        "completions": lambda: client.completions.create(prompt=text, **common),
        "responses": lambda: client.responses.create(input=text, **common),
    }[endpoint]
    with pytest.raises(openai.BadRequestError) as caught:
        ask()
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == {"chat": "messages", "completions": "prompt", "responses": "input"}[endpoint]


@pytest.mark.parametrize("prompt", ["", [""]])
def test_an_empty_prompt_is_refused_by_its_name(prompt: Any, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="empty") as caught:
        client.completions.create(model=MODEL, prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses"])
def test_a_client_that_goes_ends_its_request(endpoint: str, stream: bool, server: Served) -> None:
    """Streamed: by closing it; whole: by giving up."""
    hasty = server.client().with_options(timeout=openai.Timeout(60.0, read=1.0))
    on: Any = {"model": MODEL, "extra_body": {"ignore_eos": True}}  # of which responses know nothing
    ask: Any = {
        "chat": lambda **more: hasty.chat.completions.create(messages=USER, max_tokens=1900, **on, **more),
        "completions": lambda **more: hasty.completions.create(prompt=PROMPT, max_tokens=1900, **on, **more),
        "responses": lambda **more: hasty.responses.create(model=MODEL, input=PROMPT, max_output_tokens=1900, **more),
    }[endpoint]
    if stream:
        opened = ask(stream=True)
        next(iter(opened))
        opened.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            ask()
    server.swarm.await_idle()


def test_messages_of_answers_may_be_sent_back_as_they_are(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "temperature": 0, "max_tokens": 60}
    first = client.chat.completions.create(messages=USER, tools=TOOLS, tool_choice="required", **given).choices[0].message
    calls = first.tool_calls or []
    results = [{"role": "tool", "tool_call_id": call.id, "content": json.dumps({"ok": True})} for call in calls]
    messages: Any = [*USER, first, *results, {"role": "user", "content": "and then?"}]
    assert client.chat.completions.create(messages=messages, **given).choices[0].message.content
