"""How fast a model's layers are on one device: measured points, a small linear model of them, and how wrong it is. Pure.

A pass of k layers over a microbatch takes (plan/topology.py, ``RowTime``)::

    stage.fixed + rows * stage.row(phase) + k * (layer.fixed + rows * layer.row(phase) + rows * context * layer.context)

The seven figures are fitted by least squares of relative errors under the condition that none is negative. Devices are not
linear: the error says how far off that is, and a plan may widen its margins by it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bloombee.errors import ConfigError
from bloombee.plan.topology import Device, RowTime
from bloombee.types import Phase

FORMAT = 1
Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Point:
    """One measured pass.

    Args:
        context: tokens already cached, of each sequence in a decode microbatch or of the one whose chunk it is.
        picks: rows that got a token sampled, on a last stage.
    """

    phase: Phase
    layers: int
    rows: int
    context: int
    seconds: float
    picks: int = 0


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
class Profile:
    """What a worker knows of itself and a model.

    Args:
        model_digest, device, dtype, threads: of what was measured; a profile of others says nothing.
        output: of a last stage besides its layers: final norm, LM head, sampler.
        layer_bytes, kv_token_bytes: of one layer: its weights, and the KV of one token.
        memory_bytes: what the device had for weights and KV when it was measured; 0: not known.
        encode_bytes_per_s, decode_bytes_per_s: of the codec, in raw bytes; None: it has none for this dtype.
    """

    model_digest: str
    device: str
    dtype: str
    threads: int
    fit: Fit
    output: RowTime
    layer_bytes: int
    kv_token_bytes: int
    memory_bytes: int
    encode_bytes_per_s: float | None = None
    decode_bytes_per_s: float | None = None
    points: tuple[Point, ...] = field(default=(), compare=False)

    def as_device(self, name: str, memory_bytes: int | None = None) -> Device:
        """For a topology."""
        return Device(
            name,
            memory_bytes=(self.memory_bytes or None) if memory_bytes is None else memory_bytes,
            stage=self.fit.stage,
            layer=self.fit.layer,
            output=self.output,
            encode_bytes_per_s=self.encode_bytes_per_s or math.inf,
            decode_bytes_per_s=self.decode_bytes_per_s or math.inf,
        )

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
            record["points"] = tuple(Point(**{**point, "phase": Phase(point["phase"])}) for point in record["points"])
            return cls(**record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"not a profile: {error}") from error


def fit(points: Sequence[Point]) -> Fit:
    """The linear model of passes without picks.

    Raises:
        ConfigError: fewer than two points, or one that took no time.
    """
    if len(points) < 2 or any(point.seconds <= 0 for point in points):
        raise ConfigError(f"{len(points)} measured points are no base for a fit, or one took no time", points=len(points))
    seconds = np.array([point.seconds for point in points])
    rows = np.array([_row(point) for point in points])
    x = _least_squares(rows / seconds[:, None], np.ones(len(points)))
    stage = RowTime(fixed_s=x[0], decode_row_s=x[1], prefill_row_s=x[2])
    layer = RowTime(fixed_s=x[3], decode_row_s=x[4], prefill_row_s=x[5], context_s=x[6])
    errors = np.abs(rows @ np.array(x) / seconds - 1)
    return Fit(stage, layer, float(np.median(errors)), float(errors.max()))


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
    """What each of the seven figures counts for in a point."""
    is_prefill, k, rows = point.phase is Phase.PREFILL, point.layers, point.rows
    decode, prefill = (0, rows) if is_prefill else (rows, 0)
    attended = rows * (point.context + (rows / 2 if is_prefill else 0))
    return (1, decode, prefill, k, k * decode, k * prefill, k * attended)


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
