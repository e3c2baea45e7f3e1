"""Random JSON schemas whose answers are bounded, for whoever checks that answers obey them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

MOST_DEPTH = 3
WORDS = ("name", "size", "items", "kind", "value", "path", "count", "tags", "left", "right", "é key", 'a "quoted" key')


def random_schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """Strings and lists have a greatest length, numbers a range, objects no further keys: no answer is endless."""
    makers: list[Callable[[random.Random, int], dict[str, Any]]] = [_string, _integer, _simple, _enumeration]
    if depth < MOST_DEPTH:
        makers += [_object, _object, _array, _either]
    maker = _object if depth == 0 else draw.choice(makers)
    return maker(draw, depth)


def _string(draw: random.Random, _: int) -> dict[str, Any]:
    least = draw.choice((0, 0, 1, 3))
    schema: dict[str, Any] = {"type": "string", "maxLength": least + draw.randint(0, 20)}
    if draw.random() < 0.2:
        return {"type": "string", "pattern": draw.choice(("^[a-z]{1,8}$", "^[A-Z]{2}-[0-9]{3}$", "^(yes|no|perhaps)$"))}
    return schema | ({"minLength": least} if least else {})


def _integer(draw: random.Random, _: int) -> dict[str, Any]:
    least = draw.randint(-1000, 1000)
    return {"type": "integer", "minimum": least, "maximum": least + draw.randint(0, 5000)}


def _simple(draw: random.Random, _: int) -> dict[str, Any]:
    return draw.choice(({"type": "boolean"}, {"type": "null"}, {"const": "it"}, {"const": {"a": [1, None]}}))


def _enumeration(draw: random.Random, _: int) -> dict[str, Any]:
    return {"enum": draw.sample([*WORDS, 1, 2.5, None, True, []], draw.randint(1, 6))}


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    keys = draw.sample(WORDS, draw.randint(1, 4))
    return {
        "type": "object",
        "properties": {key: random_schema(draw, depth + 1) for key in keys},
        "required": [key for key in keys if draw.random() < 0.7],
        "additionalProperties": False,
    }


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.choice((0, 0, 1, 2))
    return {
        "type": "array",
        "items": random_schema(draw, depth + 1),
        "minItems": least,
        "maxItems": least + draw.randint(0, 3),
    }


def _either(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(draw, depth + 1) for _ in range(draw.randint(2, 3))]}
