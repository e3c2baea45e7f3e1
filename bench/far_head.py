"""What a head that is far from its workers costs: tokens of one request and of many, over emulated links.

    python bench/far_head.py                                    head 50 ms from four workers, links of 10 ms between them
    python bench/far_head.py --rows stage0 --microbatches 8,12  some rows, and numbers of microbatches that are fixed besides

Rows: ``near``: the head on the first worker's machine, which is the ring's own loop; ``head``: the head far away, and the
scheduler with it; ``stage0``: the head far away, and the scheduler beside the first stage. Of each the time per token of one
request alone (median), and tokens/s of ``--batch`` requests, tuned while it runs and with each fixed number of
``--microbatches``.
Devices are emulated (``--pace``), so that cores are free for what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, names, seconds, whole, wholes, writable
from bench.program import headline, program
from bloombee.plan.document import parse_network
from bloombee.plan.network import HEAD_NODE
from tools.wan_network import Network

ROWS = ("near", "head", "stage0")
PROMPT = 16
MOST_TOKENS = 1000
"""Of an answer; none comes to its end."""
MOST_SETTLE_S = 15.0


def network(stages: int, head_s: float, hop_s: float, *, is_near: bool) -> dict[str, Any]:
    """Workers w0, w1, ... and the head, which is beside w0 if it is near."""
    workers = [f"w{number}" for number in range(stages)]
    nodes: dict[str, Any] = {HEAD_NODE: {"beside": workers[0]} if is_near else {}, **{name: {} for name in workers}}
    links = [{"from": a, "to": b, "delay_s": hop_s} for a, b in itertools.permutations(workers, 2)]
    for name in workers[is_near:]:
        delay_s = hop_s if is_near else head_s
        links += [{"from": a, "to": b, "delay_s": delay_s} for a, b in ((HEAD_NODE, name), (name, HEAD_NODE))]
    return {"version": 1, "nodes": nodes, "links": links}


@contextlib.asynccontextmanager
async def swarm(arguments: argparse.Namespace, row: str, microbatches: int | None) -> Any:
    """A Runtime on these links."""
    facts = network(arguments.stages, arguments.head_ms / 1e3, arguments.hop_ms / 1e3, is_near=row == "near")
    with await asyncio.to_thread(Network(parse_network(facts)).__enter__) as links:
        async with bloombee.Runtime(
            arguments.model,
            workers=arguments.stages,
            microbatches=microbatches,
            scheduler="stage0" if row == "stage0" else "head",
            pace=arguments.pace,
            kv_tokens=arguments.batch * (PROMPT + MOST_TOKENS),
            prefix_cache=False,  # rounds are alike, and each is to compute its prompts
            threads=1,
            device="cpu",
            silence_s=20.0,
            listen=links.listen(HEAD_NODE),
            local_workers=[links.local_worker(f"w{number}") for number in range(arguments.stages)],
        ) as runtime:
            await runtime.generate([1, 2, 3, 4], max_new_tokens=8, ignore_eos=True)
            yield runtime


async def alone_ms(runtime: bloombee.Runtime, tokens: int) -> float:
    """Median milliseconds between two tokens of one request."""
    times = [time.perf_counter() async for _ in runtime.stream([7] * PROMPT, max_new_tokens=tokens, ignore_eos=True)]
    return 1e3 * statistics.median(after - before for before, after in itertools.pairwise(times))


async def tokens_per_s(runtime: bloombee.Runtime, batch: int, lasts_s: float) -> float:
    """Of ``batch`` requests at once, from when what is tuned has settled."""
    times: list[float] = []

    async def one(number: int) -> None:
        stream = runtime.stream([1 + number] * PROMPT, max_new_tokens=MOST_TOKENS, ignore_eos=True, seed=number)
        async with contextlib.aclosing(stream) as tokens:
            async for _ in tokens:
                times.append(time.perf_counter())  # noqa: PERF401

    tasks = [asyncio.ensure_future(one(number)) for number in range(batch)]
    try:
        settled_by = time.perf_counter() + MOST_SETTLE_S
        await asyncio.sleep(3.0)
        while time.perf_counter() < settled_by and not runtime.is_settled:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        begin = time.perf_counter()
        await asyncio.sleep(lasts_s)
        end = time.perf_counter()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return sum(begin <= at < end for at in times) / (end - begin)


async def measure(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """One record a row and number of microbatches; None: tuned."""
    records = []
    for row in arguments.rows:
        for microbatches in (None, *arguments.microbatches):
            async with swarm(arguments, row, microbatches) as runtime:
                alone = await alone_ms(runtime, arguments.tokens) if microbatches is None else None
                many = await tokens_per_s(runtime, arguments.batch, arguments.seconds)
            records.append({"row": row, "microbatches": microbatches, "alone_ms": alone, "tokens_per_s": many})
            console.print(f"{row}, {microbatches or 'tuned'}: {many:.1f} tokens/s" + (f", {alone:.2f} ms alone" if alone else ""))
    return records


def table(records: list[dict[str, Any]]) -> Table:
    """Of what was measured."""
    shown = Table("row", "ms a token, alone", "tokens/s, tuned", "best fixed", "tuned / best")
    for row in dict.fromkeys(record["row"] for record in records):
        tuned, *fixed = [record for record in records if record["row"] == row]
        best = max(fixed, key=lambda record: record["tokens_per_s"], default=None)
        shown.add_row(
            row,
            f"{tuned['alone_ms']:.2f}",
            f"{tuned['tokens_per_s']:.1f}",
            "" if best is None else f"{best['tokens_per_s']:.1f} (M = {best['microbatches']})",
            "" if best is None else f"{tuned['tokens_per_s'] / best['tokens_per_s']:.3f}",
        )
    return shown


@program("far_head")
def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--stages", type=whole(1, 16), default=4)
    parser.add_argument(
        "--head-ms", type=seconds(0, 1000, "milliseconds"), default=50.0, help="one way, from the head to everybody"
    )
    parser.add_argument("--hop-ms", type=seconds(0, 1000, "milliseconds"), default=10.0, help="one way, between any two workers")
    parser.add_argument("--pace", default="4,0.2,0.1", help="of every device (default 4,0.2,0.1)")
    parser.add_argument("--rows", type=names(*ROWS), default=ROWS)
    parser.add_argument("--microbatches", type=wholes(1, 256), default=(), help="fixed numbers besides, as 8,12,16")
    parser.add_argument("--batch", type=whole(1, 512), default=64)
    parser.add_argument("--tokens", type=whole(8, 1900), default=100, help="of the request alone (default 100)")
    parser.add_argument("--seconds", type=seconds(1, 600), default=8.0, help="in which the many are counted (default 8)")
    parser.add_argument("--json", type=writable, help="also write the records here")
    arguments = parser.parse_args()
    console = Console(width=110, stderr=True)
    print(headline())
    records = asyncio.run(measure(arguments, console))
    Console(width=110).print(table(records))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
