"""What a head counts of its requests and of its stages."""

from __future__ import annotations

import pytest

from bloombee.control.events import StageMeasured
from bloombee.errors import LinkDown
from bloombee.pipeline.commands import Deliver
from bloombee.roles.bulletin import Bulletin
from bloombee.roles.requests import Requests
from bloombee.roles.served import ServedCount
from bloombee.roles.stage_record import StageRecord
from bloombee.roles.status import UPTO_S
from bloombee.roles.text import TextCodec
from bloombee.types import DeviceUse, FinishReason, StageUse, SwarmEventKind, Token
from bloombee.wire.messages import Pick

TOKEN = Token("", 5)


def test_times_go_where_they_belong_and_the_first_token_is_none_between_two() -> None:
    count = ServedCount()
    count.began(1, 7, 9.0, 9.5)
    for now in (10.0, 10.001, 10.5, 90.5):
        count.token(1, TOKEN, now)
    told = count.told(91.0)
    assert (told.tokens, told.prompt_tokens, told.ended) == (4, 7, {})
    assert told.first_token.sum_s == pytest.approx(1.0)
    assert told.first_token.counts[UPTO_S.index(1.0)] == sum(told.first_token.counts) == 1
    assert told.between_tokens.sum_s == pytest.approx(80.5)
    places = [place for place, number in enumerate(told.between_tokens.counts) if number]
    assert places in ([0, 8, len(UPTO_S)], [1, 8, len(UPTO_S)])  # 10.001 - 10.0 is a little more than a millisecond or less


def test_of_a_request_of_a_head_before_nobody_knows_how_long_its_first_token_took() -> None:
    count = ServedCount()
    count.began(4, 0, None, 1.0)
    count.token(4, TOKEN, 2.0)
    count.token(4, TOKEN, 2.25)
    told = count.told(3.0)
    assert (sum(told.first_token.counts), sum(told.between_tokens.counts), told.tokens) == (0, 1, 2)


def test_drafts_and_cached_prompts_are_counted_as_tokens_tell() -> None:
    count = ServedCount()
    count.began(1, 1, 0.0, 0.0)
    count.token(1, Token("", 5, drafted=3, was_drafted=True, num_cached_tokens=4), 1.0)
    count.token(1, Token("", 5, was_drafted=True), 1.0)
    count.token(1, TOKEN, 1.0)
    told = count.told(2.0)
    assert (told.tokens, told.cached_tokens, told.drafted, told.accepted) == (3, 4, 3, 2)


def test_time_with_requests_counts_once_however_many_there_are() -> None:
    count = ServedCount()
    count.began(1, 1, 0.0, 10.0)
    count.began(2, 1, 0.0, 11.0)
    assert count.active_s(12.0) == 2.0
    count.ended(1, "stop", 13.0)
    count.ended(2, "LinkDown", 14.0)
    assert count.active_s(20.0) == 4.0
    count.began(3, 1, 0.0, 30.0)
    assert count.active_s(31.0) == 5.0
    assert count.told(31.0).ended == {"stop": 1, "LinkDown": 1}


class _Sink:
    def token(self, token: Token) -> None: ...
    def end(self, error: Exception | None) -> None: ...


def test_however_a_request_ends_it_is_counted_by_that_once() -> None:
    requests = Requests(lambda number, is_finished: requests.end(number, None))
    for number in range(5):
        requests.add(number, _Sink(), TextCodec(None).stream(), 2, 0.0)
    requests.deliver(Deliver(0, Pick(1, 0, 2, 5, None, ()), FinishReason.LENGTH))
    requests.cancel(1)
    requests.end(2, None)
    requests.end(3, LinkDown("gone"))
    requests.end_all(LinkDown("gone"))
    told = requests.served.told(0.0)
    assert told.ended == {"length": 1, "cancelled": 2, "LinkDown": 2}
    assert (told.tokens, told.prompt_tokens) == (1, 10)


def _said(busy_s: float, pages_free: int = 3) -> StageMeasured:
    return StageMeasured(
        0, 1, StageUse(decode=DeviceUse(1, 1, busy_s / 4), prefill=DeviceUse(1, 1, busy_s * 3 / 4)), pages_free, 0.0
    )


def test_a_bubble_is_time_with_requests_and_without_a_forward() -> None:
    record = StageRecord()
    record.add(_said(100.0), 50.0)
    assert record.bubble_s == 0.0  # what was before nobody knows
    record.add(_said(101.0, pages_free=9), 53.0)
    assert (record.bubble_s, record.pages_free) == (2.0, 9)
    record.add(_said(101.5), 53.25)  # a forward that was counted when it ended
    assert record.bubble_s == 2.0
    record.add(_said(0.25), 54.0)  # loaded anew
    record.add(_said(0.5), 55.0)
    assert record.bubble_s == 2.75


def test_a_recovery_is_a_plan_that_comes_up_after_it_has_lost_a_stage() -> None:
    bulletin = Bulletin()
    bulletin.lost(9, "early", 0, "before there was a plan")
    bulletin.tell(SwarmEventKind.UP, epoch=1)
    assert bulletin.recoveries == 0
    bulletin.lost(1, "spare", None, "gone")
    bulletin.tell(SwarmEventKind.UP, epoch=2)
    assert bulletin.recoveries == 0
    bulletin.lost(2, "box", 0, "gone")
    bulletin.lost(3, "bag", 1, "gone")
    assert bulletin.recoveries == 0
    bulletin.tell(SwarmEventKind.UP, epoch=3)
    bulletin.tell(SwarmEventKind.UP, epoch=4)
    assert bulletin.recoveries == 1
