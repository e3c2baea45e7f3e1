"""What programs send: OpenAI's requests, as far as this server has an answer to them.

Every field of OpenAI's that does not change an answer is taken and has no effect (``user`` and ``metadata`` among them); one that
would, and cannot be had, is refused. A name that nobody knows is refused too: a misspelt setting would go unnoticed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MOST_CHOICES = 128
"""That one request may ask for; OpenAI's number."""
MOST_MESSAGES = 1 << 14
MOST_STOPS = 16
MOST_TOOLS = 128
Text = Annotated[str, Meta(min_length=1)]
Stop = Text | Annotated[list[Text], Meta(max_length=MOST_STOPS)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Choices = Annotated[int, Meta(ge=1, le=MOST_CHOICES)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(ge=0.01, le=100)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Name = Annotated[str, Meta(max_length=512)]


class _Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class StreamOptions(_Body, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(_Body, kw_only=True):
    """What both kinds of completion have.

    Args:
        model: the one that is served; may be left out.
        seed: of the first choice; the others have those that follow.
        top_k: 0 or -1: all.
        user: whose request it is, where the server asks for no key.
    """

    model: Name | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    repetition_penalty: Repetition | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    max_tokens: Count | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    user: Name | None = None


class CompletionBody(Sampled, kw_only=True):
    """Of ``/v1/completions``.

    Args:
        prompt: text or token ids; several of either, each of which is answered.
    """

    prompt: Annotated[
        str | Annotated[list[Any], Meta(min_length=1)],
        Meta(
            extra_json_schema={
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
                    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    {
                        "type": "array",
                        "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                        "minItems": 1,
                    },
                ]
            }
        ),
    ]
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    best_of: Choices | None = None
    suffix: str | None = None


class TextPart(_Body, kw_only=True, tag_field="type", tag="text"):
    text: str


class RefusalPart(_Body, kw_only=True, tag_field="type", tag="refusal"):
    refusal: str


Content = str | list[TextPart | RefusalPart]


class CalledFunction(_Body, kw_only=True):
    """``arguments``: JSON."""

    name: Name
    arguments: str


class ToolCall(_Body, kw_only=True):
    id: Name
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class Message(_Body, kw_only=True):
    """Of a conversation; what an answer of this server has may be sent back as it is."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Name | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Name | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Function(_Body, kw_only=True):
    """That a model may call. ``parameters``: a JSON schema."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9_.-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body, kw_only=True):
    function: Function
    type: Literal["function"] = "function"


class FunctionName(_Body, kw_only=True):
    name: Name


class NamedFunction(_Body, kw_only=True, tag_field="type", tag="function"):
    function: FunctionName


class AllowedTool(_Body, kw_only=True):
    function: FunctionName
    type: Literal["function"] = "function"


class Allowed(_Body, kw_only=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=MOST_TOOLS)]


class AllowedTools(_Body, kw_only=True, tag_field="type", tag="allowed_tools"):
    allowed_tools: Allowed


ToolChoice = Literal["none", "auto", "required"] | NamedFunction | AllowedTools


class PlainText(_Body, kw_only=True, tag_field="type", tag="text"):
    pass


class JsonObject(_Body, kw_only=True, tag_field="type", tag="json_object"):
    pass


class NamedSchema(_Body, kw_only=True):
    name: Name
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchema(_Body, kw_only=True, tag_field="type", tag="json_schema"):
    json_schema: NamedSchema


ResponseFormat = PlainText | JsonObject | JsonSchema


class ChatBody(Sampled, kw_only=True):
    """Of ``/v1/chat/completions``.

    Args:
        chat_template_kwargs: arguments of the model's chat template, as ``{"enable_thinking": false}``.
    """

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Name | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Name | None = None
    verbosity: Name | None = None
