"""What the head and the workers of a simulated swarm do before the first plan: they meet, and measure links with padding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from bloombee.links.estimator import LinkEstimator, wire_bytes
from bloombee.links.gauge import Gauge, Train, link_report
from bloombee.sim.carrier import HEAD, SimCarrier, worker_name
from bloombee.sim.clock import VirtualClock
from bloombee.sim.network import SimLink
from bloombee.types import HEAD as HEAD_ID
from bloombee.types import Lane, WorkerId
from bloombee.wire.messages import AnyMessage, Introduce, Introduced, LinkReport, MeasureLink, Peer

HEADER_BYTES, ACK_BYTES = 23, 72
"""Of a probe besides its padding; of its acknowledgement, on the wire."""
HANDSHAKE_TRIPS = 6
"""Until a link is open that is dialled: TCP, ZMTP, CURVE, Hello."""
DIAL_AGAIN_S = 0.25
CLOCK_S = 1000.0
"""By which every clock is ahead of the head's, for each worker before it."""


class SimGauging:
    """As ``transport/gauging.py``, until ``done`` is called."""

    def __init__(
        self, clock: VirtualClock, out: SimLink, back: SimLink, estimator: LinkEstimator, *, fills: bool, done: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._out, self._back = out, back
        self._gauge = Gauge(estimator, clock.now, fills=fills)
        self._done = done
        self._number = 0
        self._wakes_at = -1.0

    def go_on(self) -> None:
        gauge = self._gauge
        if gauge.is_over:
            return
        while (train := gauge.next(self._clock.now)) is not None:
            self._send(train)
        if gauge.is_over:
            self._done()
        elif gauge.wake_at != self._wakes_at:
            self._wakes_at = gauge.wake_at
            self._clock.call_at(gauge.wake_at, self.go_on)

    def _send(self, train: Train) -> None:
        first = self._number
        self._number += train.num_probes
        self._gauge.sent(first, train, HEADER_BYTES, self._clock.now)
        for upto in range(first + 1, self._number + 1):
            num_bytes = wire_bytes(train.probe_bytes + HEADER_BYTES, 1)
            self._out.send(num_bytes, partial(self._read, upto), lane=Lane.BULK, reliable=True)

    def _read(self, upto: int) -> None:
        """At the other end."""
        self._back.send(ACK_BYTES, partial(self._acked, upto, self._clock.now + CLOCK_S), reliable=True)

    def _acked(self, upto: int, read_s: float) -> None:
        if self._gauge.is_over:
            return
        self._gauge.acked(upto, read_s, self._clock.now)
        if self._gauge.is_over:
            self._done()
        else:
            self.go_on()


class SimGauges:
    """Of one party: the links from it.

    Args:
        name: its place. report: takes the answers.
    """

    def __init__(self, clock: VirtualClock, carrier: SimCarrier, name: str, report: Callable[[LinkReport], None]) -> None:
        self._clock = clock
        self._carrier = carrier
        self._name = name
        self._report = report
        self._estimators: dict[WorkerId, LinkEstimator] = {}
        self._asked: set[int] = set()
        self._reports: dict[int, LinkReport] = {}
        """What came of orders, by their number."""

    def measure(self, order: MeasureLink) -> None:
        """As a worker does; said again it is reported again."""
        if order.number in self._asked:
            if order.number in self._reports:
                self._report(self._reports[order.number])
            return
        self._asked.add(order.number)
        target = HEAD if order.target == HEAD_ID else worker_name(order.target)
        links = self._carrier.link(self._name, target), self._carrier.link(target, self._name)
        estimator = self._estimators.setdefault(order.target, LinkEstimator())
        done = partial(self._measured, order, estimator)
        SimGauging(self._clock, *links, estimator, fills=order.fills, done=done).go_on()

    def _measured(self, order: MeasureLink, estimator: LinkEstimator) -> None:
        said = self._reports[order.number] = link_report(order, estimator.facts())
        self._report(said)


class Surroundings(Protocol):
    """What a worker finds around it."""

    clock: VirtualClock
    carrier: SimCarrier

    def introductions_of(self, worker: WorkerId) -> SimIntroductions: ...
    def say_of(self, worker: WorkerId, message: AnyMessage) -> None:
        """To the head."""


class SimIntroductions:
    """A worker's links that no plan needs yet, as ``roles/introductions.py``.

    Args:
        is_reachable: whether others get through when they dial it.
    """

    def __init__(self, worker: WorkerId, around: Surroundings, *, is_reachable: bool) -> None:
        self.id = worker
        self.is_reachable = is_reachable
        self._around = around
        self._say = partial(around.say_of, worker)
        self._gauges = SimGauges(around.clock, around.carrier, worker_name(worker), self._say)
        self._peers: dict[WorkerId, Peer] = {}
        self._greeted: set[bytes] = set()

    def order(self, order: Introduce | MeasureLink) -> None:
        """Of the head."""
        match order:
            case Introduce(peer=peer):
                self._introduce(peer)
            case MeasureLink():
                self._gauges.measure(order)

    def _introduce(self, peer: Peer) -> None:
        if peer.link in self._greeted:
            self._say(Introduced(peer.link, "", {}))
            return
        is_known = self._peers.get(peer.worker) == peer
        self._peers[peer.worker] = peer
        if peer.dials and not is_known:
            here, there = worker_name(self.id), worker_name(peer.worker)
            links = self._around.carrier.link(here, there), self._around.carrier.link(there, here)
            handshake_s = HANDSHAKE_TRIPS * sum(link.shape.latency_s for link in links)
            self._around.clock.call_later(handshake_s, partial(self._dial, peer))

    def _dial(self, peer: Peer) -> None:
        """Again and again, until it is greeted or another link takes its place."""
        if self._peers.get(peer.worker) != peer:
            return
        other = self._around.introductions_of(peer.worker)
        if other.is_reachable and other.takes(peer.link, self.id):
            self.greeted(peer.link)
            other.greeted(peer.link)
        else:
            self._around.clock.call_later(DIAL_AGAIN_S, partial(self._dial, peer))

    def takes(self, link: bytes, worker: WorkerId) -> bool:
        """Whether it has been told of that link."""
        peer = self._peers.get(worker)
        return peer is not None and peer.link == link

    def greeted(self, link: bytes) -> None:
        self._greeted.add(link)
        self._say(Introduced(link, "", {}))
