"""A drafter's process, and what its client makes of those that misbehave."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import ParamSpec

import odd_drafters
import pytest

import bloombee
from bloombee.roles import drafter_client
from bloombee.roles.drafter_client import DrafterClient, Program, model_program
from bloombee.roles.vocabulary import vocabulary_digest
from bloombee.spec.speculator import Query
from bloombee.spec.tree import Draft

DEMO = Path(bloombee.__file__).parent / "demo_model"
TOKENIZER = (DEMO / "target" / "tokenizer.json").read_text("utf-8")
DIGEST = vocabulary_digest(TOKENIZER)
WAIT_S = 60
P = ParamSpec("P")


def _in_a_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Heard:
    """What a client says, to be waited for."""

    def __init__(self, program: Program) -> None:
        self.drafts: asyncio.Queue[tuple[int, int, Draft]] = asyncio.Queue()
        self.ups: asyncio.Queue[bool] = asyncio.Queue()
        self.client = DrafterClient(
            program,
            tokenizer_json=TOKENIZER,
            num_tokens=4096,
            on_draft=lambda *said: self.drafts.put_nowait(said),
            on_up=self.ups.put_nowait,
        )

    def ask(self, sequence: int, first: int, tokens: list[int]) -> None:
        self.client.ask(Query(sequence, first, tuple(tokens), 24, 0.01, 0.0, 0.0), temperature=0.0, seed=0)

    async def is_up(self) -> bool:
        return await asyncio.wait_for(self.ups.get(), WAIT_S)

    async def next_draft(self) -> tuple[int, int, Draft]:
        return await asyncio.wait_for(self.drafts.get(), WAIT_S)


def _odd(kind: str) -> Program:
    assert odd_drafters.__path__
    return Program("odd_drafters.program", (kind, DIGEST, "4096"))


@_in_a_loop
async def test_the_packaged_draft_model_drafts_for_several_sequences() -> None:
    heard = Heard(model_program("demo:draft"))
    heard.client.start()
    try:
        assert await heard.is_up()
        heard.ask(1, 0, list(range(100, 140)))
        heard.ask(2, 0, list(range(300, 320)))
        found = {said[0]: said[1:] for said in [await heard.next_draft() for _ in range(2)]}
        assert {number: length for number, (length, _) in found.items()} == {1: 40, 2: 20}
        assert all(0 < len(draft) <= 24 for _, draft in found.values())
        first = found[1][1].tokens[0]
        heard.client.closed(2)
        heard.ask(1, 40, [first, 5])
        sequence, length, draft = await heard.next_draft()
        assert (sequence, length) == (1, 42)
        assert draft
    finally:
        await heard.client.close()


@pytest.mark.parametrize("kind", ["other_vocabulary", "unable"])
@_in_a_loop
async def test_who_does_not_speak_the_models_tokens_is_never_asked(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard(_odd(kind))
    heard.client.start()
    assert not await heard.is_up()
    heard.ask(1, 0, [5])
    await heard.client.close()
    assert heard.ups.empty()
    assert len(_warnings(caplog)) == 1


@pytest.mark.parametrize(
    "kind",
    [
        "crashing",
        "noise",
        "cycle",
        "surer_than_its_parent",
        "foreign_token",
        "too_many",
        "of_nobody",
        "no_numbers",
        "no_fields",
        "no_object",
    ],
)
@_in_a_loop
async def test_who_misbehaves_is_ended_with_one_warning(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard(_odd(kind))
    heard.client.start()
    assert await heard.is_up()
    for sequence in range(3):
        heard.ask(sequence, 0, [5])
    assert not await heard.is_up()
    heard.ask(9, 0, [5])
    await heard.client.close()
    assert heard.ups.empty()
    assert heard.drafts.empty()
    assert len(_warnings(caplog)) == 1


@_in_a_loop
async def test_who_hangs_is_ended(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter_client, "HANGS_S", 0.2)
    heard = Heard(_odd("hanging"))
    heard.client.start()
    assert await heard.is_up()
    heard.ask(1, 0, [5])
    assert not await heard.is_up()
    await heard.client.close()
    assert len(_warnings(caplog)) == 1


@_in_a_loop
async def test_who_never_says_what_it_is_is_ended(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter_client, "LOADS_S", 0.2)
    heard = Heard(_odd("mute"))
    heard.client.start()
    assert not await heard.is_up()
    await heard.client.close()
    assert heard.ups.empty()


@_in_a_loop
async def test_an_answer_is_handed_on_as_it_was_given() -> None:
    heard = Heard(_odd("sound"))
    heard.client.start()
    assert await heard.is_up()
    heard.ask(4, 3, [5, 6])
    answer = await heard.next_draft()
    assert answer == (4, 5, Draft((7, 8), (0, 1), (0.9, 0.8), (2, 2)))
    await heard.client.close()
    assert heard.ups.empty()


def _warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == drafter_client.__name__ and record.levelno >= logging.WARNING]
