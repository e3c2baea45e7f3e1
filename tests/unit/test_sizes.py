"""How large a class and a function may be: a reader has to keep all of it in mind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import bloombee

MOST_LINES_OF_CLASS = 300
MOST_METHODS = 25
MOST_LINES_OF_FUNCTION = 80
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _too_large(node: ast.AST) -> Iterator[str]:
    """What is wrong with a class or a function; nothing about anything else."""
    if not isinstance(node, (ast.ClassDef, *_FUNCTIONS)):
        return
    assert node.end_lineno is not None
    num_lines = node.end_lineno - node.lineno + 1
    most = MOST_LINES_OF_CLASS if isinstance(node, ast.ClassDef) else MOST_LINES_OF_FUNCTION
    if num_lines > most:
        yield f"{node.name} has {num_lines} lines, at most {most}"
    num_methods = sum(isinstance(one, _FUNCTIONS) for one in node.body) if isinstance(node, ast.ClassDef) else 0
    if num_methods > MOST_METHODS:
        yield f"{node.name} has {num_methods} methods, at most {MOST_METHODS}"


def _all_too_large(source: str) -> list[str]:
    return [fault for node in ast.walk(ast.parse(source)) for fault in _too_large(node)]


def test_no_class_and_no_function_is_too_large_to_keep_in_mind() -> None:
    root = Path(bloombee.__file__).parent
    paths = sorted(root.rglob("*.py"))
    assert len(paths) > 100
    assert [f"{path.relative_to(root)}: {fault}" for path in paths for fault in _all_too_large(path.read_text("utf-8"))] == []


def test_what_is_too_large_is_named() -> None:
    method = "    def m{}(self): ...\n"
    assert _all_too_large("class Fine:\n" + "".join(map(method.format, range(MOST_METHODS)))) == []
    assert _all_too_large("class Many:\n" + "".join(map(method.format, range(MOST_METHODS + 1)))) == [
        f"Many has {MOST_METHODS + 1} methods, at most {MOST_METHODS}"
    ]
    long_function = "def {}():\n" + "    x = 1\n" * MOST_LINES_OF_FUNCTION
    assert _all_too_large(long_function.format("long")) == ["long has 81 lines, at most 80"]
    assert _all_too_large("async " + long_function.format("late")) == ["late has 81 lines, at most 80"]
    assert _all_too_large("class Long:\n" + "    x = 1\n" * MOST_LINES_OF_CLASS) == ["Long has 301 lines, at most 300"]
