"""What a GPU makes of a stage, against what it could: python -m bench.gpu [--quick] [--only A,B] [--json FILE]

Ceilings come first and from the same run: bytes that a large copy moves a second, operations of a large product. Then steps of
one stage against the time that reading its weights and keys takes at that speed, what the thread that asks for them spends, how
often it asks, whether a row's bits depend on its company, and a ring of three workers on the one GPU. Each row is printed as it
ends, with its bound. Exit status 1: a row missed its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bloombee
from bench.arguments import Parser, shown, writable
from bench.program import BenchError, headline, program
from bloombee.engine.checkpoint import resolve
from bloombee.engine.device_clock import clock_of
from bloombee.engine.model import SpanModel, pick_device
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.types import Dtype, PageGroup, Phase, Span
from bloombee.wire.messages import Sampling

PAGE = 16
GREEDY = Sampling(0, 0, 1, 0, 1, 0, 0, 0, -1)
STEPS = 32
RING_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Args:
        most, least: its bound; None: it has none on that side.
    """

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    def __str__(self) -> str:
        bound = f"<= {self.most:g}" if self.most is not None else f">= {self.least:g}" if self.least is not None else ""
        verdict = "" if not bound else "ok" if self.holds else "MISSED"
        return f"{self.name:<44}{self.value:>12.4g} {self.unit:<10}{bound:<12}{verdict:<8}{self.note}"


# -- ceilings ----------------------------------------------------------------------------------


def device_s(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the device, the least of some."""
    clock = clock_of(torch.device("cuda"))
    spent: list[int] = []
    for _ in range(repeats + 1):
        mark = clock.begin()
        run()
        clock.end(mark, spent.append)
        torch.cuda.synchronize()
        clock.settle()
    return min(spent[1:]) / 1e9


def memory_speed() -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * int(source.nbytes) / device_s(lambda: target.copy_(source))


def product_speed() -> float:
    """Operations a second of a large product in bfloat16."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16).unbind()
    return 2 * 8192**3 / device_s(lambda: a @ b)


# -- one stage ---------------------------------------------------------------------------------


class Stage:
    """A model on one GPU, with sequences of random keys in pages that lie about.

    Args:
        model: as ``llama:4096x8``. lengths: tokens that each sequence holds. layers: the first so many; None: all.
    """

    def __init__(self, model: str, lengths: Sequence[int], *, layers: int | None = None) -> None:
        checkpoint = resolve(model)
        self.lengths = list(lengths)
        counts = [-(-(length + 4 * STEPS) // PAGE) for length in lengths]
        pages = list(range(sum(counts)))
        random.Random(0).shuffle(pages)
        self._pages = [tuple(pages[sum(counts[:i]) : sum(counts[: i + 1])]) for i in range(len(counts))]
        self.model = SpanModel.load(
            checkpoint,
            Span(0, layers or checkpoint.new_config().num_hidden_layers),
            dtype=Dtype.BFLOAT16,
            device="cuda",
            groups=[PageGroup(0, len(pages))],
            page_size=PAGE,
        )
        for layer in self.model.kv.group_of:
            for held in self.model.kv.rows(layer):
                held.normal_()
        for part in self.model.warm_up():
            part()

    def work(self, rows: Sequence[int], past: int = 0, count: int = 1) -> Work:
        """``count`` tokens of each sequence of ``rows``, ``past`` tokens on."""
        return Work(0, 0, 0, 0, Phase.DECODE, tuple(self._segment(i, self.lengths[i] + past, count) for i in rows))

    def _segment(self, i: int, position: int, count: int) -> Segment:
        held = self._pages[i][: (position + count - 1) // PAGE + 1]
        tokens = np.arange(i + position, i + position + count, dtype="<u4") % self.model.vocab_size
        return Segment(i, 0, position, tokens.astype("<u4").tobytes(), 1, (Pages(held),), GREEDY, 1)

    def bytes_read(self, rows: Sequence[int]) -> int:
        """Of a step: all weights but the embedding, and the keys and values of ``rows``."""
        embedding: torch.Tensor = self.model.module.get_input_embeddings().weight
        keys = sum(self.lengths[i] for i in rows) * self.model.kv.token_bytes
        return self.model.weight_bytes - int(embedding.nbytes) + keys


@dataclass(frozen=True, slots=True)
class Steps:
    """Medians of some steps: by the clock until the picks are there, of the device, and of the thread that asks."""

    wall_s: float
    device_s: float
    asking_s: float


def time_steps(stage: Stage, rows: Sequence[int], steps: int = STEPS) -> Steps:
    clock = clock_of(torch.device("cuda"))
    spent: list[int] = []
    wall, asking = [], []
    for number in range(steps):
        work = stage.work(rows, number)
        began, cpu = time.perf_counter(), time.thread_time()
        mark = clock.begin()
        pending = stage.model.launch(work, None)
        clock.end(mark, spent.append)
        asking.append(time.thread_time() - cpu)
        pending.result()
        wall.append(time.perf_counter() - began)
        clock.settle()
    torch.cuda.synchronize()
    clock.settle()
    skipped = 4
    return Steps(*(statistics.median(times[skipped:]) for times in (wall, [one / 1e9 for one in spent], asking)))


def step_rows(stage: Stage, name: str, rows: Sequence[int], bytes_per_s: float, most: float) -> Iterator[Row]:
    times = time_steps(stage, rows)
    ideal = stage.bytes_read(rows) / bytes_per_s
    yield Row(f"{name}: step", 1e3 * times.wall_s, "ms", note=f"reading takes {1e3 * ideal:.3f} ms")
    yield Row(f"{name}: device a step / reading", times.device_s / ideal, "x", most, note=f"{1e3 * times.device_s:.3f} ms")
    yield Row(f"{name}: thread a step", 1e3 * times.asking_s, "ms", 0.45)


def launch_rows(stage: Stage, name: str, rows: Sequence[int]) -> Iterator[Row]:
    """What the thread asks for in a step, as torch's profiler saw it."""
    work = stage.work(rows)
    stage.model.launch(work, None).result()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as seen:
        stage.model.launch(work, None).result()
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in seen.key_averages()}
    graphs = sum(count for key, count in counts.items() if "GraphLaunch" in key)
    kernels = sum(count for key, count in counts.items() if key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    yield Row(f"{name}: graph launches a step", graphs, "", 1, 1)
    yield Row(f"{name}: kernel launches beside it", kernels, "", 2)


def rows_of_bits(model: str) -> Iterator[Row]:
    """Values of a row's activations after two layers that differ by what it is computed with."""
    stage = Stage(model, [512] * 64, layers=2)
    together = activations(stage, stage.work(range(64)))
    for i in (0, 17, 63):
        yield bits_row(f"bits of row {i}, alone and among 64", activations(stage, stage.work([i]))[0], together[i])
    one_by_one = [activations(stage, stage.work([5], past))[0] for past in range(32)]
    for count in (4, 32):
        chunk = activations(stage, stage.work([5], count=count))
        yield bits_row(f"bits of a row, alone and last of {count} in a chunk", one_by_one[count - 1], chunk[-1])
    stage.model.close()


def bits_row(name: str, a: torch.Tensor, b: torch.Tensor) -> Row:
    return Row(name, int((a != b).sum()), "differ", note=f"of {a.numel()}, by {float((a - b).abs().max()):.3g} at most")


def activations(stage: Stage, work: Work) -> torch.Tensor:
    rows = stage.model.run(work, None)
    assert isinstance(rows, torch.Tensor)
    return rows.float()


# -- a ring ------------------------------------------------------------------------------------


async def rows_of_ring(model: str, batch: int) -> list[Row]:
    """Three workers on the GPU, one sequence and many."""
    async with bloombee.Runtime(model, workers=3, dtype="bfloat16", device="cuda") as runtime:
        prompt = [1 + i % 1000 for i in range(256)]
        await asyncio.gather(*(tokens_of(runtime, prompt, 8) for _ in range(batch)))
        times = await tokens_of(runtime, prompt, RING_TOKENS)
        alone = statistics.median(b - a for a, b in itertools.pairwise(times[8:]))
        before = await runtime.stage_use()
        many = await asyncio.gather(*(tokens_of(runtime, [1, 2, 3, 4], RING_TOKENS) for _ in range(batch)))
        after = await runtime.stage_use()
    # The stretch in which every sequence decodes.
    start, stop = max(times[0] for times in many), min(times[-1] for times in many)
    count = sum(start < at <= stop for times in many for at in times)
    busy = [(b.decode - a.decode).busy_s for a, b in zip(before, after, strict=True)]
    note = f"stages busy {', '.join(f'{one:.2f} s' for one in busy)} of {stop - start:.2f} s"
    return [
        Row(f"{model}, 3 workers, B = 1, context 256", 1e3 * alone, "ms/token", 6),
        Row(f"{model}, 3 workers, B = {batch}", count / (stop - start), "tokens/s", None, 8000, note),
    ]


async def tokens_of(runtime: bloombee.Runtime, prompt: list[int], count: int) -> list[float]:
    """When each token came."""
    return [time.perf_counter() async for _ in runtime.stream(prompt, max_new_tokens=count, ignore_eos=True)]


# -- all of it ---------------------------------------------------------------------------------


def stage_rows(options: argparse.Namespace, bytes_per_s: float) -> Iterator[Row]:
    stage = Stage(options.model, [512] * 64)
    yield from launch_rows(stage, f"{options.model}, B = 1", [0])
    yield from step_rows(stage, f"{options.model}, B = 1, context 512", [0], bytes_per_s, 1.6)
    yield from step_rows(stage, f"{options.model}, B = 64, context 512", range(64), bytes_per_s, 2.0)
    stage.model.close()


def long_rows(options: argparse.Namespace, bytes_per_s: float) -> Iterator[Row]:
    stage = Stage(options.model, [32768] + [100] * 31)
    yield from step_rows(stage, f"{options.model}, 32,768 beside 31 of 100", range(32), bytes_per_s, 1.2)
    stage.model.close()


def bits_rows(options: argparse.Namespace, _: float) -> Iterator[Row]:
    yield from rows_of_bits(options.model)


def ring_rows(options: argparse.Namespace, _: float) -> Iterator[Row]:
    yield from asyncio.run(rows_of_ring(options.ring, 128))


PARTS = {"stage": stage_rows, "bits": bits_rows, "long": long_rows, "ring": ring_rows}
QUICK = ("stage", "bits")


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    bytes_per_s = memory_speed()
    yield Row("memory: a copy of 1 GiB", bytes_per_s / 1e9, "GB/s")
    yield Row("product of 8192 in bf16", product_speed() / 1e12, "TFLOPS")
    for part in options.only or (QUICK if options.quick else PARTS):
        yield from PARTS[part](options, bytes_per_s)


def parts(text: str) -> list[str]:
    names = text.split(",")
    if not PARTS.keys() >= set(names):
        raise argparse.ArgumentTypeError(f"{shown(text)}: there are {', '.join(PARTS)}")
    return names


@program("gpu")
def main() -> int:
    parser = Parser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama:4096x8", help="of the stage (default llama:4096x8)")
    parser.add_argument("--ring", default="llama:4096x16", help="of the ring (default llama:4096x16)")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--only", type=parts, metavar="A,B", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=writable, metavar="FILE", help="append a line of JSON a row, as it ends")
    options = parser.parse_args()
    pick_device("cuda")
    if not torch.cuda.is_bf16_supported():
        raise BenchError("this GPU has no bfloat16")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {headline()}", flush=True)
    missed = 0
    for row in rows_of(options):
        missed += not row.holds
        print(row, flush=True)
        if options.json is not None:
            write_line(options.json, asdict(row) | {"holds": row.holds})
    return int(missed > 0)


def write_line(file: Path, line: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
