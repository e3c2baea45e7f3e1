"""What layers cost that stream from disk: python -m bench.offload [--help]

One span in this process, with one compute thread, as a worker runs it; random weights. For each part of the layers that streams
and each number of sequences: a step back to back against the longer of what it computes (the same step with all layers on the
device) and what it copies (the bytes that stream, by the bandwidth of the same files in the same run); how much of the shorter of
the two is hidden beneath the longer (eta); the bytes that the disk was asked for; the most memory. Then steps with an idle loop
between them, of a third of the layers, as three workers have them, half of which stream; then eight microbatches side by side;
then files that are compressed.

Exits 1 if a step takes more than STEP_GOAL of the longer part, more is read than BYTES_GOAL of what streams, less than
BANDWIDTH_GOAL of the disk is used where copying is the longer part, less than ETA_GOAL is hidden where the two parts are within a
factor of EVEN, a token over a loop of half a second takes more than LOOP_GOAL of one with all layers on the device, compression
saves less than FEWER_GOAL, or a step that reads compressed files is not FASTER_GOAL times as quick.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.arguments import Parser, wholes
from bench.program import BenchError, headline, program
from bloombee.engine.checkpoint import resolve
from bloombee.engine.layer_files import LayerFiles
from bloombee.engine.model import SpanModel, set_threads
from bloombee.engine.offload import pack_layers
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.plan.placement import READ_BYTES, READS, spread
from bloombee.types import Dtype, PageGroup, Phase, Span
from bloombee.wire.messages import Sampling

STEP_GOAL, ETA_GOAL, BYTES_GOAL, BANDWIDTH_GOAL, LOOP_GOAL = 1.10, 0.90, 1.05, 0.90, 1.01
FEWER_GOAL, FASTER_GOAL = 1.4, 1.3
EVEN = 2.0
"""Where one part is many times the other, a hundredth of it is more than all that could be hidden."""
PAGE, CONTEXT, TOGETHER = 16, 64, 8
MEASURED_S, WARM_STEPS, LEAST_STEPS = 1.5, 2, 6
GREEDY = Sampling(0, 0, 1, 0, 1, 0, 0, 0, -1)


@dataclass(frozen=True, slots=True)
class Cell:
    """Of steps of one kind, medians: seconds from end to end, of these without weights, bytes asked of the disk."""

    step_s: float
    waited_s: float
    read_bytes: float


class Bench:
    """Spans of one model, loaded one at a time; files of layers in ``directory``."""

    def __init__(self, model: str, dtype: Dtype, directory: Path) -> None:
        self.checkpoint, self.dtype = resolve(model), dtype
        self.num_layers: int = self.checkpoint.new_config().num_hidden_layers
        self.files = LayerFiles(directory)

    @contextmanager
    def span(self, span: Span, num_streamed: int, sequences: int) -> Iterator[SpanModel]:
        groups = [PageGroup(0, sequences * (CONTEXT // PAGE + 1))]
        streamed = spread(span, num_streamed)
        model = SpanModel.load(
            self.checkpoint, span, dtype=self.dtype, groups=groups, page_size=PAGE, streamed=streamed, files=self.files
        )
        try:
            model.settle()
            yield model
        finally:
            model.close()


def decode(sequences: int, first: int = 0) -> Work:
    """A token each of ``sequences``, from the ``first`` on, with CONTEXT cached."""
    pages = CONTEXT // PAGE + 1
    segments = tuple(
        Segment(
            number, 0, CONTEXT, np.uint32(1).tobytes(), 1, (Pages(tuple(range(number * pages, (number + 1) * pages))),), GREEDY, 1
        )
        for number in range(first, first + sequences)
    )
    return Work(0, 0, 0, 0, Phase.DECODE, segments)


def measured(model: SpanModel, step: Callable[[], object], idle_s: float = 0.0) -> Cell:
    """Steps with ``idle_s`` between them, after some that do not count."""
    for _ in range(WARM_STEPS):
        time.sleep(idle_s)
        step()
    steps: list[float] = []
    began, waited, read = time.perf_counter(), _waited(model), disk_bytes()
    while len(steps) < LEAST_STEPS or (not idle_s and time.perf_counter() - began < MEASURED_S):
        time.sleep(idle_s)
        start = time.perf_counter()
        step()
        steps.append(time.perf_counter() - start)
    count = len(steps)
    return Cell(statistics.median(steps), (_waited(model) - waited) / count, (disk_bytes() - read) / count)


def _waited(model: SpanModel) -> float:
    return 0.0 if model.stream is None else model.stream.traffic.waited_s


def disk_bytes() -> int:
    """That this process has had storage read."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "read_bytes":
            return int(value)
    raise BenchError("/proc/self/io does not say what was read: this needs Linux")


def most_memory() -> int:
    """Most that was ever resident of this process since :func:`forget_most`."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def forget_most() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def bandwidth(directory: Path) -> float:
    """Bytes per second of the very files, by as many reads at once as streams have, and nothing done with what comes."""
    jobs = [(path, at) for path in sorted(directory.glob("*.layer")) for at in range(0, path.stat().st_size, READ_BYTES)]
    todo, lock, counts = iter(jobs), threading.Lock(), []

    def read() -> None:
        with mmap.mmap(-1, READ_BYTES) as buffer:
            while True:
                with lock:
                    job = next(todo, None)
                if job is None:
                    return
                counts.append(os.preadv(descriptors[job[0]], [buffer], job[1]))

    descriptors = {path: os.open(path, os.O_RDONLY | os.O_DIRECT) for path, _ in jobs}
    try:
        readers = [threading.Thread(target=read) for _ in range(READS)]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return float(sum(counts) / (time.perf_counter() - began))
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


# -- rows --------------------------------------------------------------------------------------


class Rows:
    """What was measured, as it is printed, and which goals were missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def check(self, name: str, found: float, goal: float, *, is_most: bool) -> None:
        if found > goal if is_most else found < goal:
            self.missed.append(f"{name}: {found:.3f}, goal {'at most' if is_most else 'at least'} {goal}")


def back_to_back(bench: Bench, rows: Rows, parts: Sequence[int], batches: Sequence[int], speed: float) -> None:
    print(
        f"{'B':>3}{'off':>6}{'step':>11}{'compute':>11}{'copy':>11}{'ratio':>8}{'eta':>7}{'bytes':>8}{'of disk':>9}{'most':>10}"
    )
    span = Span(0, bench.num_layers)
    for batch in batches:
        work, compute_s = decode(batch), 0.0
        for part in sorted({0, *parts}):
            forget_most()
            with bench.span(span, len(span) * part // 100, batch) as model:
                cell = measured(model, partial(model.run, work, None))
                streamed = 0 if model.stream is None else model.stream.pass_bytes
            compute_s = compute_s or cell.step_s
            copy_s = streamed / speed
            longer, shorter = max(compute_s, copy_s), min(compute_s, copy_s)
            ratio, eta = cell.step_s / longer, (compute_s + copy_s - cell.step_s) / shorter if streamed else 1.0
            asked = cell.read_bytes / streamed if streamed else 1.0
            used = streamed / cell.step_s / speed
            print(
                f"{batch:>3}{part:>5}%{1e3 * cell.step_s:>8.1f} ms{1e3 * compute_s:>8.1f} ms{1e3 * copy_s:>8.1f} ms{ratio:>8.3f}"
                f"{eta:>7.2f}{asked:>8.3f}{used:>9.2f}{most_memory() / 1e6:>7.0f} MB",
                flush=True,
            )
            if streamed:
                name = f"B = {batch}, {part} %"
                rows.check(f"{name}: step over the longer part", ratio, STEP_GOAL, is_most=True)
                rows.check(f"{name}: bytes read over those that stream", asked, BYTES_GOAL, is_most=True)
                if copy_s > EVEN * compute_s:
                    rows.check(f"{name}: of the disk", used, BANDWIDTH_GOAL, is_most=False)
                if longer <= EVEN * shorter:
                    rows.check(f"{name}: eta", eta, ETA_GOAL, is_most=False)


def over_loops(bench: Bench, rows: Rows, loops_ms: Sequence[int], batches: Sequence[int]) -> None:
    span = Span(0, max(1, bench.num_layers // 3))
    count = len(span) // 2
    print(f"\n{span} of the model, {count} of them streaming, and a loop between steps: time per token over that with none")
    for batch in batches:
        work, found = decode(batch), {}
        for num_streamed in (0, count):
            with bench.span(span, num_streamed, batch) as model:
                for loop in loops_ms:
                    cell = measured(model, partial(model.run, work, None), loop / 1e3)
                    found[num_streamed, loop] = cell.step_s + loop / 1e3
        for loop in loops_ms:
            ratio = found[count, loop] / found[0, loop]
            print(f"B = {batch:>2}, loop {loop:>3} ms: {1e3 * found[count, loop]:.1f} ms, {ratio:.3f}x", flush=True)
            if loop >= 500:
                rows.check(f"B = {batch}, loop {loop} ms: time per token", ratio, LOOP_GOAL, is_most=True)


def side_by_side(bench: Bench, rows: Rows) -> None:
    """Eight microbatches of one sequence each."""
    works = [(decode(1, first), None) for first in range(TOGETHER)]
    span = Span(0, bench.num_layers)
    with bench.span(span, len(span) // 2, TOGETHER) as model:
        cell = measured(model, lambda: model.run_together(works))
        assert model.stream is not None
        asked = cell.read_bytes / model.stream.pass_bytes
    step = f"{1e3 * cell.step_s:.1f} ms a step"
    print(f"\n{TOGETHER} microbatches, half of the layers streaming: {step}, {asked:.3f}x what streams is read")
    rows.check(f"{TOGETHER} microbatches: bytes read over those that stream", asked, BYTES_GOAL, is_most=True)


def compressed(bench: Bench, rows: Rows) -> None:
    """All layers streaming, from files that are compressed, against plain ones."""
    work, span = decode(1), Span(0, bench.num_layers)
    with bench.span(span, len(span), 1) as model:
        assert model.stream is not None
        plain, plain_bytes = measured(model, partial(model.run, work, None)), model.stream.pass_bytes
    num_bytes, stored_bytes = pack_layers(bench.checkpoint, bench.dtype, bench.files)
    print(f"\ncompressed: {num_bytes / stored_bytes:.3f}x fewer bytes", end="")
    rows.check("compressed: fewer bytes", num_bytes / stored_bytes, FEWER_GOAL, is_most=False)
    with bench.span(span, len(span), 1) as model:
        assert model.stream is not None
        if model.stream.pass_bytes == plain_bytes:
            print("; decoding is slower here than reading plain files, which are read on")
            return
        cell = measured(model, partial(model.run, work, None))
    print(f"; a step takes {1e3 * cell.step_s:.1f} ms instead of {1e3 * plain.step_s:.1f}, {plain.step_s / cell.step_s:.3f}x")
    rows.check("compressed: steps per step", plain.step_s / cell.step_s, FASTER_GOAL, is_most=False)


@program("offload")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama:1024x16", help="default llama:1024x16, made of random numbers")
    parser.add_argument("--dtype", default="bfloat16", choices=[str(dtype) for dtype in Dtype], help="default bfloat16")
    parser.add_argument(
        "--parts", type=wholes(0, 100), default=[0, 25, 50, 75, 100], help="percent that stream; default 0,25,50,75,100"
    )
    parser.add_argument("--batches", type=wholes(1, 256), default=[1, 8, 32], help="sequences; default 1,8,32")
    parser.add_argument("--loops", type=wholes(0, 10_000), default=[100, 500], help="milliseconds between steps; default 100,500")
    parser.add_argument("--dir", help="on the disk that is to be measured; default: where this system has temporary files")
    options = parser.parse_args()
    print(headline())
    set_threads(1)
    rows = Rows()
    with tempfile.TemporaryDirectory(dir=options.dir) as place:
        bench = Bench(options.model, Dtype(options.dtype), Path(place))
        with bench.span(Span(0, bench.num_layers), bench.num_layers, 1):
            pass  # writes all files
        speed = bandwidth(Path(place))
        print(f"the files are read at {speed / 1e9:.2f} GB/s\n")
        back_to_back(bench, rows, options.parts, options.batches, speed)
        over_loops(bench, rows, options.loops, options.batches)
        side_by_side(bench, rows)
        compressed(bench, rows)
    for missed in rows.missed:
        print(f"missed: {missed}")
    return int(bool(rows.missed))


if __name__ == "__main__":
    sys.exit(main())
