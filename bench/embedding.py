"""What an application feels that embeds the Runtime: start-up, the loop's stalls, how soon a lost worker is an error.

    python bench/embedding.py                 all of it, about a minute
    python bench/embedding.py --repeats 5     lost workers five times each

The stall is how late a timer of the application's own asyncio loop fires (period 2 ms) while 32 requests stream through it,
beside the same timer with nothing running, in the same process. Lost workers: from the signal to the exception.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, seconds, whole
from bench.program import program
from bench.spread import quantile
from bench.usage import num_cores
from bloombee.errors import LinkDown

PERIOD_S = 0.002
KILLED_S = 2.0
"""Without a spare a killed worker is to be an error at the caller within so long, each time."""


async def lateness(until: asyncio.Event) -> list[float]:
    """Seconds by which each tick of a PERIOD_S timer came late."""
    late = []
    while not until.is_set():
        due = time.perf_counter() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        late.append(max(0.0, time.perf_counter() - due))
    return late


async def stalls(idle_s: float) -> dict[str, list[float]]:
    """Lateness with nothing, while the Runtime starts, and while 32 requests stream."""
    found = {}
    for name in ("idle", "starting"):
        until = asyncio.Event()
        watch = asyncio.ensure_future(lateness(until))
        runtime = None
        if name == "idle":
            await asyncio.sleep(idle_s)
        else:
            runtime = await bloombee.Runtime("demo", workers=3, dtype="float32").__aenter__()
        until.set()
        found[name] = await watch
    assert runtime is not None
    until = asyncio.Event()
    watch = asyncio.ensure_future(lateness(until))

    async def one(number: int) -> None:
        async for _ in runtime.stream(f"def f{number}(", max_new_tokens=200, ignore_eos=True):
            pass

    await asyncio.gather(*(one(number) for number in range(32)))
    until.set()
    found["32 streams"] = await watch
    await runtime.close()
    return found


async def loss(how: signal.Signals) -> float:
    """Seconds from the signal to the exception at the caller."""
    async with bloombee.Runtime("demo", workers=3, dtype="float32") as runtime:
        sent = 0.0
        try:
            count = 0
            async for _ in runtime.stream("import ", max_new_tokens=1900, ignore_eos=True):
                count += 1
                if count == 20:
                    workers = [p for child in psutil.Process().children() for p in child.children()]
                    sent = time.perf_counter()
                    os.kill(workers[1].pid, how)
        except LinkDown:
            return time.perf_counter() - sent
    raise AssertionError("the request ended although its worker was lost")


async def first_token() -> float:
    """Seconds from nothing to the first token, imports of torch and transformers included."""
    begin = time.perf_counter()
    async with bloombee.Runtime("demo", workers=3, dtype="float32") as runtime:
        async for _ in runtime.stream("import ", max_new_tokens=2):
            return time.perf_counter() - begin
    raise AssertionError("no token")


@program("embedding")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=whole(1, 1000), default=3, help="runs of each lost-worker case (default 3)")
    parser.add_argument("--seconds", type=seconds(0.1, 3600), default=5.0, help="of the idle baseline (default 5)")
    arguments = parser.parse_args()
    table = Table(title=f"An application's view ({num_cores()} cores, load {os.getloadavg()[0]:.1f})")
    for column in ("what", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "n"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, late in asyncio.run(stalls(arguments.seconds)).items():
        row = [quantile(late, share) for share in (0.5, 0.99, 0.999, 1.0)]
        table.add_row(f"caller's loop late: {name}", *(f"{1e3 * value:.2f}" for value in row), str(len(late)))
    is_late = False
    for name, measure in (
        ("start to first token", first_token),
        ("SIGKILL of a worker to the error", lambda: loss(signal.SIGKILL)),
        ("SIGSTOP of a worker to the error", lambda: loss(signal.SIGSTOP)),
    ):
        values = [asyncio.run(measure()) for _ in range(arguments.repeats)]
        is_late = is_late or (name.startswith("SIGKILL") and max(values) > KILLED_S)
        table.add_row(name, f"{1e3 * statistics.median(values):.0f}", "", "", f"{1e3 * max(values):.0f}", str(len(values)))
    Console().print(table)
    print(f"a killed worker is an error within {KILLED_S:g} s: {'no' if is_late else 'yes'}")
    return int(is_late)


if __name__ == "__main__":
    sys.exit(main())
