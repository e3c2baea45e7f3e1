from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloombee.errors import RemoteProtocolError
from bloombee.pipeline.commands import Send
from bloombee.pipeline.frames import FrameReceiver, FrameSender, LinkSender
from bloombee.types import Kind, Lane
from bloombee.wire.messages import Ack, Forward, Item, Opening, Sampling, Tree

SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)


def _make(sequence: int = 1, position: int = 0, rows: int = 1):
    opening = Opening(rows, SAMPLING, 8, (), (), None, None)
    item = Item(sequence, 0, Kind.PROMPT, position, bytes(4 * rows), 1, opening if position == 0 else None, None)

    def make(number: int) -> Send:
        return Send(0, Lane.CONTROL, Forward(1, 1, number, number, 0, 0, (item,)))

    return make


def _numbers(sends: list[Send]) -> list[int]:
    return [send.message.frame for send in sends]  # type: ignore[union-attr]


def _ack(upto: int, limit: int, extra: tuple[int, ...] = (), logged: int = 0) -> Ack:
    return Ack(1, 1, Lane.BULK, upto, extra, logged, limit, 0)


def test_sender_keeps_to_its_credit_and_goes_on_in_order() -> None:
    sender = FrameSender(limit=2, resend_after_s=1.0)
    sent = [number for _ in range(4) for number in _numbers(sender.push(_make(), now=0.0))]
    assert sent == [0, 1]
    assert sender.num_backlog == 2
    assert _numbers(sender.acknowledge(_ack(1, 3), now=0.1)) == [2]
    assert _numbers(sender.acknowledge(_ack(3, 5), now=0.2)) == [3]
    assert sender.num_kept == 1


def test_stale_acknowledgement_changes_nothing() -> None:
    sender = FrameSender(limit=4, resend_after_s=1.0)
    for _ in range(3):
        sender.push(_make(), now=0.0)
    sender.acknowledge(_ack(3, 7), now=0.1)
    sender.acknowledge(_ack(1, 5), now=0.2)
    assert sender.limit == 7
    assert sender.num_kept == 0


def test_acknowledging_what_was_never_sent_is_refused() -> None:
    sender = FrameSender(limit=4, resend_after_s=1.0)
    sender.push(_make(), now=0.0)
    for bad in (_ack(2, 9), _ack(0, 9, (1,))):
        with pytest.raises(RemoteProtocolError):
            sender.acknowledge(bad, now=0.1)
    assert sender.limit == 4
    assert sender.num_kept == 1


def test_silence_resends_with_growing_patience() -> None:
    sender = FrameSender(limit=4, resend_after_s=1.0)
    sender.push(_make(), now=0.0)
    times = [t / 10 for t in range(1, 80) if sender.tick(t / 10)]
    assert times == [1.0, 3.0, 7.0]


def test_lost_credit_is_asked_for() -> None:
    """Every frame is acknowledged, the window is shut, and the acknowledgement that opened it was lost."""
    sender = FrameSender(limit=1, resend_after_s=1.0)
    sender.push(_make(), now=0.0)
    sender.push(_make(), now=0.0)
    assert sender.acknowledge(_ack(1, 1), now=0.1) == []
    assert _numbers(sender.tick(2.0)) == [0]
    assert _numbers(sender.acknowledge(_ack(1, 2), now=2.1)) == [1]


def test_gap_resends_only_frames_with_missing_rows() -> None:
    sender = FrameSender(limit=9, resend_after_s=1.0)
    for sequence, position in ((1, 0), (1, 1), (2, 0), (1, 2)):
        sender.push(_make(sequence, position), now=0.0)
    assert _numbers(sender.resend_rows(1, 1, now=0.1)) == [1, 3]
    assert _numbers(sender.resend_rows(3, 0, now=0.1)) == []


def test_receiver_grants_from_the_lowest_frame_that_is_not_done() -> None:
    receiver = FrameReceiver(window=2)
    assert receiver.acknowledgement(1, 1, 0.0, Lane.BULK) == _ack(0, 2)
    receiver.hold(1, 0.0)
    assert receiver.acknowledgement(1, 1, 0.0, Lane.BULK) == _ack(0, 2, (1,))
    receiver.hold(0, 0.0)
    assert receiver.acknowledgement(1, 1, 0.0, Lane.BULK) == _ack(2, 2)
    with pytest.raises(RemoteProtocolError):
        receiver.check(2)
    receiver.retire([0])
    assert receiver.acknowledgement(1, 1, 0.0, Lane.BULK) == _ack(2, 3, logged=1)
    receiver.check(2)
    receiver.retire([1])
    assert receiver.acknowledgement(1, 1, 0.0, Lane.BULK) == _ack(2, 4, logged=2)
    assert receiver.holds(0)
    assert receiver.holds(1)
    assert not receiver.holds(2)


def test_each_lane_of_a_link_has_numbers_credit_and_patience_of_its_own() -> None:
    link = LinkSender(limit=2, resend_after_s=1.0)
    bulk, control = link.lanes[Lane.BULK], link.lanes[Lane.CONTROL]
    for position in range(3):
        bulk.push(_make(1, position), now=0.0)
    assert (link.num_kept, link.num_backlog) == (2, 1)
    for number in range(10):
        assert _numbers(control.push(_make(2, number), now=0.5)) == [number]
        assert link.acknowledge(Ack(1, 1, Lane.CONTROL, number + 1, (), number + 1, number + 3, 0), now=0.5) == []
    assert (bulk.num_kept, bulk.num_backlog, control.num_kept) == (2, 1, 0)
    control.push(_make(1, 3), now=0.9)
    assert _numbers(link.tick(1.0)) == [0, 1]
    assert _numbers(link.resend_rows(1, 2, now=1.1)) == [10]
    assert sorted(_numbers(link.resend(now=1.2))) == [0, 1, 10]
    with pytest.raises(RemoteProtocolError):
        link.acknowledge(_ack(3, 9), now=1.3)


def test_a_frame_that_crosses_a_slow_wire_piece_by_piece_is_not_sent_again() -> None:
    sender = FrameSender(limit=4, resend_after_s=1.0)
    sender.push(_make(), now=0.0)
    for tick in range(1, 100):
        sender.moved(tick / 2)
        assert sender.tick(tick / 2 + 0.4) == []
    assert _numbers(sender.tick(50.6)) == [0]


def test_frames_behind_others_are_not_sent_again_while_those_arrive_in_order() -> None:
    sender = FrameSender(limit=4, resend_after_s=1.0)
    for _ in range(3):
        sender.push(_make(), now=0.0)
    assert _numbers(sender.acknowledge(_ack(1, 4), now=0.9)) == []
    assert _numbers(sender.tick(1.2)) == []
    assert _numbers(sender.acknowledge(_ack(1, 4, (2,)), now=1.5)) == [1]  # the one before it is missing


def test_a_frame_that_cannot_be_sent_goes_without_what_it_says() -> None:
    sender = FrameSender(limit=4, resend_after_s=1.0)
    sender.push(_make(rows=3), now=0.0)
    (send,) = sender.blank(0, now=0.1)
    assert send.message == Forward(1, 1, 0, 0, 0, 0, ())
    assert send.payload is None
    assert [again.message for again in sender.resend(0.2, lambda *_: True)] == [send.message]
    assert sender.blank(7, now=0.1) == []


def test_a_frame_that_is_known_to_be_missing_goes_again_at_once_and_then_each_round_trip() -> None:
    """Lost however often in a row, it is never left to a patience that doubles."""
    sender = FrameSender(limit=64, resend_after_s=1.0)
    sender.push(_make(), now=0.0)
    sender.acknowledge(_ack(1, 64), now=0.2)  # a round trip takes as long
    for _ in range(3):
        sender.push(_make(), now=1.0)
    assert _numbers(sender.acknowledge(_ack(1, 64, (3,)), now=1.2)) == [1, 2]
    assert _numbers(sender.acknowledge(_ack(2, 64, (3,)), now=1.3)) == []
    times = [t / 10 for t in range(13, 31) if 2 in _numbers(sender.tick(t / 10))]
    assert len(times) >= 8
    assert times[-1] > 2.8
    sender.acknowledge(_ack(4, 64), now=3.1)
    assert sender.num_kept == 0
    assert sender.tick(9.0) == []


def test_however_often_rows_are_asked_for_they_go_once_a_round_trip() -> None:
    sender = FrameSender(limit=64, resend_after_s=5.0)
    sender.push(_make(), now=0.0)
    sender.acknowledge(_ack(1, 64), now=0.2)
    for position in range(16):
        sender.push(_make(1, 1 + position), now=1.0)
    sent = [_numbers(sender.resend_rows(1, 1, now=1.1 + 0.001 * gap)) for gap in range(16)]
    assert sent == [list(range(1, 17)), *[[]] * 15]
    sent = [_numbers(sender.resend_rows(1, 1, now=1.35 + 0.001 * gap)) for gap in range(16)]
    assert sent == [[1, 2, 3, 4], *[[]] * 15]


def test_nodes_that_are_refused_go_again_wherever_the_rows_before_them_end() -> None:
    """The third node of a chain is three positions further on than its tree, which its frame does not say in rows."""
    sender = FrameSender(limit=64, resend_after_s=30.0)
    item = Item(1, 0, Kind.DRAFT, 5, bytes(4), 1, None, Tree(3, (2,), b"\1"))
    sender.push(lambda number: Send(0, Lane.CONTROL, Forward(1, 1, number, number, 0, 0, (item,))), now=0.0)
    assert _numbers(sender.resend_rows(1, 6, now=0.2)) == [0]


def test_a_first_frame_that_is_refused_again_and_again_goes_once_a_round_trip() -> None:
    """In a hand-over rows may come over the next epoch before those that they follow on have come over the one before."""
    sender = FrameSender(limit=64, resend_after_s=30.0)
    sender.push(_make(1, 7), now=0.0)
    assert _numbers(sender.resend_rows(1, 6, now=0.2)) == [0]
    assert _numbers(sender.resend_rows(1, 6, now=0.3)) == []
    assert _numbers(sender.tick(now=0.35)) == []
    assert _numbers(sender.tick(now=0.45)) == [0]
    assert _numbers(sender.resend_rows(1, 6, now=0.66)) == [0]


def test_rows_are_credit_as_frames_are_so_that_memory_for_them_is_bounded() -> None:
    sender = FrameSender(limit=64, resend_after_s=1.0, max_rows=4)
    for _ in range(20):
        sender.push(_make(rows=4), now=0.0, num_rows=4)
    assert (sender.num_kept, sender.num_backlog) == (16, 4)
    assert not sender.can_send()
    assert _numbers(sender.acknowledge(_ack(2, 64), now=0.1)) == []  # they are held, and not done
    assert _numbers(sender.acknowledge(_ack(2, 66), now=0.2)) == [16, 17]
    receiver = FrameReceiver(window=64, max_rows=4)
    for number in range(16):
        receiver.check(number, 4)
        receiver.hold(number, 0.0, 4)
    with pytest.raises(RemoteProtocolError, match=r"1 rows sent without credit \(64 of 64 are here\)"):
        receiver.check(16, 1)
    receiver.retire([0])
    receiver.check(16, 4)
    with pytest.raises(RemoteProtocolError, match="5 rows, 4 at most"):
        receiver.check(16, 5)


def test_lost_credit_for_rows_is_asked_for() -> None:
    """Every frame is held and done, and the acknowledgement that said so was lost."""
    sender = FrameSender(limit=64, resend_after_s=1.0, max_rows=4)
    for _ in range(17):
        sender.push(_make(rows=4), now=0.0, num_rows=4)
    assert sender.acknowledge(_ack(16, 64), now=0.1) == []
    assert _numbers(sender.tick(2.0)) == [15]
    assert _numbers(sender.acknowledge(_ack(16, 80), now=2.1)) == [16]
    sender.acknowledge(_ack(17, 81), now=2.2)
    assert sender.num_kept == 0


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 1 << 32))
def test_what_a_sender_may_send_its_receiver_may_take(rows: list[int], seed: int) -> None:
    """Whatever is lost, late or done out of turn; and all of it comes at last. Nothing is acknowledged unasked for."""
    rng = random.Random(seed)
    sender, receiver = FrameSender(limit=50, resend_after_s=1.0, max_rows=3), FrameReceiver(window=50, max_rows=3)
    now, working, acks = 0.0, list[int](), list[Ack]()
    sends = [send for count in rows for send in sender.push(_make(), now, num_rows=count)]
    while sender.num_kept or sender.num_backlog:
        for send in sends:
            number = send.message.frame  # type: ignore[union-attr]
            if rng.random() < 0.3:
                continue
            if not receiver.holds(number):
                receiver.check(number, rows[number])
                receiver.hold(number, now, rows[number])
                working.append(number)
            elif rng.random() < 0.7:
                acks.append(receiver.acknowledgement(1, 1, now, Lane.BULK))
        if working and rng.random() < 0.7:
            receiver.retire([working.pop(rng.randrange(len(working)))])
            if rng.random() < 0.7:
                acks.append(receiver.acknowledgement(1, 1, now, Lane.BULK))
        now += 0.3
        sends = sender.acknowledge(acks.pop(rng.randrange(len(acks))), now) if acks else []
        sends += sender.tick(now)
        assert now < 1000
