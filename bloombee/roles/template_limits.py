"""How much one operation of a chat template may make.

Python computes the operation in one go, which can be neither stopped nor passed by another thread: so what it would make is
counted before.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jinja2.exceptions import SecurityError

MOST_CHARACTERS = 1 << 28
"""Of a text, or items of a list."""
MOST_BITS = 1 << 12
MOST_INDENT = 100
_PRINTF = re.compile(r"%(\([^)]*\))?[#0\- +]*([0-9]*\.)?(\*|[0-9]{7,})")
_BRACES = re.compile(r"\{[^{}]*:[^{}]*(\{|[0-9]{7,})")
"""Widths of a million and more, or ones that another value says."""


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Of two operands. Raises SecurityError."""
    if isinstance(left, int) and isinstance(right, int):
        bits = {"**": left.bit_length() * abs(right), "*": left.bit_length() + right.bit_length()}.get(operator, 0)
        if bits > MOST_BITS:
            raise SecurityError("a power of too many digits")
    elif operator == "*":
        _limit(max(_product(left, right), _product(right, left)))
    elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        _limit(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        _check_widths(_PRINTF, left)


def check_format(text: str) -> None:
    """Of ``str.format``. Raises SecurityError."""
    _check_widths(_BRACES, text.replace("{{", "").replace("}}", ""))


def check_method(callee: Any, arguments: Sequence[Any]) -> None:
    """Of a method of a text; of anything else nothing is known. Raises SecurityError."""
    text = getattr(callee, "__self__", None)
    count = _MADE.get(getattr(callee, "__name__", ""))
    if count is not None and isinstance(text, str):
        _limit(count(text, *arguments))


def limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter ``name``, which refuses to make too much."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        value, *arguments = (*given[first:], *named.values())
        if name == "join" and not isinstance(value, (str, dict)):
            value = list(value)
            given = (*given[:first], value, *given[first + 1 :])
            _limit(_joined(str(next(iter(arguments), "")), value))
        elif name == "format":
            _check_widths(_PRINTF, str(value))
        elif name in _MADE:
            _limit(_MADE[name](str(value), *arguments))
        return function(*given, **named)

    return call


def concatenated(parts: Iterable[str]) -> str:
    """What a template has written. Raises SecurityError."""
    kept, total = [], 0
    for part in parts:
        total += len(part)
        _limit(total)
        kept.append(part)
    return "".join(kept)


def _check_widths(pattern: re.Pattern[str], text: str) -> None:
    if pattern.search(text):
        raise SecurityError("a format of a width beyond all measure")


def _limit(count: int) -> None:
    if count > MOST_CHARACTERS:
        raise SecurityError("a text or list beyond all measure")


def _product(sequence: Any, count: Any) -> int:
    return len(sequence) * count if isinstance(sequence, (str, list, tuple)) and isinstance(count, int) else 0


def _widened(text: str, *arguments: Any) -> int:
    return max((number for number in arguments if isinstance(number, int)), default=0)


def _indented(text: str, *arguments: Any) -> int:
    longest = max((len(fill) for fill in arguments if isinstance(fill, str)), default=0)
    return (text.count("\n") + text.count("\t") + 1) * max(_widened(text, *arguments), longest)


def _replaced(text: str, old: Any = "", new: Any = "", *_: Any) -> int:
    return len(text) + text.count(str(old)) * len(str(new))


def _joined(separator: str, items: Any = (), *_: Any) -> int:
    parts = items if isinstance(items, (list, tuple)) else ()
    return len(separator) * len(parts) + sum(len(part) for part in parts if isinstance(part, str))


def _translated(text: str, table: Any = None, *_: Any) -> int:
    values = table.values() if isinstance(table, dict) else ()
    return len(text) * max((len(value) for value in values if isinstance(value, str)), default=1)


_MADE: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "batch", "slice"), _widened),
    **dict.fromkeys(("expandtabs", "indent"), _indented),
    "replace": _replaced,
    "join": _joined,
    "translate": _translated,
}
"""Name of a method or a filter -> how many characters it makes of a text with these arguments."""
LIMITED_FILTERS = ("center", "indent", "replace", "join", "format", "batch", "slice")
