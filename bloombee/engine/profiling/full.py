"""Measures a model's layers on this device, with the same code that serves it; keeps what it found on disk."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bloombee.codec import api as codec
from bloombee.codec.table import DTYPE_CODES, default_table
from bloombee.config import cache_dir
from bloombee.engine.buffers import TORCH_DTYPES, to_buffer
from bloombee.engine.checkpoint import Checkpoint, resolve
from bloombee.engine.device_clock import clock_of, seconds_of
from bloombee.engine.memory import free_bytes
from bloombee.engine.model import SpanModel, pick_device, set_threads
from bloombee.engine.skeleton import build
from bloombee.errors import BloomBeeError, ConfigError
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.plan.profile import Point, Profile, fit, fit_output
from bloombee.types import Dtype, PageGroup, Phase, Span
from bloombee.wire.messages import Pick, Sampling

PAGE_SIZE = 16
DECODE = ((1, 16), (4, 16), (16, 16), (1, 512), (8, 512))
"""(rows, context)"""
PREFILL = ((32, 0), (128, 0), (64, 448))
PICKS = (1, 8)
REPEATS = 7
POINT_S = 0.4
"""A point is measured until it has its repeats or has taken so long."""
TOO_LONG_S = 2.0
"""Larger points are left out once one pass takes so long."""
GREEDY = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)


def profile(model: str, *, device: str = "cpu", dtype: str = "auto", threads: int | None = None, fresh: bool = False) -> Profile:
    """The profile of ``model`` on ``device``: from the cache, or measured now.

    Args:
        threads: of torch in this process from now on; None: leaves them.
        fresh: measure even if the cache has one.

    Raises:
        ConfigError, ModelUnsupported, DeviceError: as for serving the model.

    Time: some seconds; loads at most five layers.
    """
    device = pick_device(device)
    if threads is not None:
        set_threads(threads)
    checkpoint = resolve(model)
    kind = checkpoint.dtype if dtype == "auto" else Dtype(dtype)
    path = cache_path(checkpoint.config_digest.hex(), device, kind)
    if not fresh:
        with contextlib.suppress(OSError, UnicodeDecodeError, ConfigError):
            return Profile.from_json(path.read_text(encoding="utf-8"))
    found = measure(checkpoint, device=device, dtype=kind)
    keep(found, path)
    return found


def keep(found: Profile, path: Path) -> None:
    """In the cache."""
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(found.to_json(), encoding="utf-8")
        draft.replace(path)
    except OSError:  # a cache that cannot be written costs the next start some seconds
        with contextlib.suppress(OSError):
            draft.unlink()


def measure(checkpoint: Checkpoint, *, device: str, dtype: Dtype) -> Profile:
    """As :func:`profile`, measured now and not kept."""
    num_layers = build(checkpoint, dtype).num_layers
    points: list[Point] = []
    sizes: list[tuple[int, int, int]] = []
    free = free_bytes(device)
    for span in _spans(num_layers):
        bench = _Bench.load(checkpoint, span, device, dtype)
        points += bench.points()
        sizes.append((len(span), bench.model.weight_bytes, bench.model.kv_bytes // bench.num_slots))
    layers = fit(points)
    last = _Bench.load(checkpoint, Span(num_layers - 1, num_layers), device, dtype)
    outputs = [last.point(Phase.DECODE, rows, 16, picks=rows) for rows in PICKS]
    encode, decode = codec_speeds(last.model.hidden_size, dtype)
    return Profile(
        model_digest=checkpoint.config_digest.hex(),
        device=device_name(device),
        dtype=str(dtype),
        threads=torch.get_num_threads(),
        fit=layers,
        output=fit_output(outputs, layers),
        layer_bytes=_per_layer([(k, weights) for k, weights, _ in sizes]),
        kv_token_bytes=_per_layer([(k, kv) for k, _, kv in sizes]),
        memory_bytes=free,
        encode_bytes_per_s=encode,
        decode_bytes_per_s=decode,
        points=(*points, *outputs),
    )


def _spans(num_layers: int) -> list[Span]:
    """Two spans of different length, without embedding and head where the model is long enough."""
    if num_layers >= 4:
        return [Span(1, 2), Span(1, min(4, num_layers - 1))]
    return [Span(0, 1), Span(0, num_layers - 1)] if num_layers == 3 else [Span(0, 1)]


def _per_layer(sizes: list[tuple[int, int]]) -> int:
    (k0, first), (k1, last) = sizes[0], sizes[-1]
    return (last - first) // (k1 - k0) if k1 > k0 else first // k0


@dataclass
class _Bench:
    """A loaded span and works for it; every sequence has pages of its own."""

    model: SpanModel
    num_slots: int
    number: int = 0

    @classmethod
    def load(cls, checkpoint: Checkpoint, span: Span, device: str, dtype: Dtype) -> _Bench:
        pages = max(rows * _pages(context + 1) for rows, context in DECODE)
        pages = max(pages, *(_pages(rows + context) for rows, context in PREFILL))
        model = SpanModel.load(checkpoint, span, dtype=dtype, device=device, groups=[PageGroup(0, pages)], page_size=PAGE_SIZE)
        model.settle()
        return cls(model, pages * PAGE_SIZE)

    def points(self) -> list[Point]:
        found: list[Point] = []
        for phase, grid in ((Phase.DECODE, DECODE), (Phase.PREFILL, PREFILL)):
            for rows, context in grid:
                smaller = [p for p in found if p.phase is phase and p.rows * (1 + p.context) <= rows * (1 + context)]
                if all(point.seconds < TOO_LONG_S for point in smaller):
                    found.append(self.point(phase, rows, context))
        return found

    def point(self, phase: Phase, rows: int, context: int, picks: int = 0) -> Point:
        """The median of some passes after one that does not count."""
        work = self._work(phase, rows, context, picks)
        hidden = None if self.model.is_first else torch.randn(rows, self.model.hidden_size).to(TORCH_DTYPES[self.model.dtype])
        seconds: list[float] = []
        started = time.perf_counter()
        for repeat in range(REPEATS + 1):
            spent = pass_s(self.model, work, hidden)
            if repeat:
                seconds.append(spent)
            if seconds and time.perf_counter() - started > POINT_S:
                break
        return Point(phase, len(self.model.span), rows, context, statistics.median(seconds), picks)

    def _work(self, phase: Phase, rows: int, context: int, picks: int) -> Work:
        self.number += 1
        token = (1).to_bytes(4, "little")
        if phase is Phase.PREFILL:
            segments = [Segment(1, 0, context, token * rows, 0, (Pages(tuple(range(_pages(context + rows)))),))]
        else:
            each = _pages(context + 1)
            segments = [
                Segment(
                    row, 0, context, token, int(row < picks), (Pages(tuple(range(row * each, (row + 1) * each))),),
                    GREEDY if picks else None, 1,
                )
                for row in range(rows)
            ]  # fmt: skip
        return Work(1, 1, self.number, self.number, phase, tuple(segments))


def pass_s(model: SpanModel, work: Work, hidden: torch.Tensor | None) -> float:
    """How long the device takes for one pass."""

    def wait(result: torch.Tensor | list[Pick]) -> None:
        if isinstance(result, torch.Tensor):
            to_buffer(result)

    return seconds_of(clock_of(model.device), lambda: model.run(work, hidden), wait)


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE_SIZE)


def codec_speeds(hidden: int, dtype: Dtype) -> tuple[float | None, float | None]:
    """Raw bytes per second of encoding and decoding 64 rows of normal noise, which is near what activations are."""
    if dtype not in DTYPE_CODES:
        return None, None
    rows = torch.randn(64, hidden).to(TORCH_DTYPES[dtype])
    data, shape = bytes(to_buffer(rows).data), (64, hidden)
    coded, plain = bytearray(codec.bound(64 * hidden, dtype)), bytearray(len(data))
    try:
        table = default_table(dtype, hidden)
        size = codec.encode(data, shape=shape, dtype=dtype, table=table, out=coded)
        encode_s = _quickest(lambda: codec.encode(data, shape=shape, dtype=dtype, table=table, out=coded))
        message = memoryview(coded)[:size]
        decode_s = _quickest(lambda: codec.decode(message, plain, shape=shape, dtype=dtype))
    except (BloomBeeError, ValueError, TypeError):
        return None, None
    return len(data) / encode_s, len(data) / decode_s


def _quickest(call: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def device_name(device: str) -> str:
    """As profiles name it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu {platform.machine()} {_cpu()}".strip()


def _cpu() -> str:
    """The processor's own name, where the system tells it."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def cache_path(digest: str, device: str, dtype: Dtype) -> Path:
    """Of what a profile depends on: the model's digest in hex, device, dtype, torch and its threads in this process."""
    facts = (digest, device_name(device), str(dtype), torch.get_num_threads(), torch.__version__)
    return cache_dir() / "profiles" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"


def main() -> int:
    """``python -m bloombee.engine.profiling.full MODEL DEVICE DTYPE THREADS``: the profile as JSON, or what is wrong."""
    model, device, dtype, threads = sys.argv[1:]
    said, code = "", 0
    try:
        said = profile(model, device=device, dtype=dtype, threads=int(threads)).to_json()
    except BloomBeeError as error:
        said, code = error.message, 1
    sys.stdout.buffer.write(f"{said}\n".encode())  # UTF-8 whatever the locale says, for whoever started this
    return code


if __name__ == "__main__":
    sys.exit(main())
