"""A simulated swarm whose plan is chosen: workers and links are as a topology says, and stages as the plan has it."""

from __future__ import annotations

import itertools
import math
from typing import Any

from bloombee.errors import ConfigError
from bloombee.models.card import ModelCard
from bloombee.models.shape import ModelShape
from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.plan.plan import Plan
from bloombee.plan.topology import Device, Link, Topology
from bloombee.sim.carrier import SCHEDULER, stage_name
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import LinkShape
from bloombee.types import HEAD, Span

PLENTY_BYTES = 1 << 40
"""Of a device that does not say."""


class ChosenCluster(SimCluster):
    """All of ``topology``'s workers join, as 1, 2, ...; those that the planner takes have a stage, the others are spares.

    Args:
        card, arguments: as of :class:`SimCluster`; a spare that takes over a stage is as quick, and stands where, the stage was.

    Raises:
        ConfigError: workers that are not 1, 2, ...
        BloomBeeError: there is no plan.
    """

    def __init__(self, topology: Topology, card: ModelCard, objective: Objective, **arguments: Any) -> None:
        workers = sorted(topology.devices)
        if workers != list(range(1, len(workers) + 1)):
            raise ConfigError(f"workers {workers}: must be 1, 2, ...", field="devices")
        self.objective, self.topology = objective, topology
        memory = [topology.devices[worker].memory_bytes for worker in workers]
        room = [PLENTY_BYTES if limit is None else limit for limit in memory]
        super().__init__(num_stages=len(workers), card=card, memory_bytes=room, **arguments)
        if self.plan is None:
            assert self.head.down is not None
            raise self.head.down
        self._take_places(topology, self.plan, card.shape(self.plan.dtype))

    def _take_places(self, topology: Topology, plan: Plan, model: ModelShape) -> None:
        """Stages are as quick, and as far from each other, as the workers that have them."""
        ring = [HEAD, *(stage.worker for stage in plan.stages), HEAD]
        names = [SCHEDULER, *(stage_name(stage.index) for stage in plan.stages), SCHEDULER]
        for ends, (source, target) in zip(itertools.pairwise(ring), itertools.pairwise(names), strict=True):
            there = topology.link(*ends)
            self.shapes[source, target] = _shape(there)
            self.shapes[target, source] = _shape(topology.links.get(ends[::-1], there))
        self.devices.paces = [_pace(topology.device(stage.worker), stage.span, model) for stage in plan.stages]


def _shape(link: Link) -> LinkShape:
    return LinkShape(link.latency_s, link.bandwidth_bytes_per_s if math.isfinite(link.bandwidth_bytes_per_s) else None)


def _pace(device: Device, span: Span, model: ModelShape) -> Pace:
    """Of a stage; what attention to cached tokens takes is not in a pace."""
    counts = model.counts(span.start, span.stop)
    times = [(1, device.stage), *((count, device.layer_of(kind)) for kind, count in enumerate(counts))]
    times += [(1, device.output)] * (span.stop == model.num_layers)
    return Pace(
        sum(count * time.fixed_s for count, time in times),
        sum(count * time.decode_row_s for count, time in times),
        sum(count * time.prefill_row_s for count, time in times),
    )
