"""Measures the span that a worker serves, pass by pass, in time that nobody else wants; keeps what it found on disk.

``engine/profiling/full.py`` loads layers of its own and takes seconds for a good profile. This one takes the span that is loaded
and a few passes, none of which is long, so that it can be interrupted by a request after each. A better one in the cache is taken
instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.memory import free_bytes
from bloombee.engine.model import SpanModel
from bloombee.engine.profiling import full
from bloombee.errors import ConfigError
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.plan.profile import Point, Profile, fit, fit_output
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
        yield dataclasses.replace(kept, memory_bytes=free_bytes(device) + model.weight_bytes)
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
    full.keep(found, _path(model, digest, device))
    yield found


def _profile(model: SpanModel, digest: str, device: str, points: list[Point], outputs: list[Point]) -> Profile:
    layers = fit(points)
    encode, decode = full.codec_speeds(model.hidden_size, model.dtype)
    return Profile(
        model_digest=digest,
        device=full.device_name(device),
        dtype=str(model.dtype),
        threads=torch.get_num_threads(),
        fit=layers,
        output=fit_output(outputs, layers),
        layer_bytes=model.layer_bytes,
        kv_token_bytes=model.kv.token_bytes // len(model.span),
        memory_bytes=free_bytes(device) + model.weight_bytes,
        encode_bytes_per_s=encode,
        decode_bytes_per_s=decode,
        points=(*points, *outputs),
    )


def _fits(model: SpanModel, phase: Phase, rows: int, context: int) -> bool:
    return _slots(model, phase, rows, context) <= min(group.num_pages for group in model.kv.groups) * model.kv.page_size


def _slots(model: SpanModel, phase: Phase, rows: int, context: int) -> int:
    """Of each pool's first slots, how many a pass writes or reads."""
    sequences, tokens = (1, context + rows) if phase is Phase.PREFILL else (rows, context + 1)
    return sequences * -(-tokens // model.kv.page_size) * model.kv.page_size


def _pass_s(model: SpanModel, layers: int, phase: Phase, rows: int, context: int, picks: int) -> float:
    """One pass, whose garbage is gone from the KV memory afterwards."""
    token = (1).to_bytes(4, "little")
    pages = -(-(context + (rows if phase is Phase.PREFILL else 1)) // model.kv.page_size)
    if phase is Phase.PREFILL:
        segments = [Segment(1, 0, context, token * rows, 0, _everywhere(model, 0, pages))]
    else:
        segments = [
            Segment(
                row, 0, context, token, int(row < picks), _everywhere(model, row * pages, pages),
                full.GREEDY if picks else None, 1, token * (context + 1),
            )
            for row in range(rows)
        ]  # fmt: skip
    work = Work(1, 1, 0, 0, phase, tuple(segments))
    hidden = None if model.is_first else torch.randn(rows, model.hidden_size).to(TORCH_DTYPES[model.dtype])
    model.kv.clear(_slots(model, phase, rows, context))  # what is read must be numbers
    with model.shortened(layers):
        seconds = full.pass_s(model, work, hidden)
    model.kv.clear(_slots(model, phase, rows, context))
    return seconds


def _everywhere(model: SpanModel, first: int, count: int) -> tuple[Pages, ...]:
    """The same pages in every group."""
    return (Pages(tuple(range(first, first + count))),) * len(model.kv.groups)


def _path(model: SpanModel, digest: str, device: str) -> Path:
    end = "last" if model.is_last else "inner"
    return full.cache_path(digest, device, model.dtype).with_suffix(f".{end}.json")


def _kept(model: SpanModel, digest: str, device: str) -> Profile | None:
    for path in (full.cache_path(digest, device, model.dtype), _path(model, digest, device)):
        with contextlib.suppress(OSError, UnicodeDecodeError, ConfigError):
            return Profile.from_json(path.read_text(encoding="utf-8"))
    return None
