"""Measures the span that a worker serves, pass by pass, in time that nobody else wants; keeps what it found on disk.

``engine/profiling/layers.py`` makes layers of its own and takes seconds for a good profile. This one takes the span that is
loaded and a few passes, none of which is long, so that it can be interrupted by a request after each. A better one in the cache
is taken instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from bloombee.engine.memory import free_bytes
from bloombee.engine.model import SpanModel
from bloombee.engine.profiling.hardware import codec_speeds
from bloombee.engine.profiling.kept import cache_path, device_name, keep, look_up
from bloombee.engine.profiling.passes import hidden_rows, make_work, num_slots, pass_s
from bloombee.plan.profile import Hardware, Point, Profile, fit, fit_output
from bloombee.types import Phase

PASSES = ((Phase.DECODE, 1, 16), (Phase.DECODE, 8, 16), (Phase.DECODE, 2, 192), (Phase.PREFILL, 16, 0), (Phase.PREFILL, 64, 0))
"""(phase, rows, context)"""
REPEATS = 3
"""The quickest counts: others may be busy on this machine meanwhile."""
TOTAL_S = 0.3
LONG_S = 0.05
"""Passes that would take longer than this are left out, except the least."""


def idle_profile(model: SpanModel, digest: str, device: str) -> Iterator[Profile | None]:
    """One short pass before each item but the first; the last is the profile, the others are None.

    To be gone on with only while no slot holds anything. No profile comes where the KV memory is too small for two passes.

    Args:
        digest: of the model, in hex. device: of torch.
    """
    kept = _kept(model, digest, device)
    if kept is not None:
        hardware = dataclasses.replace(kept.hardware, memory_bytes=free_bytes(device) + model.weight_bytes)
        yield dataclasses.replace(kept, hardware=hardware)
        return
    yield None
    points: list[Point] = []
    spent_s = 0.0
    for layers in sorted({1, len(model.span)}):
        for phase, rows, context in PASSES:
            least = min((p.seconds / (p.rows * p.layers) for p in points if p.phase is phase), default=0.0)
            if not _fits(model, phase, rows, context) or least * rows * layers > LONG_S or spent_s > TOTAL_S:
                continue
            best = float("inf")
            for _ in range(REPEATS + 1):
                seconds = _pass_s(model, layers, phase, rows, context, 0)
                best, spent_s = min(best, seconds), spent_s + seconds
                yield None
            points.append(Point(phase, layers, rows, context, best))
    if len(points) < 2:
        return
    outputs = []
    for rows in (1, 8) if model.is_last else ():
        if _fits(model, Phase.DECODE, rows, 16):
            best = min(_pass_s(model, 1, Phase.DECODE, rows, 16, rows) for _ in range(2))
            outputs.append(Point(Phase.DECODE, 1, rows, 16, best, picks=rows))
            yield None
    found = _profile(model, digest, device, points, outputs)
    keep(found, _path(model, digest, device))
    yield found


def _profile(model: SpanModel, digest: str, device: str, points: list[Point], outputs: list[Point]) -> Profile:
    layers = fit(points)
    encode, decode = codec_speeds(model.hidden_size, model.dtype)
    return Profile(
        model_digest=digest,
        device=device_name(device),
        dtype=str(model.dtype),
        threads=torch.get_num_threads(),
        fit=layers,
        output=fit_output(outputs, layers),
        layer_bytes=model.layer_bytes,
        kv_token_bytes=model.kv.token_bytes // len(model.span),
        hardware=Hardware(memory_bytes=free_bytes(device) + model.weight_bytes),
        encode_bytes_per_s=encode,
        decode_bytes_per_s=decode,
        points=(*points, *outputs),
    )


def _fits(model: SpanModel, phase: Phase, rows: int, context: int) -> bool:
    slots = num_slots(model.kv.page_size, phase, rows, context)
    return slots <= min(group.num_pages for group in model.kv.groups) * model.kv.page_size


def _pass_s(model: SpanModel, layers: int, phase: Phase, rows: int, context: int, picks: int) -> float:
    """One pass, whose garbage is gone from the KV memory afterwards."""
    slots = num_slots(model.kv.page_size, phase, rows, context)
    model.kv.clear(slots)  # what is read must be numbers
    with model.of_layers(range(layers)):
        seconds = pass_s(model, make_work(model, phase, rows, context, picks), hidden_rows(model, rows))
    model.kv.clear(slots)
    return seconds


def _path(model: SpanModel, digest: str, device: str) -> Path:
    end = "last" if model.is_last else "inner"
    return cache_path(digest, device, model.dtype).with_suffix(f".{end}.json")


def _kept(model: SpanModel, digest: str, device: str) -> Profile | None:
    return look_up(cache_path(digest, device, model.dtype)) or look_up(_path(model, digest, device))
