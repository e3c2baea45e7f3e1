"""What attention over pages takes a GPU: python -m bench.gpu_attention [--layers N] [--json FILE]

Decode of several batches against what a large copy shows of the memory, and chunks of prompts against torch's kernels, which
run where ours do not. Times are of CUDA events around graphs of all layers, so that keys are read from memory where they are
more than a cache holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.arguments import Parser, whole, writable
from bench.program import program
from bloombee.engine.attention import attend, kernels
from bloombee.engine.cache import LayerCache, SlotCache, Step
from bloombee.engine.model import pick_device
from bloombee.engine.paged import PagedStep, StepTables
from bloombee.pipeline.work import Pages, Segment
from bloombee.types import PageGroup

PAGE = 16
DECODES = {
    "1 x 512": [512],
    "64 x 512": [512] * 64,
    "64 x 4096": [4096] * 64,
    "1 x 32768": [32768],
    "32768 beside 31 x 100": [32768] + [100] * 31,
}
CHUNK = 512
PROMPTS = (0, 3584, 32256)
"""Positions that a chunk of a prompt begins at."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a layer's attention: those of a Llama of 8B."""

    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    def key_bytes(self, tokens: int) -> int:
        """Of the keys and values of ``tokens``, in one layer."""
        return 2 * tokens * self.kv_heads * self.dim * int(self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Timing:
    """Args:
    layer_s: of one layer's attention, its rows' storing included; the least of several rounds.
    ideal_s: of reading what it has to read as fast as a large copy reads.
    torch_s: of the same by torch's kernels; None: not measured.
    """

    name: str
    layer_s: float
    ideal_s: float
    torch_s: float | None = None


def copy_bytes_per_s(num_bytes: int = 1 << 30) -> float:
    """Bytes read and written by a large copy on the device, per second."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * num_bytes / _least_s(lambda: target.copy_(source))


def time_decode(lengths: Sequence[int], sizes: Sizes, layers: int, bytes_per_s: float, name: str = "") -> Timing:
    """One new row of each of sequences of ``lengths``."""
    cache, pages = _cache(lengths, sizes, layers)
    segments = [
        Segment(i, 0, length - 1, bytes(4), 0, (Pages(own),)) for i, (length, own) in enumerate(zip(lengths, pages, strict=True))
    ]
    seconds = _time_paged(cache, segments, sizes, layers)
    return Timing(name, seconds, sizes.key_bytes(sum(lengths)) / bytes_per_s)


def time_chunk(position: int, sizes: Sizes, layers: int, bytes_per_s: float) -> Timing:
    """``CHUNK`` rows of one prompt that begin at ``position``, beside the same by torch."""
    length = position + CHUNK
    cache, pages = _cache([length], sizes, layers)
    segments = [Segment(0, 0, position, bytes(4 * CHUNK), 0, (Pages(pages[0]),))]
    seconds = _time_paged(cache, segments, sizes, layers)
    q, k, v = _rows(CHUNK, sizes)

    def by_torch() -> None:
        step = Step(cache, segments, batched=True)
        with kernels(cache.device):
            for layer in range(layers):
                attend(step, q, *step.update(k, v, layer))

    return Timing(f"prompt at {position}", seconds, sizes.key_bytes(length) / bytes_per_s, _least_s(by_torch) / layers)


def _cache(lengths: Sequence[int], sizes: Sizes, layers: int) -> tuple[SlotCache, list[tuple[int, ...]]]:
    counts = [-(-length // PAGE) for length in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1)).tolist()
    pages = [tuple(order[sum(counts[:i]) :][:count]) for i, count in enumerate(counts)]
    shape = (sizes.kv_heads, sizes.dim)
    cache = SlotCache(
        [LayerCache(layer, shape, shape, heads=sizes.heads) for layer in range(layers)],
        [PageGroup(0, sum(counts))],
        PAGE,
        sizes.dtype,
        torch.device("cuda"),
    )
    for layer in range(layers):
        for held in cache.rows(layer):
            held.normal_()
    return cache, pages


def _rows(count: int, sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of so many new rows."""
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    q, k, v = (torch.randn(1, n, count, sizes.dim, device="cuda", dtype=sizes.dtype) for n in heads)
    return q, k, v


def _time_paged(cache: SlotCache, segments: Sequence[Segment], sizes: Sizes, layers: int) -> float:
    tables = StepTables(cache)
    tables.fill(segments)
    step, (q, k, v) = PagedStep(tables), _rows(tables.num_rows, sizes)

    def all_layers() -> None:
        for layer in range(layers):
            step.attend(q, *step.update(k, v, layer))

    all_layers()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_layers()
    return _least_s(graph.replay) / layers


def _least_s(run: Callable[[], object], rounds: int = 7) -> float:
    """Of one run, by the device's own clock; the least of several, once it is warm."""
    run()
    found: list[float] = []
    for _ in range(rounds):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        found.append(start.elapsed_time(stop) / 1e3)
    return min(found)


def report(timings: Sequence[Timing], bytes_per_s: float) -> str:
    """A table."""
    lines = [
        f"a large copy: {bytes_per_s / 1e9:.0f} GB/s",
        "",
        "| | us a layer | us its bytes take | ratio | torch |",
        "|---|---|---|---|---|",
    ]
    for one in timings:
        other = "" if one.torch_s is None else f"{one.torch_s * 1e6:.1f}"
        lines.append(
            f"| {one.name} | {one.layer_s * 1e6:.1f} | {one.ideal_s * 1e6:.1f} | {one.layer_s / one.ideal_s:.2f} | {other} |"
        )
    return "\n".join(lines)


def measure(layers: int, sizes: Sizes | None = None) -> tuple[list[Timing], float]:
    """All of it, and the bytes per second of a large copy."""
    sizes, speed = sizes or Sizes(), copy_bytes_per_s()
    decodes = [time_decode(lengths, sizes, layers, speed, name) for name, lengths in DECODES.items()]
    return decodes + [time_chunk(position, sizes, layers, speed) for position in PROMPTS], speed


@program("gpu_attention")
def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", type=whole(1, 64), default=8, metavar="N", help="layers that are attended in turn (default 8)"
    )
    parser.add_argument("--json", type=writable, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(words)
    pick_device("cuda")
    with torch.inference_mode():
        timings, speed = measure(options.layers)
    print(report(timings, speed))
    if options.json:
        found = {"bytes_per_s": speed, "timings": [asdict(one) for one in timings]}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
