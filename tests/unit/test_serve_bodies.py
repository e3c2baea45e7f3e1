"""Bodies of requests become what the Runtime takes, or are refused by the name of what is wrong."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest

from bloombee.errors import (
    CapacityError,
    ConfigError,
    DeadlineExceeded,
    DeviceError,
    GrammarFailed,
    Infeasible,
    LinkDown,
    QueueFull,
    RuntimeClosed,
    SequenceLost,
)
from bloombee.grammar import Grammar
from bloombee.grammar import source as grammar_source
from bloombee.roles.prompts import Chat
from bloombee.serve.bodies import ChatBody, CompletionBody
from bloombee.serve.chat_completions import message_of
from bloombee.serve.completions import read_prompts
from bloombee.serve.document import document
from bloombee.serve.generations import sampling
from bloombee.serve.intake import decoded
from bloombee.serve.refusals import CHAT, COMPLETIONS, RESPONSES, Refusal, refusal_of
from bloombee.serve.replies import conversation
from bloombee.serve.response_bodies import ResponseBody, messages_of
from bloombee.serve.speech import Speech
from bloombee.serve.tools import Offer, format_grammar, one_of
from bloombee.types import SamplingParams


def chat(**fields: Any) -> ChatBody:
    return decoded(json.dumps({"messages": [{"role": "user", "content": "x"}], **fields}).encode(), ChatBody)


def params(**fields: Any) -> SamplingParams:
    return sampling(chat(**fields), max_tokens=None, logprobs=None)


def test_what_is_left_open_is_openais_default_or_the_checkpoints() -> None:
    assert params() == SamplingParams(temperature=1.0)
    assert params(temperature=None, stop=None, seed=None) == params()


def test_every_setting_arrives() -> None:
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 1}
    assert params(**given, frequency_penalty=-1, stop="a", seed=3, ignore_eos=True) == SamplingParams(
        **given, frequency_penalty=-1, stop=("a",), seed=3, ignore_eos=True
    )
    assert params(top_k=-1, top_p=0, stop=["a", "b"], seed=-1) == SamplingParams(
        temperature=1.0, top_k=0, top_p=1e-9, stop=("a", "b"), seed=2**64 - 1
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'"x"', "Expected `object`"),
        (b"{}", "missing required field `messages`"),
        (b'{"messages": 5}', "messages"),
        (b"[" * 100_000, "object"),
        (b'{"messages":[{"role":"user","content":"x"}],"metadata":{"a":' + b"[" * 100_000, "nested too deep"),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', "not JSON"),
        (b'{"messages":[{"role":"user","content":"x"}],"n":' + b"1" * 1000 + b"}", "n"),
        (b'{"messages":[{"role":"user","content":"x"}],"temprature":1}', "temprature"),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        decoded(body, ChatBody)
    assert caught.value.status == 400


def test_prompts_are_one_or_several_of_text_or_ids() -> None:
    assert read_prompts("a") == ["a"]
    assert read_prompts(["a", "b"]) == ["a", "b"]
    assert read_prompts([1, 2]) == [[1, 2]]
    assert read_prompts([[1], [2]]) == [[1], [2]]
    for wrong in ([1, "a"], [[1], []], [True], [[1.5]], [None], [["a"]]):
        with pytest.raises(Refusal, match="prompt must be"):
            read_prompts(wrong)


def test_calls_in_a_conversation_are_as_templates_take_them() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    odd = {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{a"}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call, odd], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]
    told = [message_of(message) for message in chat(messages=messages).messages]
    assert told[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": [1]}}
    assert told[0]["tool_calls"][1]["function"] == {"name": "f", "arguments": "{a"}
    assert told[0]["reasoning_content"] == "hm"
    assert told[1] == {"role": "tool", "tool_call_id": "c1", "content": "7"}


def test_templates_are_told_what_the_request_says_of_reasoning() -> None:
    assert conversation([], Offer(), {"x": 1}, "low", is_bound=False) == Chat([], None, {"x": 1, "reasoning_effort": "low"})
    bound = conversation([], Offer(), {}, None, is_bound=True)
    assert bound.arguments == {"enable_thinking": False}, "a grammar leaves no room for it"
    assert conversation([], Offer(), {"enable_thinking": True}, None, is_bound=True).arguments == {"enable_thinking": True}


def offered(choice: Any, **fields: Any) -> Offer:
    tools = [{"type": "function", "function": {"name": name, "strict": True}} for name in ("f", "g")]
    body = chat(tools=tools, tool_choice=choice, **fields)
    return Offer.of(body.tools or [], body.tool_choice, parallel=body.parallel_tool_calls is not False)


def test_tools_are_offered_as_the_choice_says() -> None:
    f, g = ({"type": "function", "function": {"name": n, "parameters": {"type": "object", "properties": {}}}} for n in "fg")
    strict = frozenset("fg")
    some = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]},
    }
    assert offered(None) == offered("auto") == Offer((f, g), strict=strict)
    assert offered("none") == Offer()
    assert offered("required") == Offer((f, g), must_call=True, strict=strict)
    assert offered({"type": "function", "function": {"name": "g"}}) == Offer(
        (g,), must_call=True, parallel=False, strict=frozenset("g")
    )
    assert offered(some) == Offer((g,), strict=frozenset("g"))
    assert offered("auto", parallel_tool_calls=False) == Offer((f, g), parallel=False, strict=strict)
    for wrong in ({"type": "function", "function": {"name": "h"}},):
        with pytest.raises(Refusal, match="none of the tools"):
            offered(wrong)
    with pytest.raises(Refusal, match="there are no tools"):
        Offer.of([], "required", parallel=True)
    with pytest.raises(Refusal, match="two have the same name"):
        Offer.of((chat(tools=[{"function": {"name": "f"}}] * 2).tools or []), None, parallel=True)


def obeys(grammar: Grammar | None, text: str) -> bool:
    """Whether ``text`` is a whole answer that ``grammar`` allows, byte by byte."""
    assert grammar is not None
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, grammar_source(grammar.to_wire()))
    assert not matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def call_text(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("choice", "parallel", "text", "is_allowed"),
    [
        ("required", True, call_text("f", '{"a": 1}'), True),
        ("required", True, call_text("f", '{"a": 1}') + "\n" + call_text("f", '{"a": 2}'), True),
        ("required", False, call_text("f", '{"a": 1}') + "\n" + call_text("f", '{"a": 2}'), False),
        ("required", True, call_text("f", '{"a": "x"}'), False),
        ("required", True, call_text("h", '{"a": 1}'), False),
        ("required", True, "hello", False),
        ("auto", True, "", True),
        ("auto", True, "hello <tool>", True),
        ("auto", True, "hello\n" + call_text("f", '{"a": 1}'), True),
        ("auto", True, "hello\n" + call_text("f", '{"a": "x"}'), False),
        ("auto", True, "hello\n" + call_text("g", '{"anything": "x"}'), True),
        ("auto", True, "hello <tool_call> me", False),
    ],
)
def test_calls_obey_the_schemas_of_strict_functions(choice: Any, parallel: bool, text: str, is_allowed: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    tools = [{"function": {"name": "f", "parameters": schema, "strict": True}}, {"function": {"name": "g"}}]
    body = chat(tools=tools, tool_choice=choice)
    offer = Offer.of(body.tools or [], body.tool_choice, parallel=parallel)
    assert obeys(offer.grammar(marked=True), text) is is_allowed
    bare = text.replace("<tool_call>\n", "").replace("\n</tool_call>", "").removeprefix("hello\n").replace("}\n{", "}, {")
    assert obeys(offer.grammar(marked=False), f"[{bare}]" if bare.startswith("{") else bare) is (
        is_allowed or text == "hello <tool_call> me"
    )


def test_an_answer_that_may_be_anything_has_no_grammar() -> None:
    lax = chat(tools=[{"function": {"name": "f"}}])
    assert one_of(Offer.of(lax.tools or [], None, parallel=True), None, Speech()) is None
    form = format_grammar(chat(response_format={"type": "json_object"}).response_format)
    assert one_of(offered("auto"), form, Speech()) == form == Grammar.json()
    assert format_grammar(chat(response_format={"type": "text"}).response_format) is None
    with pytest.raises(Refusal, match="one or the other"):
        one_of(offered("required"), form, Speech())


def test_items_of_a_conversation_are_the_messages_of_its_turns() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "user", "content": "hi", "id": "m1", "status": "completed"},
        {"type": "reasoning", "id": "r1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert messages_of(decoded(json.dumps({"input": items, "instructions": "be brief"}).encode(), ResponseBody)) == [
        {"role": "system", "content": "be brief"},
        {"role": "system", "content": "ab"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]
    for wrong, says in (({"type": "image"}, r"input\[0\] is of a type"), ({"role": "user"}, r"input\[0\]: Object missing")):
        with pytest.raises(Refusal, match=says):
            messages_of(decoded(json.dumps({"input": [wrong]}).encode(), ResponseBody))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ConfigError("x"), 400, None),
        (ConfigError("x", max_positions=5), 400, "context_length_exceeded"),
        (Infeasible("x"), 400, "context_length_exceeded"),
        (QueueFull("x"), 503, "overloaded"),
        (CapacityError("x"), 503, "overloaded"),
        (LinkDown("x"), 503, "overloaded"),
        (DeadlineExceeded("x"), 503, "overloaded"),
        (SequenceLost("x"), 503, "overloaded"),
        (RuntimeClosed("x"), 503, "overloaded"),
        (DeviceError("x"), 500, "DeviceError"),
    ],
)
def test_errors_say_whose_fault_it_was(error: Any, status: int, code: str | None) -> None:
    refusal = refusal_of(error, CHAT)
    assert (refusal.status, refusal.fault.code) == (status, code)
    assert ("Retry-After" in refusal.headers) == (status == 503)
    assert json.loads(refusal.body)["error"]["message"] == "x"


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (CHAT, ("messages", "max_tokens", "response_format")),
        (COMPLETIONS, ("prompt", "max_tokens", None)),
        (RESPONSES, ("input", "max_output_tokens", "text.format")),
    ],
)
def test_an_error_names_the_field_as_the_program_does(path: str, names: tuple[str, str, str | None]) -> None:
    prompt, length, form = names
    assert [refusal_of(ConfigError("x", field=one), path).fault.param for one in ("prompt", "max_new_tokens")] == [prompt, length]
    assert refusal_of(Infeasible("x"), path).fault.param == prompt
    if form is not None:
        assert refusal_of(ConfigError("x", field="grammar"), path).fault.param == form
        assert refusal_of(GrammarFailed("x"), path).fault.param == form
    assert refusal_of(ConfigError("x", field="logit_bias"), path).fault.param == "logit_bias"
    assert refusal_of(ConfigError("x"), path).fault.param is None


def test_the_document_has_every_schema_that_it_names() -> None:
    told = document("m")
    named = {part.partition('"')[0] for part in json.dumps(told).split("#/components/schemas/")[1:]}
    assert named <= set(told["components"]["schemas"])
    assert {"ChatBody", "CompletionBody", "ErrorBody"} <= named
    assert isinstance(decoded(b'{"prompt": "x"}', CompletionBody), CompletionBody)
