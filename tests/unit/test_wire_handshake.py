"""The handshake's state machines: each transition, and that unexpected events change nothing."""

from typing import Any

import pytest

from bloombee.errors import AuthenticationError, DeadlineExceeded, QueueFull, RemoteProtocolError, VersionMismatch, to_wire
from bloombee.types import Lane
from bloombee.wire.handshake import (
    Again,
    ClockEstimate,
    Dialler,
    Failed,
    Listener,
    Opened,
    Received,
    Say,
    Started,
    State,
    Tick,
    Timed,
    estimate_clock,
)
from bloombee.wire.join import Admitted, Door, Joiner
from bloombee.wire.messages import PROTOCOL_VERSION, Forward, Heartbeat, Hello, Join, Joined, Refused, Welcome

HELLO = Hello(PROTOCOL_VERSION, 9, 3, "test", (2, 1, 0), 0)
MS = 1_000_000


def dialler() -> Dialler:
    return Dialler(HELLO, peer="tcp://h:1", retry_ns=100 * MS, deadline_ns=1000 * MS)


def listener() -> Listener:
    return Listener(swarm=9, worker=3, codecs=(0, 1))


def hellos(commands: list[Any]) -> list[Lane]:
    return [c.lane for c in commands if isinstance(c, Say) and isinstance(c.message, Hello)]


def test_both_sides_open_when_both_lanes_are_greeted() -> None:
    d, l = dialler(), listener()
    first = d.handle(Started(1000))
    assert hellos(first) == [Lane.CONTROL, Lane.BULK]
    skew = 7_000_000_000
    opened: list[Any] = []
    for say in first:
        for answer in l.handle(Received(say.lane, say.message, 1400 + skew)):
            if isinstance(answer, Opened):
                opened.append(("listener", answer))
            else:
                opened += [("dialler", c) for c in d.handle(Received(answer.lane, answer.message, 1800))]
    assert dict(opened) == {
        "listener": Opened((0, 1), None),
        "dialler": Opened((1, 0), ClockEstimate(offset_ns=skew, round_trip_ns=800)),
    }
    assert d.state is State.OPEN
    assert d.next_tick_ns is None


def test_hello_is_repeated_only_on_the_silent_lane_and_not_too_early() -> None:
    d = dialler()
    d.handle(Started(0))
    assert d.next_tick_ns == 100 * MS
    assert d.handle(Tick(99 * MS)) == []
    d.handle(Received(Lane.CONTROL, Welcome(PROTOCOL_VERSION, (), 0, 5, 5), 10))
    again = d.handle(Tick(100 * MS))
    assert hellos(again) == [Lane.BULK]
    assert again[0].message.sent_ns == 100 * MS


def test_silence_ends_at_the_deadline_with_what_to_do() -> None:
    d = dialler()
    d.handle(Started(0))
    (failed,) = d.handle(Tick(1000 * MS))
    assert isinstance(failed.error, DeadlineExceeded)
    assert "control, bulk" in failed.error.message
    assert d.state is State.FAILED
    assert d.handle(Tick(2000 * MS)) == []


def test_refusal_arrives_as_the_error_it_was() -> None:
    d = dialler()
    d.handle(Started(0))
    (failed,) = d.handle(Received(Lane.CONTROL, Refused(*to_wire(QueueFull("full", limit=3))), 5))
    assert isinstance(failed.error, QueueFull)
    assert failed.error.fields == {"limit": 3}


@pytest.mark.parametrize("event", [Tick(5), Received(Lane.CONTROL, Welcome(PROTOCOL_VERSION, (), 0, 5, 5), 10)])
def test_nothing_happens_before_the_start(event: Any) -> None:
    d = dialler()
    assert d.handle(event) == []
    assert d.state is State.IDLE


def test_unexpected_messages_leave_the_dialler_as_it_was() -> None:
    d = dialler()
    d.handle(Started(0))
    assert d.handle(Started(1)) == []
    assert d.handle(Received(Lane.BULK, Heartbeat(1), 5)) == []
    d.handle(Received(Lane.BULK, Welcome(PROTOCOL_VERSION, (), 0, 5, 5), 10))
    assert d.handle(Received(Lane.BULK, Welcome(PROTOCOL_VERSION, (), 0, 5, 5), 10)) == []
    assert d.state is State.GREETING


def test_another_version_fails_on_both_sides() -> None:
    d, l = dialler(), listener()
    d.handle(Started(0))
    (failed,) = d.handle(Received(Lane.CONTROL, Welcome(PROTOCOL_VERSION + 1, (), 0, 5, 5), 10))
    assert isinstance(failed.error, VersionMismatch)
    hello = Hello(PROTOCOL_VERSION + 1, 9, 3, "test", (), 0)
    said, failed = l.handle(Received(Lane.CONTROL, hello, 5))
    assert said.message.code == "VersionMismatch"
    assert isinstance(failed.error, VersionMismatch)


@pytest.mark.parametrize(
    "message",
    [
        Forward(0, 1, 0, 0, 0, 0, ()),
        Hello(PROTOCOL_VERSION, 8, 3, "test", (), 0),
        Hello(PROTOCOL_VERSION, 9, 4, "test", (), 0),
    ],
)
def test_the_listener_refuses_strange_openings(message: Any) -> None:
    l = listener()
    said, failed = l.handle(Received(Lane.BULK, message, 5))
    assert isinstance(said, Say)
    assert said.lane is Lane.BULK
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, RemoteProtocolError)
    assert l.handle(Received(Lane.BULK, HELLO, 6)) == []


def test_every_hello_is_welcomed_but_the_link_opens_once() -> None:
    l = listener()
    assert len(l.handle(Received(Lane.CONTROL, HELLO, 1))) == 1
    assert len(l.handle(Received(Lane.CONTROL, HELLO, 2))) == 1
    assert len(l.handle(Received(Lane.BULK, HELLO, 3))) == 2
    assert len(l.handle(Received(Lane.BULK, HELLO, 4))) == 1
    assert l.handle(Received(Lane.BULK, Heartbeat(1), 5)) == []
    assert l.state is State.OPEN


def test_clock() -> None:
    clock = estimate_clock(1000, 51_300, 51_400, 1600)
    assert clock.round_trip_ns == 500
    assert clock.offset_ns == 50_050
    assert abs(clock.offset_ns - 50_000) <= clock.error_ns
    for stamps in ((1000, 5000, 6000, 1500), (1000, 5000, 4000, 9000)):
        with pytest.raises(RemoteProtocolError):
            estimate_clock(*stamps)


def test_an_open_link_says_hello_again_and_learns_its_round_trip() -> None:
    d = dialler()
    assert d.handle(Again(Lane.BULK, 0)) == []
    d.handle(Started(0))
    for lane in (Lane.CONTROL, Lane.BULK):
        d.handle(Received(lane, Welcome(PROTOCOL_VERSION, (0,), 0, 5 * MS, 5 * MS), 10 * MS))
    assert d.state is State.OPEN
    (said,) = d.handle(Again(Lane.BULK, 50 * MS))
    assert isinstance(said, Say)
    assert said.lane is Lane.BULK
    assert isinstance(said.message, Hello)
    assert said.message.sent_ns == 50 * MS
    (timed,) = d.handle(Received(Lane.BULK, Welcome(PROTOCOL_VERSION, (0,), 50 * MS, 60 * MS, 60 * MS), 80 * MS))
    assert isinstance(timed, Timed)
    assert timed.clock.round_trip_ns == 30 * MS
    impossible = Welcome(PROTOCOL_VERSION, (0,), 500 * MS, 0, 0)
    assert d.handle(Received(Lane.BULK, impossible, 90 * MS)) == []


# -- joining -----------------------------------------------------------------------------------

SECRET = b"0123456789abcdef"


def join(secret: bytes = SECRET, protocol: int = PROTOCOL_VERSION) -> Join:
    return Join(protocol, secret, "n", "s", "", "cpu", 1, ())


def door(uses: int = 1) -> Door:
    d = Door(swarm=9, heartbeat_s=0.5, silence_s=3.0)
    d.issue(SECRET, uses=uses)
    return d


A, B = b"a" * 32, b"b" * 32
L, M = b"l" * 16, b"m" * 16


def _says(answer: object) -> str:
    assert isinstance(answer, Refused)
    assert answer.code == AuthenticationError.code
    return str(answer.fields["message"])


def test_a_secret_lets_one_key_in_and_answers_it_again() -> None:
    d = door()
    first = d.knock(A, L, join())
    assert isinstance(first, Admitted)
    assert first.joined == Joined(1, 9, 0.5, 3.0, False)
    again = d.knock(A, L, join())
    assert isinstance(again, Admitted)
    assert (again.worker, again.again) == (1, True)
    assert "spent" in _says(d.knock(B, M, join()))
    assert d.num_refused == 1


def test_as_many_as_the_token_says() -> None:
    d = door(uses=2)
    answers = [d.knock(bytes([n]) * 32, bytes([n]) * 16, join()) for n in range(3)]
    assert [a.worker if isinstance(a, Admitted) else None for a in answers] == [1, 2, None]


@pytest.mark.parametrize("message", [join(b"x" * 16), join(protocol=PROTOCOL_VERSION + 1), HELLO, Forward(0, 1, 0, 0, 0, 0, ())])
def test_others_are_refused_and_spend_nothing(message: Any) -> None:
    d = door()
    assert isinstance(d.knock(A, L, message), Refused)
    assert d.num_refused == 1
    assert isinstance(d.knock(A, L, join()), Admitted)


def test_the_token_of_one_who_is_gone_lets_one_in_under_a_new_number() -> None:
    d = door()
    for number in (1, 2, 3):
        admitted = d.knock(A, bytes([number]) * 16, join())
        assert isinstance(admitted, Admitted)
        assert (admitted.worker, admitted.again) == (number, False)
        assert "spent" in _says(d.knock(B, M, join()))
        d.remove(A)
        d.remove(A)


def test_two_workers_with_one_key_are_told_so_whichever_token_the_second_has() -> None:
    d = door()
    d.issue(b"another secret..")
    d.knock(A, L, join())
    for secret in (SECRET, b"another secret.."):
        assert "this key is in use by worker 'n': give each worker a key of its own" in _says(d.knock(A, M, join(secret)))
    assert isinstance(d.knock(B, M, join(b"another secret..")), Admitted)


def test_who_may_be_the_same_worker_come_back_is_left_to_ask_again() -> None:
    d = door()
    d.knock(A, L, join())
    assert d.knock(A, M, join(), in_doubt={1}) is None
    assert d.knock(B, M, join(), in_doubt={1}) is None
    assert isinstance(d.knock(A, L, join(), in_doubt={1}), Admitted)
    assert "spent" in _says(d.knock(B, M, join(), in_doubt={2}))
    assert d.num_refused == 1


def test_a_door_that_is_shut_lets_nobody_new_in() -> None:
    d = door(uses=2)
    d.knock(A, L, join())
    d.is_shut = True
    assert isinstance(d.knock(A, L, join()), Admitted)
    assert "complete" in _says(d.knock(B, M, join()))


def test_a_refused_secret_is_not_told_in_the_answer_or_repr() -> None:
    d = door()
    d.knock(B, M, join())
    assert SECRET.decode() not in repr(d) + repr(d.knock(A, L, join(b"y" * 16)))


def test_joiner() -> None:
    j = Joiner(join(), peer="tcp://h:1", retry_ns=100 * MS, deadline_ns=250 * MS)
    assert j.handle(Started(0)) == [Say(Lane.CONTROL, join())]
    assert j.handle(Tick(50 * MS)) == []
    assert j.handle(Tick(100 * MS)) == [Say(Lane.CONTROL, join())]
    assert j.handle(Received(Lane.CONTROL, Heartbeat(1), 0)) == []
    assert j.handle(Received(Lane.CONTROL, Joined(4, 9, 0.5, 3.0, False), 0)) == []
    assert j.joined is not None
    assert j.joined.worker == 4
    assert j.handle(Tick(900 * MS)) == []


def test_joiner_gives_up() -> None:
    silent = Joiner(join(), peer="tcp://h:1", retry_ns=100 * MS, deadline_ns=250 * MS)
    silent.handle(Started(0))
    (failed,) = silent.handle(Tick(250 * MS))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, DeadlineExceeded)
    refused = Joiner(join(), peer="tcp://h:1")
    refused.handle(Started(0))
    (failed,) = refused.handle(Received(Lane.CONTROL, Refused("AuthenticationError", {"message": "spent"}), 5))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, AuthenticationError)
    assert failed.error.message == "spent"
