"""What a worker says of messages that the head did not take."""

from __future__ import annotations

import logging

import pytest

from bloombee.config import WorkerConfig
from bloombee.errors import BloomBeeError, RemoteProtocolError, StalePlan, to_wire
from bloombee.roles.worker import WorkerRole
from bloombee.types import Lane
from bloombee.wire.messages import Refused
from bloombee.wire.token import JoinToken, encode_token


@pytest.mark.parametrize(("error", "is_news"), [(StalePlan("epoch 1"), False), (RemoteProtocolError("what?"), True)])
def test_what_comes_late_of_an_epoch_that_has_ended_is_no_news_to_anybody(
    error: BloomBeeError, is_news: bool, caplog: pytest.LogCaptureFixture
) -> None:
    token = encode_token(JoinToken(key=bytes(32), secret=bytes(24), endpoints=("tcp://127.0.0.1:1",)))
    worker = WorkerRole(WorkerConfig(join=token))
    with caplog.at_level(logging.WARNING, logger="bloombee"):
        worker._from_head(Lane.CONTROL, Refused(*to_wire(error)), None)
    assert bool(caplog.records) == is_news
