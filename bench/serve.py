"""What the HTTP server costs over the Runtime beneath it: time to the first token, and throughput of many streams.

    python bench/serve.py
    python bench/serve.py --streams 64 --tokens 32 --firsts 60 --repeats 3 --json serve.json

One Runtime with real worker processes on emulated devices (``--pace``), so that cores are free for what is measured. In its
process an application asks it directly (``runtime``), and a client in a process of its own asks the server in that same process
(``http``), in turns, with the same prompts and seeds. ``first``: one request at a time, the median of ``--firsts`` pairs of
seconds until the first token. ``many``: ``--streams`` requests at once, all their tokens over the time until the last, the median
of ``--repeats``.

Goals: the first token comes at most 1 ms later, and of the throughput at most 2 % is lost. Exit status 1: one was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, whole, writable
from bench.program import BenchError, headline, machine, program
from bloombee.address import read_listen
from bloombee.roles.event_loop import new_event_loop
from bloombee.serve.app import make_app
from bloombee.serve.command import http_config
from bloombee.serve.listening import listen

FIRST_GOAL_S, LOSS_GOAL = 1e-3, 0.02
MODEL = "demo"


class Client:
    """The other process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, prompts: list[str], tokens: int, seed: int) -> dict[str, Any]:
        """What bench/serve_client.py answers. Raises BenchError: it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"prompts": prompts, "tokens": tokens, "seed": seed}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise BenchError("the client has ended; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


async def ask_runtime(runtime: bloombee.Runtime, prompts: list[str], tokens: int, seed: int) -> dict[str, Any]:
    """The same of the Runtime itself."""
    start = time.perf_counter()

    async def one(number: int, prompt: str) -> tuple[float, int]:
        first_s, count = 0.0, 0
        stream = runtime.stream(prompt, max_new_tokens=tokens, temperature=1.0, seed=seed + number, ignore_eos=True)
        async with contextlib.aclosing(stream) as items:
            async for _ in items:
                first_s = first_s or time.perf_counter() - start
                count += 1
        return first_s, count

    answers = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    seconds = time.perf_counter() - start
    return {"first_s": [first for first, _ in answers], "tokens": sum(count for _, count in answers), "seconds": seconds}


@contextlib.asynccontextmanager
async def served(arguments: argparse.Namespace) -> AsyncIterator[tuple[bloombee.Runtime, Client]]:
    """A Runtime, a server in this loop, and a client that has asked once."""
    (bound,) = listen(read_listen("tcp://127.0.0.1:0"))
    port = bound.getsockname()[1]
    async with bloombee.Runtime(
        MODEL,
        workers=arguments.stages,
        microbatches=arguments.stages,
        pace=arguments.pace,
        dtype="float32",
        threads=1,
        device="cpu",
        control_socket=False,
    ) as runtime:
        app = make_app(runtime, model=MODEL)
        server = uvicorn.Server(http_config(app, most_connections=4 * arguments.streams))
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        serving = asyncio.create_task(server.serve([bound]))
        bound.listen()
        program = Path(__file__).with_name("serve_client.py")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, str(program), str(port), stdin=pipe, stdout=pipe)
        try:
            yield runtime, Client(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
            server.should_exit = server.force_exit = True
            await serving


async def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a side and run, in their order."""
    records: list[dict[str, Any]] = []
    async with served(arguments) as (runtime, client):

        async def pair(mode: str, prompts: list[str], tokens: int, seed: int, *, is_kept: bool = True) -> None:
            sides = ["runtime", "http"] if seed % 2 else ["http", "runtime"]
            for side in sides:
                asked = ask_runtime(runtime, prompts, tokens, seed) if side == "runtime" else client.ask(prompts, tokens, seed)
                answer = await asked
                if answer["tokens"] != len(prompts) * tokens:
                    raise BenchError(f"{side}: {answer['tokens']} tokens came, not {len(prompts) * tokens}")
                if is_kept:
                    records.append({"mode": mode, "side": side, **answer})

        many = [f"def f{number}(a, b):" for number in range(arguments.streams)]
        await pair("many", many, 4, 0, is_kept=False)
        for number in range(arguments.firsts):
            await pair("first", [f"def g{number}(a, b):"], 1, number)
        for number in range(arguments.repeats):
            await pair("many", many, arguments.tokens, 1000 * (number + 1) + number % 2)
    return records


def of(records: list[dict[str, Any]], mode: str, side: str) -> list[float]:
    """Seconds to the first token, or tokens a second."""
    mine = [record for record in records if record["mode"] == mode and record["side"] == side]
    return [record["first_s"][0] if mode == "first" else record["tokens"] / record["seconds"] for record in mine]


@program("serve")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=whole(1, 8), default=2)
    parser.add_argument(
        "--pace", default="16,2,0.2", help="of every device: 400 tokens/s in all of 64 streams (default 16,2,0.2)"
    )
    parser.add_argument("--streams", type=whole(1, 512), default=64)
    parser.add_argument("--tokens", type=whole(2, 1000), default=32, help="of each stream (default 32)")
    parser.add_argument("--firsts", type=whole(1, 10000), default=60)
    parser.add_argument("--repeats", type=whole(1, 100), default=3)
    parser.add_argument("--json", type=writable, help="also write the records here")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        records = runner.run(measure(arguments))
    first = {side: statistics.median(of(records, "first", side)) for side in ("runtime", "http")}
    speed = {side: statistics.median(of(records, "many", side)) for side in ("runtime", "http")}
    later_s, loss = first["http"] - first["runtime"], 1 - speed["http"] / speed["runtime"]
    table = Table("", "runtime", "http", "over", "goal")
    table.add_row(
        "first token, ms", *(f"{1e3 * first[s]:.2f}" for s in first), f"{1e3 * later_s:+.2f} ms", f"<= {1e3 * FIRST_GOAL_S:g} ms"
    )
    table.add_row(
        f"{arguments.streams} streams, tokens/s",
        *(f"{speed[s]:.1f}" for s in speed),
        f"{-100 * loss:+.1f} %",
        f">= {-100 * LOSS_GOAL:g} %",
    )
    print(headline())
    Console(width=100).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**machine(), "records": records}, indent=1) + "\n")
    return int(later_s > FIRST_GOAL_S or loss > LOSS_GOAL)


if __name__ == "__main__":
    sys.exit(main())
