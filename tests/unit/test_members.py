"""The head's members: coming in, broken links by lane, round trips by heartbeats, who is taken for gone."""

from __future__ import annotations

from typing import Any

import pytest

from bloombee.errors import BloomBeeError, LinkDown
from bloombee.roles import members as module
from bloombee.roles.members import Members
from bloombee.transport.link_events import LinkEvent, LinkEventKind
from bloombee.types import Lane, WorkerId
from bloombee.wire.join import Admitted, Door
from bloombee.wire.liveness import grace_s
from bloombee.wire.messages import PROTOCOL_VERSION, Heartbeat, Hello, Join, Joined

SECRET = b"0123456789abcdef"
KEY, LINK, OTHER = b"k" * 32, b"l" * 16, b"o" * 16
JOIN = Join(PROTOCOL_VERSION, SECRET, "far", "s", "", "cpu", 1, ())


class _Endpoint:
    swarm = 9

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self.refused: list[tuple[bytes, BloomBeeError]] = []
        self.allowed: set[bytes] = set()

    def allow(self, link: bytes, key: bytes, worker: WorkerId) -> None:
        self.allowed.add(link)

    def forbid(self, link: bytes) -> None:
        self.allowed.discard(link)

    def refuse(self, link: bytes, error: BloomBeeError) -> None:
        self.refused.append((link, error))

    def send(self, link: bytes, lane: Lane, message: Any) -> int:
        if link not in self.allowed:
            raise LinkDown("no such link")
        self.sent.append((link, message))
        return 1


class _Swarm:
    """One worker that has joined and was greeted, under a clock that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.endpoint = _Endpoint()
        self.told: list[Any] = []
        door = Door(9, 0.5, 3.0)
        door.issue(SECRET)
        self.members = Members(
            self.endpoint,  # type: ignore[arg-type]
            door,
            on_in=lambda admitted: self.told.append(admitted),
            on_away=lambda worker: self.told.append(("away", worker)),
            on_gone=self._gone,
            on_restored=lambda worker: self.told.append(("restored", worker)),
        )
        self.members.knocked(LINK, KEY, JOIN)
        self.now += 0.4
        for lane in Lane:
            self.members.hears(LINK, lane, Hello(PROTOCOL_VERSION, 9, 1, "s", (0,), 0))
        assert isinstance(self.told.pop(), Admitted)

    def _gone(self, worker: WorkerId, reason: str) -> None:
        self.told.append(("gone", worker))
        self.members.hang_up(worker)

    def event(self, kind: LinkEventKind, lane: Lane) -> None:
        self.members.link_event(LinkEvent(kind, LINK, lane, LinkDown("x")))

    def beat(self, count: int, after_s: float) -> None:
        self.members.send(1, Lane.CONTROL, Heartbeat(count))
        self.now += after_s
        assert self.members.hears(LINK, Lane.CONTROL, Heartbeat(count)) == 1


@pytest.fixture
def swarm(monkeypatch: pytest.MonkeyPatch) -> _Swarm:
    return _Swarm(monkeypatch)


def test_how_long_a_worker_may_be_away_follows_from_its_heartbeats(swarm: _Swarm) -> None:
    """The first word of its own after Joined already says how long the way is at most."""
    for rtt_s, measure in ((0.4, False), (0.1, True)):
        if measure:
            swarm.beat(7, rtt_s)
            assert swarm.members.hears(LINK, Lane.CONTROL, Heartbeat(0)) == 1  # of its own accord: says nothing
        swarm.told.clear()
        swarm.event(LinkEventKind.DISCONNECTED, Lane.BULK)
        swarm.now += grace_s(rtt_s) - 0.01
        swarm.members.tick(swarm.now)
        assert swarm.told == [("away", 1)]
        if not measure:
            swarm.event(LinkEventKind.CONNECTED, Lane.BULK)
    swarm.now += 0.02
    swarm.members.tick(swarm.now)
    assert swarm.told == [("away", 1), ("gone", 1)]


def test_a_worker_is_restored_when_both_its_lanes_are(swarm: _Swarm) -> None:
    for lane in Lane:
        swarm.event(LinkEventKind.DISCONNECTED, lane)
    swarm.event(LinkEventKind.UNREACHABLE, Lane.BULK)
    swarm.told.clear()
    swarm.event(LinkEventKind.CONNECTED, Lane.CONTROL)
    assert swarm.told == []
    swarm.event(LinkEventKind.CONNECTED, Lane.BULK)
    assert swarm.told == [("restored", 1)]


def test_a_second_worker_with_its_key_is_refused_and_costs_it_nothing(swarm: _Swarm) -> None:
    swarm.members.knocked(OTHER, KEY, JOIN)
    ((link, error),) = swarm.endpoint.refused
    assert link == OTHER
    assert "this key is in use by worker 'far'" in str(error)
    assert swarm.told == []
    swarm.members.knocked(LINK, KEY, JOIN)
    assert swarm.endpoint.sent[-1] == (LINK, Joined(1, 9, 0.5, 3.0))


def test_who_comes_back_as_another_waits_until_the_first_is_gone(swarm: _Swarm) -> None:
    swarm.event(LinkEventKind.DISCONNECTED, Lane.CONTROL)
    swarm.members.knocked(OTHER, KEY, JOIN)
    assert not swarm.endpoint.refused
    assert OTHER not in swarm.endpoint.allowed
    swarm.now += 60.0
    swarm.members.tick(swarm.now)
    swarm.members.knocked(OTHER, KEY, JOIN)
    assert swarm.endpoint.sent[-1] == (OTHER, Joined(2, 9, 0.5, 3.0))
    assert list(swarm.members) == [2]
