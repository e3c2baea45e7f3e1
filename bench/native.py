"""Speed of the native parts on this machine: planes, checksum, sampler.

Example: python -m bench.native --rows 32 --vocabulary 128000
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.arguments import Parser, whole
from bench.program import processor, program
from bloombee import _native

SAMPLER_CASES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "unfiltered": {},
    "top_k=50 top_p=0.9": {"top_k": 50, "top_p": 0.9},
    "top_k=20000": {"top_k": 20000},
    "top_p=0.9": {"top_p": 0.9},
    "min_p=0.05": {"min_p": 0.05},
}
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median CPU time of one call of a function that runs on one thread: other processes' time is left out."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time_ns()
        function()
        times.append(time.process_time_ns() - start)
    return float(np.median(times)) / 1e9


def bench_bytes(size: int, repeats: int) -> None:
    """GB/s of input; the row ``copy`` is the ceiling of everything that reads and writes."""
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    out = np.empty_like(data)
    cases: dict[str, Callable[[], object]] = {"copy (ceiling)": lambda: np.copyto(out, data)}
    for element_bytes in (2, 4):
        cases[f"split_planes {element_bytes}"] = lambda n=element_bytes: _native.split_planes(data, out, n)  # type: ignore[misc]
        cases[f"join_planes {element_bytes}"] = lambda n=element_bytes: _native.join_planes(data, out, n)  # type: ignore[misc]
    cases["crc32c"] = lambda: _native.crc32c(data)
    for name, case in cases.items():
        print(f"  {name:24} {size / seconds(case, repeats) / 1e9:8.1f} GB/s")


def bench_sampler(rows: int, vocabulary: int, spread: float, repeats: int) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((rows, vocabulary)) * spread).astype(np.float32)
    out = np.empty(rows, np.uint32)
    for name, fields in SAMPLER_CASES.items():
        columns: dict[str, NDArray[Any]] = {
            field: np.full(rows, value, np.uint32 if field == "top_k" else np.float64) for field, value in (OFF | fields).items()
        }

        def run(columns: dict[str, NDArray[Any]] = columns) -> None:
            seeds = rng.integers(0, 2**64, rows, dtype=np.uint64)
            _native.sample_rows(logits, out, **columns, seed=seeds, position=np.arange(rows, dtype=np.uint64))

        print(f"  {name:24} {seconds(run, repeats) * 1e3:8.2f} ms")


@program("native")
def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--isa", choices=_native.available_isas(), nargs="*", default=_native.available_isas(), help="levels to measure"
    )
    parser.add_argument("--rows", type=whole(1, 1 << 16), default=32, help="rows of logits (default: %(default)s)")
    parser.add_argument("--vocabulary", type=whole(1, 1 << 24), default=128_000, help="tokens a row (default: %(default)s)")
    parser.add_argument("--spread", type=float, nargs="*", default=[1.0, 3.0, 8.0], help="standard deviations of the logits")
    parser.add_argument(
        "--bytes", type=whole(4, 1 << 32), nargs="*", default=[1 << 20, 1 << 26], help="buffer sizes of planes and checksum"
    )
    parser.add_argument(
        "--repeats", type=whole(1, 10**6), default=30, help="calls measured; the median counts (default: %(default)s)"
    )
    options = parser.parse_args()
    print(f"{processor()}, one core")
    before = _native.current_isa()
    for isa in options.isa:
        _native.set_isa(isa)
        for size in options.bytes:
            print(f"{isa}, buffers of {size} bytes")
            bench_bytes(size, options.repeats)
        for spread in options.spread:
            print(f"{isa}, {options.rows} rows x {options.vocabulary} tokens, logits of standard deviation {spread}")
            bench_sampler(options.rows, options.vocabulary, spread, options.repeats)
    _native.set_isa(before)


if __name__ == "__main__":
    sys.exit(main())
