"""Random topologies by seed: small ones that can be tried out, and large ones as they are on the internet."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from dataclasses import dataclass

from bench import enumerator
from bloombee.models.shape import LayerKind, ModelShape
from bloombee.objective import Goal, Objective
from bloombee.plan.solve import Space
from bloombee.plan.topology import Device, Link, RowTime, Topology
from bloombee.types import HEAD, WorkerId

MOST_CANDIDATES = 20_000


@dataclass(frozen=True, slots=True)
class Case:
    topology: Topology
    model: ModelShape
    space: Space
    objective: Objective


def small(seed: int) -> Case:
    """3 to 5 workers that differ in all that a plan can weigh; at most ``MOST_CANDIDATES`` candidates."""
    rng = random.Random(seed)
    while True:
        num_workers, num_layers = rng.choice((3, 3, 4, 4, 5)), rng.randint(3, 7)
        space = _small_space(rng, seed)
        if enumerator.count(num_workers, num_layers, space) <= MOST_CANDIDATES:
            break
    model = _small_model(rng, num_layers)
    workers = list(range(1, num_workers + 1))
    if rng.random() < 0.15:
        space = dataclasses.replace(space, order=tuple(rng.sample(workers, len(workers))))
    devices = {worker: _small_device(rng, worker, model) for worker in workers}
    far_s = rng.choice((0.0, 0.001, 0.02, 0.2))
    missing = rng.choice((0.0, 0.0, 0.2, 0.4))
    links = {}
    for source, target in itertools.permutations((HEAD, *workers), 2):
        if rng.random() >= missing:
            links[source, target] = _small_link(rng, far_s if HEAD in (source, target) else 0.0)
    return Case(Topology(devices, links), model, space, _objective(rng))


def _small_space(rng: random.Random, seed: int) -> Space:
    return Space(
        sequences=tuple(sorted(rng.sample((1, 2, 4, 8, 32), rng.choice((1, 2, 3))))),
        microbatches=tuple(sorted(rng.sample((1, 2, 3, 5, 8, 16), rng.choice((1, 2, 3))))),
        ratios=rng.choice(((None,), (None, 0.67), (None, 0.4))),
        streamed=rng.choice(((0.0,), (0.0, 1.0), (0.0, 0.5, 1.0))),
        pipelines=2 if seed % 4 == 0 else 1,
        context=rng.choice((0, 100, 1000)),
        kv_tokens=rng.choice((None, None, 5000)),
    )


def _small_model(rng: random.Random, num_layers: int) -> ModelShape:
    layer_bytes, kv_bytes = rng.randint(50_000, 200_000), rng.choice((0, 10, 40))
    alike = ModelShape(
        hidden=rng.choice((64, 1024, 8192)),
        num_layers=num_layers,
        layer_bytes=layer_bytes,
        kv_token_bytes=kv_bytes,
        embedding_bytes=rng.choice((0, 100_000)),
        output_bytes=rng.choice((0, 100_000)),
    )
    if rng.random() < 0.4:
        return alike
    kinds = (LayerKind(layer_bytes, kv_bytes), LayerKind(rng.randint(20_000, 400_000), kv_bytes, rng.choice((0, 128))))
    return dataclasses.replace(alike, kinds=kinds, kind_of=tuple(rng.randint(0, 1) for _ in range(num_layers)))


def _small_device(rng: random.Random, worker: WorkerId, model: ModelShape) -> Device:
    speed = rng.choice((1.0, 2.0, 4.0)) * rng.uniform(0.8, 1.2)

    def time(fixed_s: float) -> RowTime:
        return RowTime(fixed_s * speed, fixed_s * speed * rng.uniform(0, 0.3), 0.0, fixed_s * rng.uniform(0, 1e-4))

    weights = sum(n * kind.layer_bytes for n, kind in zip(model.counts(0, model.num_layers), model.layer_kinds, strict=True))
    memory = None if rng.random() < 0.2 else int(weights * rng.uniform(0.15, 1.3)) + rng.choice((0, 100_000))
    return Device(
        f"w{worker}",
        memory,
        stage=time(rng.choice((0.0, 0.002))),
        layer=time(0.003),
        output=time(rng.choice((0.0, 0.004))),
        encode_bytes_per_s=rng.uniform(1e6, 1e9),
        decode_bytes_per_s=rng.uniform(1e6, 1e9),
        stream_bytes_per_s=rng.choice((None, 1e7, 1e8)),
        kinds=tuple(time(rng.uniform(0.001, 0.006)) for _ in model.kinds),
    )


def _small_link(rng: random.Random, far_s: float) -> Link:
    bandwidth = math.exp(rng.uniform(math.log(1e5), math.log(1e8)))
    return Link(rng.choice((bandwidth, bandwidth, math.inf)), rng.choice((0.0, 0.002, 0.05)) * rng.uniform(0.5, 1.5) + far_s)


def _objective(rng: random.Random) -> Objective:
    goal = rng.choice(tuple(Goal))
    return Objective(goal, math.exp(rng.uniform(math.log(0.02), math.log(2.0))) if goal is Goal.TARGET else None)


def wan(seed: int, num_workers: int, num_layers: int = 80, *, kinds: int = 1) -> tuple[Topology, ModelShape]:
    """Workers in regions of the internet: devices 1x to 4x apart, access lines 30x, delays by distance."""
    rng = random.Random(seed)
    model = _wan_model(num_layers, kinds)
    regions = [(rng.uniform(0, 0.08), rng.uniform(0, 0.05)) for _ in range(rng.choice((2, 3, 5)))]
    places, lines = {}, {}
    for worker in range(num_workers + 1):
        x, y = rng.choice(regions)
        places[worker] = (x + rng.uniform(-0.003, 0.003), y + rng.uniform(-0.003, 0.003))
        lines[worker] = math.exp(rng.uniform(math.log(5e6), math.log(1.25e8)))
    links = {}
    for source, target in itertools.permutations(places, 2):
        delay_s = 0.001 + math.dist(places[source], places[target])
        links[source, target] = Link(min(lines[source], lines[target]) * rng.uniform(0.7, 1.0), delay_s)
    return Topology({w: _wan_device(rng, w, model) for w in range(1, num_workers + 1)}, links), model


def _wan_model(num_layers: int, kinds: int) -> ModelShape:
    """About the shape of a model of 70 billion parameters; of two kinds, every second layer sees a window."""
    whole = LayerKind(1_700_000_000, 4096)
    window = dataclasses.replace(whole, window=1024)
    return ModelShape(
        hidden=8192,
        num_layers=num_layers,
        embedding_bytes=2_000_000_000,
        output_bytes=2_000_000_000,
        kinds=(whole, window)[:kinds],
        kind_of=tuple(layer % kinds for layer in range(num_layers)),
    )


def _wan_device(rng: random.Random, worker: WorkerId, model: ModelShape) -> Device:
    speed = rng.choice((1.0, 2.0, 4.0)) * rng.uniform(0.8, 1.2)
    memory = int(rng.choice((12e9, 24e9, 24e9, 48e9, 80e9)))
    layer = RowTime(0.0012 * speed, 0.00003 * speed, 0.00003 * speed, 2e-9 * speed)
    return Device(
        f"w{worker}",
        memory,
        stage=RowTime(0.0004 * speed),
        layer=layer,
        output=RowTime(0.0015 * speed, 0.00002 * speed),
        encode_bytes_per_s=2e9,
        decode_bytes_per_s=2e9,
        stream_bytes_per_s=rng.choice((None, 6e9, 2.4e10)),
        kinds=tuple(layer for _ in model.kinds),
    )
