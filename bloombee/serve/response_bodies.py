"""What programs send to ``/v1/responses``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bloombee.serve.bodies import (
    MOST_MESSAGES,
    MOST_TOOLS,
    Count,
    Function,
    FunctionName,
    JsonObject,
    JsonSchema,
    Name,
    NamedFunction,
    NamedSchema,
    PlainText,
    ResponseFormat,
    Share,
    StreamOptions,
    Temperature,
    Text,
    Tool,
    ToolChoice,
    TopLogprobs,
)
from bloombee.serve.chat_completions import arguments_of
from bloombee.serve.refusals import Refusal


class _Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class FlatFunction(Function, kw_only=True):
    """A tool."""

    type: Literal["function"] = "function"

    @property
    def tool(self) -> Tool:
        return Tool(
            function=Function(name=self.name, description=self.description, parameters=self.parameters, strict=self.strict)
        )


class FunctionChoice(_Body, kw_only=True):
    name: Name
    type: Literal["function"] = "function"


class TextFormat(_Body, kw_only=True, tag_field="type", tag="text"):
    pass


class SchemaFormat(NamedSchema, kw_only=True, tag_field="type", tag="json_schema"):
    pass


class TextSettings(_Body, kw_only=True):
    format: TextFormat | JsonObject | SchemaFormat | None = None
    verbosity: Name | None = None

    @property
    def response_format(self) -> ResponseFormat:
        if isinstance(self.format, SchemaFormat):
            return JsonSchema(json_schema=NamedSchema(name=self.format.name, schema=self.format.schema))
        return self.format if isinstance(self.format, JsonObject) else PlainText()


class ReasoningSettings(_Body, kw_only=True):
    effort: Name | None = None
    summary: Name | None = None
    generate_summary: Name | None = None


class ResponseBody(_Body, kw_only=True):
    """Nothing is stored: what was said before is part of ``input``."""

    input: Text | Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MOST_MESSAGES)]
    model: Name | None = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: TopLogprobs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    tools: Annotated[list[FlatFunction], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    include: list[Name] | None = None
    store: bool | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    previous_response_id: Annotated[Name | None, Meta(description="Refused: nothing is stored.")] = None
    metadata: dict[str, Any] | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Name | None = None
    service_tier: Name | None = None

    @property
    def choice(self) -> ToolChoice | None:
        """As of chat completions."""
        if isinstance(self.tool_choice, FunctionChoice):
            return NamedFunction(function=FunctionName(name=self.tool_choice.name))
        return self.tool_choice


class _Part(msgspec.Struct, kw_only=True):
    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    text: str = ""
    refusal: str = ""


class _MessageItem(msgspec.Struct, kw_only=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]


class _CallItem(msgspec.Struct, kw_only=True):
    call_id: Name
    name: Name
    arguments: str


class _OutputItem(msgspec.Struct, kw_only=True):
    call_id: Name
    output: str | list[_Part]


class _ReasoningItem(msgspec.Struct, kw_only=True):
    summary: list[_Part] = msgspec.field(default_factory=list)
    content: list[_Part] | None = None


_ITEMS: dict[str, type[msgspec.Struct]] = {
    "message": _MessageItem,
    "function_call": _CallItem,
    "function_call_output": _OutputItem,
    "reasoning": _ReasoningItem,
}


def messages_of(body: ResponseBody) -> list[dict[str, Any]]:
    """The conversation, as chat templates take it; what one turn of the model has said is one message. Raises Refusal."""
    found: list[dict[str, Any]] = []
    if body.instructions:
        found.append({"role": "system", "content": body.instructions})
    items: Sequence[dict[str, Any]] = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for index, item in enumerate(items):
        _append(found, _read(item, index))
    return found


def _read(item: dict[str, Any], index: int) -> msgspec.Struct:
    kind = _ITEMS.get(str(item.get("type", "message")))
    if kind is None:
        raise Refusal(400, f"input[{index}] is of a type that is not to be had here", param=f"input[{index}].type")
    try:
        return msgspec.convert(item, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(400, f"input[{index}]: {error}", param=f"input[{index}]") from None


def _append(found: list[dict[str, Any]], item: msgspec.Struct) -> None:
    match item:
        case _MessageItem(role="assistant"):
            _turn(found)["content"] += _joined(item.content)
        case _MessageItem():
            role = "system" if item.role == "developer" else item.role
            found.append({"role": role, "content": _joined(item.content)})
        case _CallItem():
            function = {"name": item.name, "arguments": arguments_of(item.arguments)}
            calls = _turn(found).setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        case _OutputItem():
            found.append({"role": "tool", "tool_call_id": item.call_id, "content": _joined(item.output)})
        case _ReasoningItem():
            _turn(found)["reasoning_content"] = _joined(item.content or item.summary)


def _turn(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The model's, which goes on if it was its turn."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    return found[-1]


def _joined(content: str | list[_Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text or part.refusal for part in content)
