"""How fast a model's layers are on one device: measured points, a small linear model of them, and how wrong it is; and what a
machine offers besides. Pure.

A pass of k layers over a microbatch takes (plan/topology.py, ``RowTime``)::

    stage.fixed + rows * stage.row(phase) + k * (layer.fixed + rows * layer.row(phase) + rows * context * layer.context(phase))

The eight figures are fitted by least squares of relative errors under the condition that none is negative. Devices are not
linear: the error says how far off that is, and a plan may widen its margins by it. Layers that differ have five figures each
kind; a layer with a window attends to no more cached tokens than it sees.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from bloombee.errors import ConfigError
from bloombee.models.shape import ModelShape
from bloombee.plan.topology import Device, RowTime
from bloombee.types import Phase

FORMAT = 2
FIGURES = ("fixed_s", "decode_row_s", "prefill_row_s", "context_s", "decode_context_s")
"""Of RowTime, in its order."""
Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Point:
    """One measured pass.

    Args:
        context: tokens already cached, of each sequence in a decode microbatch or of the one whose chunk it is; of layers with
            a window no more than they see.
        picks: rows that got a token sampled, on a last stage.
        kind: of the layers, in the profile's ``kinds``.
    """

    phase: Phase
    layers: int
    rows: int
    context: int
    seconds: float
    picks: int = 0
    kind: int = 0


@dataclass(frozen=True, slots=True)
class Fit:
    """The linear model and its relative errors: the median and the worst of the points."""

    stage: RowTime
    layer: RowTime
    median_error: float
    worst_error: float

    def seconds(self, point: Point) -> float:
        """Predicted time of a pass like ``point``, the output of a last stage apart."""
        if point.phase is Phase.PREFILL:
            layer = self.layer.prefill_s(point.rows, point.context)
            return self.stage.prefill_s(point.rows) + point.layers * layer
        return self.stage.decode_s(point.rows) + point.layers * self.layer.decode_s(point.rows, point.context)


@dataclass(frozen=True, slots=True)
class KindTime:
    """Layers of one kind, where a model's differ.

    Args:
        layer: the number of one of them in the model.
        layer_bytes, kv_token_bytes: of one: its weights, and the KV of one token.
    """

    layer: int
    time: RowTime
    layer_bytes: int = 0
    kv_token_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a worker's machine offers a model, whatever it is. 0, None and an empty name: there is none, or it is not known.

    Args:
        memory_bytes: of the device, for weights, KV and scratch: without what the process and its buffers take.
        host_bytes: of the machine besides, likewise; of a device that is the CPU there is nothing besides.
        disk_bytes: free where the worker keeps its log, without what the log may take.
        to_device_bytes_per_s, from_device_bytes_per_s: between the memories of machine and device.
        disk_bytes_per_s: read past the system's cache, from where layers that stream are kept, or where the model's files are.
        frames_per_s: decode frames of 16 sequences that one thread writes and reads: what a hop and a scheduler cost.
        cores: that the process may use. machine: whose; workers of the same machine share them.
    """

    memory_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    to_device_bytes_per_s: float | None = None
    from_device_bytes_per_s: float | None = None
    disk_bytes_per_s: float | None = None
    frames_per_s: float | None = None
    cores: int = 0
    machine: str = ""

    @property
    def stream_bytes_per_s(self) -> float | None:
        """At which weights that are not on the device come to it: from the disk, through the machine's memory."""
        if self.disk_bytes_per_s is None or self.to_device_bytes_per_s is None:
            return self.disk_bytes_per_s
        return min(self.disk_bytes_per_s, self.to_device_bytes_per_s)


@dataclass(frozen=True, slots=True)
class Profile:
    """What a worker knows of itself and a model.

    Args:
        model_digest, device, dtype, threads: of what was measured; a profile of others says nothing.
        fit: of the model's layers, where they differ of their mean.
        output: of a last stage besides its layers: final norm, LM head, sampler.
        layer_bytes, kv_token_bytes: of one layer, their mean: its weights, and the KV of one token.
        hardware: the machine's.
        encode_bytes_per_s, decode_bytes_per_s: of the codec, in raw bytes; None: it has none for this dtype.
        kinds: of layers that differ; empty: all are alike, or were not told apart.
    """

    model_digest: str
    device: str
    dtype: str
    threads: int
    fit: Fit
    output: RowTime
    layer_bytes: int
    kv_token_bytes: int
    hardware: Hardware = Hardware()
    encode_bytes_per_s: float | None = None
    decode_bytes_per_s: float | None = None
    kinds: tuple[KindTime, ...] = ()
    points: tuple[Point, ...] = field(default=(), compare=False)

    def seconds(self, point: Point) -> float:
        """Predicted time of a pass like ``point``, by the kind of its layers and without the output of a last stage."""
        layer = self.kinds[point.kind].time if self.kinds else self.fit.layer
        return replace(self.fit, layer=layer).seconds(point)

    def as_device(
        self, name: str, memory_bytes: int | None = None, *, shape: ModelShape | None = None, careful: bool = False
    ) -> Device:
        """For a topology.

        Args:
            memory_bytes: that counts instead of what the profile says.
            shape: of the model, whose kinds of layers are told apart as far as the profile does; None: all count as their mean.
            careful: as slow as the model's error says that it may be, for a plan that stays; else as is expected.
        """
        factor = 1 + self.fit.median_error if careful else 1.0
        return Device(
            name,
            memory_bytes=(self.hardware.memory_bytes or None) if memory_bytes is None else memory_bytes,
            stage=self.fit.stage.scaled(factor),
            layer=self.fit.layer.scaled(factor),
            kinds=tuple(time.scaled(factor) for time in self._times_of(shape)) if shape is not None else (),
            output=self.output.scaled(factor),
            encode_bytes_per_s=self.encode_bytes_per_s or math.inf,
            decode_bytes_per_s=self.decode_bytes_per_s or math.inf,
            stream_bytes_per_s=self.hardware.stream_bytes_per_s,
        )

    def _times_of(self, shape: ModelShape) -> tuple[RowTime, ...]:
        """Of each of the model's kinds; none at all unless every one of them is known."""
        kind_of = shape.kind_of or (0,) * shape.num_layers
        known = {kind_of[one.layer]: one.time for one in self.kinds if one.layer < shape.num_layers}
        kinds = range(len(shape.layer_kinds))
        return tuple(known[kind] for kind in kinds) if all(kind in known for kind in kinds) else ()

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Raises ConfigError if ``text`` is no profile, or one of another format."""
        try:
            record = json.loads(text)
            if record.pop("format") != FORMAT:
                raise ValueError("another format")
            fit = record["fit"]
            record["fit"] = Fit(RowTime(**fit.pop("stage")), RowTime(**fit.pop("layer")), **fit)
            record["output"] = RowTime(**record["output"])
            record["hardware"] = Hardware(**record["hardware"])
            record["kinds"] = tuple(KindTime(**{**kind, "time": RowTime(**kind["time"])}) for kind in record["kinds"])
            record["points"] = tuple(Point(**{**point, "phase": Phase(point["phase"])}) for point in record["points"])
            return cls(**record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"not a profile: {error}") from error


def fit(points: Sequence[Point]) -> Fit:
    """The linear model of passes of layers of one kind, without picks.

    Raises:
        ConfigError: fewer than two points, or one that took no time.
    """
    if len(points) < 2 or any(point.seconds <= 0 for point in points):
        raise ConfigError(f"{len(points)} measured points are no base for a fit, or one took no time", points=len(points))
    seconds = np.array([point.seconds for point in points])
    x = _least_squares(np.array([_row(point) for point in points]) / seconds[:, None], np.ones(len(points)))
    stage = RowTime(fixed_s=x[0], decode_row_s=x[1], prefill_row_s=x[2])
    return _judged(points, stage, {point.kind: RowTime(*x[3:]) for point in points}, RowTime(*x[3:]))


def fit_kinds(points: Sequence[Point], counts: Sequence[int]) -> tuple[Fit, tuple[RowTime, ...]]:
    """As :func:`fit` for layers that differ: (the model of their mean, the time of each kind).

    What a pass takes whatever its layers is learnt from the kind that most layers are of.

    Args:
        counts: of layers of each kind in the model; there are points of every kind.
    """
    of_kind = [[point for point in points if point.kind == kind] for kind in range(len(counts))]
    stage = fit(of_kind[max(range(len(counts)), key=lambda kind: counts[kind])]).stage
    times = [_fit_layer(some, stage) for some in of_kind]
    share = [count / sum(counts) for count in counts]
    mean = [sum(part * getattr(time, name) for part, time in zip(share, times, strict=True)) for name in FIGURES]
    return _judged(points, stage, dict(enumerate(times)), RowTime(*mean)), tuple(times)


def _fit_layer(points: Sequence[Point], stage: RowTime) -> RowTime:
    """What a layer takes, where a pass is known to take ``stage`` besides."""
    seconds = np.array([point.seconds for point in points])
    rest = seconds - [_stage_s(stage, point) for point in points]
    rows = np.array([_row(point)[3:] for point in points])
    return RowTime(*_least_squares(rows / seconds[:, None], rest / seconds))


def _stage_s(stage: RowTime, point: Point) -> float:
    return stage.prefill_s(point.rows) if point.phase is Phase.PREFILL else stage.decode_s(point.rows)


def _judged(points: Sequence[Point], stage: RowTime, times: Mapping[int, RowTime], mean: RowTime) -> Fit:
    """With the errors of the points, each by its own kind."""
    errors = [abs(Fit(stage, times[point.kind], 0.0, 0.0).seconds(point) / point.seconds - 1) for point in points]
    return Fit(stage, mean, float(np.median(errors)), max(errors))


def fit_output(points: Sequence[Point], layers: Fit) -> RowTime:
    """What a last stage needs besides its layers, per pass and per pick; zero where it is lost in the noise."""
    rest = [(point.picks, point.seconds - layers.seconds(point)) for point in points if point.picks]
    if not rest:
        return RowTime()
    weights = np.array([1 / point.seconds for point in points if point.picks])
    a = np.array([(1.0, picks) for picks, _ in rest]) * weights[:, None]
    fixed_s, row_s = _least_squares(a, np.array([seconds for _, seconds in rest]) * weights)
    return RowTime(fixed_s=fixed_s, decode_row_s=row_s, prefill_row_s=row_s)


def _row(point: Point) -> tuple[float, ...]:
    """What each of the eight figures counts for in a point."""
    is_prefill, k, rows = point.phase is Phase.PREFILL, point.layers, point.rows
    decode, prefill = (0, rows) if is_prefill else (rows, 0)
    return (1, decode, prefill, k, k * decode, k * prefill, k * prefill * (point.context + rows / 2), k * decode * point.context)


def _least_squares(a: Matrix, b: Matrix) -> list[float]:
    """min |a x - b| with every x >= 0. Exact: the best over all choices of which are zero; for few unknowns."""
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1.0
    a = a / scale
    best, best_x = math.inf, np.zeros(a.shape[1])
    for size in range(1, a.shape[1] + 1):
        for chosen in itertools.combinations(range(a.shape[1]), size):
            part = a[:, chosen]
            x, *_ = np.linalg.lstsq(part, b, rcond=None)
            loss = float(np.linalg.norm(part @ x - b))
            if (x >= 0).all() and loss < best - 1e-12:
                best, best_x = loss, np.zeros(a.shape[1])
                best_x[list(chosen)] = x
    return [float(value) for value in best_x / scale]
