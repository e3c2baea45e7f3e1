"""The scheduler in a worker's process: who may say what to it, and over which links it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bloombee.errors import LinkDown, RemoteProtocolError, StalePlan
from bloombee.links.frames import LinkMeter
from bloombee.pipeline.events import Port
from bloombee.roles.scheduler_host import SchedulerHost
from bloombee.roles.seat_host import HERE, Seating
from bloombee.types import Lane
from bloombee.wire import messages as m

HEAD, LAST = b"head" * 4, b"last" * 4
PEER = m.Peer(2, "tcp://h:1", bytes(32), LAST, True, None)
SCHEDULE = m.Schedule(1, (m.Group(0, 8),), 4, 600.0, False, (PEER,), True)
SAMPLING = m.Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)
REQUEST = m.Request(1, 2, 0, bytes(8), m.Opening(2, SAMPLING, 4, (), (), None, None), "", 0, None)


class _Worker:
    """Endpoint and first stage, which remember what they are told."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self.here: list[Any] = []
        self.is_down = False
        self.host = SchedulerHost(
            _wire(1),
            SCHEDULE,
            endpoint=self,
            head_link=HEAD,
            resend_after_s=30.0,
            now=lambda: 0.0,  # type: ignore[arg-type]
        )
        self.host.stage = self

    def send(self, link: bytes, lane: Lane, message: Any) -> int:
        if self.is_down:
            raise LinkDown("down")
        self.sent.append((link, message))
        return 1

    def received(self, link: bytes, message: Any, payload: Any) -> None:
        assert link == HERE
        assert payload is None
        self.here.append(message)
        if isinstance(message, m.Forward) and message.epoch == 9:
            raise StalePlan("late")

    def wired(self, epoch: int = 1) -> None:
        links = {Port.HEAD: HEAD, Port.SCHEDULER: HERE, Port.UPSTREAM: HERE, Port.DOWNSTREAM: LAST}
        self.host.wired(Seating(_wire(epoch), links, (HERE, LAST), LinkMeter()))

    def take(self) -> list[tuple[bytes, Any]]:
        sent, self.sent = self.sent, []
        return sent


def _wire(epoch: int) -> m.Wire:
    return m.Wire(1, epoch, epoch, 0, 2, 2, 8, None, PEER, None, (), SCHEDULE, False, 1, False)


def _on_a_loop(use: Callable[[_Worker], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await use(_Worker())

    asyncio.run(run())


async def _turns() -> None:
    """What was to come in its turn has."""
    for _ in range(4):
        await asyncio.sleep(0)


def test_requests_become_rows_for_the_stage_beside_it_and_tokens_for_the_head() -> None:
    async def use(worker: _Worker) -> None:
        host = worker.host
        assert host.hears(HEAD, m.Ask(1, 1, 0, (REQUEST,), (), (), None))
        assert [type(message) for _, message in worker.take()] == [m.Ack]
        worker.wired()
        worker.wired()
        assert worker.take() == [(LAST, m.Resume(1, 1, ()))]
        host.said_here(m.Resume(1, 1, ()))
        assert worker.here == []  # in its turn
        await _turns()
        resumed, forward = worker.here
        assert resumed == m.Resumed(1, 1)
        assert forward.items[0].tokens == bytes(8)
        assert host.hears(LAST, m.Resumed(1, 1))
        verdict = m.Verdict(1, 1, 0, forward.microbatch, (m.Pick(1, 0, 2, 5, None, ()),), None)
        assert host.hears(LAST, verdict)
        to = {type(message): link for link, message in worker.take()}
        assert to == {m.Told: HEAD, m.Ack: LAST}
        host.restored(HEAD)
        assert [type(message) for _, message in worker.take()] == [m.Told]
        host.restored(b"another" * 2)
        host.moved(0.0)
        host.close()
        assert host.hears(LAST, verdict)
        host.said_here(m.Resume(1, 1, ()))
        await _turns()
        assert worker.take() == []

    _on_a_loop(use)


def test_what_is_none_for_a_scheduler_is_left_to_the_stage() -> None:
    async def use(worker: _Worker) -> None:
        worker.wired()
        for message in (m.Close(1, 1, (), 0), m.Measure(1, 1, 1), m.Retire(1, 1)):
            assert not worker.host.hears(HEAD, message)
        for message in (m.Ack(1, 1, 0, 0, (), 0, 9, 0), m.Gap(1, 1, 1, 0, 0), m.Resume(1, 1, ()), m.TableHeld(1, 1, bytes(4))):
            assert not worker.host.hears(LAST, message)

    _on_a_loop(use)


def test_who_has_no_business_with_it_is_refused() -> None:
    async def use(worker: _Worker) -> None:
        with pytest.raises(StalePlan):
            worker.host.hears(LAST, m.Closed(1, 1, (), 0, 0))
        worker.wired()
        worker.take()
        with pytest.raises(StalePlan):
            worker.host.hears(LAST, m.Closed(1, 2, (), 0, 0))
        for message in (m.Closed(1, 1, (), 0, 0), m.Lost(1, 1, (), False), m.Verdict(1, 1, 0, 0, (), None)):
            with pytest.raises(RemoteProtocolError):
                worker.host.hears(b"stranger" * 2, message)
        with pytest.raises(StalePlan):
            worker.host.hears(HEAD, m.Ask(1, 7, 0, (), (), (), None))
        with pytest.raises(RemoteProtocolError):
            worker.host.hears(HEAD, m.Ack(1, 1, 0, 3, (), 0, 9, 0))
        worker.host.said_here(m.Resume(1, 5, ()))  # of an epoch that is over here: nobody's fault
        await _turns()
        assert worker.take() == []

    _on_a_loop(use)


def test_a_link_that_is_down_costs_nothing_but_the_wait() -> None:
    async def use(worker: _Worker) -> None:
        worker.is_down = True
        worker.wired()
        assert worker.host.hears(HEAD, m.Ask(1, 1, 0, (REQUEST,), (), (), None))
        worker.host.tick(0.0)
        worker.is_down = False
        worker.host.said_here(m.Resume(1, 1, ()))
        await _turns()
        assert any(isinstance(message, m.Forward) for message in worker.here)

    _on_a_loop(use)
