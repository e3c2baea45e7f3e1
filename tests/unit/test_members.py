"""The head's members: coming in, broken links by lane, round trips by heartbeats, who is taken for gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bloombee.errors import BloomBeeError, LinkDown
from bloombee.links.estimator import LinkEstimator
from bloombee.roles import members as module
from bloombee.roles.members import Members
from bloombee.roles.watching import LOADING_SILENCE_S
from bloombee.transport.link_events import Counters, LinkEvent, LinkEventKind
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

    def counters(self, link: bytes, lane: Lane) -> Counters:
        return Counters()

    def pending_bytes(self, link: bytes, lane: Lane) -> int:
        return 0

    def estimator(self, link: bytes) -> LinkEstimator:
        return LinkEstimator()

    def send(self, link: bytes, lane: Lane, message: Any) -> int:
        if link not in self.allowed:
            raise LinkDown("no such link")
        self.sent.append((link, message))
        return 1


class _Swarm:
    """One worker that has joined and was greeted, under a clock that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.endpoint = _Endpoint()
        self.told: list[Any] = []
        self.is_loading = False
        door = Door(9, 0.1, 0.675)
        door.issue(SECRET)
        self.members = Members(
            self.endpoint,  # type: ignore[arg-type]
            door,
            on_in=lambda admitted: self.told.append(admitted),
            on_away=lambda worker: self.told.append(("away", worker)),
            on_gone=self._gone,
            on_restored=lambda worker: self.told.append(("restored", worker)),
        )
        self.members._may_be_silent = lambda _: self.is_loading
        self.clock = self.members.clock
        self.clock.tick(self.now)
        self.members.knocked(LINK, KEY, JOIN)
        self.look(0.4)
        assert not any(isinstance(message, Heartbeat) for _, message in self.endpoint.sent)  # it does not know the swarm yet
        for lane in Lane:
            self.members.hears(LINK, lane, Hello(PROTOCOL_VERSION, 9, 1, "s", (0,), 0))
        assert isinstance(self.told.pop(), Admitted)

    def _gone(self, worker: WorkerId, reason: str) -> None:
        self.told.append(("gone", worker))
        self.members.hang_up(worker)

    def event(self, kind: LinkEventKind, lane: Lane) -> None:
        self.members.link_event(LinkEvent(kind, LINK, lane, LinkDown("x")))

    def look(self, seconds: float) -> None:
        """Some time in which the worker says nothing."""
        for _ in range(round(seconds / 0.025)):
            self.now += 0.025
            self.clock.tick(self.now)
            self.members.look(self.now)

    def beat(self, after_s: float) -> None:
        """The next question, and its answer."""
        self.endpoint.sent.clear()
        while not self.endpoint.sent:
            self.look(0.025)
        (beat,) = [message for _, message in self.endpoint.sent if isinstance(message, Heartbeat)]
        self.now += after_s
        self.clock.tick(self.now)
        assert self.members.hears(LINK, Lane.CONTROL, beat) is None


@pytest.fixture
def swarm(monkeypatch: pytest.MonkeyPatch) -> _Swarm:
    return _Swarm(monkeypatch)


def test_how_long_a_worker_may_be_away_follows_from_its_heartbeats(swarm: _Swarm) -> None:
    """The first word of its own after Joined already says how long the way is at most."""
    for rtt_s, measure in ((0.4, False), (0.1, True)):
        if measure:
            swarm.beat(rtt_s)
        swarm.told.clear()
        swarm.event(LinkEventKind.DISCONNECTED, Lane.BULK)
        swarm.look(grace_s(rtt_s) - 0.05)
        assert swarm.told == [("away", 1)]
        if not measure:
            swarm.event(LinkEventKind.CONNECTED, Lane.BULK)
    swarm.look(0.1)
    assert swarm.told == [("away", 1), ("gone", 1)]


def test_a_worker_that_is_silent_is_gone_later_if_it_loads_and_not_if_this_process_stood_still(swarm: _Swarm) -> None:
    swarm.is_loading = True
    swarm.look(LOADING_SILENCE_S - 0.5)
    assert swarm.told == []
    swarm.beat(0.0)
    swarm.is_loading = False
    swarm.look(0.5)
    swarm.now += 60.0
    swarm.clock.tick(swarm.now)
    swarm.beat(0.0)
    swarm.look(0.6)
    assert swarm.told == []
    swarm.look(0.1)
    assert swarm.told == [("gone", 1)]


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
    assert swarm.endpoint.sent[-1] == (LINK, Joined(1, 9, 0.1, 0.675, False))


def test_who_comes_back_as_another_waits_until_the_first_is_gone(swarm: _Swarm) -> None:
    swarm.event(LinkEventKind.DISCONNECTED, Lane.CONTROL)
    swarm.members.knocked(OTHER, KEY, JOIN)
    assert not swarm.endpoint.refused
    assert OTHER not in swarm.endpoint.allowed
    swarm.look(60.0)
    swarm.members.knocked(OTHER, KEY, JOIN)
    assert swarm.endpoint.sent[-1] == (OTHER, Joined(2, 9, 0.1, 0.675, False))
    assert list(swarm.members) == [2]
