"""What a worker holds and serves: for each pipeline a span, or two while one takes the other's place, on one device.

Weights (``engine/spans.py``), the device's queue, the links to other workers and the log's disk are the worker's and outlive
every plan; a span's KV and log live as long as it is loaded. Being told to load another span loads what is missing of it beside
the one that is served; the next epoch's seat is taken on it, and the old one is let go when the last of its epochs is retired.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bloombee.config import WorkerConfig, parse_disk
from bloombee.errors import BloomBeeError, RemoteProtocolError, StalePlan
from bloombee.kv.places import default_host_bytes
from bloombee.pace import parse_pace
from bloombee.pipeline.log import default_log_bytes
from bloombee.plan.profile import Hardware
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.introductions import Introductions
from bloombee.roles.loading import Loader
from bloombee.roles.log_file import LogFile
from bloombee.roles.measuring import Measuring
from bloombee.roles.neighbours import GREETINGS, Neighbours
from bloombee.roles.scheduler_host import SchedulerHost
from bloombee.roles.stage_host import RESEND_AFTER_S, StageHost
from bloombee.roles.tracing import StageTrace
from bloombee.roles.work_thread import WorkThread
from bloombee.transport.endpoint import Endpoint
from bloombee.transport.link_events import LinkEvent
from bloombee.types import Lane, PipelineId
from bloombee.wire.liveness import LoopClock
from bloombee.wire.messages import (
    AnyMessage,
    Heartbeat,
    Introduce,
    Joined,
    Load,
    MeasureLink,
    Profile,
    Retire,
    Retired,
    Schedule,
    Wire,
)
from bloombee.wire.spoken import check_spoken

log = logging.getLogger(__name__)


class Stages:
    """Of one worker, once it has :meth:`joined`. Belongs to the event loop that runs when it is made.

    Args:
        clock: this process's.
        memory_bytes: that it has offered to the head.
    """

    def __init__(
        self,
        config: WorkerConfig,
        endpoint: Endpoint,
        *,
        clock: LoopClock,
        memory_bytes: int,
    ) -> None:
        self._config = config
        self._memory_bytes = memory_bytes
        self._log_bytes = default_log_bytes(memory_bytes) if config.log_memory_bytes is None else config.log_memory_bytes
        self._endpoint = endpoint
        self._clock = clock
        loop = asyncio.get_running_loop()
        self._device = WorkThread(loop)
        self._disk = WorkThread(loop, "bloombee-log")
        self._loader = Loader(
            device=config.device,
            threads=config.threads,
            model=config.model,
            pace=parse_pace(config.pace) if config.pace is not None else None,
            memory_bytes=config.memory_bytes,
            load_bytes_per_s=config.load_bytes_per_s,
            host_bytes=default_host_bytes(memory_bytes) if config.host_memory is None else config.host_memory,
            disk=None if config.disk is None else parse_disk(config.disk),
        )
        self._hosts: dict[PipelineId, list[StageHost]] = {}
        """Of each pipeline, in the order in which they were ordered."""
        self._schedulers: dict[PipelineId, SchedulerHost] = {}
        """Of pipelines whose first stage is here, where it is not with the head."""

    def joined(self, joined: Joined, head_link: bytes, open_trace: Callable[[Wire, Load], StageTrace | None]) -> None:
        """A head has let this worker in: the first one, or another after :meth:`let_go`.

        Args:
            open_trace: of a stage, as the head asks.
        """
        endpoint = self._endpoint
        self._head_link, self._open_trace = head_link, open_trace
        self._measuring = Measuring(self._loader, self._offers, partial(endpoint.send, head_link, Lane.CONTROL))
        self._neighbours = Neighbours(
            endpoint,
            swarm=joined.swarm,
            worker=joined.worker,
            clock=self._clock,
            heartbeat_s=joined.heartbeat_s,
            silence_s=joined.silence_s,
        )
        self._introductions = Introductions(
            endpoint, head_link, self._neighbours, is_serving=lambda: any(host.seatings for host in self)
        )

    async def let_go(self) -> None:
        """The head is gone: let go of all but the weights, which stay until another has ordered something to be loaded.

        Returns when what the device was at has ended. Cancelled: it has been told to.
        """
        self._loader.hold()
        self._close_spans()
        self._neighbours.users.clear()
        self._neighbours.leave()
        drained = asyncio.get_running_loop().create_future()
        self._device.ask(lambda: None, drained.set_result, drained.set_exception)
        await drained

    def __iter__(self) -> Iterator[StageHost]:
        return iter([host for hosts in self._hosts.values() for host in hosts])

    def close(self) -> None:
        """Let everything go; does not wait for the device."""
        self._close_spans()
        self._device.stop()
        self._disk.stop()

    def _close_spans(self) -> None:
        for pipeline in list(self._hosts):
            self.unload(pipeline)
        self._measuring.close()

    # -- orders ----------------------------------------------------------------------------

    def load(self, load: Load) -> None:
        """Have another span ready beside what the pipeline is served with now. Said again it is answered again."""
        check_spoken(load)
        hosts = self._hosts.setdefault(load.pipeline, [])
        known = next((host for host in hosts if host.load == load), None)
        if known is not None:
            known.reporter.say_loaded()
            return
        if hosts and load.number < hosts[-1].load.number:
            return  # it was given before, and came late
        if hosts and not hosts[-1].seatings:
            hosts.pop().close()  # nobody waits for it any more
        self._measuring.give_up()
        log.info("loading layers %d-%d of %s", load.start, load.stop - 1, load.model)
        hosts.append(self._host(load))

    def _host(self, load: Load) -> StageHost:
        return StageHost(
            load,
            endpoint=self._endpoint,
            head_link=self._head_link,
            device=SpanExecutor(self._device, self._loader),
            neighbours=self._neighbours,
            log_file=LogFile(self._disk, self._config.log_dir),
            log_bytes=self._log_bytes,
            log_disk_bytes=self._config.log_disk_bytes,
            open_trace=self._open_trace,
        )

    def profile(self, asked: Profile) -> None:
        """Tell the head how fast this worker's device runs a model, now or when it is known."""
        self._measuring.asked(asked, is_serving=bool(self._hosts))

    def _offers(self, device: str) -> Hardware:
        """On any thread. Imports torch."""
        from bloombee.engine.profiling.hardware import hardware

        config = self._config
        return hardware(
            device,
            memory_bytes=self._memory_bytes,
            log_bytes=self._log_bytes,
            log_disk_bytes=config.log_disk_bytes,
            log_dir=config.log_dir,
        )

    def unload(self, pipeline: PipelineId) -> None:
        """Let go of all that is held for a pipeline, its seats included."""
        for host in self._hosts.pop(pipeline, []):
            host.close()
        if (scheduler := self._schedulers.pop(pipeline, None)) is not None:
            scheduler.close()

    def wire(self, wire: Wire) -> None:
        """Take the seat of an epoch.

        Raises:
            StalePlan: what it is about is not loaded, nor being loaded, or it has been retired. NotSpoken: something that is not
                spoken yet.
            RemoteProtocolError: another stage than that of the span.
        """
        check_spoken(wire)
        hosts = self._hosts_of(wire)
        host = next((host for host in hosts if host.load.number == wire.load), None)
        if host is None:
            raise StalePlan(f"order {wire.load} to load is not known here", pipeline=wire.pipeline, epoch=wire.epoch)
        if wire.schedule is not None:
            host.schedule_with(self._scheduler(wire, wire.schedule))
        host.wire(wire)
        for other in hosts:
            if other is not host:
                other.retire_before(wire.oldest)
        self._let_go(wire.pipeline)

    def _scheduler(self, wire: Wire, schedule: Schedule) -> SchedulerHost:
        """The one that is here, unless another is to begin."""
        here = self._schedulers.get(wire.pipeline)
        if here is not None and here.since >= schedule.since:
            return here
        if here is not None:
            here.close()
        begun = self._schedulers[wire.pipeline] = SchedulerHost(
            wire,
            schedule,
            endpoint=self._endpoint,
            head_link=self._head_link,
            resend_after_s=RESEND_AFTER_S,
            now=time.monotonic,
        )
        return begun

    def _let_go(self, pipeline: PipelineId, *, newer: bool = False) -> None:
        """Spans in whose place another has come, once no epoch has them; with ``newer`` those that were to come as well."""
        hosts = self._hosts[pipeline]
        newest = max((index for index, host in enumerate(hosts) if host.seatings), default=-1)
        among = hosts if newer and newest >= 0 else hosts[: max(0, newest)]
        for host in [host for host in among if not host.seatings]:
            hosts.remove(host)
            host.close()

    def _retire(self, retire: Retire) -> None:
        """The head's order to leave an epoch: what was loaded for it and has no other goes too, if something else is served."""
        hosts = self._hosts.get(retire.pipeline)
        if not hosts:
            self._endpoint.send(self._head_link, Lane.CONTROL, Retired(retire.pipeline, retire.epoch))
            return
        host = next((host for host in hosts if host.seatings.get(retire.epoch) is not None), hosts[-1])
        host.received(self._head_link, retire, None)
        self._let_go(retire.pipeline, newer=True)

    # -- messages --------------------------------------------------------------------------

    def received(self, link: bytes, lane: Lane, message: AnyMessage, payload: Any) -> None:
        """From the head or a neighbour.

        Raises:
            RemoteProtocolError: it came over a link that has no business saying it.
            StalePlan: it is of an epoch that is not served here.
        """
        if link != self._head_link:
            if link not in self._neighbours:
                raise RemoteProtocolError("a link of no stage")
            self._neighbours.heard(link)
            if isinstance(message, Heartbeat):
                self._neighbours.beat(link, message)
                return
            if isinstance(message, GREETINGS):
                self._neighbours.greeted(link, lane, message)
                return
            self._neighbours.serves(link)
        elif isinstance(message, Introduce):
            self._introductions.introduce(message)
            return
        elif isinstance(message, MeasureLink):
            self._introductions.measure(message)
            return
        elif isinstance(message, Retire):
            self._retire(message)
            return
        scheduler = self._schedulers.get(getattr(message, "pipeline", -1))
        if scheduler is not None and scheduler.hears(link, message):
            return
        hosts = self._hosts_of(message)
        host = hosts[-1]
        if len(hosts) > 1:
            epoch = getattr(message, "epoch", 0)
            host = next((host for host in hosts if host.seatings.get(epoch) is not None), host)
        host.received(link, message, payload)
        if len(hosts) > 1:
            self._let_go(host.load.pipeline)

    def _hosts_of(self, message: Any) -> list[StageHost]:
        pipeline = getattr(message, "pipeline", None)
        if pipeline not in self._hosts:
            check_spoken(message)
        if pipeline is None:
            raise RemoteProtocolError(f"{type(message).__name__} is not for a worker", path="message.tag")
        hosts = self._hosts.get(pipeline)
        if not hosts:
            epoch = getattr(message, "epoch", 0)
            raise StalePlan(f"nothing is loaded for pipeline {pipeline} here", pipeline=pipeline, epoch=epoch)
        return hosts

    def link_event(self, event: LinkEvent) -> None:
        """Of a neighbour's connection."""
        if event.link and event.link in self._neighbours:
            self._neighbours.event(event.link, event)

    def head_restored(self) -> None:
        """The connection to the head came back."""
        for host in self:
            host.restored(self._head_link)
            host.reporter.say_profile()
            host.reporter.say_failed()

    def fail(self, error: BloomBeeError) -> None:
        """Tell the head that nothing here can go on."""
        for host in self:
            host.fail(error)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._neighbours.tick(now)
        for host in self:
            host.tick()
        for scheduler in self._schedulers.values():
            scheduler.tick(now)

    def look(self, now: float) -> None:
        """At who is there; to be called often."""
        self._neighbours.look(now)
