"""Bodies of requests become what the Runtime takes, or are refused by the name of what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bloombee.errors import (
    CapacityError,
    ConfigError,
    DeadlineExceeded,
    DeviceError,
    Infeasible,
    LinkDown,
    QueueFull,
    RuntimeClosed,
    SequenceLost,
)
from bloombee.serve.bodies import ChatBody, CompletionBody
from bloombee.serve.chat_completions import conversation
from bloombee.serve.completions import read_prompts
from bloombee.serve.document import document
from bloombee.serve.generations import sampling
from bloombee.serve.intake import decoded
from bloombee.serve.refusals import Refusal, refusal_of
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
    told = conversation(chat(messages=messages, chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low"))
    assert told.messages[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": [1]}}
    assert told.messages[0]["tool_calls"][1]["function"] == {"name": "f", "arguments": "{a"}
    assert told.messages[0]["reasoning_content"] == "hm"
    assert told.messages[1] == {"role": "tool", "tool_call_id": "c1", "content": "7"}
    assert told.arguments == {"enable_thinking": False, "reasoning_effort": "low"}


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
    refusal = refusal_of(error)
    assert (refusal.status, refusal.fault.code) == (status, code)
    assert ("Retry-After" in refusal.headers) == (status == 503)
    assert json.loads(refusal.body)["error"]["message"] == "x"


def test_the_document_has_every_schema_that_it_names() -> None:
    told = document("m")
    named = {part.partition('"')[0] for part in json.dumps(told).split("#/components/schemas/")[1:]}
    assert named <= set(told["components"]["schemas"])
    assert {"ChatBody", "CompletionBody", "ErrorBody"} <= named
    assert isinstance(decoded(b'{"prompt": "x"}', CompletionBody), CompletionBody)
