"""Connections of a simulated swarm that break and come back, as those of TCP do."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from functools import partial

from bloombee.pipeline.events import Port
from bloombee.sim.carrier import HEAD, SCHEDULER, SimCarrier, stage_name
from bloombee.sim.clock import VirtualClock
from bloombee.sim.head import SimHead
from bloombee.sim.worker import SimWorker
from bloombee.types import Lane, WorkerId
from bloombee.wire.liveness import RECONNECT_S, RECONNECT_TRIPS, Liveness


class Breaks:
    """Between all parties that have connections."""

    def __init__(
        self,
        clock: VirtualClock,
        carrier: SimCarrier,
        head: SimHead,
        workers: Mapping[WorkerId, SimWorker],
        num_stages: int,
        rng: random.Random,
    ) -> None:
        self._clock = clock
        self._carrier = carrier
        self._head = head
        self._workers = workers
        self._num_stages = num_stages
        self._rng = rng
        self._broken: dict[tuple[str, str], Liveness] = {}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Whoever has connections: who is dialled or dials, and a stage."""
        stages = [stage_name(index) for index in range(self._num_stages)]
        at = self._head.scheduler_name
        if at == SCHEDULER:
            return [*((SCHEDULER, stage) for stage in stages), *itertools.pairwise(stages)]
        return [(HEAD, at), *((at, stage) for stage in stages[2:]), *itertools.pairwise(stages)]

    def lost(self) -> list[WorkerId]:
        """Workers whose connections have been away for longer than they may."""
        plan = self._head.plan
        lost = [_index(stage) for (_, stage), one in self._broken.items() if one.is_lost(self._clock.now)]
        return [plan.stages[index].worker for index in lost] if plan is not None else []

    def reset(self, ends: tuple[str, str]) -> None:
        """Both connections between ``ends`` break and are dialled again; what was on its way is lost."""
        if ends in self._broken:
            return
        directions = self._carrier.link(*ends), self._carrier.link(*reversed(ends))
        rtt_s = sum(link.shape.latency_s for link in directions)
        connection = self._broken[ends] = Liveness()
        connection.timed(rtt_s)
        for link in directions:
            link.cut()
        for lane in Lane:
            connection.broke(lane, self._clock.now)
            after_s = self._rng.uniform(0.5, 1) * RECONNECT_S + RECONNECT_TRIPS * rtt_s
            self._clock.call_later(after_s, partial(self._back, ends, lane))

    def _back(self, ends: tuple[str, str], lane: Lane) -> None:
        if not self._broken[ends].back(lane):
            return
        del self._broken[ends]
        one, other = ends
        index = _index(other)
        stage_dialled = one in (HEAD, SCHEDULER)
        self._carrier.link(one, other).mend(keeps=not stage_dialled)
        self._carrier.link(other, one).mend(keeps=stage_dialled)
        if one == SCHEDULER:
            self._head.stage_restored(index)
            for port, end in ((Port.UPSTREAM, 0), (Port.DOWNSTREAM, self._num_stages - 1)):
                if index == end:
                    self._restored(index, port)
        elif one == HEAD:
            self._head_restored(index)
        else:
            self._ring_restored(_index(one), index)

    def _head_restored(self, index: int) -> None:
        """At both ends of the link between the head and the worker with the scheduler."""
        self._head.stage_restored(index)
        if (worker := self._worker(index)) is not None:
            worker.scheduling.head_restored()

    def _ring_restored(self, one: int, other: int) -> None:
        """At both ends of a link between workers."""
        if other == one + 1:
            self._restored(one, Port.DOWNSTREAM)
            self._restored(other, Port.UPSTREAM)
        if self._head.scheduler_name == stage_name(one):
            if (worker := self._worker(one)) is not None:
                worker.scheduling.stage_restored(other)
            if other == self._num_stages - 1:
                self._restored(other, Port.DOWNSTREAM)

    def restore_all(self) -> None:
        """Every connection broke and came back: all ends resend."""
        is_beside = self._head.scheduler_name != SCHEDULER
        for index in range(self._num_stages):
            if not is_beside:
                self._head.stage_restored(index)
            elif index:
                self._ring_restored(0, index)
            else:
                self._head_restored(0)
            for port in (Port.UPSTREAM, Port.DOWNSTREAM):
                self._restored(index, port)

    def _restored(self, index: int, port: Port) -> None:
        """At the worker of a stage."""
        if (worker := self._worker(index)) is not None:
            worker.link_restored(port)

    def _worker(self, index: int) -> SimWorker | None:
        plan = self._head.plan
        return None if plan is None else self._workers[plan.stages[index].worker]


def _index(stage: str) -> int:
    return int(stage.removeprefix("stage"))
