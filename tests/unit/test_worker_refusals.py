"""What a worker says of messages that the head did not take, and what it refuses before it looks for the head."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from bloombee.address import read_listen
from bloombee.config import WorkerConfig
from bloombee.errors import BloomBeeError, ConfigError, RemoteProtocolError, StalePlan, to_wire
from bloombee.roles.head_search import Found
from bloombee.roles.worker import WorkerRole
from bloombee.types import Lane
from bloombee.wire.messages import Refused
from bloombee.wire.token import JoinToken, encode_token

TOKEN = encode_token(JoinToken(key=bytes(32), secret=bytes(24), endpoints=("tcp://127.0.0.1:1",)))


@pytest.mark.parametrize(("error", "is_news"), [(StalePlan("epoch 1"), False), (RemoteProtocolError("what?"), True)])
def test_what_comes_late_of_an_epoch_that_has_ended_is_no_news_to_anybody(
    error: BloomBeeError, is_news: bool, caplog: pytest.LogCaptureFixture
) -> None:
    worker = WorkerRole(WorkerConfig(join=TOKEN))
    with caplog.at_level(logging.WARNING, logger="bloombee"):
        worker._from_head(Lane.CONTROL, Refused(*to_wire(error)), None)
    assert bool(caplog.records) == is_news


def test_a_log_directory_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ConfigError, match=r"log_dir = .*: no file can be made there: (No such file|Not a directory)"):
            asyncio.run(WorkerRole(WorkerConfig(join=TOKEN, log_dir=str(wrong))).serve())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("model", "says"), [("/none", "it is no directory"), (".", "it has no config.json")])
def test_a_worker_without_its_model_does_not_join(model: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it could not load would end the swarm that it has joined."""
    monkeypatch.chdir(tmp_path)
    head = Found(b"link", "tcp://127.0.0.1:1", read_listen("tcp://127.0.0.1:1"))
    with pytest.raises(ConfigError, match=says):
        asyncio.run(WorkerRole(WorkerConfig(join=TOKEN, model=model))._join(head))
