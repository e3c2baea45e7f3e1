"""What tracing costs: time per token with it over time per token without, in interleaved pairs.

Two swarms of the same model stand side by side, one traced, one not; requests go to them in turn, the order within a pair
alternates, so that a slow minute of the machine falls on both. Swarms differ by luck, by several percent: there are fresh ones
for every round, started in the other order, and the interval is over rounds. A second series, both swarms untraced, says what
the method itself makes of no difference at all.

A real device computes on cores that others use as well, and its times scatter by more than tracing costs. With ``--pace`` it
takes the same time for every forward, asleep for the rest of it, so that what is left is the way of a token between devices.

What a hop's hooks cost is also measured by itself: on, a microbatch's stamps and their share of the writing; off, a handful of
attribute tests, counted by hand.

Examples:
  python bench/trace_cost.py --pairs 24 --rounds 8
  python bench/trace_cost.py --pairs 24 --rounds 8 --pace 4,0,0 --tokens 96
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.arguments import Parser, whole, writable
from bench.preflight import require_positions
from bench.program import program
from bench.spread import interval
from bloombee.config import RuntimeConfig
from bloombee.roles.tracing import StageTrace, open_tracer
from bloombee.runtime import Runtime

PROMPT = "def add(a, b):\n"
TESTS_PER_HOP = 12
"""Attribute tests of tracing on the way of a decode microbatch through a stage: four messages taken off sockets (frame,
acknowledgements, heartbeat), two sent, one each on receiving, computing and sending; rounded up."""


async def series(options: argparse.Namespace, *, traced: bool) -> list[list[float]]:
    """[rounds][pairs] ratios, second swarm over first; the second is traced if ``traced``."""
    rounds: list[list[float]] = []
    pairs = -(-options.pairs // options.rounds)
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            common = {"workers": options.workers, "threads": 1, "dtype": "float32", "pace": options.pace, "prefix_cache": False}
            plain = Runtime(options.model, **common)
            other = Runtime(options.model, trace=folder if traced else None, **common)
            first, second = (other, plain) if number % 2 else (plain, other)
            async with first, second:
                for runtime in (first, second):
                    await time_per_token_s(runtime, options.tokens)
                rounds.append([await _pair(plain, other, options.tokens, other_first=pair % 2 == 1) for pair in range(pairs)])
        print(f"\r{'on / off' if traced else 'off / off'}: round {number + 1}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rounds


async def _pair(plain: Runtime, other: Runtime, tokens: int, *, other_first: bool) -> float:
    seconds = {}
    for runtime in (other, plain) if other_first else (plain, other):
        seconds[runtime] = await time_per_token_s(runtime, tokens)
    return seconds[other] / seconds[plain]


async def time_per_token_s(runtime: Runtime, tokens: int) -> float:
    """Of one request alone, after its first token."""
    return 1 / (await runtime.generate(PROMPT, max_new_tokens=tokens, ignore_eos=True)).tokens_per_s


def stamps_us() -> tuple[float, float]:
    """(on the way of a microbatch, in the writing thread) of one stage that traces."""
    count = 5000
    with tempfile.TemporaryDirectory() as folder:
        tracer = open_tracer(folder, "stage", {})
        stage = StageTrace(tracer)
        begin = time.perf_counter()
        for number in range(count):
            stage.took(number, stage.now())
            stage.computed(number, stage.now(), stage.now(), stage.now())
            stage.sent(number, stage.now())
        middle = time.perf_counter()
        tracer.flush()
        end = time.perf_counter()
        tracer.close()
    return 1e6 * (middle - begin) / count, 1e6 * (end - middle) / count


def attribute_test_ns() -> float:
    """One test as the hooks make it, loop overhead included."""

    class Host:
        trace = None

    return min(timeit.repeat("host.trace is not None", globals={"host": Host()}, number=100_000, repeat=5)) * 1e4


def report(name: str, rounds: list[list[float]]) -> dict[str, object]:
    low, high = interval(rounds)
    ratios = [ratio for one in rounds for ratio in one]
    median = statistics.median(ratios)
    middle, least, most = (100 * (ratio - 1) for ratio in (median, low, high))
    print(f"{name:<10} {len(ratios)} pairs: median {middle:+.2f} %, 90 % interval {least:+.2f} to {most:+.2f} %")
    return {"series": name, "pairs": len(ratios), "median": median, "low90": low, "high90": high, "rounds": rounds}


@program("trace_cost")
def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--workers", type=whole(1, 64), default=3)
    parser.add_argument("--pairs", type=whole(1, 10**6), default=24, help="of each series, at least 20 for a claim")
    parser.add_argument("--rounds", type=whole(1, 10**6), default=8, help="fresh swarms so many times")
    parser.add_argument("--tokens", type=whole(2, 4096), default=128, help="a request; the demo model has room for 2,000")
    parser.add_argument("--pace", metavar="F,R,P", help="emulated devices: milliseconds fixed, a decode row, a prefill row")
    parser.add_argument("--json", type=writable, help="append one line a series to this file")
    options = parser.parse_args()
    RuntimeConfig(pace=options.pace)
    asyncio.run(require_positions(options.model, options.workers, len(PROMPT) + options.tokens))
    with contextlib.suppress(KeyboardInterrupt):
        for traced, name in ((True, "on / off"), (False, "off / off")):
            row = report(name, asyncio.run(series(options, traced=traced)))
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    on_us, writing_us = min(stamps_us() for _ in range(5))
    print(f"on: {on_us:.1f} us a microbatch and stage on its way, {writing_us:.1f} us in the writing thread")
    test_ns = attribute_test_ns()
    print(f"off: {TESTS_PER_HOP} attribute tests a hop of {test_ns:.0f} ns: {TESTS_PER_HOP * test_ns / 1e3:.2f} us a hop")


if __name__ == "__main__":
    sys.exit(main())
