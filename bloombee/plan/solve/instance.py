"""A topology, a model and a space as the numbers that the native solver takes (``csrc/plan/instance.h``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bloombee.errors import ConfigError
from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import FRAME_BYTES, ITEM_BYTES, PICK_BYTES, TOKEN_BYTES, VERDICT_BYTES, held_slots, seen_tokens
from bloombee.plan.solve.space import Space
from bloombee.plan.topology import Device, Topology
from bloombee.types import HEAD, WorkerId

MOST_S = 1e9
"""No pass and no link takes longer: a figure beyond it is a mistake."""
MOST_LAYERS = 4096
"""As in ``csrc/plan/instance.h``."""
MOST_BYTES = 1 << 53
"""No size is larger, so each is exact in binary64."""

Numbers = NDArray[np.float64]
_ENDS = (
    "embedding_bytes",
    "output_bytes",
    "tied_bytes",
    "scratch_bytes",
    "output_scratch_bytes",
    "loading_bytes",
    "streaming_bytes",
)


@dataclass(frozen=True, slots=True)
class Instance:
    """What the solver is given, and what its numbers stand for.

    Args:
        workers: by number. points: (b, M) by number.
        fields: by the names of ``csrc/bindings/plan.cpp``.
    """

    workers: tuple[WorkerId, ...]
    points: tuple[tuple[int, int], ...]
    ratios: tuple[float | None, ...]
    streamed: tuple[float, ...]
    fields: dict[str, Any]

    def candidate(self, found: dict[str, Any], model: ModelShape, space: Space) -> Candidate:
        """What the solver found, as the cost model sees it."""
        sequences, count = self.points[found["point"]]
        streamed, start = [], 0
        for layers, number in zip(found["layers"], found["streamed"], strict=True):
            streamed.append(streamed_bytes(model, start, start + layers, self.streamed[number]))
            start += layers
        return Candidate(
            workers=tuple(self.workers[number] for number in found["workers"]),
            layers=tuple(found["layers"]),
            num_microbatches=count,
            microbatch_sequences=sequences,
            rows_per_sequence=space.rows_per_sequence,
            tokens_per_round=space.tokens_per_round,
            context=space.context,
            ratios=tuple(self.ratios[number] for number in found["codec"]),
            kv_tokens=space.kv_tokens,
            page_size=space.page_size,
            max_rows=space.max_rows,
            streamed_bytes=tuple(streamed) if any(streamed) else (),
        )


def streamed_bytes(model: ModelShape, start: int, stop: int, part: float) -> int:
    """Of the weights of layers [start, stop), what is streamed where ``part`` of them is."""
    kinds = model.layer_kinds
    weights = sum(count * kinds[kind].layer_bytes for kind, count in enumerate(model.counts(start, stop)))
    return math.floor(part * weights)


def make_instance(topology: Topology, model: ModelShape, space: Space) -> Instance:
    """Raises ConfigError: a figure that nothing could have, with the worker or link that it is of."""
    workers = tuple(space.order) if space.order is not None else tuple(sorted(topology.devices))
    if not workers:
        raise ConfigError("no workers to plan with", field="workers")
    points = tuple(space.points())
    sizes = (*dict.fromkeys(sequences for sequences, _ in points), 1)
    devices = [topology.device(worker) for worker in workers]
    ratios = tuple(dict.fromkeys(space.ratios))
    streamed = tuple(sorted(set(space.streamed)))
    fields: dict[str, Any] = {
        "workers": len(workers),
        "layers": model.num_layers,
        "kinds": len(model.layer_kinds),
        "num_fractions": len(streamed),
        "fractions": _array(streamed),
        "num_ratios": len(ratios),
        "ratios": _array([ratio or 0.0 for ratio in ratios]),
        "ordered": space.order is not None,
        "rank": np.arange(len(workers) if space.order is not None else 0, dtype=np.int32),
        **_cores(topology),
        **_model(model, points, space),
        **_points(points, sizes, space),
        **_sizes(devices, model, sizes, space),
        **_devices(devices),
        **_links(topology, workers),
        **_lines(topology, workers),
    }
    return Instance(workers, points, ratios, streamed, fields)


def _array(values: Sequence[float]) -> Numbers:
    return np.array(values, dtype=np.float64)


def _cores(topology: Topology) -> dict[str, Any]:
    cores = topology.cores
    if cores is None:
        return {"cores": 0, "hop_cpu": 0.0, "is_computing": False}
    return {"cores": cores.count, "hop_cpu": cores.hop_cpu_s, "is_computing": cores.is_computing}


def _bytes(value: float, what: str) -> float:
    if not 0 <= value <= MOST_BYTES:
        raise ConfigError(f"{what} = {value}: must be from 0 to 2^53 bytes", field=what)
    return float(value)


def _model(model: ModelShape, points: Sequence[tuple[int, int]], space: Space) -> dict[str, Any]:
    kinds = model.layer_kinds
    if not 1 <= model.num_layers <= MOST_LAYERS:
        raise ConfigError(f"num_layers = {model.num_layers}: must be from 1 to {MOST_LAYERS}", field="num_layers")
    all_bytes = sum(kind.layer_bytes for kind in kinds) * model.num_layers
    _bytes(all_bytes, "layer_bytes")
    kv_bytes = []
    for sequences, count in points:
        at = Candidate(
            (1,),
            (1,),
            count,
            sequences,
            context=space.context,
            kv_tokens=space.kv_tokens,
            page_size=space.page_size,
            max_rows=space.max_rows,
        )
        for kind, slots in zip(kinds, held_slots(at, model), strict=True):
            kv_bytes.append(float(kind.kv_token_bytes * slots))
            _bytes(kv_bytes[-1] * model.num_layers, "kv_token_bytes")
    return {
        "kind_of": np.array(model.kind_of or (0,) * model.num_layers, dtype=np.int32),
        "layer_bytes": _array([float(kind.layer_bytes) for kind in kinds]),
        "kv_bytes": _array(kv_bytes),
        **{name: _bytes(getattr(model, name), name) for name in _ENDS},
    }


def _points(points: Sequence[tuple[int, int]], sizes: Sequence[int], space: Space) -> dict[str, Any]:
    return {
        "points": len(points),
        "point_size": np.array([sizes.index(sequences) for sequences, _ in points], dtype=np.int32),
        "in_flight": _array([float(count) for _, count in points]),
        "gain": _array([sequences * count * space.tokens_per_round for sequences, count in points]),
    }


def _sizes(devices: Sequence[Device], model: ModelShape, sizes: Sequence[int], space: Space) -> dict[str, Any]:
    stage, layer, output, frames = [], [], [], []
    for sequences in sizes:
        rows = sequences * space.rows_per_sequence
        for device in devices:
            stage.append(_seconds(device.stage.decode_s(rows, space.context), device))
            output.append(_seconds(device.output.decode_s(rows), device))
            for number, kind in enumerate(model.layer_kinds):
                seen = seen_tokens(kind.window, space.context)
                layer.append(_seconds(device.layer_of(number).decode_s(rows, seen), device))
        frames += [
            FRAME_BYTES + sequences * ITEM_BYTES + rows * TOKEN_BYTES,
            _bytes(rows * model.row_bytes, "hidden"),
            VERDICT_BYTES + sequences * PICK_BYTES * space.rows_per_sequence,
        ]
    return {
        "sizes": len(sizes),
        "stage": _array(stage),
        "layer": _array(layer),
        "output": _array(output),
        "frames": _array(frames),
    }


def _seconds(value: float, device: Device) -> float:
    if not 0 <= value <= MOST_S:
        raise ConfigError(f"worker {device.name!r} would take {value:g} s for a pass: no device is so slow", worker=device.name)
    return value


def _devices(devices: Sequence[Device]) -> dict[str, Any]:
    return {
        "limit": _array([math.inf if d.memory_bytes is None else min(d.memory_bytes, MOST_BYTES) for d in devices]),
        "stream": _array([d.stream_bytes_per_s or 0.0 for d in devices]),
        "encode": _array([float(d.encode_bytes_per_s) for d in devices]),
        "decode": _array([float(d.decode_bytes_per_s) for d in devices]),
    }


def _links(topology: Topology, workers: Sequence[WorkerId]) -> dict[str, Any]:
    """[N + 1, N + 1] matrices; access lines bound the bandwidth of each pair."""
    number = {worker: index for index, worker in enumerate((*workers, HEAD))}
    shape = (len(number), len(number))
    bandwidth, latency = np.zeros(shape), np.zeros(shape)
    for (source, target), link in topology.links.items():
        if source not in number or target not in number or source == target:
            continue
        if link.latency_s > MOST_S:
            raise ConfigError(
                f"link {topology.name(source)} -> {topology.name(target)} has a latency of {link.latency_s:g} s: none is so long",
                source=source,
                target=target,
            )
        rate = link.bandwidth_bytes_per_s
        if topology.sites:
            rate = min([rate, *(rate for _, rate in topology.lines(source, target))])
        bandwidth[number[source], number[target]] = rate
        latency[number[source], number[target]] = link.latency_s
    return {"bandwidth": bandwidth, "latency": latency}


def _lines(topology: Topology, workers: Sequence[WorkerId]) -> dict[str, Any]:
    """Sites as pairs of lines, up and down; none where no two of the workers and the head share a site."""
    places = [topology.sites.get(worker) for worker in (*workers, HEAD)]
    names = [place.name for place in places if place is not None]
    shared = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if len(shared) == len(names):
        return {"num_lines": 0}
    rates = np.full(2 * len(shared), math.inf)
    up = np.full(len(places), -1, dtype=np.int32)
    for index, place in enumerate(places):
        if place is not None:
            up[index] = 2 * shared[place.name]
            rates[up[index]], rates[up[index] + 1] = place.up_bytes_per_s, place.down_bytes_per_s
    return {"num_lines": len(rates), "lines": rates, "up": up, "down": np.where(up < 0, -1, up + 1).astype(np.int32)}
