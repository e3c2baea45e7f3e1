"""A swarm whose links are emulated: real worker processes, one relay a link, the head beside stage 0."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bench.profiles import LinkProfile, Profile
from bloombee.config import LocalWorker
from bloombee.runtime import Runtime
from tools.ports import free_ports
from tools.wan import Link, Wan


@dataclass(frozen=True, slots=True)
class RingSpec:
    """What to start.

    Args:
        microbatches: None: the runtime's choice. split: None: an even cut. port: of the head, 0 for any free one.
        offload: layers that do not fit ``device_memory``, of each worker in bytes, stream.
    """

    model: str
    dtype: str
    workers: int
    microbatches: int | None
    codec: str
    pace: str | None
    kv_tokens: int
    profile: Profile
    port: int = 0
    max_waiting: int = 1024
    split: tuple[int, ...] | None = None
    draft: str = "off"
    offload: bool = False
    device_memory: int | None = None


class Ring:
    """N workers in a ring of N links (a single worker has none): ``hop0`` from stage 0 to 1, the last home to the head.

    Worker i dials worker i + 1 and the last one dials the head, so each link's forward direction is the ring's.
    """

    def __init__(self, spec: RingSpec) -> None:
        self.spec = spec
        self.profile = spec.profile
        self.is_reshaped = False
        """Its links have changed since anything was measured on it."""
        self.num_links = spec.workers if spec.workers > 1 else 0
        self.runtime: Runtime
        self.wan: Wan | None = None

    async def __aenter__(self) -> Self:
        """Start relays and workers and wait until tokens can flow.

        Raises:
            WanError, ConfigError, AddressInUse and what :class:`~bloombee.Runtime` raises.
        """
        spec = self.spec
        targets, head_port = _free_ports(self.num_links, spec.port)
        if self.num_links:
            links = [Link.of(f"hop{hop}", f"127.0.0.1:{target}", spec.profile.link(hop)) for hop, target in enumerate(targets)]
            self.wan = await asyncio.to_thread(Wan(links).__enter__)
        self.runtime = Runtime(
            spec.model,
            workers=spec.workers,
            split=spec.split,
            dtype=spec.dtype,
            microbatches=spec.microbatches,
            codec=spec.codec,
            draft=spec.draft,
            pace=spec.pace,
            kv_tokens=spec.kv_tokens,
            offload=spec.offload,
            device_memory=spec.device_memory,
            prefix_cache=False,  # rounds are alike, and each is to compute its prompts
            max_waiting=spec.max_waiting,
            silence_s=20.0,  # a machine at its limits is slow, not gone
            step_deadline_s=600.0,
            threads=1,
            listen=f"tcp://127.0.0.1:{head_port}",
            local_workers=self._places(targets),
        )
        try:
            await self.runtime.__aenter__()
        except BaseException:
            self._end_wan()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.runtime.close()
        self._end_wan()

    def shape(self, profile: Profile) -> None:
        """Give the links other shapes, from now on; a schedule begins anew. The ring should be idle."""
        self.is_reshaped = self.is_reshaped or profile != self.profile
        self.profile = profile
        if self.wan is None:
            return
        if profile.lasts_s:
            self.begin_schedule()
            return
        for hop, link in enumerate(self.links()):
            self.wan.set(f"hop{hop}", forward=link.forward, backward=link.backward)

    def begin_schedule(self) -> None:
        """What changes over time starts again from the first shapes: of the profile that the ring was started with."""
        if self.wan is not None:
            self.wan.start()

    def links(self) -> list[LinkProfile]:
        return [self.profile.link(hop) for hop in range(self.num_links)]

    @property
    def is_tuned(self) -> bool:
        """It adapts to what it meets, and needs some time to."""
        return self.spec.microbatches is None or self.spec.codec == "auto"

    @property
    def tunes_microbatches(self) -> bool:
        return self.spec.microbatches is None

    async def link_bytes(self) -> list[int]:
        """Sent forwards on each link so far, everything included."""
        if self.wan is None:
            return []
        stats = await asyncio.to_thread(self.wan.stats)
        return [stats[f"hop{hop}"].forward.bytes_in for hop in range(self.num_links)]

    @property
    def relay_pid(self) -> int | None:
        return None if self.wan is None else self.wan.pid

    async def until_idle(self) -> None:
        await until_idle(self.runtime)

    def _places(self, targets: list[int]) -> list[LocalWorker]:
        """The last target is the head's port, the others are the ports of workers 1, 2, ..."""
        if self.wan is None:
            return [LocalWorker()] * self.spec.workers
        relays = [f"tcp://{self.wan.address(f'hop{hop}')}" for hop in range(self.num_links)]
        places = [LocalWorker()]
        for index in range(1, self.spec.workers):
            is_last = index == self.spec.workers - 1
            listen = f"tcp://127.0.0.1:{targets[index - 1]}"
            places.append(LocalWorker(listen, relays[index - 1], relays[-1] if is_last else None))
        return places

    def _end_wan(self) -> None:
        if self.wan is not None:
            self.wan.close()


def _free_ports(count: int, head_port: int) -> tuple[list[int], int]:
    """``count`` targets, the last of them the head's port (for no links: the head's port alone)."""
    ports = free_ports(max(1, count))
    ports[-1] = head_port or ports[-1]
    return (ports if count else []), ports[-1]


async def until_idle(runtime: Runtime) -> None:
    """Wait until no request runs and every page is free."""
    all_free = tuple(stage.num_pages for stage in runtime.plan.stages)
    while runtime.num_requests or await runtime.pages_free() != all_free:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
