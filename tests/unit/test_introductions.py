"""A worker's links that no plan needs: made on an Introduce, measured on a MeasureLink, reused by a Wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from bloombee.errors import BloomBeeError, ConfigError, LinkDown, LocalProtocolError, NotSpoken, RemoteProtocolError
from bloombee.links.estimator import LinkEstimator
from bloombee.links.window import BulkWindow
from bloombee.roles.introductions import Introductions
from bloombee.roles.neighbours import Neighbours
from bloombee.transport.link_events import Counters, LinkEvent, LinkEventKind
from bloombee.types import Lane
from bloombee.wire.liveness import LoopClock
from bloombee.wire.messages import (
    PROTOCOL_VERSION,
    Heartbeat,
    Hello,
    Introduce,
    Introduced,
    LinkReport,
    MeasureLink,
    Peer,
    Welcome,
)

HEAD_LINK, LINK, OTHER = b"h" * 16, b"n" * 16, b"o" * 16
DIALLED = Peer(2, "tcp://127.0.0.1:1", b"k" * 32, LINK, True, None)
AWAITED = replace(DIALLED, endpoint="", dials=False)


class _Endpoint:
    """Keeps what is sent, dialled and allowed."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Lane, Any]] = []
        self.links: set[bytes] = {HEAD_LINK}
        self.learns: dict[bytes, LinkEstimator] = {HEAD_LINK: LinkEstimator()}
        self.measuring: list[tuple[bytes, bool, Callable[[], None]]] = []

    def send(self, link: bytes, lane: Lane, message: Any, *_: Any) -> int:
        if link not in self.links:
            raise LinkDown("no link")
        self.sent.append((link, lane, message))
        return 1

    def dial(self, link: bytes, endpoint: str, _: bytes) -> None:
        if not endpoint:
            raise ConfigError("cannot dial ''")
        self._open(link)

    def allow(self, link: bytes, *_: Any) -> None:
        self._open(link)

    def _open(self, link: bytes) -> None:
        if link in self.links:
            raise LocalProtocolError("exists already")
        self.links.add(link)
        self.learns[link] = LinkEstimator()

    def hang_up(self, link: bytes) -> None:
        self.links.discard(link)

    forbid = hang_up

    def estimator(self, link: bytes) -> LinkEstimator:
        if link not in self.links:
            raise LinkDown("no link")
        return self.learns[link]

    def measure(self, link: bytes, *, fills: bool, done: Callable[[], None]) -> None:
        if link not in self.links:
            raise LinkDown("no link")
        self.measuring.append((link, fills, done))

    def bulk_window(self, _: bytes) -> BulkWindow:
        return BulkWindow()

    def counters(self, *_: Any) -> Counters:
        return Counters()

    def pending_bytes(self, *_: Any) -> int:
        return 0

    def to_head(self, kind: type) -> list[Any]:
        return [message for link, _, message in self.sent if link == HEAD_LINK and isinstance(message, kind)]


class _Worker:
    """Number 1, of swarm 1."""

    def __init__(self) -> None:
        self.endpoint = _Endpoint()
        self.is_serving = False
        self.neighbours = Neighbours(
            self.endpoint,  # type: ignore[arg-type]
            swarm=1,
            worker=1,
            clock=LoopClock(0.025),
            heartbeat_s=0.1,
            silence_s=1.0,
        )
        self.introductions = Introductions(
            self.endpoint,  # type: ignore[arg-type]
            HEAD_LINK,
            self.neighbours,
            lambda: self.is_serving,
        )

    def introduce(self, peer: Peer) -> None:
        self.introductions.introduce(Introduce(peer))

    async def greet(self, link: bytes = LINK) -> None:
        """By the other end."""
        neighbour = self.neighbours.get(link)
        assert neighbour is not None
        for lane in Lane:
            if neighbour.peer.dials:
                self.neighbours.greeted(link, lane, Welcome(PROTOCOL_VERSION, (0,), 0, 0, 0))
            else:
                self.neighbours.greeted(link, lane, Hello(PROTOCOL_VERSION, 1, neighbour.peer.worker, "s", (0,), 0))
        await asyncio.sleep(0)

    def answers(self) -> list[tuple[bytes, str]]:
        return [(said.link, said.code) for said in self.endpoint.to_head(Introduced)]


def _run(use: Callable[[_Worker], Awaitable[None]]) -> None:
    async def inside() -> None:
        await use(_Worker())

    asyncio.run(inside())


@pytest.mark.parametrize("peer", [DIALLED, AWAITED], ids=["dialled", "awaited"])
def test_an_introduction_is_answered_when_the_peer_has_been_greeted_and_again_when_it_is_said_again(peer: Peer) -> None:
    async def use(worker: _Worker) -> None:
        worker.introduce(peer)
        worker.introduce(peer)
        assert worker.answers() == []
        await worker.greet()
        assert worker.answers() == [(LINK, "")]
        worker.introduce(peer)
        assert worker.answers() == [(LINK, "")] * 2
        assert worker.endpoint.links == {HEAD_LINK, LINK}

    _run(use)


def test_it_outlives_the_seats_that_use_its_link() -> None:
    async def use(worker: _Worker) -> None:
        worker.introduce(DIALLED)
        await worker.greet()
        assert worker.neighbours.meet(DIALLED) is worker.neighbours.get(LINK)  # as a Wire does: no second connection
        worker.neighbours.leave()
        assert LINK in worker.neighbours

    _run(use)


def test_another_link_to_the_same_peer_takes_its_place() -> None:
    async def use(worker: _Worker) -> None:
        worker.introduce(DIALLED)
        worker.introduce(replace(AWAITED, link=OTHER))
        assert worker.endpoint.links == {HEAD_LINK, OTHER}
        await worker.greet(OTHER)
        assert worker.answers() == [(OTHER, "")]

    _run(use)


def test_a_peer_that_cannot_be_reached_is_reported_and_forgotten() -> None:
    async def use(worker: _Worker) -> None:
        worker.introduce(DIALLED)
        worker.neighbours.event(LINK, LinkEvent(LinkEventKind.PORT_REFUSES, LINK, Lane.CONTROL, LinkDown("x")))
        await asyncio.sleep(0)
        assert worker.answers() == []  # a connection that was never greeted may be dialled again
        for _ in range(2):
            worker.neighbours.event(LINK, LinkEvent(LinkEventKind.REFUSED, LINK, Lane.CONTROL, LinkDown("nonsense")))
        await asyncio.sleep(0)
        assert worker.answers() == [(LINK, "LinkDown")]
        assert worker.endpoint.links == {HEAD_LINK}

    _run(use)


def test_an_address_that_is_none_is_reported_too() -> None:
    async def use(worker: _Worker) -> None:
        worker.introduce(replace(DIALLED, endpoint=""))
        assert worker.answers() == [(LINK, "LinkDown")]

    _run(use)


@pytest.mark.parametrize(
    ("peer", "error"),
    [
        (replace(DIALLED, through=3), NotSpoken),
        (replace(DIALLED, worker=1), RemoteProtocolError),
        (replace(DIALLED, link=HEAD_LINK), RemoteProtocolError),
        (replace(DIALLED, key=b"x" * 32), RemoteProtocolError),
        (replace(DIALLED, worker=3), RemoteProtocolError),
    ],
    ids=["through another", "itself", "the head's link", "another key", "another worker"],
)
def test_nonsense_is_refused_and_changes_nothing(peer: Peer, error: type[BloomBeeError]) -> None:
    async def use(worker: _Worker) -> None:
        worker.introduce(DIALLED)
        with pytest.raises(error):
            worker.introduce(peer)
        assert worker.endpoint.links == {HEAD_LINK, LINK}
        await worker.greet()
        assert worker.answers() == [(LINK, "")]

    _run(use)


def test_what_is_measured_is_reported_with_the_orders_number() -> None:
    async def use(worker: _Worker) -> None:
        worker.introduce(DIALLED)
        await worker.greet()
        for number, target, link in ((5, 2, LINK), (6, 0, HEAD_LINK)):
            order = MeasureLink(number, target, fills=True)
            worker.introductions.measure(order)
            worker.introductions.measure(order)  # said again while it is under way
            (measured,) = worker.endpoint.measuring
            assert measured[:2] == (link, True)
            worker.endpoint.learns[link].filled(1e6, 1.0, 0.0)
            worker.endpoint.measuring.clear()
            measured[2]()
            worker.introductions.measure(order)  # and when the answer may be lost
            assert not worker.endpoint.measuring
        reports = worker.endpoint.to_head(LinkReport)
        assert [(one.number, one.target, one.bandwidth_bytes_per_s) for one in reports] == [(5, 2, 1e6)] * 2 + [(6, 0, 1e6)] * 2

    _run(use)


def test_of_a_link_that_is_not_there_nothing_is_known_and_that_is_said() -> None:
    async def use(worker: _Worker) -> None:
        worker.introductions.measure(MeasureLink(5, 9, fills=False))
        (report,) = worker.endpoint.to_head(LinkReport)
        assert (report.number, report.target, report.base_rtt_s, report.bandwidth_bytes_per_s) == (5, 9, None, None)

    _run(use)


def test_a_worker_that_serves_keeps_no_link_full() -> None:
    async def use(worker: _Worker) -> None:
        worker.introduce(DIALLED)
        await worker.greet()
        worker.is_serving = True
        worker.introductions.measure(MeasureLink(5, 2, fills=True))
        assert [report.number for report in worker.endpoint.to_head(LinkReport)] == [5]
        worker.introductions.measure(MeasureLink(6, 2, fills=False))
        assert [fills for _, fills, _ in worker.endpoint.measuring] == [False]

    _run(use)


def test_who_dialled_asks_and_the_other_end_gives_the_question_back() -> None:
    async def use(worker: _Worker) -> None:
        worker.introduce(AWAITED)
        await worker.greet()
        worker.neighbours.beat(LINK, Heartbeat(7))
        assert worker.endpoint.sent[-1] == (LINK, Lane.CONTROL, Heartbeat(7))

    _run(use)
