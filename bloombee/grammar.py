"""What the text of an answer must be: a JSON schema, a regular expression or a grammar, and how llguidance takes each.

docs/adr/0082 has how grammars are obeyed.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bloombee.errors import ConfigError
from bloombee.quote import quoted
from bloombee.utf8 import surrogate_at
from bloombee.wire import messages

KINDS = ("json_schema", "regex", "lark")
MOST_BIAS = 1e4
MOST_COMPILING_S = 0.5
"""Of a processor's time, so that a busy machine refuses none that others take."""
JSON_OPTIONS: dict[str, Any] = {"whitespace_pattern": "[ ]?"}
"""One space at most between two things: were there room for any number, a model at a high temperature might never end."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be, all of it. Use :meth:`json_schema`, :meth:`json`, :meth:`regex` or :meth:`lark`.

    Args:
        kind: one of :data:`KINDS`.
        text: in that language, at most 256 KiB of UTF-8.

    Raises:
        ConfigError: another kind, or no such text. Whether the text is sound is found out when a request is made.
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"grammar of kind {quoted(self.kind)}: must be {', '.join(KINDS)}", field="grammar")
        if not isinstance(self.text, str):
            raise ConfigError(f"grammar of type {type(self.text).__name__}: its text must be text", field="grammar")
        if (at := surrogate_at(self.text)) is not None:
            raise ConfigError(f"the grammar has a lone surrogate at character {at}: not text", field="grammar")
        if (count := len(self.text.encode())) > messages.MAX_GRAMMAR_BYTES:
            raise ConfigError(
                f"a grammar of {count} bytes: at most {messages.MAX_GRAMMAR_BYTES} are taken", field="grammar", num_bytes=count
            )

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that ``schema`` (as an object, or its JSON text) allows, keys in the schema's order, with a space at most between
        two tokens of JSON. Keywords that cannot be obeyed are refused by name when a request is made."""
        return cls("json_schema", schema if isinstance(schema, str) else _dumped(schema))

    @classmethod
    def json(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """What ``pattern`` matches from end to end, in the syntax of Rust's regex crate: no look-around, no back references."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A context-free grammar in llguidance's dialect of Lark, from its rule ``start``."""
        return cls("lark", text)

    def to_wire(self) -> messages.Grammar:
        return messages.Grammar(self.kind, self.text)


def source(grammar: messages.Grammar) -> str:
    """As llguidance compiles it. Raises ConfigError: of no kind that there is, or no JSON."""
    from llguidance import LLMatcher

    if grammar.kind == "regex":
        return str(LLMatcher.grammar_from_regex(grammar.text))
    if grammar.kind == "lark":
        return str(LLMatcher.grammar_from_lark(grammar.text))
    if grammar.kind != "json_schema":
        raise ConfigError(f"grammar of kind {quoted(grammar.kind)}: must be {', '.join(KINDS)}", field="grammar")
    try:
        schema = jsonlib.loads(grammar.text)
        if not isinstance(schema, dict):
            raise ValueError("it is no object")
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema cannot be read: {error}", field="grammar") from None


def _dumped(schema: object) -> str:
    try:
        return jsonlib.dumps(schema, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema is no JSON: {error}", field="grammar") from None


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a request asks of its tokens besides how they are sampled.

    Args:
        biases: (token, what is added to its logit), each token once.
    """

    grammar: Grammar | None = None
    biases: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, grammar: object, logit_bias: object) -> Constraints:
        """As a caller says it. Raises ConfigError: ``grammar`` is no Grammar, ``logit_bias`` no mapping of tokens to numbers."""
        if grammar is not None and not isinstance(grammar, Grammar):
            raise ConfigError(f"grammar of type {type(grammar).__name__}: must be a bloombee.Grammar, or None", field="grammar")
        if not isinstance(logit_bias, Mapping | None):
            raise ConfigError(f"logit_bias = {quoted(logit_bias)}: must map token ids to numbers", field="logit_bias")
        biases = logit_bias or {}
        if len(biases) > messages.MAX_BIASES:
            raise ConfigError(f"{len(biases)} biases: at most {messages.MAX_BIASES} are taken", field="logit_bias")
        return cls(grammar, tuple(_bias(token, bias) for token, bias in biases.items()))


UNBOUND = Constraints()
"""Nothing."""


def _bias(token: object, bias: object) -> tuple[int, float]:
    is_number = isinstance(bias, int | float) and not isinstance(bias, bool) and abs(bias) <= MOST_BIAS
    if not (isinstance(token, int) and not isinstance(token, bool) and token >= 0 and is_number):
        raise ConfigError(
            f"logit_bias has {quoted(token)}: {quoted(bias)}; must be a token id and a number from -{MOST_BIAS:g} to"
            f" {MOST_BIAS:g}",
            field="logit_bias",
        )
    return token, float(bias)  # type: ignore[arg-type]
