"""The planner's own cut of a ring: which order and how many layers each, where the model takes all of its workers.

Every worker stands where a profile's ring has it, the head beside the first; two that are no neighbours there are as far apart as
the profile's links between their places. Each has room for about its share of the layers: the model is taken to need all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.choose import BUDGET_S, MICROBATCHES
from bench.placed import RATIO
from bench.profiles import LinkProfile, Profile
from bench.shapes import UNSHAPED, Shape
from bloombee.models.shape import ModelShape
from bloombee.objective import Objective
from bloombee.plan.solve import Space, solve
from bloombee.plan.topology import LOCAL, Device, Link, Topology
from bloombee.types import HEAD

ALOFT = LinkProfile(UNSHAPED, UNSHAPED)
"""Between two workers at one place."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Layers of each stage, and the links that the ring then has, in its order."""

    split: tuple[int, ...]
    profile: Profile


def cut(profile: Profile, devices: Sequence[Device], shape: ModelShape, batch: int) -> Cut:
    """For the default objective, at most ``batch`` sequences; a profile whose links change keeps its order."""
    topology, light = ring_of(profile, devices, shape)
    counts = tuple(count for count in MICROBATCHES if count <= batch)
    space = Space(
        sequences=tuple(sorted({batch // count for count in counts})),
        microbatches=counts,
        ratios=(None, RATIO),
        most_sequences=batch,
        order=tuple(topology.devices) if profile.lasts_s else None,
    )
    best = solve(topology, light, space, Objective(), budget_s=BUDGET_S).pipelines[0].candidate
    ends = (*best.workers, HEAD)
    return Cut(best.layers, Profile(profile.name, tuple(between(profile, *pair) for pair in itertools.pairwise(ends))))


def ring_of(profile: Profile, devices: Sequence[Device], shape: ModelShape) -> tuple[Topology, ModelShape]:
    """(workers where the profile's ring has them, links between any two; the model, whose layers weigh one of their room)."""
    workers = tuple(range(1, len(devices) + 1))
    links = {pair: _link(between(profile, *pair).forward) for pair in itertools.permutations((*workers, HEAD), 2)}
    links = {pair: link for pair, link in links.items() if pair[0] != HEAD} | {(HEAD, 1): LOCAL, (1, HEAD): LOCAL}
    room = _room(shape.num_layers, len(devices))
    known = {worker: replace(device, memory_bytes=room) for worker, device in zip(workers, devices, strict=True)}
    return Topology(known, links), ModelShape(shape.hidden, shape.num_layers, shape.activation_bytes, layer_bytes=1)


def between(profile: Profile, source: int, target: int) -> LinkProfile:
    """From one worker to another, or (0) the head, which is beside the first: places go round the profile's links."""
    count = len(profile.links)
    here, there = (max(0, worker - 1) % count for worker in (source, target))
    ahead = (there - here) % count
    if ahead == 0:
        return profile.links[0] if count == 1 else ALOFT
    if ahead == 1:
        return profile.links[here]
    if ahead == count - 1:
        return profile.links[there].swapped()
    return _joined([profile.links[(here + step) % count] for step in range(ahead)])


def _joined(links: Sequence[LinkProfile]) -> LinkProfile:
    """One after the other."""
    forward, backward = ([getattr(link, way) for link in links] for way in ("forward", "backward"))
    return LinkProfile(_chain(forward), _chain(backward))


def _chain(shapes: Sequence[Shape]) -> Shape:
    rates = [shape.bandwidth_bits_per_s for shape in shapes if shape.bandwidth_bits_per_s is not None]
    return Shape(
        bandwidth_bits_per_s=min(rates, default=None),
        delay_s=sum(shape.delay_s for shape in shapes),
        jitter_s=sum(shape.jitter_s for shape in shapes),
        loss=1 - math.prod(1 - shape.loss for shape in shapes),
    )


def _room(layers: int, workers: int) -> int:
    """So that all fit with one to spare somewhere, but not on one worker fewer."""
    return layers if workers == 1 else min(-(-layers // workers) + 1, (layers - 1) // (workers - 1))


def _link(shape: Shape) -> Link:
    bits = shape.bandwidth_bits_per_s
    return Link(math.inf if bits is None else bits / 8, shape.delay_s)
