"""What a model says, told apart: its reasoning, what it means to be read, and calls of functions. Pure.

How a model marks them is told by its chat template, which shows it the same marks in earlier turns.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import msgspec

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
TO_THE_END = ("[TOOL_CALLS]", "<|python_tag|>")
"""After these everything is calls."""
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


class Kind(Enum):
    CONTENT = auto()
    REASONING = auto()


@dataclass(frozen=True, slots=True)
class Call:
    """Of a function; ``arguments``: JSON, as the model wrote it."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}", compare=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of one kind."""

    kind: Kind
    text: str


Part = Piece | Call


@dataclass(frozen=True, slots=True)
class Speech:
    """How a model marks what it says.

    Args:
        thinks: it may say its reasoning first.
        marks_calls: with CALL and CALLED, each; else they are all of the answer, perhaps after one of TO_THE_END.
    """

    thinks: bool = False
    marks_calls: bool = False

    @classmethod
    def of(cls, template: str) -> Speech:
        """As a chat template tells."""
        return cls(THOUGHT in template, CALL in template)

    def begins_in_reasoning(self, prompt: str) -> bool:
        """``prompt``: the end of what the template made."""
        return self.thinks and prompt.rstrip().endswith(THINK)


class Listener:
    """Takes one answer as its text comes.

    Args:
        may_call: functions were offered. begins_in_reasoning: as :meth:`Speech.begins_in_reasoning`.
    """

    def __init__(self, speech: Speech, *, may_call: bool, begins_in_reasoning: bool) -> None:
        self._speech = speech
        self._may_call = may_call
        self._held = ""
        """What may be the beginning of a mark, white space before one, or a call that is not all there."""
        self._state = self._reasoning if begins_in_reasoning else self._start
        self._is_plain = not speech.thinks and not may_call
        self.num_calls = 0

    @property
    def is_reasoning(self) -> bool:
        return self._state == self._reasoning

    def push(self, text: str) -> list[Part]:
        """What is now certain."""
        if self._is_plain:
            return [Piece(Kind.CONTENT, text)] if text else []
        self._held += text
        return self._go_on(False)

    def finish(self) -> list[Part]:
        """No more comes: what is left, whatever it is."""
        parts = self._go_on(True)
        left, self._held = self._held, ""
        if left and not (self.num_calls and not left.strip()):
            parts.append(Piece(Kind.REASONING if self.is_reasoning else Kind.CONTENT, left))
        return parts

    def _go_on(self, is_end: bool) -> list[Part]:
        parts: list[Part] = []
        while True:
            before = self._state, len(self._held)
            parts += self._state(is_end)
            if before == (self._state, len(self._held)):
                return parts

    def _start(self, is_end: bool) -> list[Part]:
        """Before anything was said: white space is held, since it may lead to a mark."""
        said = self._held.lstrip()
        if self._speech.thinks and said.startswith(THINK):
            self._held = said[len(THINK) :]
            self._state = self._reasoning
        elif said and not (self._speech.thinks and THINK.startswith(said) and not is_end):
            self._state = self._first
        return []

    def _first(self, is_end: bool) -> list[Part]:
        """The first of what is no reasoning: it may be a call without marks."""
        said = self._held.lstrip()
        if self._may_call and not self._speech.marks_calls and (said.startswith(("{", "[")) or not said):
            return self._rest(is_end)
        self._state = self._content
        return []

    def _reasoning(self, is_end: bool) -> list[Part]:
        said, mark, after = self._held.partition(THOUGHT)
        if mark:
            self._held, self._state = after.lstrip(), self._after_reasoning
            return _pieces(Kind.REASONING, said)
        return self._give(Kind.REASONING, (THOUGHT,))

    def _after_reasoning(self, is_end: bool) -> list[Part]:
        """The lines between are no content."""
        self._held = self._held.lstrip()
        if self._held:
            self._state = self._first
        return []

    def _content(self, is_end: bool) -> list[Part]:
        if not self._may_call:
            return self._give(Kind.CONTENT, ())
        marks = (CALL,) if self._speech.marks_calls else TO_THE_END
        found = [(self._held.index(mark), mark) for mark in marks if mark in self._held]
        if not found:
            return self._give(Kind.CONTENT, marks, with_space=True)
        at, mark = min(found)
        said, self._held = self._held[:at].rstrip(), self._held[at:]
        self._state = self._call if mark == CALL else self._rest
        return _pieces(Kind.CONTENT, said)

    def _call(self, is_end: bool) -> list[Part]:
        body, mark, after = self._held.removeprefix(CALL).partition(CALLED)
        if not mark:
            return []
        whole, self._held = self._held[: len(self._held) - len(after)], after
        self._state = self._content
        found = read_calls(body)
        self.num_calls += len(found)
        return list(found) or [Piece(Kind.CONTENT, whole)]

    def _rest(self, is_end: bool) -> list[Part]:
        """All that is left is calls, or else content."""
        if not is_end:
            return []
        text = self._held.lstrip()
        found = read_calls(text.removeprefix(next((mark for mark in TO_THE_END if text.startswith(mark)), "")))
        if found:
            self._held = ""
        self.num_calls += len(found)
        return list(found)

    def _give(self, kind: Kind, marks: tuple[str, ...], *, with_space: bool = False) -> list[Part]:
        """All but what may be the beginning of a mark, and with it white space at the end."""
        num_held = max((_overlap(self._held, mark) for mark in marks), default=0)
        certain = self._held[: len(self._held) - num_held]
        if with_space:
            certain = certain.rstrip()
        self._held = self._held[len(certain) :]
        return _pieces(kind, certain)


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of ``text`` that ``mark`` begins with, not all of it."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


def _pieces(kind: Kind, text: str) -> list[Part]:
    return [Piece(kind, text)] if text else []


def read_calls(text: str) -> list[Call]:
    """The calls that ``text`` is, in any of the common ways to write them; none if it is something else."""
    if functions := _FUNCTION.findall(text):
        return [_of_parameters(name, body) for name, body in functions] if not _FUNCTION.sub("", text).strip() else []
    try:
        said = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return []
    found = [_of_object(one) for one in (said if isinstance(said, list) else [said])]
    return [call for call in found if call is not None] if None not in found else []


def _of_parameters(name: str, body: str) -> Call:
    """``<parameter=NAME>VALUE</parameter>``: values are JSON where they read as such."""
    return Call(name.strip(), msgspec.json.encode({key: _value(value) for key, value in _PARAMETER.findall(body)}).decode())


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return text


def _of_object(said: object) -> Call | None:
    if not isinstance(said, dict):
        return None
    inner = said.get("function")
    said = inner if isinstance(inner, dict) else said
    name, arguments = said.get("name"), said.get("arguments", said.get("parameters"))
    if not isinstance(name, str) or not isinstance(arguments, (dict, str)):
        return None
    return Call(name, arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode())
