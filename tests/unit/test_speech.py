"""What a model says is told apart the same way however its text is cut into tokens, and nothing of it is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloombee.serve.speech import Call, Kind, Listener, Part, Piece, Speech, read_calls

MARKED, THINKING, BARE = Speech(marks_calls=True), Speech(thinks=True), Speech()
BOTH = Speech(True, True)
ARGUMENTS = '{"a":1}'
WRITTEN = '{"name": "f", "arguments": {"a": 1}}'
F = Call("f", ARGUMENTS)


def heard(speech: Speech, pieces: list[str], *, may_call: bool = True, begins: bool = False) -> list[Part]:
    """Neighbours of one kind as one."""
    listener = Listener(speech, may_call=may_call, begins_in_reasoning=begins)
    found: list[Part] = []
    for part in [part for piece in pieces for part in listener.push(piece)] + listener.finish():
        if isinstance(part, Piece) and found and isinstance(found[-1], Piece) and found[-1].kind is part.kind:
            found[-1] = Piece(part.kind, found[-1].text + part.text)
        else:
            found.append(part)
    assert listener.num_calls == sum(isinstance(part, Call) for part in found)
    return found


def content(text: str) -> Piece:
    return Piece(Kind.CONTENT, text)


def reasoning(text: str) -> Piece:
    return Piece(Kind.REASONING, text)


CASES = [
    (BARE, False, "<think>x</think> [1]", [content("<think>x</think> [1]")]),
    (THINKING, False, "<think>\nhm < 5\n</think>\n\nyes ", [reasoning("\nhm < 5\n"), content("yes ")]),
    (THINKING, False, " \n<think>hm", [reasoning("hm")]),
    (THINKING, False, " <thin", [content(" <thin")]),
    (THINKING, False, "a <think>b</think>", [content("a <think>b</think>")]),
    (THINKING, True, "hm</thi</think>yes", [reasoning("hm</thi"), content("yes")]),
    (THINKING, True, "hm</thin", [reasoning("hm</thin")]),
    (MARKED, False, f"Let me see.\n<tool_call>\n{WRITTEN}\n</tool_call>", [content("Let me see."), F]),
    (MARKED, False, f"<tool_call>{WRITTEN}</tool_call>\n<tool_call>{WRITTEN}</tool_call>\n", [F, F]),
    (MARKED, False, "a <tool_call>no</tool_call> b", [content("a<tool_call>no</tool_call> b")]),
    (MARKED, False, "a <tool_call>{", [content("a<tool_call>{")]),
    (MARKED, False, "a <b> \n", [content("a <b> \n")]),
    (MARKED, False, "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", [F]),
    (BARE, False, f" {WRITTEN}", [F]),
    (BARE, False, f"[{WRITTEN}, {WRITTEN}]", [F, F]),
    (BARE, False, "[1, 2]", [content("[1, 2]")]),
    (BARE, False, f"[TOOL_CALLS] [{WRITTEN}]", [F]),
    (BARE, False, 'ok <|python_tag|>{"name": "f", "parameters": {"a": 1}}', [content("ok"), F]),
    (BARE, False, "ok <|python_tag|>print(1)", [content("ok<|python_tag|>print(1)")]),
    (BOTH, False, f"<think>hm</think>\n\n<tool_call>{WRITTEN}</tool_call>", [reasoning("hm"), F]),
    (BOTH, True, f"hm</think>\n\nyes\n\n<tool_call>{WRITTEN}</tool_call>", [reasoning("hm"), content("yes"), F]),
    (Speech(thinks=True), False, f"<think>hm</think> {WRITTEN}", [reasoning("hm"), F]),
]


@pytest.mark.parametrize(("speech", "begins", "text", "expected"), CASES)
def test_parts_are_told_apart_however_the_text_is_cut(speech: Speech, begins: bool, text: str, expected: list[Part]) -> None:
    may_call = (not (speech == BARE and text.startswith("<think>")) and speech != THINKING) or "name" in text
    for size in (1, 2, 3, 7, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert heard(speech, pieces, may_call=may_call, begins=begins) == expected, size


@given(st.text(alphabet="<>/thinkol_ca{}\n [x", max_size=60), st.booleans(), st.booleans(), st.booleans())
def test_what_is_neither_call_nor_mark_is_not_lost(text: str, thinks: bool, marks: bool, begins: bool) -> None:
    speech = Speech(thinks, marks)
    parts = heard(speech, list(text), begins=begins and thinks)
    kept = "".join(part.text for part in parts if isinstance(part, Piece))
    bare = text.replace("<think>", "", 1).replace("</think>", "", 1)
    assert "".join(kept.split()) in (
        "".join(text.split()),
        "".join(bare.split()),
        "".join(text.replace("</think>", "", 1).split()),
    )


def test_the_template_tells_how_a_model_speaks() -> None:
    assert Speech.of("{% if x %}<think>{% endif %}</think> <tool_call>") == BOTH
    assert Speech.of("{{ messages }}") == BARE
    assert THINKING.begins_in_reasoning("<|assistant|>\n<think>\n")
    assert not THINKING.begins_in_reasoning("<think>\n\n</think>\n\n")
    assert not BARE.begins_in_reasoning("<think>")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "null",
        "[]",
        '{"name": 5, "arguments": {}}',
        '{"name": "f"}',
        '[{"name": "f", "arguments": {}}, 5]',
        "[" * 100_000,
    ],
)
def test_what_is_no_call_is_none(text: str) -> None:
    assert read_calls(text) == []


def test_calls_are_read_in_every_common_way() -> None:
    assert read_calls('{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}') == [F]
    assert read_calls(json.dumps({"name": "f", "arguments": ARGUMENTS})) == [F]
    two = "<function=g><parameter=s>a\nb</parameter><parameter=l>[1]</parameter></function>\n<function=h></function>"
    assert read_calls(two) == [Call("g", '{"s":"a\\nb","l":[1]}'), Call("h", "{}")]
