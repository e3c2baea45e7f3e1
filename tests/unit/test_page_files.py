"""The page's own files: nothing from elsewhere, and nothing that could make markup of a text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bloombee.serve.page import POLICY, STATIC

FILES = sorted(STATIC.iterdir())
NAMESPACE = "http://www.w3.org/2000/svg"
LINKED = {"https://ui.perfetto.dev"}
"""That a person may follow; nothing is fetched from there."""
MARKUP = re.compile(
    r"innerHTML\s*=|outerHTML\s*=|insertAdjacentHTML|document\.write|createContextualFragment|\beval\(|new Function|setHTML"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere_and_nothing_becomes_markup(path: Path) -> None:
    text = path.read_text("utf-8").replace(NAMESPACE, "")
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) <= LINKED
    assert MARKUP.findall(text) == []
    assert re.findall(r"<[^>]*\s(?:style|on\w+)=", text) == []  # the policy would not let them count


def test_all_files_that_are_named_are_there() -> None:
    named = {name for path in FILES for name in re.findall(r"(?:/static/|\./)([\w.]+)", path.read_text("utf-8"))}
    assert named == {path.name for path in FILES} - {"page.html"}


def test_the_policy_lets_in_nothing_but_the_servers_own() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules.values()) == {"'self'", "'none'"}
