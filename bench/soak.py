"""A long, mixed load: requests of random lengths with random cancellations; tokens right, no page lost, memory flat.

    python bench/soak.py                    2,000 requests on three workers of the demo model, some minutes
    python bench/soak.py --requests 200

Every finished request's tokens are judged by one process (teacher-forced, fp32: each must be the best one). Afterwards every
KV page of every stage must be free. Memory is what the head and the workers have resident each for itself, after each tenth; all
of the KV pools, which become resident as pages are first used, is told beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, whole
from bench.exact import Reference
from bench.program import program
from bloombee.types import Dtype

MAX_PROMPT, MAX_NEW = 200, 60


def private_mb() -> float:
    """Resident memory of this process and everything it started that no other of them shares."""
    own = psutil.Process()
    return float(sum(process.memory_full_info().uss for process in [own, *own.children(recursive=True)])) / 1e6


async def load(arguments: argparse.Namespace, progress: Progress) -> tuple[list[tuple[list[int], list[int]]], dict[str, object]]:
    """(prompt, tokens) of every finished request, and facts."""
    rng = random.Random(arguments.seed)
    finished: list[tuple[list[int], list[int]]] = []
    cancelled = ended = 0
    memory = []
    async with bloombee.Runtime("demo", workers=arguments.workers, dtype="float32", threads=1) as runtime:
        gate = asyncio.Semaphore(arguments.concurrency)
        task = progress.add_task("requests", total=arguments.requests)

        async def one(number: int) -> None:
            nonlocal cancelled, ended
            prompt = [rng.randrange(1, 4096) for _ in range(rng.randint(1, MAX_PROMPT))]
            length, patience = rng.randint(1, MAX_NEW), rng.expovariate(2.0) if rng.random() < 0.25 else None
            async with gate:
                try:
                    async with asyncio.timeout(patience):
                        got = await runtime.generate(prompt, max_new_tokens=length, ignore_eos=True, client=str(number % 7))
                        finished.append((prompt, list(got.token_ids)))
                except TimeoutError:
                    cancelled += 1
            progress.advance(task)
            ended += 1
            if ended % max(1, arguments.requests // 10) == 0:
                memory.append(private_mb())

        began = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(arguments.requests)))
        seconds = time.monotonic() - began
        all_free = tuple(stage.num_pages for stage in runtime.plan.stages)
        for _ in range(200):
            pages = await runtime.pages_free()
            if pages == all_free:
                break
            await asyncio.sleep(0.05)
        facts: dict[str, object] = {
            "finished": len(finished),
            "cancelled": cancelled,
            "tokens/s": round(sum(len(tokens) for _, tokens in finished) / seconds, 1),
            "pages leaked": sum(all_free) - sum(pages),
            "private MB, after each tenth": " ".join(f"{value:.0f}" for value in memory),
            "of which KV pools at most, MB": round(sum(stage.kv_bytes for stage in runtime.plan.stages) / 1e6),
        }
    return finished, facts


@program("soak")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=whole(1, 10**7), default=2000)
    parser.add_argument("--workers", type=whole(1, 64), default=3)
    parser.add_argument("--concurrency", type=whole(1, 10**5), default=48, help="requests at once (default 48)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        finished, facts = asyncio.run(load(arguments, progress))
        reference = Reference("demo", Dtype.FLOAT32)
        task = progress.add_task("judging", total=len(finished))
        flips, worst = 0, 0.0
        for prompt, tokens in finished:
            verdict = reference.judge([prompt], [tokens])
            flips, worst = flips + verdict.flips, max(worst, verdict.worst)
            progress.advance(task)
    facts["tokens that one process would not have picked"] = flips
    facts["furthest below the best, in parts of the largest logit"] = f"{worst:.1e}"
    table = Table(title=f"{arguments.requests} requests, {arguments.workers} workers", show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    Console().print(table)
    return 0 if flips == 0 and facts["pages leaked"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
