"""Functions that a model may call, and what its answer must be: as its template is told, and as a grammar for its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bloombee.grammar import JSON_OPTIONS, Grammar
from bloombee.serve.bodies import AllowedTools, JsonObject, JsonSchema, NamedFunction, ResponseFormat, Tool, ToolChoice
from bloombee.serve.intake import refuse_if
from bloombee.serve.refusals import Refusal
from bloombee.serve.speech import CALL, CALLED, Speech

_NO_JSON = r"TEXT: /([^{\[](?s:.*))?/"
"""What begins as no call does."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What one request lets the model call.

    Args:
        tools: as templates take them; none: none are offered.
        must_call: the answer is calls of them and nothing else.
        parallel: there may be several.
        strict: those whose arguments must fit their schemas, however the model comes to call them.
    """

    tools: tuple[dict[str, Any], ...] = ()
    must_call: bool = False
    parallel: bool = True
    strict: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tools: Sequence[Tool], choice: ToolChoice | None, *, parallel: bool) -> Offer:
        """Raises Refusal: the choice is of no tool that there is."""
        told = {tool.function.name: _told(tool) for tool in tools}
        refuse_if(len(told) < len(tools), "tools", len(tools), "two have the same name")
        strict = frozenset(tool.function.name for tool in tools if tool.function.strict)
        match choice:
            case None | "auto":
                return cls(tuple(told.values()), False, parallel, strict)
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
        parallel = parallel and not isinstance(choice, NamedFunction)
        return cls(tuple(told[name] for name in names), must, parallel, strict & frozenset(names))

    def grammar(self, *, marked: bool) -> Grammar | None:
        """What the answer must be: calls, or text with strict calls after it; None: it may be anything.

        Args:
            marked: as :attr:`Speech.marks_calls`.
        """
        if not self.must_call and not self.strict:
            return None
        calls = [self._schema(tool["function"]) for tool in self.tools]
        return self._marked(calls) if marked else self._bare(calls)

    def _marked(self, calls: list[dict[str, Any]]) -> Grammar:
        rest = f'object "\\n{CALLED}"' + (f' ("\\n{CALL}\\n" object "\\n{CALLED}")*' if self.parallel else "")
        if self.must_call:
            return _lark({"anyOf": calls}, f'start: "{CALL}\\n" {rest}')
        return _lark(
            {"anyOf": calls},
            f"start: TEXT | first {rest}",
            f"first[lazy]: /(?s:.*){CALL}\\n/",
            f"TEXT: /(?s:.*)/ & ~/(?s:.*{CALL}.*)/",
        )

    def _bare(self, calls: list[dict[str, Any]]) -> Grammar:
        several = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, **({} if self.parallel else {"maxItems": 1})}
        schema = {"anyOf": [*calls, several]}
        return _lark(schema, "start: object") if self.must_call else _lark(schema, "start: TEXT | object", _NO_JSON)

    def _schema(self, function: dict[str, Any]) -> dict[str, Any]:
        is_bound = self.must_call or function["name"] in self.strict
        return {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": function["parameters"] if is_bound else {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }


def _lark(schema: dict[str, Any], *rules: str) -> Grammar:
    """``rules``, in which ``object`` is of ``schema``."""
    of = msgspec.json.encode({"x-guidance": JSON_OPTIONS, **schema}).decode()
    return Grammar.lark("\n".join([*rules, f"object: %json {of}"]) + "\n")


def _told(tool: Tool) -> dict[str, Any]:
    function = {name: value for name, value in msgspec.to_builtins(tool.function).items() if value is not None}
    function.pop("strict", None)
    return {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}, **function}}


def format_grammar(format: ResponseFormat | None) -> Grammar | None:
    """What an answer must be to have ``format``; None: it may be any text."""
    if isinstance(format, JsonSchema):
        return Grammar.json_schema(format.json_schema.schema or {})
    return Grammar.json() if isinstance(format, JsonObject) else None


def one_of(offer: Offer, form: Grammar | None, speech: Speech) -> Grammar | None:
    """What an answer must be to have the format ``form`` and to be what ``offer`` says. Raises Refusal: both cannot be had."""
    if form is None:
        return offer.grammar(marked=speech.marks_calls)
    if offer.must_call:
        said = "response_format and a tool_choice that asks for calls: an answer is one or the other"
        raise Refusal(400, said, param="tool_choice")
    return form
