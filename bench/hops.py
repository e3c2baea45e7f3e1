"""What a hop costs besides the device and the wire: one sequence around a ring on loopback, CURVE on.

    python bench/hops.py                            three workers, d = 1024, bf16
    python bench/hops.py --model demo --workers 2   another ring
    python bench/hops.py --no-curve                 without encryption

Per-hop overhead = (median time between two tokens - device seconds of one forward, all stages added) / hops; the hops of N
workers are N: N - 1 between workers and the last stage's verdict to the scheduler, which feeds the first stage again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, whole, writable
from bench.preflight import require_positions
from bench.program import program
from bloombee.config import RuntimeConfig

PROMPT = [1, 2, 3, 4]


async def round_of(runtime: bloombee.Runtime, tokens: int) -> dict[str, float]:
    """Seconds: between tokens, of the device, and per hop, of one request."""
    before = await runtime.stage_use()
    times = [time.perf_counter() async for _ in runtime.stream(PROMPT, max_new_tokens=tokens, ignore_eos=True)]
    after = await runtime.stage_use()
    gaps = [b - a for a, b in itertools.pairwise(times)]
    device = sum((b.decode - a.decode).busy_s / (b.decode - a.decode).num_works for a, b in zip(before, after, strict=True))
    hops = len(runtime.plan.stages)
    return {
        "token_s": statistics.median(gaps),
        "mean_token_s": statistics.fmean(gaps),
        "device_s": device,
        "hop_s": (statistics.fmean(gaps) - device) / hops,
    }


async def measure(arguments: argparse.Namespace, console: Console) -> list[dict[str, float]]:
    async with bloombee.Runtime(
        arguments.model,
        workers=arguments.workers,
        dtype=arguments.dtype,
        curve=not arguments.no_curve,
        threads=1,
        device=arguments.device,
        prefix_cache=False,  # rounds are alike, and each is to compute its prompts
    ) as runtime:
        await round_of(runtime, 32)
        rounds = [await round_of(runtime, arguments.tokens) for _ in track(range(arguments.rounds), "rounds", console=console)]
        for (source, target), choice in sorted(runtime.codec_choices.items()):
            console.print(f"codec {source} -> {target}: {choice}")
        return rounds


@program("hops")
def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama:1024x6")
    parser.add_argument("--workers", type=whole(1, 64), default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu", help="of every worker: cpu (default), cuda, cuda:N")
    parser.add_argument("--tokens", type=whole(8, 4096), default=128, help="per round (default 128)")
    parser.add_argument("--rounds", type=whole(1, 1000), default=9)
    parser.add_argument("--no-curve", action="store_true", help="plain TCP")
    parser.add_argument("--json", type=writable, metavar="FILE", help="append one JSON line")
    arguments = parser.parse_args()
    RuntimeConfig(dtype=arguments.dtype, device=arguments.device)
    asyncio.run(require_positions(arguments.model, arguments.workers, len(PROMPT) + arguments.tokens))
    console = Console(stderr=True)
    load = os.getloadavg()[0]
    rounds = asyncio.run(measure(arguments, console))
    title = (
        f"{arguments.model}, {arguments.workers} workers, CURVE {'off' if arguments.no_curve else 'on'}, load before {load:.1f}"
    )
    table = Table(title=title)
    for column in ("ms", "best round", "median", "worst"):
        table.add_column(column, justify="right")
    summary = {}
    for name, key in (("per token", "mean_token_s"), ("device, all stages", "device_s"), ("overhead per hop", "hop_s")):
        values = sorted(r[key] for r in rounds)
        summary[key] = statistics.median(values)
        table.add_row(name, *(f"{1e3 * v:.3f}" for v in (values[0], statistics.median(values), values[-1])))
    Console().print(table)
    if arguments.json:
        facts = {"bench": "hops", **vars(arguments), "json": str(arguments.json), "load": load}
        with arguments.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**facts, **summary}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
