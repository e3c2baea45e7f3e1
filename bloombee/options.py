"""Command-line options made from the fields of a dataclass, so that each is named, explained and defaulted once.

The help text of a field is its ``metadata["help"]`` (config.py), else its entry under ``Args:`` in the class's
docstring (types.SamplingParams). An option that was not given stays out of the result: a file or a default may fill it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from cyclopts import App, Group, Parameter, Token

from bloombee.config import SIZE_FIELDS, parse_size, parse_split, size_text
from bloombee.quote import quoted

_TEXT_FIELDS: dict[str, Callable[[str], Any]] = {
    "split": parse_split,
    **{name: functools.partial(parse_size, field=name) for name in SIZE_FIELDS},
}
"""Fields that a person writes otherwise than as their type says."""

Given = dict[str, Any]
"""Field name -> value, of the options that were on the command line."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of ``names`` among the fields of the dataclass ``kind``; ``help`` replaces texts."""

    kind: type
    group: str
    names: tuple[str, ...]
    help: Mapping[str, str] = field(default_factory=dict)

    def parameters(self) -> list[inspect.Parameter]:
        """One keyword-only parameter each, None meaning not given."""
        fields = {f.name: f for f in dataclasses.fields(self.kind)}
        hints = typing.get_type_hints(self.kind)
        texts = {**documented_args(self.kind), **self.help}
        group = Group(self.group)
        return [_parameter(fields[name], hints[name], texts.get(name, ""), group) for name in self.names]

    def take(self, values: Mapping[str, Any]) -> Given:
        """What ``values`` (all parameters of the command) holds for these options.

        Raises:
            ConfigError: a text that does not read as its field's type.
        """
        given = {name: values[name] for name in self.names if values[name] is not None}
        return {name: _TEXT_FIELDS[name](value) if name in _TEXT_FIELDS else value for name, value in given.items()}


def command(app: App, options: Iterable[Options] = ()) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register ``function(*given, **own)`` in ``app``: one Given for each of ``options``, then its own keywords.

    The docstring is the help; what follows its ``Examples:`` stands below the options as it is written.
    """
    groups = tuple(options)

    def register(function: Callable[..., int]) -> Callable[..., int]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind is p.KEYWORD_ONLY]

        generated = [parameter for group in groups for parameter in group.parameters()]
        unset = {p.name: p.default for p in (*own, *generated)}

        def call(**values: Any) -> int:
            values = unset | values
            return function(*(group.take(values) for group in groups), **{p.name: values[p.name] for p in own})

        call.__signature__ = inspect.Signature([*own, *generated])  # type: ignore[attr-defined]
        text, _, examples = (inspect.getdoc(function) or "").partition("\nExamples:\n")
        epilogue = f"Examples:\n{examples}" if examples else None
        app.command(call, name=function.__name__, help=_paragraphs(text), help_epilogue=epilogue)
        return function

    return register


def _paragraphs(text: str) -> str:
    """Each on one line: the terminal breaks lines where it ends, not where the source does."""
    return re.sub(r"(?<=\S)\n(?=\S)", " ", text)


def documented_args(kind: type) -> dict[str, str]:
    """Name -> text of the ``Args:`` section of a docstring."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n|\n)+)", inspect.getdoc(kind) or "", re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: _sentence(text) for name, text in entries}


def _sentence(text: str) -> str:
    words = " ".join(text.split())
    return words[:1].upper() + words[1:].rstrip(".") + "."


def whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """A whole number as it is written: by itself the parser would round 1.5."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{quoted(tokens[0].value)} is no whole number") from None


def _parameter(f: dataclasses.Field[Any], hint: Any, text: str, group: Group) -> inspect.Parameter:
    kind = str if f.name in _TEXT_FIELDS else hint
    names = f.metadata.get("names", ())
    default = size_text(f.default) if f.name in SIZE_FIELDS and isinstance(f.default, int) else f.default
    parameter = Parameter(
        name=[f"--{one}" for one in names] or None,
        help=text or f.metadata.get("help", ""),
        group=group,
        converter=whole_number if int in (kind, *typing.get_args(kind)) else None,
        negative=None if hint is bool and default is True else (),
        allow_leading_hyphen=not {bool, int, float} & {hint, *typing.get_args(hint)},
        show_default=False if default in (None, "", ()) or hint is bool else (lambda _: str(default)),
    )
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, parameter])
