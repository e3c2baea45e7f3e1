"""The processes that a head starts on its own machine: the spawner, and the workers that it forks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence

from bloombee.config import DRAFT_RULE, LocalWorker, RuntimeConfig, WorkerConfig, is_draft_model
from bloombee.errors import BloomBeeError, ConfigError, DeviceError, ModelUnsupported
from bloombee.machine import cores
from bloombee.models.card import ModelCard
from bloombee.models.standin import default_pace, is_standin, standin_memory_bytes
from bloombee.pace import Pace, parse_pace
from bloombee.pipeline.swarm import Machine
from bloombee.plan.profile import Profile
from bloombee.plan.topology import Cores, Device
from bloombee.roles.bulletin import Bulletin
from bloombee.roles.restarts import Restarts
from bloombee.roles.spawner_client import SpawnerClient
from bloombee.transport.keys import KeyPair, generate
from bloombee.types import Dtype, Span, SwarmEventKind

log = logging.getLogger(__name__)
HOP_S = 0.00045
"""Of a frame between two processes here, all of it on the cores (bench/results/pipes.md)."""


class LocalSwarm:
    """Belongs to one event loop.

    Args:
        places: where each local worker stands in the network; empty: plainly on loopback.
        bulletin: is told of workers that are started again.
        on_end: called with a worker's name and the reason when its process has ended, unless :meth:`close` ended it or it had
            not joined yet; returns whether the swarm goes on, so that it is of use again.
        on_failed: called with why what is started here cannot serve: a worker that a stage is meant for cannot start, or all end
            with the spawner.

    Raises:
        ConfigError: another number of places than of workers.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        places: Sequence[LocalWorker],
        bulletin: Bulletin,
        *,
        on_end: Callable[[str, str], bool],
        on_failed: Callable[[BloomBeeError], None],
    ) -> None:
        self._config = config
        count = config.workers + config.spares
        self._places = tuple(places) or (LocalWorker(),) * count
        if len(self._places) != count:
            raise ConfigError(f"{len(self._places)} local_workers for {count} workers: one each", field="local_workers")
        self._bulletin = bulletin
        self._restarts = Restarts(config.restarts)
        self._started: dict[str, tuple[WorkerConfig, KeyPair]] = {}
        """How each worker was started, and is again should it die."""
        self._starting: set[asyncio.Task[None]] = set()
        self._on_end = on_end
        self._on_failed = on_failed
        self._spawner = SpawnerClient(on_exit=self._exited, on_lost=self._lost)
        self.processes: dict[int, str] = {}
        """Those that live: process id -> name."""
        self._awaited: set[str] = set()
        """Started, and not in the swarm so far."""
        self._has_begun = False
        self._all_ended = asyncio.Event()
        self._closing = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the workers, in the order of their stages, then of the spares; empty if remote ones are awaited."""
        return () if self._config.remote_workers else tuple(f"local-{index}" for index in range(self._config.num_workers))

    def machine(self, card: ModelCard) -> Machine | None:
        """Where all workers are, if that is plainly here and they are alike."""
        places = {(p.listen, p.advertise, p.head_endpoint, p.source, p.pace) for p in self._places}
        if self._config.remote_workers or places != {(None,) * 5}:
            return None
        pace = self._pace(card)
        computes = pace is None and not self._config.device.startswith("cuda")
        device = Device("local") if pace is None else Device.paced("local", pace)
        return Machine(Cores(cores().amount, HOP_S, HOP_S, is_computing=computes), device)

    def _pace(self, card: ModelCard) -> Pace | None:
        """Of a worker, as far as devices are emulated."""
        if self._config.pace is not None:
            return parse_pace(self._config.pace)
        whole = Span(0, card.num_layers)
        return dataclasses.replace(default_pace(card, whole), layers=len(whole)) if is_standin(card.model) else None

    def head_endpoint(self, index: int) -> str | None:
        """How worker ``index`` reaches the head, if not at the head's own address."""
        return None if self._config.remote_workers else self._places[index].head_endpoint

    def start(self) -> None:
        """Start the spawner, which then imports what takes seconds."""
        self._spawner.start()

    async def describe(self) -> ModelCard:
        """Raises ConfigError or ModelUnsupported for a model that cannot be served, or that cannot draft for it."""
        card = ModelCard.from_json(await self._spawner.ask("describe", model=self._config.model))
        draft = self._config.draft
        if is_draft_model(draft):
            try:
                await self._spawner.ask("describe", model=draft)
            except (ConfigError, ModelUnsupported) as error:
                raise ConfigError(f"draft = {draft}: {error.message}; it must be {DRAFT_RULE}", field="draft") from error
        return card

    async def profile(self, dtype: Dtype) -> Profile:
        """Of one worker's share of this machine, while nothing else of ours runs."""
        config = self._config
        text = await self._spawner.ask(
            "profile", model=config.model, device=config.device, dtype=str(dtype), threads=self._threads()
        )
        return Profile.from_json(text)

    async def spawn(self, tokens: Sequence[str]) -> None:
        """Start every worker, each with its join token.

        Raises:
            ConfigError: they have been started before: a token lets in one of them.
        """
        if self._has_begun:
            raise ConfigError("the workers of this Runtime have been started before; make a new one")
        await self._spawner.ask("warm")
        shared_bytes = await self._memory_bytes()
        self._has_begun = True
        for place, token, name in zip(self._places, tokens, self.names, strict=True):
            config = WorkerConfig(
                join=token,
                name=name,
                listen=place.listen,
                advertise=place.advertise,
                source=place.source,
                pace=place.pace or self._config.pace,
                load_bytes_per_s=place.load_bytes_per_s,
                log_memory_bytes=place.log_memory_bytes,
                log_disk_bytes=place.log_disk_bytes,
                device=self._config.device,
                threads=self._threads(),
                memory_bytes=place.memory_bytes or self._config.device_memory or shared_bytes,
                host_memory=self._config.host_memory if place.host_memory is None else place.host_memory,
                disk=place.disk or self._config.disk,
                trace=self._config.trace or ".",
                log_level="warning",
                head_wait_s=0.0,
            )
            self._started[name] = config, generate()
            await self._start(name)

    async def _start(self, name: str) -> None:
        """Also again: under its key, and with the token that lets another in once the one before is gone."""
        self._awaited.add(name)
        self.processes[await self._spawner.spawn(*self._started[name])] = name

    def joined(self, name: str) -> None:
        """A worker that calls itself so is in the swarm."""
        self._awaited.discard(name)

    async def close(self, wait_s: float = 0.0) -> None:
        """End every process; workers get ``wait_s`` to end by themselves."""
        self._closing = True
        for task in self._starting:
            task.cancel()
        if wait_s > 0 and self.processes:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_ended.wait(), wait_s)
        await self._spawner.close()

    def _threads(self) -> int:
        return self._config.threads or max(1, cores().amount // self._config.num_stages)

    async def _memory_bytes(self) -> int:
        """What each worker that does not say may use, of the device that they share."""
        emulated = standin_memory_bytes(self._config.model)
        if emulated is not None:
            return emulated
        said = [place.log_memory_bytes for place in self._places if place.log_memory_bytes is not None]
        return int(
            await self._spawner.ask(
                "memory", device=self._config.device, workers=self._config.num_stages, log_bytes=max(said, default=None)
            )
        )

    def _exited(self, pid: int, status: int) -> None:
        name = self.processes.pop(pid, None)
        if not self.processes:
            self._all_ended.set()
        if name is None or self._closing:
            return
        code = os.waitstatus_to_exitcode(status)
        killed = f"its process was killed by {signal.Signals(-code).name}" if code < 0 else ""
        reason = killed or f"its process ended with status {code}"
        goes_on = True
        if name not in self._awaited:
            goes_on = self._on_end(name, reason)
        elif name in self.names[: self._config.num_stages] and not self._restarts.has(name):
            self._on_failed(DeviceError(f"worker {name!r} could not start: {reason}", worker=name))
            goes_on = False
        else:
            log.warning("worker %s, a spare, could not start: %s", name, reason)
        if goes_on and code:  # else it has ended in order, and is not wanted any more
            self._start_again(name, reason)

    def _start_again(self, name: str, reason: str) -> None:
        """A worker that has died, unless it did so too often; at once only the first time."""
        wait_s = self._restarts.begin(name, time.monotonic())
        if wait_s is None:
            log.warning("worker %s is not started again: %d times in ten minutes are enough", name, self._restarts.most)
            self._bulletin.tell(SwarmEventKind.ABANDONED, name=name, reason=reason)
            return
        when = f" in {wait_s:g} s" if wait_s else ""
        log.warning("worker %s is started again%s (%s)", name, when, reason)
        self._bulletin.tell(SwarmEventKind.RESTARTED, name=name, reason=f"{reason};{when}" if when else reason)
        task = asyncio.get_running_loop().create_task(self._try_to_start(name, wait_s))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _try_to_start(self, name: str, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        try:
            await self._start(name)
        except BloomBeeError as error:
            if not self._closing:
                log.warning("worker %s could not be started again: %s", name, error.message)

    def _lost(self) -> None:
        """The spawner ended, and its workers with it; those from elsewhere need it only until the model has been looked at."""
        if not self._config.remote_workers:
            self._on_failed(DeviceError("the process that starts workers has ended; start the Runtime again"))
