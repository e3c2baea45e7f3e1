"""Simulated clusters whose stages keep rows in their host's memory too."""

from __future__ import annotations

import random
from typing import Any

from bloombee.kv.kept import StoredPrefix
from bloombee.kv.tiers import Way
from bloombee.pipeline.events import HostRoom
from bloombee.pipeline.stage import StageCore
from bloombee.sim.cluster import SimCluster
from bloombee.sim.paged import PagedDevice
from bloombee.wire.messages import Load

Files = dict[bytes, tuple[StoredPrefix, list[list[bytes]]]]


class PagedCluster(SimCluster):
    """``host_pages``: of each group; ``late_s``, ``fails``: of copies, as :class:`~bloombee.sim.paged.PagedDevice`. ``files``: on
    disk, of each stage by its first layer; None: there is no disk."""

    def __init__(
        self,
        *,
        seed: int,
        host_pages: int = 256,
        late_s: float = 0.1,
        fails: float = 0.0,
        files: dict[int, Files] | None = None,
        **arguments: Any,
    ) -> None:
        self._files, self._run = files, seed.to_bytes(8, "little")
        self._copies = random.Random(f"copies {seed}")
        self._host_pages, self._late_s, self._fails = host_pages, late_s, fails
        self.paged: list[PagedDevice] = []
        super().__init__(seed=seed, **arguments)

    def make_core(self, load: Load) -> StageCore:
        core = super().make_core(load)
        there = tuple(prefix for prefix, _ in self._files_of(load).values())
        core.handle(HostRoom((self._host_pages,) * len(load.groups), self._files is not None, there, self._run))
        return core

    def _files_of(self, load: Load) -> Files:
        return {} if self._files is None else self._files.setdefault(load.start, {})

    def make_device(self, stage: int, load: Load) -> PagedDevice:
        device = PagedDevice(
            stage=stage,
            is_last=load.stop == load.num_layers,
            groups=load.groups,
            page_size=load.page_size,
            rng=self._copies,
            late_s=self._late_s,
            fails=self._fails,
            files=self._files_of(load),
        )
        self.paged.append(device)
        return device

    def num_copies(self, way: Way) -> int:
        return sum(device.num_copies[way] for device in self.paged)


def assert_no_page_is_left(cluster: SimCluster) -> None:
    """Of any tier: what is not free is kept, and once it is let go of all are."""
    for stage in cluster.stages.values():
        prefixes = stage.store.kv.prefixes
        assert not prefixes.tiers.is_busy
        assert not prefixes.tiers.has_arrivals
        prefixes.clear()
        for pool in (*prefixes.places.device, *prefixes.places.host):
            assert pool.num_free == pool.num_pages
            assert not pool.num_idle
