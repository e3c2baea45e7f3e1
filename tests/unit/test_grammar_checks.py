"""Grammars as callers give them: taken, refused with what is wrong, and given up where compiling them would cost too much."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from dataclasses import replace
from typing import Any

import pytest

import bloombee
from bloombee import Grammar
from bloombee.errors import ConfigError
from bloombee.grammar import MOST_BIAS, Constraints
from bloombee.roles import grammars
from bloombee.roles.grammars import GrammarCheck
from bloombee.sim.cluster import sim_card
from bloombee.wire.messages import MAX_BIASES, MAX_GRAMMAR_BYTES

CARD = replace(sim_card((0,)), tokenizer_json="{}")
SOUND = Grammar.json_schema({"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}}})


async def fault(checks: GrammarCheck, grammar: Grammar, can_end: bool) -> str | None:
    try:
        await checks.check(grammar.to_wire(), can_end=can_end)
    except ConfigError as error:
        return f"{error.fields['field']}: {error.message}"
    return None


def faults(*grammars: Grammar, card: Any = CARD, can_end: bool = True) -> list[str | None]:
    """What each is refused with, one after the other."""

    async def check() -> list[str | None]:
        checks = GrammarCheck(card)
        try:
            return [await fault(checks, grammar, can_end) for grammar in grammars]
        finally:
            checks.close()

    return asyncio.run(check())


def test_sound_grammars_are_taken() -> None:
    sound = [SOUND, Grammar.json(), Grammar.regex("[a-z]+"), Grammar.lark('start: "a" | "b"'), SOUND]
    assert faults(*sound) == [None] * 5


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar.json_schema("{"), "cannot be read"),
        (Grammar.json_schema("[]"), "no object"),
        (Grammar.json_schema({"type": "strin"}), "Invalid type: strin"),
        (Grammar.json_schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
        (Grammar.json_schema({"$ref": "http://example.com/a"}), "not present in a registry"),
        (Grammar.json_schema({"minLength": 5, "maxLength": 2, "type": "string"}), "Unsatisfiable"),
        (Grammar.regex("a(b"), "regex"),
        (Grammar.regex("(?=a)"), "look-around"),
        (Grammar.lark("begin: /a/"), "start"),
    ],
    ids=["no json", "no object", "type", "keyword", "remote", "unsatisfiable", "parenthesis", "look-around", "no start"],
)
def test_what_is_wrong_is_said(grammar: Grammar, said: str) -> None:
    (message,) = faults(grammar)
    assert message is not None
    assert len(message) < 700
    assert message.startswith("grammar: ")
    assert said in message


@pytest.mark.parametrize(("kills", "is_taken"), [(1, True), (2, False)])
def test_a_compiler_that_somebody_ends_is_started_again(kills: int, is_taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ended = grammars._asked, []

    def ended_first(process: subprocess.Popen[bytes], grammar: Any) -> bytes | None:
        if len(ended) < kills:
            ended.append(process.pid)
            process.send_signal(signal.SIGKILL)
        return asked(process, grammar)

    monkeypatch.setattr(grammars, "_asked", ended_first)
    first, second = faults(SOUND, Grammar.json())
    assert (first is None) is is_taken
    assert second is None
    assert len(set(ended)) == kills


def test_a_grammar_that_explodes_costs_its_request_alone() -> None:
    """One is not done in any time, the other overflows its stack."""
    endless = Grammar.json_schema({"allOf": [{"type": "string", "pattern": f".*a.{{{length}}}"} for length in range(1, 40)]})
    rules = "\n".join(f'r{number}: r{number + 1} "a"' for number in range(9000))
    deep = Grammar.lark(f'start: r0\n{rules}\nr9000: "b"')
    said = faults(endless, SOUND, deep, SOUND)
    assert said[1] is said[3] is None
    assert said[0] is not None
    assert "to compile it takes more than" in said[0]
    assert said[2] is not None


def test_a_text_that_could_not_end_is_refused() -> None:
    assert "end token" in str(faults(SOUND, can_end=False)[0])
    assert "no tokenizer" in str(faults(SOUND, card=replace(CARD, tokenizer_json=None))[0])


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("gbnf", "", "kind 'gbnf'"),
        ("regex", 5, "type int"),
        ("regex", "a\ud800", "surrogate"),
        ("regex", "\xe4" * (MAX_GRAMMAR_BYTES // 2 + 1), "at most 262144"),
    ],
    ids=["kind", "type", "surrogate", "long"],
)
def test_what_is_no_grammar_is_refused_at_once(kind: str, text: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Grammar(kind, text)


def test_a_schema_that_is_no_json_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="no JSON"):
        Grammar.json_schema({"const": {1, 2}})


@pytest.mark.parametrize(
    ("bias", "said"),
    [
        ([1], "must map"),
        ({"1": 1.0}, "'1'"),
        ({-1: 1.0}, "-1"),
        ({True: 1.0}, "True"),
        ({1: float("nan")}, "nan"),
        ({1: 2 * MOST_BIAS}, "20000"),
        ({1: "a"}, "'a'"),
        (dict.fromkeys(range(MAX_BIASES + 1), 1.0), "at most 4096"),
    ],
)
def test_what_is_no_bias_is_refused(bias: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Constraints.of(None, bias)


def test_constraints_are_as_they_were_said() -> None:
    assert Constraints.of(SOUND, {3: 1, 2: -1.5}) == Constraints(SOUND, ((3, 1.0), (2, -1.5)))
    assert Constraints.of(None, None) == Constraints()
    with pytest.raises(ConfigError, match=r"bloombee\.Grammar"):
        Constraints.of("a", None)
    assert bloombee.Grammar is Grammar
