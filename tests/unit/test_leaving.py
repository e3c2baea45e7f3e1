"""A worker that was told to leave asks until it is answered."""

from __future__ import annotations

import logging

import pytest

from bloombee.roles.leaving import REPEAT_S, Leaving
from bloombee.wire.messages import Drain


def test_it_is_said_again_until_there_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    said: list[Drain] = []
    leaving = Leaving(said.append)
    leaving.tick(100.0)
    assert said == []
    assert leaving.ask("x")
    assert not leaving.ask("again")
    leaving.tick(100.0)
    leaving.tick(100.0 + REPEAT_S / 2)
    assert said == [Drain(1, "x")]
    leaving.tick(100.0 + REPEAT_S)
    assert said == [Drain(1, "x")] * 2
    with caplog.at_level(logging.WARNING):
        leaving.refused({"message": "nobody can"})
        leaving.refused({"message": "nobody can"})
    leaving.tick(200.0)
    assert len(said) == 2
    assert caplog.text.count("cannot leave, and serves on: nobody can") == 1
