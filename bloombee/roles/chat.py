"""A conversation as the text that a model was trained to see, by the template of its checkpoint; without transformers.

Templates are written for ``apply_chat_template`` of transformers, and give the same text here. They are somebody else's
program, so they run in jinja's sandbox, let go of the interpreter often and have an end.
"""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jinja2 import Template, TemplateError, nodes, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from bloombee.errors import ConfigError
from bloombee.roles.template_limits import (
    LIMITED_FILTERS,
    MOST_INDENT,
    check_format,
    check_method,
    check_operation,
    concatenated,
    limited,
)
from bloombee.utf8 import surrogate_at

RENDER_S = 10.0
"""A template that has not ended by then is stopped."""
TURN_S = 0.001
"""For so long rendering holds the interpreter; then other threads have their turn."""
MOST_DEPTH = 100
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that templates and programs have for a message's reasoning; templates read the first two."""
Message = Mapping[str, Any]


class ChatTemplate:
    """The templates of a checkpoint, compiled.

    Args:
        model: for messages.
        templates: by name, as in the model's card; the one named ``default`` is used.
        special_tokens: what the templates know of the tokenizer: ``bos_token`` and such.

    One that is not there or does not compile is refused when it is needed, not before: text and token ids need none.
    """

    def __init__(self, model: str, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._model = model
        self._special_tokens = dict(special_tokens)
        self._environment = _Environment()
        self._template: Template | None = None
        self._missing = f"{model} has no chat template; give a raw prompt instead"
        if "default" in templates:
            try:
                self._template = self._environment.compiled(templates["default"])
            except (TemplateError, RecursionError) as error:
                self._missing = f"{model}: its chat template is broken: {error}"
        elif templates:
            self._missing = f"{model} has the chat templates {', '.join(sorted(templates))} and none named default"

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of ``messages``, up to where the answer starts.

        Args:
            tools: that the model may call. arguments: others that the template takes, by name.

        Raises:
            ConfigError: what is no message, no template, or one that refuses them or takes longer than RENDER_S.

        Blocks for as long as that takes, but holds the interpreter's lock no longer than TURN_S at a time.
        """
        if self._template is None:
            raise ConfigError(self._missing, model=self._model)
        told = {
            **_arguments(arguments or {}),
            "messages": [_message(message, index) for index, message in enumerate(messages)],
            "tools": None if tools is None else _plain(list(tools), "tools", 0),
        }
        self._environment.begin(RENDER_S)
        try:
            return self._template.render({"documents": None, "add_generation_prompt": True, **self._special_tokens, **told})
        except _Overdue:
            raise ConfigError(
                f"{self._model}: its chat template took longer than {RENDER_S:g} s for these messages", model=self._model
            ) from None
        except Exception as error:  # a program of somebody else's: it may raise anything
            what = str(error) or type(error).__name__
            raise ConfigError(f"{self._model}: its chat template refuses these messages: {what}", model=self._model) from error


class _Overdue(BaseException):
    """Not an Exception: no part of jinja takes it for one of a template's own."""


class _Clock(threading.local):
    """Of the thread that renders, in time.monotonic()."""

    ends = float("inf")
    turn_ends = 0.0


class _Environment(ImmutableSandboxedEnvironment):
    """What chat templates are written for, with a look at the clock in every pass of a loop and every call."""

    intercepted_binops: ClassVar[frozenset[str]] = frozenset({"*", "**", "+", "%"})  # type: ignore[misc]
    concat = staticmethod(concatenated)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self._clock = _Clock()
        self.filters.update((name, limited(name, self.filters[name])) for name in LIMITED_FILTERS)
        self.filters["tojson"] = _to_json
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_refuse, strftime_now=_now, dict=_Dict(), namespace=_Namespace)

    def compiled(self, source: str) -> Template:
        """Raises TemplateError."""
        tree = _Concats().visit(self.parse(source))
        for loop in list(tree.find_all(nodes.For)):
            look = nodes.Call(nodes.EnvironmentAttribute("look"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(look).set_lineno(loop.lineno).set_environment(self))
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def begin(self, seconds: float) -> None:
        """Of this thread's rendering."""
        self._clock.turn_ends = time.monotonic() + TURN_S
        self._clock.ends = self._clock.turn_ends + seconds

    def look(self) -> str:
        """What loops call; :meth:`call` has looked already."""
        return ""

    def call(self, context: Any, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        if now > self._clock.turn_ends:
            if now > self._clock.ends:
                raise _Overdue
            time.sleep(1e-5)  # 0 would take the lock again before anybody who waits for it has woken
            self._clock.turn_ends = time.monotonic() + TURN_S
        if getattr(callee, "__name__", "") == "join" and args:
            args = (list(args[0]), *args[1:])  # so that it can be counted
        check_method(callee, (*args, *kwargs.values()))
        return super().call(context, callee, *args, **kwargs)

    def concatenated(self, *parts: Any) -> str:
        """``~`` of templates."""
        return concatenated(map(str, parts))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            check_format(value.__self__)
        return wrapped

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)


class _Concats(NodeTransformer):
    """``a ~ b`` becomes a call of the environment."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        concatenated = nodes.EnvironmentAttribute("concatenated")
        parts = [self.visit(part) for part in node.nodes]
        return nodes.Call(concatenated, parts, [], None, None, lineno=node.lineno, environment=node.environment)


class _GenerationTag(Extension):
    """``{% generation %}``: what the assistant has said, marked for training; here no more than its contents."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_contents"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _contents(self, _: nodes.EvalContext, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict`` without its class, whose attributes lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """jinja's, but for names with which templates reach what is Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may name an attribute self
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"{name!r}: attributes of a namespace may not begin with an underscore")


def _refuse(message: str) -> None:
    """``raise_exception`` of templates."""
    raise TemplateError(message)


def _now(form: str) -> str:
    """``strftime_now`` of templates."""
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """The filter ``tojson``; jinja's own is for HTML."""
    if (indent if isinstance(indent, int) else len(indent or "")) > MOST_INDENT:
        raise SecurityError(f"an indent of more than {MOST_INDENT}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# -- messages ------------------------------------------------------------------------------


def _message(message: object, index: int) -> dict[str, Any]:
    """A message as templates expect it: plain, without the keys that are None, and its reasoning under the names they read."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise _bad(where, f"is of type {type(message).__name__}: a chat message must be a dict with a role")
    plain = {key: value for key, value in _plain(message, where, 0).items() if value is not None}
    role = plain.get("role")
    if not isinstance(role, str) or not role:
        raise _bad(where, "has no role: give one as text, such as 'user'")
    if len(plain) == 1:
        raise _bad(where, f"has a role, {role!r}, and nothing else: give its content")
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As templates may have them: none that begins with an underscore is one's own."""
    plain: dict[str, Any] = _plain(dict(arguments), "template arguments", 0)
    if (bad := next((name for name in plain if not name.isidentifier() or name.startswith("_")), None)) is not None:
        raise _bad("template arguments", f"have the name {bad!r}: must be one that templates can have")
    return plain


def _plain(value: Any, where: str, depth: int) -> Any:
    """A copy that is made of JSON's own types alone.

    Raises:
        ConfigError: something else, a lone surrogate or a key that is no text; says where.
    """
    if depth > MOST_DEPTH:
        raise _bad(where, f"is nested more than {MOST_DEPTH} deep")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return _text(value, where)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(item, f"{where}.{key}", depth + 1) for key, item in list(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(tuple(value))]
    raise _bad(where, f"is of type {type(value).__name__}: a message holds text, numbers, lists and dicts")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise _bad(where, f"has a key of type {type(key).__name__}: keys must be text")
    return _text(key, where)


def _text(text: str, where: str) -> str:
    at = surrogate_at(text)
    if at is not None:
        raise _bad(where, f"has a lone surrogate at character {at}: not text")
    return str.__str__(text)


def _bad(where: str, what: str) -> ConfigError:
    return ConfigError(f"{where} {what}", field="prompt")
