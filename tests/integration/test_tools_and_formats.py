"""Calls of functions, answers of a format and reasoning, by the official client against models that really generate them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from serve_kit import MODEL, Served, served
from swarm_kit import Swarm

import bloombee

DEMO = Path(bloombee.__file__).parent / "demo_model" / "target"
USER: Any = [{"role": "user", "content": "def add(a, b):"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": "The weather.", "parameters": SCHEMA, "strict": True}}
    for name in ("weather", "forecast")
]
FLAT: Any = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}]


def chat(client: OpenAI, **fields: Any) -> Any:
    given = {"model": MODEL, "messages": USER, "max_tokens": 200, "temperature": 1, "seed": 5, **fields}
    return client.chat.completions.create(**given)


def fits(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"city", "days"} and value["city"] in ("Paris", "Rome") and 1 <= value["days"] <= 9


def test_an_answer_of_a_schema(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
    answer = chat(client, response_format=form, n=4)
    assert all(fits(choice.message.content) for choice in answer.choices)
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    stream = chat(client, response_format=form, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer.choices[0].message.content


def test_an_answer_of_any_json(client: OpenAI) -> None:
    text = chat(client, response_format={"type": "json_object"}, temperature=0, max_tokens=60).choices[0].message.content
    assert text.startswith("{")


def test_a_schema_that_cannot_be_obeyed_is_refused(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wizard"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, response_format=form)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}])
def test_calls_that_must_be_made(choice: Any, client: OpenAI) -> None:
    answer = chat(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    (call,) = answer.message.tool_calls
    assert call.function.name in (("weather", "forecast") if choice == "required" else ("forecast",))
    assert fits(call.function.arguments)
    deltas = [
        c.delta
        for chunk in chat(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, stream=True)
        for c in chunk.choices
    ]
    (said,) = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert (said.index, said.function.name, said.function.arguments) == (0, call.function.name, call.function.arguments)


def test_tools_may_be_left_alone(client: OpenAI) -> None:
    for fields in ({"tool_choice": "none"}, {"tool_choice": "auto"}):
        answer = chat(client, tools=TOOLS, temperature=0, max_tokens=8, **fields).choices[0]
        assert answer.message.content
        assert answer.message.tool_calls is None


def test_a_conversation_goes_on_after_a_call(client: OpenAI) -> None:
    call = chat(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0].message
    messages = [*USER, call.model_dump(), {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "sunny"}]
    assert chat(client, messages=messages, tools=TOOLS, max_tokens=4).choices[0].finish_reason == "length"


def test_biases_are_of_token_ids(client: OpenAI, server: Served) -> None:
    banned = server.swarm.generate("def add(a, b):", max_new_tokens=1).token_ids[0]
    known = server.swarm.generate("def add(a, b):", max_new_tokens=8, logit_bias={banned: -100}).text
    assert chat(client, temperature=0, max_tokens=8, logit_bias={str(banned): -100}).choices[0].message.content == known
    plain = client.completions.create(
        model=MODEL, prompt="def add(a, b):", temperature=0, max_tokens=8, logit_bias={str(banned): -100}
    )
    assert plain.choices[0].text == known


# -- responses -----------------------------------------------------------------------------


def respond(client: OpenAI, **fields: Any) -> Any:
    given = {"model": MODEL, "input": "def add(a, b):", "max_output_tokens": 200, "temperature": 0, **fields}
    return client.responses.create(**given)


def test_a_response_is_what_a_chat_says(client: OpenAI) -> None:
    said = chat(client, temperature=0, max_tokens=12)
    answer = respond(client, max_output_tokens=12)
    assert answer.output_text == said.choices[0].message.content
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.input_tokens == said.usage.prompt_tokens
    assert answer.usage.output_tokens == 12
    whole = respond(
        client, input=[{"role": "user", "content": [{"type": "input_text", "text": "def add(a, b):"}]}], max_output_tokens=12
    )
    assert whole.output_text == answer.output_text


def test_a_streamed_response_tells_of_each_step(client: OpenAI) -> None:
    known = respond(client, max_output_tokens=12)
    told = list(respond(client, max_output_tokens=12, stream=True))
    assert [one.sequence_number for one in told] == list(range(len(told)))
    types = [one.type for one in told]
    assert types[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert types[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(types[4:-4]) == {"response.output_text.delta"}
    assert "".join(one.delta for one in told if one.type == "response.output_text.delta") == known.output_text
    assert told[-1].response.output_text == told[-4].text == known.output_text
    assert told[-1].response.usage == known.usage


def test_a_response_of_a_schema_and_with_a_call(client: OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "trip", "schema": SCHEMA, "strict": True}}
    answer = respond(client, text=form, temperature=1)
    assert fits(answer.output_text)
    assert answer.status == "completed"
    answer = respond(client, tools=FLAT, tool_choice="required", parallel_tool_calls=False)
    (call,) = answer.output
    assert (call.type, call.name, fits(call.arguments)) == ("function_call", "weather", True)
    told = list(respond(client, tools=FLAT, tool_choice={"type": "function", "name": "weather"}, stream=True))
    (done,) = [one for one in told if one.type == "response.function_call_arguments.done"]
    assert done.arguments == call.arguments
    assert told[-1].response.output[0].arguments == call.arguments
    rest = [
        {"role": "user", "content": "x"},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "7"},
    ]
    assert respond(client, input=rest, tools=FLAT, max_output_tokens=4).status == "incomplete"


@pytest.mark.parametrize(
    "fields", [{"previous_response_id": "resp_1"}, {"background": True}, {"input": []}, {"tools": [{"type": "web_search"}]}]
)
def test_what_a_response_cannot_have_is_refused(fields: dict[str, Any], client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        respond(client, **fields)
    (name,) = fields
    assert caught.value.param is not None
    assert caught.value.param.startswith(name)
    assert name != "previous_response_id" or "give what was said before as input" in caught.value.message


# -- reasoning -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(make_swarm: Callable[..., Swarm], tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """The demo model, told that it reasons first."""
    directory = tmp_path_factory.mktemp("thinker") / "model"
    shutil.copytree(DEMO, directory)
    (directory / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}{% endfor %}"
        "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
    )
    with served(make_swarm(model=str(directory), workers=1, dtype="float32")) as running:
        yield running.client()


def test_reasoning_is_no_content(thinker: OpenAI) -> None:
    biased = {"max_tokens": 12, "temperature": 0}
    answer = chat(thinker, **biased)
    assert answer.choices[0].message.content == ""
    assert answer.choices[0].message.reasoning_content
    assert answer.usage.completion_tokens_details.reasoning_tokens == 12
    deltas = [chunk.choices[0].delta for chunk in chat(thinker, **biased, stream=True)]
    assert (
        "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        == answer.choices[0].message.reasoning_content
    )
    assert not any(delta.content for delta in deltas)
    without = chat(thinker, **biased, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert without.choices[0].message.content
    assert without.usage.completion_tokens_details.reasoning_tokens == 0
    response = respond(thinker, max_output_tokens=12)
    assert [item.type for item in response.output] == ["reasoning"]
    assert response.output[0].content[0].text == answer.choices[0].message.reasoning_content


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_reasoning_are_apart(stream: bool, thinker: OpenAI) -> None:
    """Of a thought that ends: its tokens, those of the mark among them, are none of the content's."""
    messages = [{"role": "user", "content": "</think>\n" * 12}]  # which the model goes on with
    fields: Any = {"max_tokens": 16, "temperature": 0, "logprobs": True, "top_logprobs": 2, "messages": messages}
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = chat(thinker, **fields)
    chunks = list(answer) if stream else [answer]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    told = [choice.logprobs for choice in choices if choice.logprobs is not None]
    of_content = [token for one in told for token in one.content]
    of_reasoning = [token for one in told for token in getattr(one, "reasoning_content", None) or []]
    content = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
    assert len(of_content) + len(of_reasoning) == 16
    assert len(of_reasoning) == chunks[-1].usage.completion_tokens_details.reasoning_tokens > 0
    assert "".join(token["token"] for token in of_reasoning).strip() == "</think>"
    assert "".join(token.token for token in of_content).strip() == content.strip() != ""
    assert {len(token.top_logprobs) for token in of_content} == {len(token["top_logprobs"]) for token in of_reasoning} == {2}


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_response_are_of_every_token_of_its_text(stream: bool, client: OpenAI) -> None:
    known = chat(client, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    answer = respond(client, max_output_tokens=12, top_logprobs=2, stream=stream)
    told = list(answer) if stream else []
    (item,) = (told[-1].response if stream else answer).output
    assert [one.logprob for one in item.content[0].logprobs] == [one.logprob for one in known]
    deltas = [one.logprobs for one in told if one.type == "response.output_text.delta"]
    assert [one.logprob for logprobs in deltas for one in logprobs] == ([one.logprob for one in known] if stream else [])


def test_a_format_leaves_no_room_for_reasoning(thinker: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    assert fits(chat(thinker, response_format=form).choices[0].message.content)
