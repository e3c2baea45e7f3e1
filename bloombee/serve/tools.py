"""Functions that a model may call, and what its answer must be: as its template is told, and as a grammar for its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bloombee.grammar import JSON_OPTIONS, Grammar
from bloombee.quote import quoted
from bloombee.serve.bodies import AllowedTools, JsonObject, JsonSchema, NamedFunction, ResponseFormat, Tool, ToolChoice
from bloombee.serve.intake import refuse_if
from bloombee.serve.refusals import Refusal
from bloombee.serve.speech import CALL, CALLED


@dataclass(frozen=True, slots=True)
class Offer:
    """What one request lets the model call.

    Args:
        tools: as templates take them; none: none are offered.
        must_call: the answer is calls of them and nothing else.
        parallel: there may be several.
    """

    tools: tuple[dict[str, Any], ...] = ()
    must_call: bool = False
    parallel: bool = True

    @classmethod
    def of(cls, tools: Sequence[Tool], choice: ToolChoice | None, *, parallel: bool) -> Offer:
        """Raises Refusal: the choice is of no tool that there is."""
        told = {tool.function.name: _told(tool) for tool in tools}
        refuse_if(len(told) < len(tools), "tools", len(tools), "two have the same name")
        match choice:
            case None | "auto":
                return cls(tuple(told.values()), False, parallel)
            case "none":
                return cls()
            case "required":
                names = list(told)
            case NamedFunction():
                names = [choice.function.name]
            case AllowedTools():
                names = [tool.function.name for tool in choice.allowed_tools.tools]
        for name in names:
            refuse_if(name not in told, "tool_choice", name, "is none of the tools")
        refuse_if(not names, "tool_choice", choice, "there are no tools")
        must = not isinstance(choice, AllowedTools) or choice.allowed_tools.mode == "required"
        return cls(tuple(told[name] for name in names), must, parallel and not isinstance(choice, NamedFunction))

    def grammar(self, *, marked: bool) -> Grammar | None:
        """What the answer must be, if it must be calls. ``marked``: as :attr:`Speech.marks_calls`."""
        if not self.must_call:
            return None
        one = {"anyOf": [_call_schema(tool["function"]) for tool in self.tools]}
        if not marked:
            return Grammar.json_schema(
                {"type": "array", "items": one, "minItems": 1, **({} if self.parallel else {"maxItems": 1})}
            )
        call = f'"{CALL}\\n" object "\\n{CALLED}"'
        calls = f'{call} ("\\n" {call})*' if self.parallel else call
        schema = msgspec.json.encode({"x-guidance": JSON_OPTIONS, **one}).decode()
        return Grammar.lark(f"start: {calls}\nobject: %json {schema}\n")


def _told(tool: Tool) -> dict[str, Any]:
    function = {name: value for name, value in msgspec.to_builtins(tool.function).items() if value is not None}
    function.pop("strict", None)
    return {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}, **function}}


def _call_schema(function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": function["parameters"]},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def format_grammar(format: ResponseFormat | None) -> Grammar | None:
    """What an answer must be to have ``format``; None: it may be any text."""
    if isinstance(format, JsonSchema):
        return Grammar.json_schema(format.json_schema.schema or {})
    return Grammar.json() if isinstance(format, JsonObject) else None


def one_of(calls: Grammar | None, form: Grammar | None) -> Grammar | None:
    """Raises Refusal: both are asked for."""
    if calls is not None and form is not None:
        raise Refusal(
            400, f"response_format with a tool_choice that asks for calls: {quoted('auto')} goes with it", param="tool_choice"
        )
    return calls or form
